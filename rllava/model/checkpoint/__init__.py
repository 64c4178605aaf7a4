"""Checkpoints of LLaVAs: one file per format says what a folder of it is, and where its weights belong.

Formats:

- ``original``: a folder of LLaVA 1 or 1.5, or of Robust-LLaVA with one or two towers: language model and projectors;
  the frozen towers are looked for where encoders are (:mod:`rllava.weights`).
- ``projector``: what stage 1 leaves: ``mm_projector.bin`` beside ``config.json``; the language model is another folder.
- ``hugging_face``: a folder of transformers' ``LlavaForConditionalGeneration``; the tower is inside.
- ``trained``: what a sweep trained, a folder below ``models/`` of its storage.

:func:`read_checkpoint` finds out what a folder is, :func:`check_checkpoint` looks into its files,
:func:`load_checkpoint` loads it. A new format is a file with a function that makes a spec, and a
:class:`rllava.model.checkpoint.layout.Layout` for :data:`rllava.model.checkpoint.formats.LAYOUTS`.
"""

from rllava.model.checkpoint.loading import check_checkpoint, load_checkpoint
from rllava.model.checkpoint.reading import read_checkpoint

__all__ = ["check_checkpoint", "load_checkpoint", "read_checkpoint"]
