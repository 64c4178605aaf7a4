"""What a protocol did to a sample, and the grid of 1/128 level on which adversarial images are scored and stored.

Shapes: N samples, C channel, H/W image, S steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rllava.attacks.common import PIXEL, AttackResult, History, Norm, expand
from rllava.attacks.rounds import Round
from rllava.attacks.stepper import Lanes

GRID = 128
"""Scored images are multiples of 1/128 of an 8-bit level, so that an 8-bit image and one signed byte per value store
them without loss."""

GRID_VERSION = 1
"""Raised when an image that an attack found is scored or stored as another one."""


@dataclass(frozen=True)
class Evidence:
    """One round of one sample, as the attack checks need it.

    Attributes:
        text: whose loss was attacked; None: visual tokens were.
        loss_S: what the attack maximised, at each step; column 0 is the start.
        step_size_S: in pixel units.
        zero_gradient_S: share of exactly zero gradient entries.
        failed: whether loss or gradient was not finite, so that the attack stopped.
    """

    text: str | None
    targeted: bool
    precision: str
    loss_S: Tensor
    step_size_S: Tensor
    zero_gradient_S: Tensor
    best_CHW: Tensor
    failed: bool

    @classmethod
    def of(cls, lanes: Lanes, row: int, entry: Round, text: str | None, steps: int) -> "Evidence":
        """What a lane shows."""
        return cls(
            text,
            entry.targeted,
            entry.precision,
            lanes.loss_LS[row, : steps + 1].clone(),
            lanes.step_size_LS[row, :steps].clone(),
            lanes.zero_gradient_LS[row, :steps].clone(),
            lanes.best_LCHW[row].clone(),
            bool(lanes.failed_L[row]),
        )

    @property
    def steps(self) -> int:
        """Gradient steps of the round."""
        return len(self.step_size_S)

    @property
    def last_rise(self) -> float:
        """Rise of the best loss over the last tenth of the steps."""
        best_S = self.loss_S.cummax(0).values
        return float(best_S[-1] - best_S[len(best_S) - 1 - max(1, self.steps // 10)])


def attack_result(rounds: list[Evidence]) -> AttackResult:
    """Rounds of several samples, of equally many steps, as the checks want them.

    Returns:
        The result of attacking these samples.
    """
    history = History(
        torch.stack([entry.loss_S for entry in rounds], dim=1),
        torch.stack([entry.step_size_S for entry in rounds], dim=1),
        torch.stack([entry.zero_gradient_S for entry in rounds], dim=1),
    )
    best_NCHW = torch.stack([entry.best_CHW for entry in rounds])
    failed_N = torch.tensor([entry.failed for entry in rounds], device=best_NCHW.device)
    # The best loss of the history; a sample that broke has NaN there from some step on.
    loss_N = history.loss_SB.nan_to_num(nan=-torch.inf).amax(0)
    steps = rounds[0].steps
    return AttackResult(
        best_NCHW, loss_N, best_NCHW, torch.zeros_like(failed_N), history, failed_N, forwards=steps + 1, backwards=steps
    )


@dataclass
class Outcome:
    """What a protocol did to one sample.

    Attributes:
        prediction: answer to the worst image.
        image_CHW: the worst image (the clean one where no round lowered the score).
        label: index of the last label whose loss lowered the score; None if none did.
        best_round: name of the round, ``"clean"`` where none helped.
        rounds: names of the rounds that attacked the sample.
        round_predictions: answer after each; None after a round that is not judged.
        forwards: forward passes over all rounds, answers left out.
        steps: gradient steps over all rounds.
        zero_gradients: share of exactly zero gradient entries, summed over steps.
        evidence: the best round; the first one where none helped; None where no gradient step was taken.
        previous_CHW: the worst image of the last round; where it ended if it was not judged.
        error: why a round broke off, or None.
    """

    prediction: str
    score: float
    image_CHW: Tensor
    label: int | None = None
    best_round: str = "clean"
    rounds: list[str] = field(default_factory=list)
    round_predictions: list[str | None] = field(default_factory=list)
    round_scores: list[float | None] = field(default_factory=list)
    forwards: int = 0
    steps: int = 0
    zero_gradients: float = 0.0
    evidence: Evidence | None = None
    previous_CHW: Tensor | None = None
    error: str | None = None

    @property
    def zero_gradient_share(self) -> float | None:
        """Mean share of exactly zero gradient entries; None if there was no step."""
        return self.zero_gradients / self.steps if self.steps else None

    def note(self, entry: Round, evidence: Evidence, image_CHW: Tensor, verdict: tuple[str, float] | None) -> None:
        """Takes in a round that is done.

        Args:
            image_CHW: its worst image, as it was scored; where it ended if it is not judged.
            verdict: answer and score; None if the round is not judged.
        """
        better = verdict is not None and verdict[1] < self.score
        self.rounds.append(entry.name)
        self.round_predictions.append(None if verdict is None else verdict[0])
        self.round_scores.append(None if verdict is None else verdict[1])
        self.forwards += evidence.steps + 1
        self.steps += evidence.steps
        self.zero_gradients += float(evidence.zero_gradient_S.sum())
        self.previous_CHW = image_CHW
        if evidence.failed:
            self.error = f"round {entry.name}: loss or gradient was not finite; the attack stopped at its best point"
        if evidence.steps and (better or self.evidence is None):
            self.evidence = evidence
        if better:
            assert verdict is not None
            self.prediction, self.score = verdict
            self.image_CHW, self.best_round = image_CHW, entry.name
            if entry.label.of == "reference":
                self.label = entry.label.number

    def state_dict(self) -> dict[str, Any]:
        """All of it as tensors, numbers and text; the clean image is left out.

        Returns:
            For :meth:`load_state_dict`.
        """
        state = {name: list(value) if isinstance(value, list) else value for name, value in self.__dict__.items()}
        state["evidence"] = None if self.evidence is None else dict(self.evidence.__dict__)
        if self.best_round == "clean":
            state["image_CHW"] = None
        return state

    def load_state_dict(self, state: Mapping[str, Any], clean_CHW: Tensor) -> None:
        """Becomes what another outcome was.

        Args:
            state: from its :meth:`state_dict`.
            clean_CHW: the sample's clean image; says where the tensors belong.
        """

        def here(value: Any) -> Any:
            if isinstance(value, list):
                return list(value)
            return value.to(clean_CHW.device) if isinstance(value, Tensor) else value

        self.__dict__.update({name: here(value) for name, value in state.items()})
        if state["image_CHW"] is None:
            self.image_CHW = clean_CHW
        if state["evidence"] is not None:
            self.evidence = Evidence(**{name: here(value) for name, value in state["evidence"].items()})


def snap(images_NCHW: Tensor, clean_NCHW: Tensor, epsilon: float | Sequence[float], norm: Norm = "linf") -> Tensor:
    """The nearest images on the grid of 1/128 level that keep the budget.

    Args:
        images_NCHW: adversarial images in [0, 1].
        clean_NCHW: clean images, multiples of 1/255.
        epsilon: budget in 1/255, of all or of each.
        norm: of the budget. In L2, what lies between two points of the grid goes to the one nearer to the clean image:
            no sum of squares grows.

    Returns:
        What is scored: :func:`pack_images` stores it without loss.
    """
    if norm == "l2":
        steps_NCHW = ((images_NCHW - clean_NCHW) / (PIXEL / GRID)).trunc()
        return _from_grid(((clean_NCHW / (PIXEL / GRID)).round() + steps_NCHW).clamp(0, 255 * GRID).to(torch.int32))
    return _from_grid(_on_grid(images_NCHW, clean_NCHW, epsilon))


def pack_images(images_NCHW: Tensor, clean_NCHW: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Splits scored images into 8-bit images and what they lack.

    Args:
        images_NCHW: from :func:`snap`.
        clean_NCHW: clean images, multiples of 1/255.
        epsilon: budget in 1/255.

    Returns:
        uint8 images [N, C, H, W] within the whole levels that the budget allows, and the rest in 1/128 level, int8.
    """
    rounded_NCHW = _on_grid(images_NCHW, clean_NCHW, epsilon, grid=1)
    rest_NCHW = _on_grid(images_NCHW, clean_NCHW, epsilon) - rounded_NCHW * GRID
    return rounded_NCHW.to(torch.uint8), rest_NCHW.to(torch.int8)


