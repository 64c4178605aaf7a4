"""LLaVA: projectors, image-token splice, conversation, tokenisation with label masks, generation, loading and saving."""

from rllava.torchvision_shim import declare_missing_operators

declare_missing_operators()  # before anything here imports transformers
