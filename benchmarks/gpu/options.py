"""How it is measured: the options of the command line, and the command that says them again."""

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Options:
    """The command line.

    Attributes:
        shapes: name in :data:`benchmarks.gpu.shapes.SHAPES`.
        device: of everything.
        towers: names.
        steps: of the attacks that are timed.
        repeats: timings of which the median counts.
        max_batch: where the batch stops growing if memory does not stop it.
        prompt_tokens: text tokens around the image.
        answer_tokens: labelled ones, the end token among them.
        precision: of the weights: ``bfloat16`` or ``float32``.
        compile: whether the best batch is timed with torch.compile, too.
        output: Markdown file to write.
    """

    shapes: str
    device: torch.device
    towers: tuple[str, ...]
    steps: int
    repeats: int
    max_batch: int
    prompt_tokens: int
    answer_tokens: int
    precision: str
    compile: bool
    output: Path

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    @property
    def command(self) -> str:
        """That measures the same again."""
        return (
            f"python -m benchmarks.gpu_7b --shapes {self.shapes} --device {self.device.type} "
            f"--towers {' '.join(self.towers)} --steps {self.steps} --repeats {self.repeats} "
            f"--max-batch {self.max_batch} --prompt-tokens {self.prompt_tokens} "
            f"--answer-tokens {self.answer_tokens} --precision {self.precision}{' --compile' if self.compile else ''}"
        )