def unpack_images(rounded_NCHW: Tensor, rest_NCHW: Tensor) -> Tensor:
    """The scored images, bit by bit.

    Args:
        rounded_NCHW: uint8.
        rest_NCHW: in 1/128 level, int8.

    Returns:
        float32 images in [0, 1].
    """
    return _from_grid(rounded_NCHW.to(torch.int32) * GRID + rest_NCHW.to(torch.int32))


def _on_grid(images_NCHW: Tensor, clean_NCHW: Tensor, epsilon: float | Sequence[float], grid: int = GRID) -> Tensor:
    """The nearest values in 1/grid level that keep the budget, int32."""
    budgets = [epsilon] if isinstance(epsilon, int | float) else epsilon
    most_N = torch.tensor([float(int(budget * grid)) for budget in budgets], dtype=images_NCHW.dtype)
    most_N111 = expand(most_N.to(images_NCHW.device))
    unit = PIXEL / grid
    delta_NCHW = ((images_NCHW - clean_NCHW) / unit).round().clamp(-most_N111, most_N111)
    return ((clean_NCHW / unit).round() + delta_NCHW).clamp(0, 255 * grid).to(torch.int32)


def _from_grid(values_NCHW: Tensor) -> Tensor:
    return values_NCHW.to(torch.float32) * (PIXEL / GRID)


def round_to_8_bits(images_BCHW: Tensor, clean_BCHW: Tensor, epsilon: float | Sequence[float]) -> Tensor:
    """The nearest 8-bit images that keep the budget; the clean images are 8-bit images themselves.

    Args:
        images_BCHW: adversarial images in [0, 1].
        clean_BCHW: clean images, multiples of 1/255.
        epsilon: budget in 1/255, of all or of each.

    Returns:
        Images whose every value is a multiple of 1/255, within the whole levels that the budget allows.
    """
    return _on_grid(images_BCHW, clean_BCHW, epsilon, grid=1).to(images_BCHW.dtype) * PIXEL
