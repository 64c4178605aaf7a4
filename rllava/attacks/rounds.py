"""Rounds: one attack run inside a protocol, as data."""

from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class Start:
    """Where a round starts; the point is projected into the round's budget.

    Attributes:
        at: ``clean``: the clean image. ``random``: a random point of the budget. ``best``: the sample's worst image so
            far. ``previous``: where its last round ended. ``smaller``: the image of this evaluation at the next smaller
            budget of the sweep. ``larger``: the image that beat the sample at a larger budget
            (:mod:`rllava.attacks.smallest`). ``other``: the image of another evaluation. Where there is none of the
            last three, the round is skipped.
        number: of the other evaluation, see :attr:`rllava.attacks.protocols.Protocol.after`.
    """

    at: Literal["clean", "random", "best", "previous", "smaller", "larger", "other"]
    number: int | None = None

    def __post_init__(self) -> None:
        if (self.number is None) == (self.at == "other"):
            raise ValueError(f"start: {self.at} with number {self.number}; the number is that of an other evaluation")

    @property
    def found(self) -> bool:
        """Whether an image has to be there that was found before."""
        return self.at in ("smaller", "larger", "other")

    def __str__(self) -> str:
        return self.at if self.number is None else f"{self.at} {self.number}"


CLEAN, RANDOM, BEST, PREVIOUS = Start("clean"), Start("random"), Start("best"), Start("previous")
SMALLER, LARGER = Start("smaller"), Start("larger")


def other(number: int) -> Start:
    """At the image of another evaluation."""
    return Start("other", number)


@dataclass(frozen=True)
class Label:
    """Whose loss a round attacks.

    Attributes:
        of: ``reference``: of the reference caption, or most common answer, of that number; samples with fewer skip the
            round. ``best``: of that of the worst image so far. ``answer``: of the worst answer so far, or the clean
            one. ``text``: of a text that the model shall say. ``decoy``: of one of the benchmark's answers that score
            least for the sample, the likeliest for its worst image so far first; samples with fewer skip the round.
            ``tokens``: of none: the visual tokens are driven away from the clean image's.
        number: of the reference or decoy, from 0.
        text: that the model shall say.
    """

    of: Literal["reference", "best", "answer", "text", "decoy", "tokens"]
    number: int | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        numbered, worded = self.of in ("reference", "decoy"), self.of == "text"
        if (self.number is not None) != numbered or (self.text is not None) != worded:
            raise ValueError(f"label: {self.of} with number {self.number} and text {self.text!r}; see Label")

    @property
    def targeted(self) -> bool:
        """Whether the loss is minimised."""
        return self.of in ("text", "decoy")

    def __str__(self) -> str:
        detail = self.text if self.number is None else self.number
        return self.of if detail is None else f"{self.of} {detail}"


SAME, ANSWER, TOKENS = Label("best"), Label("answer"), Label("tokens")


def reference(number: int) -> Label:
    """The reference caption, or most common answer, of that number."""
    return Label("reference", number)


def target(text: str) -> Label:
    """A text that the model shall say."""
    return Label("text", text=text)


def decoy(number: int) -> Label:
    """A wrong answer that the model shall give."""
    return Label("decoy", number)


@dataclass(frozen=True)
class Round:
    """One attack run inside a protocol.

    Attributes:
        steps: of the attack; 0: the start point is answered, nothing else.
        precision: of the attacked model; image, perturbation and projection are float32 in every case.
        step_size: first step size, in units of the round's budget.
        width: the round's budget in units of the protocol's. A round of more than 1 only prepares a start point.
        judged: whether its image is answered and scored.
        answers: steps after which the point where the attack stands (after a halving of its step size: its best one) is
            answered as well; the worst answer of the round counts, and a sample that is dropped by one leaves at once.
        gives_up: a sample whose loss stayed below this at every step is left out of later rounds: with a mean
            cross-entropy of 0.01 per token, every token of the answer keeps a likelihood of about 0.99.
        attack: name in :data:`rllava.attacks.stepper.ATTACKS`.
        absolute: whether ``step_size`` is in 1/255 instead.
    """

    name: str
    steps: int
    precision: Precision
    start: Start
    label: Label
    step_size: float = 1.0
    width: float = 1.0
    judged: bool = True
    answers: tuple[int, ...] = ()
    gives_up: float | None = None
    attack: str = "apgd"
    absolute: bool = False

    def __post_init__(self) -> None:
        if self.steps < 0 or self.width <= 0 or self.step_size <= 0:
            raise ValueError(f"round {self.name}: width and step_size must be positive, steps not negative")
        if not all(0 <= step < self.steps for step in self.answers):
            raise ValueError(f"answers: round {self.name} has {self.steps} steps, but answers after {self.answers}")
        if self.width > 1 and (self.judged or self.answers):
            raise ValueError(f"width: round {self.name} leaves the budget, so it must not be judged")

    @property
    def targeted(self) -> bool:
        """Whether the loss is minimised."""
        return self.label.targeted

    @property
    def kind(self) -> tuple[str, str, bool]:
        """Rounds of one kind share their looks: the same precision, attack, and model (the whole one, or encoders)."""
        return self.precision, self.attack, self.label.of == "tokens"
