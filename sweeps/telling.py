"""What Ray Train's controller tells of a training. Light: the controller need not load torch to pass on numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray.train import UserCallback

from sweeps.events import Event, Interrupted, Optimising, Training
from sweeps.failures import in_few_words

Tell = Callable[[Event], None]


class TellTraining(UserCallback):  # type: ignore[misc]  # Ray has no types
    """Passes on what training workers report to Ray Train; lives in its controller.

    Args:
        event: of what worker 0 reports.
    """

    def __init__(self, tell: Tell, event: Callable[..., Any] = Training) -> None:
        self.tell = tell
        self.event = event

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Called by Ray Train when all workers have reported."""
        self.tell(self.event(**metrics[0]))

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray Train when workers were lost."""
        self.tell(Interrupted(in_few_words(next(iter(worker_exceptions.values())))))


@dataclass(frozen=True)
class TellOptimising:
    """Passes on how far the making of images is; lives in the workers.

    Attributes:
        names: of the images, by their index in the job.
        steps: that each takes.
    """

    tell: Tell
    names: tuple[str, ...]
    steps: tuple[int, ...]

    def __call__(self, index: int, step: int, loss: float) -> None:
        """Called by a worker every few seconds."""
        self.tell(Optimising(self.names[index], step, self.steps[index], loss))
