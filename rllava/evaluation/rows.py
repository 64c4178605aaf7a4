"""From what an attack did to the columns of a record."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rllava.attacks.common import PIXEL
from rllava.attacks.outcome import GRID, Evidence, Outcome, pack_images
from rllava.data.images import encode_png
from rllava.evaluation.samples import Sample
from rllava.fingerprint import fingerprint
from rllava.specs import EvalSpec


def record_head(spec: EvalSpec, sample: Sample, part: Mapping[str, Any], draw: int = 0) -> dict[str, Any]:
    """The columns every record has.

    Args:
        part: columns that tell it from other records of the sample; see ``Condition.parts``.
    """
    return {
        "candidate": spec.candidate,
        "benchmark": spec.benchmark.name,
        "sample_id": sample.sample_id,
        "condition": spec.condition.label,
        "kind": spec.condition.kind,
        **part,
        "seed": spec.seed,
        "draw": draw,
        "model": fingerprint(spec.whole_model),
        "recipe": fingerprint(spec.recipe),
        "evaluation": fingerprint(spec),
        "prompt": sample.prompt,
        "question": sample.judged_as,
        "references": list(sample.references),
        "error": sample.error,
    }


def attacked_as_clean(prediction: str, score: float) -> dict[str, Any]:
    """The clean answer of a sample as that to what was shown: what it is until an attack does worse."""
    return {
        "prediction": prediction,
        "score": score,
        "prediction_8bit": prediction,
        "score_8bit": score,
        "linf": 0.0,
        "steps": 0,
        "rounds": [],
        "round_predictions": [],
        "round_scores": [],
        "best_round": "clean",
    }


def attack_fields(outcome: Outcome, clean_CHW: Tensor) -> dict[str, Any]:
    """What an attack did to a sample."""
    # An attack that failed proves no robustness; an answer that scores 0 needs no other proof.
    error = outcome.error if outcome.score > 0 else None
    return {
        "prediction": outcome.prediction,
        "score": outcome.score if error is None else None,
        "linf": norm_of(outcome.image_CHW, clean_CHW),
        "steps": outcome.steps,
        "rounds": outcome.rounds,
        "round_predictions": outcome.round_predictions,
        "round_scores": outcome.round_scores,
        "best_round": outcome.best_round,
        "zero_gradient_share": outcome.zero_gradient_share,
        "error": error,
        **loss_fields(outcome.evidence),
    }


def norm_of(image_CHW: Tensor, clean_CHW: Tensor) -> float:
    """L-inf norm of what was added to an image, in 1/255: in whole steps of the grid, so that no rounding shows it
    above the budget."""
    return round(float((image_CHW - clean_CHW).abs().max()) / PIXEL * GRID) / GRID


def loss_fields(evidence: Evidence | None) -> dict[str, Any]:
    """What a round did to the loss; nothing of none."""
    if evidence is None:
        return {}
    best_S = evidence.loss_S.cummax(0).values
    return {
        "loss_clean": float(best_S[0]),
        "loss_best": float(best_S[-1]),
        "loss_last_rise": evidence.last_rise,
    }


def image_fields(image_CHW: Tensor, clean_CHW: Tensor, epsilon: float) -> dict[str, Any]:
    """The scored image: its 8-bit version, and what that lacks.

    Args:
        image_CHW: scored, on the grid of 1/128 level.
        epsilon: budget in 1/255.
    """
    rounded_1CHW, rest_1CHW = pack_images(image_CHW[None], clean_CHW[None], epsilon)
    return {
        "adversarial_png": encode_png(_last_channel(rounded_1CHW[0])),
        "adversarial_rest": _last_channel(rest_1CHW[0]).tobytes(),
    }


def to_uint8(image_CHW: Tensor) -> np.ndarray:
    """An 8-bit image.

    Args:
        image_CHW: in [0, 1], multiples of 1/255.

    Returns:
        uint8 [H, W, 3].
    """
    return _last_channel((image_CHW / PIXEL).round().clamp(0, 255).to(torch.uint8))


def _last_channel(values_CHW: Tensor) -> np.ndarray:
    values_HWC: np.ndarray = values_CHW.permute(1, 2, 0).contiguous().cpu().numpy()
    return values_HWC
