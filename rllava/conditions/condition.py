"""What every condition says of itself. Light: the tasks that prepare images import no torch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from rllava.data.listed import SampleList
from rllava.errors import UserError
from rllava.registry import Registry

Views = Callable[[bytes, str], Sequence[np.ndarray]]
"""``views(image, sample_id) -> images_V``: what is shown instead of an encoded image, uint8 [H, W, 3] each, before a
model's own padding and resizing. It can be pickled, depends on its arguments alone, and raises
:class:`rllava.data.images.DamagedImage` for an image that it cannot be made of."""


SHOWN = 4
"""Of the first so many samples of a benchmark, the images are kept that are shown instead of theirs."""


@dataclass(frozen=True)
class Setting:
    """What a recipe says for every condition that a command line names.

    Attributes:
        side: size at which images are changed, in pixels of the longer side.
        attacks: conditions of the same sweep that are attacks.
    """

    precision: str = "float32"
    side: int = 336
    attacks: "tuple[Condition, ...]" = ()


@dataclass(frozen=True)
class Passes:
    """What a sample takes under a condition in one precision, at most and on average over samples.

    Attributes:
        steps: passes forward and back to the pixels.
        looks: passes forward alone.
        answers: texts that are generated.
        encoders_only: whether steps and looks do without the language model.
    """

    precision: str
    steps: float = 0.0
    looks: float = 0.0
    answers: float = 0.0
    encoders_only: bool = False


@dataclass(frozen=True)
class Condition(ABC):
    """A spec, part of the identity of every evaluation under it, which also says how its records are made.

    Another kind is a frozen dataclass that derives from this one, registered in :data:`CONDITIONS`. Its ``version`` is
    raised when anything else is shown.
    """

    kind: ClassVar[str]
    """A word for what it does, as records carry it; what a statistic is about is decided by it, not by names."""

    version: ClassVar[int] = 1

    searches: ClassVar[bool] = False
    """Whether it looks for the image on which an answer scores least."""

    needs_image: ClassVar[bool] = True
    """Whether it does something to a sample's own image; one that has none then has no score under it."""

    def versions(self) -> Mapping[str, int]:
        """Of the kind."""
        return {"condition": self.version}

    @classmethod
    def named(cls, what: str, setting: "Setting") -> "Condition":
        """The condition that a command line names by ``KIND`` or ``KIND:WHAT``.

        Args:
            what: after the colon; empty where nothing is.
            setting: what the recipe says for all conditions.

        Raises:
            UserError: if it cannot be asked for so, or something else is wanted after the colon.
        """
        raise UserError(f"condition {cls.kind} cannot be asked for by name")

    @classmethod
    def all_named(cls, what: str, setting: "Setting") -> "tuple[Condition, ...]":
        """As :meth:`named`, where a name stands for several."""
        return (cls.named(what, setting),)

    def over(self, candidates: Sequence[str]) -> "tuple[Condition, ...]":
        """What it comes to in a sweep of some candidates: itself, or one for each."""
        return (self,)

    @property
    @abstractmethod
    def label(self) -> str:
        """Name and version, as records carry them."""

    @property
    def short(self) -> str:
        """How artifacts are called."""
        return self.label

    @property
    def phrase(self) -> str:
        """How a progress line ends that says what was answered."""
        return f"under {self.short}"

    @property
    def epsilon(self) -> float | None:
        """Budget in 1/255; None where there is none."""
        return None

    @property
    def parts(self) -> tuple[Mapping[str, Any], ...]:
        """Columns that tell apart the records of one sample, one entry per record."""
        return ({"epsilon": self.epsilon},)

    @property
    def views(self) -> Views | None:
        """What is made of each image before a model sees it, in tasks without a GPU; None: nothing."""
        return None

    @property
    def changes_images(self) -> bool:
        """Whether :meth:`views_in` makes any."""
        return self.views is not None

    def views_in(self, listed: Callable[[], SampleList]) -> Views | None:
        """As :attr:`views`, for one that depends on what a benchmark asks.

        Args:
            listed: reads the benchmark's fixed list.
        """
        return self.views

    @property
    def adaptive(self) -> bool:
        """Whether what was searched for, if anything was, was searched for against what then answers.

        A number of one that is not bounds no robustness, so its label says ``non-adaptive``, wherever it is shown.
        """
        return True

    @property
    def source(self) -> str:
        """The candidate whose stored images it shows; empty: no other one's."""
        return ""

    @property
    def stored_under(self) -> "Condition | None":
        """Under which condition the stored images were found that it shows; None: it shows none."""
        return None

    @property
    def label_budget(self) -> float | None:
        """Budget of the images that it shows or looks for, in 1/255, where that stands in the label alone: without an
        :attr:`epsilon`, its records stand in no cell of a plain attack."""
        return None if self.stored_under is None else self.stored_under.epsilon

    @property
    def keeps_prompt(self) -> bool:
        """Whether samples are asked what the benchmark asks."""
        return True

    @abstractmethod
    def precisions(self, task: str) -> tuple[str, ...]:
        """In which precisions the model is asked: that of the clean answers first.

        Raises:
            UserError: if the condition is not for such tasks.
        """

    def aims_at_decoys(self, task: str) -> bool:
        """Whether wrong answers of the benchmark are needed, to aim at."""
        return False

    def versions_for(self, task: str) -> Mapping[str, int]:
        """Of the code that it depends on, its fields' own versions left out."""
        return {}

    def passes(self, benchmark: Any, labels: float) -> tuple[Passes, ...]:
        """What it takes, for a plan that is made before anything runs: by default one answer per record.

        Args:
            benchmark: a :class:`rllava.data.benchmarks.BenchmarkSpec`.
            labels: texts per sample whose loss attacks may raise, on average.
        """
        return (Passes(self.precisions(benchmark.task.kind)[0], answers=float(len(self.parts))),)

    def images(self, evaluation: Any) -> tuple[Any, ...]:
        """Images that have to be made before it can be shown.

        Args:
            evaluation: a :class:`rllava.specs.EvalSpec` of it.

        Returns:
            Their :class:`rllava.image_spec.ImageSpec`.
        """
        return ()

    @abstractmethod
    def run(self, work: Any) -> list[dict[str, Any]]:
        """Makes the records of a shard.

        Args:
            work: a :class:`rllava.evaluation.shard.ShardWork`; its samples have no errors, and have :attr:`views`.

        Returns:
            Per sample one record per entry of :attr:`parts`, in that order.
        """


CONDITIONS: Registry[type[Condition]] = Registry("condition", "rllava.conditions", folder="rllava.conditions")
"""Kinds of conditions."""


def read_conditions(text: str, setting: Setting) -> tuple[Condition, ...]:
    """Reads conditions as they are named on a command line: ``KIND`` or ``KIND:WHAT``, e.g. ``corruption:fog``.

    Args:
        setting: what the recipe says for all conditions.

    Raises:
        UserError: if there is no such kind, or it needs something else after the colon.
    """
    kind, _, what = text.partition(":")
    return CONDITIONS.get(kind).all_named(what, setting)
