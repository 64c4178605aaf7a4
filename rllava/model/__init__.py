"""LLaVA: projectors, image-token splice, conversation, tokens and label masks, generation, loading and saving."""

from rllava.torchvision_shim import declare_missing_operators

declare_missing_operators()  # before anything here imports transformers

from transformers.utils import logging as _transformers_logging  # noqa: E402

_transformers_logging.disable_progress_bar()  # a bar per loaded model would drown the sweep's own progress
