"""Candidates: whole models, each with the encoders that it is judged with; and the grammar of their names."""

from dataclasses import dataclass, replace

from rllava.encoders import EncoderSpec, check_swap, check_together, encoder_spec
from rllava.errors import UserError
from rllava.model.checkpoint_spec import CheckpointSpec
from rllava.specs import ModelSpec


@dataclass(frozen=True)
class Candidate:
    """One row of a grid: a whole model, and the encoders that it is judged with.

    Attributes:
        name: in records and reports. Trainings that differ in their seed alone share it.
        model: how its LLaVA comes about: trained by the sweep, or a checkpoint from elsewhere.
        used: encoders it is evaluated with; the model's (end-to-end), or others (plug-and-play).
    """

    name: str
    model: ModelSpec | CheckpointSpec
    used: tuple[EncoderSpec, ...]

    @property
    def trained(self) -> tuple[EncoderSpec, ...]:
        """Encoders that the LLaVA is trained with."""
        return self.model.encoders

    @property
    def plugged(self) -> bool:
        """Whether the encoders are not those of the training."""
        return self.trained != self.used

    @property
    def judged(self) -> tuple[EncoderSpec, ...]:
        """Encoders that it is evaluated with, as the training leaves them."""
        return self.used if self.plugged or not isinstance(self.model, ModelSpec) else self.model.own_encoders

    @property
    def trains(self) -> bool:
        """Whether a LLaVA is trained for it, rather than found."""
        return isinstance(self.model, ModelSpec) and not self.plugged

    @property
    def seed(self) -> int | None:
        """Training seed; None for a checkpoint from elsewhere."""
        return self.model.seed if isinstance(self.model, ModelSpec) else None

    @property
    def trial(self) -> str:
        """What its trial is called: the candidate, and its seed unless that is 0."""
        return trial_name(self.name, self.seed)


def trial_name(candidate: str, seed: int | None) -> str:
    """``name``, or ``name#seed`` of another training than that of seed 0."""
    return f"{candidate}#{seed}" if seed else candidate


def parse_candidate(text: str, model: ModelSpec) -> Candidate:
    """Reads a candidate's name.

    ``a``: LLaVA trained end-to-end on encoder a. ``a+b``: on both, token-interleaved. ``b@a``: encoder b plugged into
    the LLaVA trained with a; both sides may be ensembles. Names of encoders: see :mod:`rllava.encoders.names`.

    Args:
        model: whose training its LLaVA gets, all but the encoders.

    Raises:
        UserError: if it does not follow the grammar, names an unknown encoder, or its encoders do not fit together.
    """
    used_text, at, trained_text = text.partition("@")
    if not used_text or (at and not trained_text) or "@" in trained_text:
        raise UserError(f"candidate '{text}': write a (end-to-end), a+b (ensemble) or b@a (b plugged into a's LLaVA)")
    used = tuple(encoder_spec(name) for name in used_text.split("+"))
    trained = tuple(encoder_spec(name) for name in trained_text.split("+")) if at else used
    for together in (used, trained):
        check_together(together, f"candidate '{text}'")
    check_swap(used, trained, f"candidate '{text}'")
    names = ["+".join(spec.name for spec in specs) for specs in (used, trained)]
    name = names[0] if names[0] == names[1] else "@".join(names)
    return Candidate(name, replace(model, encoders=trained), used)


def named(model: ModelSpec, *names: str) -> tuple[Candidate, ...]:
    """Candidates of one training, see :func:`parse_candidate`."""
    return tuple(parse_candidate(name, model) for name in names)
