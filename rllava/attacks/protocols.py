"""Protocols: ordered, named, versioned lists of attack rounds. The protocol decides what a robust score means.

A protocol is data. :mod:`rllava.attacks.worst_case` runs it. ``paper_*`` protocols replicate the rounds of Robust-LLaVA
(``vlm_eval/run_evaluation.py``, the same as RobustVLM's); others have other names.
"""

from dataclasses import dataclass, replace
from typing import Literal

from rllava.errors import UserError
from rllava.registry import Registry

Task = Literal["captioning", "vqa"]


@dataclass(frozen=True)
class Round:
    """One attack run inside a protocol.

    Attributes:
        name: shown in records.
        steps: gradient steps of APGD.
        precision: of the attacked model; image, perturbation and projection are float32 in every case.
        start: the clean image, or the sample's worst image so far.
        label: whose loss is attacked. A number k: the k-th reference caption, or the k-th most common answer; samples
            with fewer skip the round. ``"best"``: the label of the worst image so far. ``"=TEXT"``: targeted, the loss
            of TEXT is minimised.
    """

    name: str
    steps: int
    precision: Literal["float32", "float16", "bfloat16"]
    start: Literal["clean", "best"]
    label: int | str

    @property
    def target(self) -> str | None:
        """The target text of a targeted round."""
        return self.label.removeprefix("=") if isinstance(self.label, str) and self.label.startswith("=") else None


@dataclass(frozen=True)
class Protocol:
    """Rounds per task, and the rules between them.

    A sample whose clean score is at or below the benchmark's drop threshold is not attacked; one that falls there in a
    round is left out of the later ones. The worst answer over all rounds counts.

    Attributes:
        name: of the protocol.
        version: raised when its meaning changes.
        captioning: rounds against captions.
        vqa: rounds against short answers.
    """

    name: str
    version: int
    captioning: tuple[Round, ...]
    vqa: tuple[Round, ...]

    def rounds(self, task: Task) -> tuple[Round, ...]:
        """The rounds against one kind of benchmark.

        Args:
            task: kind of benchmark.

        Returns:
            Its rounds.
        """
        return self.captioning if task == "captioning" else self.vqa

    @property
    def label(self) -> str:
        """Name and version, as records carry it."""
        return f"{self.name}-v{self.version}"

    def describe(self) -> str:
        """A table of the rounds and what they cost, for people.

        Returns:
            Lines of text.
        """
        lines = [f"{self.label}: worst case per sample over the rounds of APGD (L-inf, first step 1 epsilon)"]
        for task, rounds in (("captioning", self.captioning), ("vqa", self.vqa)):
            forwards, backwards = sum(r.steps + 1 for r in rounds), sum(r.steps for r in rounds)
            lines.append(f"  {task}: at most {forwards} forward and {backwards} backward passes per sample and budget")
            for r in rounds:
                lines.append(f"    {r.name:<18} {r.steps:>6} steps  {r.precision}  from {r.start:<5}  label {r.label}")
        return "\n".join(lines)


PROTOCOLS: Registry[Protocol] = Registry("protocol")


def _ensemble(name: str, steps: int, precision: Literal["float32", "float16"]) -> Protocol:
    """Sections 4.3 and 4.4 of the evaluation: one round per label, then the best one again in float32, then targets."""
    labels = tuple(Round(f"label{k}", steps, precision, "clean", k) for k in range(5))
    again = Round("from-best", steps, "float32", "best", "best")
    targets = tuple(Round(f"target-{text}", steps, "float32", "clean", f"={text}") for text in ("maybe", "Word"))
    return Protocol(name, 1, captioning=(*labels, again), vqa=(*labels, again, *targets))


def _register(protocol: Protocol) -> Protocol:
    return PROTOCOLS.register(protocol.name, protocol)


paper_ensemble = _register(_ensemble("paper_ensemble", 100, "float16"))
"""The paper's tables 1 and 15."""

paper_apgd = _register(
    Protocol(
        "paper_apgd",
        1,
        captioning=(Round("label0", 100, "float16", "clean", 0),),
        vqa=(Round("label0", 100, "float16", "clean", 0),),
    )
)
"""The paper's tables 6 and 14, but for their missing clean filter: here clean failures are not attacked."""

paper_ensemble_10steps = _register(_ensemble("paper_ensemble_10steps", 10, "float32"))
"""The paper's ensemble of rounds with 10 steps each instead of 100, in float32 throughout: for CPUs and quick looks."""

paper_ensemble_3steps = _register(_ensemble("paper_ensemble_3steps", 3, "float32"))
"""The same with 3 steps: shows that everything runs; too weak to conclude anything from."""


def with_steps(protocol: Protocol, steps: int) -> Protocol:
    """A protocol with another number of steps in every round, under another name.

    Args:
        protocol: to change.
        steps: per round.

    Returns:
        The protocol ``NAME_Nsteps``.

    Raises:
        UserError: if steps is not positive.
    """
    if steps < 1:
        raise UserError(f"--attack-steps: expected at least 1, got {steps}")

    def changed(rounds: tuple[Round, ...]) -> tuple[Round, ...]:
        return tuple(replace(entry, steps=steps) for entry in rounds)

    base = protocol.name.rsplit("_", 1)[0] if protocol.name.endswith("steps") else protocol.name
    return replace(
        protocol, name=f"{base}_{steps}steps", captioning=changed(protocol.captioning), vqa=changed(protocol.vqa)
    )
