"""Where the time of a step goes.

Shapes: B batch, C channel, H/W image, P visual tokens, D width.
"""

import time
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.device import release, synchronise
from benchmarks.gpu.results import PARTS
from rllava.attacks.common import LossFunction


class Stopwatch:
    """Where the time of a step goes. Marks are events on the device's own clock: nothing waits for them.

    Each mark ends a stretch of the step, and says which part it belonged to. Forward, they come from hooks on the
    modules; backward, from hooks on the tensors between them, which fire when their gradient is there.
    """

    def __init__(self, bench: Bench) -> None:
        self.device = bench.options.device
        self.marks: list[tuple[str, Any]] = []
        language = cast(Any, bench.llava.connector.language_model).model
        self.handles = [
            bench.llava.encoders[0].register_forward_hook(self._after_encoder),
            language.register_forward_pre_hook(self._before_language_model, with_kwargs=True),
            language.register_forward_hook(self._after_language_model),
        ]

    def watched(self, loss: LossFunction) -> LossFunction:
        """The same loss, with the marks at its ends."""

        def marked(pixels_BCHW: Tensor, index_B: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            self._mark("attack")
            if not torch.is_grad_enabled():  # the last look: no step follows
                return loss(pixels_BCHW, index_B)
            self._after_gradient(pixels_BCHW, "encoder")
            value = loss(pixels_BCHW, index_B)
            self._mark("head and loss")
            return value

        return marked

    def seconds(self) -> dict[str, float]:
        """What was measured; takes the hooks off.

        Returns:
            Total seconds by part.
        """
        for handle in self.handles:
            handle.remove()
        synchronise(self.device)
        totals = dict.fromkeys(PARTS, 0.0)
        for (_, begin), (part, end) in zip(self.marks, self.marks[1:], strict=False):
            totals[part] += begin.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - begin
        return totals

    def _mark(self, part: str) -> None:
        moment: Any = time.perf_counter()
        if self.device.type == "cuda":
            moment = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            moment.record()
        self.marks.append((part, moment))

    def _after_gradient(self, tensor: Tensor, part: str) -> None:
        tensor.register_hook(lambda _: self._mark(part))  # type: ignore[no-untyped-call]

    def _after_encoder(self, module: nn.Module, arguments: object, features_BPD: Tensor) -> None:
        if torch.is_grad_enabled():
            self._mark("encoder")
            self._after_gradient(features_BPD, "projector and splice")

    def _before_language_model(self, module: nn.Module, arguments: object, keywords: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            self._mark("projector and splice")
            self._after_gradient(keywords["inputs_embeds"], "language model")

    def _after_language_model(self, module: nn.Module, arguments: object, output: Any) -> None:
        if torch.is_grad_enabled():
            self._mark("language model")
            self._after_gradient(output.last_hidden_state, "head and loss")


def divide_time(bench: Bench, count: int) -> dict[str, float]:
    """Seconds of a step by part.

    Returns:
        Part to seconds, for the whole batch.
    """
    loss, images_BCHW, steps = bench.loss(count), bench.images(count), bench.options.steps
    release(bench.options.device)
    bench.attack(loss, images_BCHW, 1)
    stopwatch = Stopwatch(bench)
    bench.attack(stopwatch.watched(loss), images_BCHW, steps)
    return {part: total / steps for part, total in stopwatch.seconds().items()}
