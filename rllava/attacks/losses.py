"""Losses per sample for classifiers and for features, all to be maximised.

Each takes what a model returned and gives one value per sample; :func:`classifier_loss` makes a loss function of a
classifier that every attack of this package takes.

Shapes: B batch, C channel, H/W image, K class, P visual token, D width.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

DENOMINATOR = 1e-12
"""Added to the denominators of the ratios, as AutoAttack does."""


def cross_entropy(logits_BK: Tensor, label_B: Tensor) -> Tensor:
    """Cross-entropy of the label.

    Returns:
        loss_B, at least in float32.

    Raises:
        ValueError: if the shapes do not fit.
    """
    _check(logits_BK, label_B, "label", 1, "cross_entropy")
    return F.cross_entropy(_wide(logits_BK), label_B, reduction="none")


def margin(logits_BK: Tensor, label_B: Tensor) -> Tensor:
    """How far the best other class lies above the label, ``max_{i != y} z_i - z_y``: what Square uses in AutoAttack.

    Args:
        logits_BK: what a classifier returned, at least 2 classes.

    Returns:
        loss_B, at least in float32: above 0 where the sample is misclassified.

    Raises:
        ValueError: if there are less than 2 classes, or the shapes do not fit.
    """
    _check(logits_BK, label_B, "label", 2, "margin")
    logits_BK, label_B1 = _wide(logits_BK), label_B[:, None]
    other_B = logits_BK.scatter(1, label_B1, float("-inf")).amax(1)
    return other_B - logits_BK.gather(1, label_B1)[:, 0]


def dlr(logits_BK: Tensor, label_B: Tensor) -> Tensor:
    """Difference of logits ratio (Croce & Hein 2020): a margin that does not know the scale of the logits.

    ``-(z_y - max_{i != y} z_i) / (z_(1) - z_(3))`` with the logits sorted downwards: between -1 and 0 where the label
    wins, and above 0 where the sample is misclassified.

    Args:
        logits_BK: what a classifier returned, at least 3 classes.

    Returns:
        loss_B, at least in float32.

    Raises:
        ValueError: if there are less than 3 classes, or the shapes do not fit.
    """
    _check(logits_BK, label_B, "label", 3, "dlr")
    top_B3 = _wide(logits_BK).topk(3, dim=1).values
    return margin(logits_BK, label_B) / (top_B3[:, 0] - top_B3[:, 2] + DENOMINATOR)


def targeted_dlr(logits_BK: Tensor, label_B: Tensor, target_B: Tensor) -> Tensor:
    """Targeted difference of logits ratio of AutoAttack (Croce & Hein 2020).

    ``-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2)`` with the logits sorted downwards: above 0 where the target beats
    the label.

    Args:
        logits_BK: what a classifier returned, at least 4 classes.
        target_B: class numbers that shall win; the loss is 0 everywhere where one equals the label.

    Returns:
        loss_B, at least in float32.

    Raises:
        ValueError: if there are less than 4 classes, or the shapes do not fit.
    """
    _check(logits_BK, label_B, "label", 4, "targeted_dlr")
    _check(logits_BK, target_B, "target", 4, "targeted_dlr")
    logits_BK = _wide(logits_BK)
    label_logit_B, target_logit_B = logits_BK.gather(1, torch.stack([label_B, target_B], dim=1)).unbind(1)
    top_B4 = logits_BK.topk(4, dim=1).values
    return (target_logit_B - label_logit_B) / (top_B4[:, 0] - (top_B4[:, 2] + top_B4[:, 3]) / 2 + DENOMINATOR)


_OF_LABEL = {"ce": cross_entropy, "margin": margin, "dlr": dlr}


def feature_distance(features_BPD: Tensor, clean_BPD: Tensor) -> Tensor:
    """Squared L2 distance of features to the clean ones, ``||phi(x') - phi(x)||^2``, as FARE attacks and trains.

    Summed over the width and not divided by it (RobustVLM, ``train/adversarial_training_clip.py``), then averaged over
    the tokens. FARE has one token, the class embedding: give it as [B, 1, D] and this is its loss. With more tokens the
    mean keeps the scale of one. The clean features are constants: no gradient reaches them.

    Args:
        features_BPD: features of the attacked images.
        clean_BPD: features of the clean images.

    Returns:
        loss_B, at least in float32.

    Raises:
        ValueError: if the shapes differ, or are not of three dimensions.
    """
    if features_BPD.ndim != 3 or features_BPD.shape != clean_BPD.shape:
        raise ValueError(
            f"features: expected two equal shapes [B, P, D], got {list(features_BPD.shape)} and "
            f"{list(clean_BPD.shape)}; a single embedding per image is [B, 1, D]"
        )
    return (_wide(features_BPD) - _wide(clean_BPD.detach())).square().sum(2).mean(1)


def token_distance(features_BPD: Tensor, clean_BPD: Tensor) -> Tensor:
    """Cosine distance of visual tokens to the clean image's, averaged over the tokens (VEAttack).

    Args:
        clean_BPD: of the clean images; constants.

    Returns:
        loss_B in [0, 2], at least in float32.
    """
    return 1 - F.cosine_similarity(_wide(features_BPD), _wide(clean_BPD.detach()), dim=2).mean(1)


def classifier_loss(
    model: Callable[[Tensor], Tensor],
    label_B: Tensor,
    loss: Literal["ce", "margin", "dlr", "targeted_dlr"] = "ce",
    target_B: Tensor | None = None,
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A loss function of a classifier, for any attack that takes ``(loss_B, solved_B)``.

    Args:
        model: ``model(pixels_BCHW) -> logits_BK``, normalisation included.
        label_B: class number of each sample.
        loss: what to maximise; see the functions of this module.
        target_B: class number each sample shall be mistaken for; only for ``"targeted_dlr"``.

    Returns:
        ``loss(pixels_BCHW, index_B) -> (loss_B, solved_B)``. ``solved_B`` is true where the sample is misclassified, as
        whatever class, also if the loss is targeted (as in AutoAttack).

    Raises:
        ValueError: naming the argument at fault.
    """
    if loss not in (*_OF_LABEL, "targeted_dlr"):
        raise ValueError(f"loss: expected 'ce', 'margin', 'dlr' or 'targeted_dlr', got {loss!r}")
    if (target_B is not None) != (loss == "targeted_dlr"):
        raise ValueError(f"target_B: needed by 'targeted_dlr' and by no other loss, got loss {loss!r}")
    if target_B is not None:
        if target_B.shape != label_B.shape:
            raise ValueError(f"target_B: expected shape {list(label_B.shape)}, got {list(target_B.shape)}")
        same_B = target_B.to(label_B.device) == label_B
        if bool(same_B.any()):
            raise ValueError(f"target_B: sample {int(same_B.nonzero()[0, 0])} has its own label as target")

    def classify(pixels_BCHW: Tensor, index_B: Tensor) -> tuple[Tensor, Tensor]:
        logits_BK = model(pixels_BCHW)
        drawn_B = _select(label_B, index_B)
        if target_B is not None:
            loss_B = targeted_dlr(logits_BK, drawn_B, _select(target_B, index_B))
        else:
            loss_B = _OF_LABEL[loss](logits_BK, drawn_B)
        return loss_B, logits_BK.argmax(1) != drawn_B

    return classify


def _select(value_B: Tensor, index_B: Tensor) -> Tensor:
    return value_B.to(index_B.device)[index_B]


def _wide(values: Tensor) -> Tensor:
    """Half precision as float32: :data:`DENOMINATOR` is 0 in float16."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _check(logits_BK: Tensor, class_B: Tensor, name: str, least: int, loss: str) -> None:
    if logits_BK.ndim != 2 or class_B.shape != logits_BK.shape[:1]:
        raise ValueError(
            f"{name}: expected one class number per row of logits [B, K], "
            f"got {list(class_B.shape)} for logits {list(logits_BK.shape)}"
        )
    if logits_BK.shape[1] < least:
        raise ValueError(f"logits: {loss} needs at least {least} classes, got {logits_BK.shape[1]}; use cross_entropy")
