"""What every judge says of itself, and what it says of an answer. Light: command lines read it without torch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from rllava.missing import Missing
from rllava.registry import Registry


@dataclass(frozen=True)
class Exchange:
    """What a judge reads: one turn of the user, one of the model.

    Attributes:
        prompt: the user's turn, image marker included.
        answer: to it; never empty.
    """

    prompt: str
    answer: str

    def fill(self, text: str) -> str:
        """Puts both into a text, where ``{prompt}`` and ``{answer}`` stand; the prompt without its image marker.

        Both at once: braces in them are their own.
        """
        request = self.prompt.replace("<image>", "").strip()
        return request.join(part.replace("{answer}", self.answer) for part in text.split("{prompt}"))


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one answer.

    Attributes:
        flagged: whether the answer is what the judge looks for; None: it could not say, or failed on this answer.
        score: how much, in the judge's own unit; None where it has none.
        labels: what it found, in its own words.
        scores: further numbers by name, e.g. one per class of a classifier.
        error: why it failed on this answer; None where it did not.
    """

    flagged: bool | None
    score: float | None = None
    labels: tuple[str, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None


Judge = Callable[[Sequence[Exchange]], Sequence[Verdict]]
"""A judge that is loaded: one verdict per answer, in their order, which depends on that answer alone.

What fails on one answer (a request that times out, a reply that cannot be read) is that answer's ``error``; the others
of the batch keep their verdicts. What fails on all (an endpoint that is not there, a driver that is broken) is raised:
the step ends, what it has written stays, and the same command goes on from there."""


@dataclass(frozen=True)
class JudgeSpec(ABC):
    """A spec, part of the identity of all its judgements, which also says how the judge is loaded.

    Another kind is a frozen dataclass that derives from this one. Its ``version`` is raised when any answer gets
    another verdict. Files and weights that it names are pinned by their content or its hash: where they lie is not part
    of the identity (:class:`rllava.fingerprint.PinnedBy`).
    """

    kind: ClassVar[str]
    """Its name in :data:`JUDGES`."""

    version: ClassVar[int] = 1

    on_gpu: ClassVar[bool] = False
    """Whether a worker of it asks for a GPU, where workers have any."""

    light: ClassVar[bool] = False
    """Whether judging costs next to nothing, so that judges share a worker rather than wait for one each."""

    flags_good: ClassVar[bool] = False
    """Whether a flag speaks for the model, as a refusal of a forbidden request does."""

    def versions(self) -> Mapping[str, int]:
        """Of the kind."""
        return {"judge": self.version}

    @property
    @abstractmethod
    def label(self) -> str:
        """Name and version, as judgements carry them: equal for equal identities, and for no others of one sweep."""

    @property
    @abstractmethod
    def description(self) -> str:
        """What it looks for, by what, in a few words for a report."""

    @property
    def batch_size(self) -> int:
        """Most answers that it takes at a time."""
        return 256

    def missing(self) -> list[Missing]:
        """What it reads and does not find on this machine; nothing is opened.

        Returns:
            Files and folders, none for most judges.
        """
        return []

    @abstractmethod
    def pinned(self) -> "JudgeSpec":
        """The spec with the hash of everything that it reads, after a look at it.

        Returns:
            A spec that has a fingerprint.

        Raises:
            UserError: in one line, if something cannot be read, is damaged or of another hash.
        """

    @abstractmethod
    def load(self) -> Judge:
        """Loads the judge; called once per worker, on the machine where it works.

        Raises:
            UserError: in one line, if what it reads on that machine is not there, or is another than was pinned.
        """


JUDGES: Registry[Callable[[str], Any]] = Registry("judge", "rllava.judges", folder="rllava.metrics.judges")
"""Kinds of judges: from what stands after the colon on a command line (empty: nothing does) to a spec, not yet pinned.
"""


def read_judge(text: str) -> JudgeSpec:
    """Reads a judge as it is named on a command line: ``NAME`` or ``NAME:WHAT``, e.g. ``lexicon:words.txt``.

    Args:
        text: from the command line. What stands after the first colon is up to the judge: a file, a folder, a URL.

    Returns:
        Its spec; files that it names have not been looked for.

    Raises:
        UserError: if there is no such judge, or it needs something else after the colon.
    """
    name, _, what = text.partition(":")
    found: JudgeSpec = JUDGES.get(name)(what)
    return found
