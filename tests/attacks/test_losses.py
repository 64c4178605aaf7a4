"""Losses against their formulas, written row by row without tensors, and against numbers worked out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rllava.attacks.losses import classifier_loss, cross_entropy, dlr, feature_distance, margin, targeted_dlr
from tests.attacks.classifier import Classifier, images

MODEL = Classifier()
PIXELS_BCHW, LABEL_B = images(6)
GENERATOR = torch.Generator().manual_seed(0)
LOGITS_BK = torch.randn(40, 7, generator=GENERATOR, dtype=torch.float64) * 5
CLASS_B = torch.randint(0, 7, (40,), generator=GENERATOR)
TARGET_B = (CLASS_B + torch.randint(1, 7, (40,), generator=GENERATOR)) % 7


def naive_cross_entropy(logits: list[float], label: int) -> float:
    return math.log(sum(math.exp(z) for z in logits)) - logits[label]


def naive_margin(logits: list[float], label: int) -> float:
    return max(z for k, z in enumerate(logits) if k != label) - logits[label]


def naive_dlr(logits: list[float], label: int) -> float:
    down = sorted(logits, reverse=True)
    rival = max(z for k, z in enumerate(logits) if k != label)
    return -(logits[label] - rival) / (down[0] - down[2])


def published_dlr(logits: list[float], label: int) -> float:
    """AutoAttack's form: the rival is the second logit where the label has the first one, else the first."""
    up = sorted(range(len(logits)), key=logits.__getitem__)
    wins = float(up[-1] == label)
    rival = logits[up[-2]] * wins + logits[up[-1]] * (1 - wins)
    return -(logits[label] - rival) / (logits[up[-1]] - logits[up[-3]] + 1e-12)


def naive_targeted_dlr(logits: list[float], label: int, target: int) -> float:
    down = sorted(logits, reverse=True)
    return -(logits[label] - logits[target]) / (down[0] - 0.5 * (down[2] + down[3]) + 1e-12)


def test_losses_are_their_formulas() -> None:
    rows = list(zip(LOGITS_BK.tolist(), CLASS_B.tolist(), TARGET_B.tolist(), strict=True))
    assert {max(range(7), key=z.__getitem__) == y for z, y, _ in rows} == {True, False}, "both cases of the rival"
    for naive, found_B in (
        (naive_cross_entropy, cross_entropy(LOGITS_BK, CLASS_B)),
        (naive_margin, margin(LOGITS_BK, CLASS_B)),
        (naive_dlr, dlr(LOGITS_BK, CLASS_B)),
        (published_dlr, dlr(LOGITS_BK, CLASS_B)),
    ):
        expected_B = torch.tensor([naive(z, y) for z, y, _ in rows], dtype=torch.float64)
        torch.testing.assert_close(found_B, expected_B, rtol=1e-10, atol=1e-10)
    expected_B = torch.tensor([naive_targeted_dlr(z, y, t) for z, y, t in rows], dtype=torch.float64)
    torch.testing.assert_close(targeted_dlr(LOGITS_BK, CLASS_B, TARGET_B), expected_B, rtol=1e-10, atol=1e-10)


def test_ratios_worked_out_by_hand() -> None:
    logits_BK = torch.tensor([[5.0, 1.0, 3.0, 0.0]]).expand(3, 4)
    label_B = torch.tensor([0, 1, 2])
    torch.testing.assert_close(dlr(logits_BK, label_B), torch.tensor([-0.5, 1.0, 0.5]))
    target_B = torch.tensor([2, 0, 3])
    torch.testing.assert_close(targeted_dlr(logits_BK, label_B, target_B), torch.tensor([-2, 4, -3]) / 4.5)


def test_dlr_does_not_know_the_scale_and_tells_who_is_misclassified() -> None:
    loss_B = dlr(LOGITS_BK, CLASS_B)
    torch.testing.assert_close(dlr(LOGITS_BK * 1e3 + 17, CLASS_B), loss_B)
    assert torch.equal(loss_B > 0, LOGITS_BK.argmax(1) != CLASS_B)
    assert float(loss_B.min()) >= -1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_finite_float32_even_where_all_logits_are_equal(dtype: torch.dtype) -> None:
    logits_BK = torch.ones(2, 5, dtype=dtype)
    label_B, target_B = torch.tensor([0, 1]), torch.tensor([1, 2])
    for loss_B in (
        cross_entropy(logits_BK, label_B),
        margin(logits_BK, label_B),
        dlr(logits_BK, label_B),
        targeted_dlr(logits_BK, label_B, target_B),
    ):
        assert loss_B.dtype == torch.float32
        assert loss_B.isfinite().all()


def test_gradients_are_those_of_the_formulas() -> None:
    logits_BK = LOGITS_BK[:5].clone().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda z: dlr(z, CLASS_B[:5]), logits_BK)
    assert torch.autograd.gradcheck(lambda z: targeted_dlr(z, CLASS_B[:5], TARGET_B[:5]), logits_BK)


def test_feature_distance_sums_over_the_width_and_averages_over_tokens() -> None:
    clean_BPD = torch.zeros(2, 2, 3, requires_grad=True)
    features_BPD = torch.tensor([[[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]], [[0.0, 3.0, 0.0], [1.0, 0.0, 0.0]]])
    features_BPD.requires_grad_(True)
    loss_B = feature_distance(features_BPD, clean_BPD)
    torch.testing.assert_close(loss_B, torch.tensor([4.5, 5.0]))
    loss_B.sum().backward()
    torch.testing.assert_close(features_BPD.grad, features_BPD.detach())  # 2 (f - 0) / 2 tokens
    assert clean_BPD.grad is None

    features_BD, clean_BD = (torch.randn(4, 9, generator=GENERATOR) for _ in range(2))
    of_fare_B = F.mse_loss(features_BD, clean_BD, reduction="none").sum(dim=1)
    torch.testing.assert_close(feature_distance(features_BD[:, None], clean_BD[:, None]), of_fare_B)


def test_classifier_loss_selects_the_samples_it_is_asked_about() -> None:
    logits_BK = MODEL(PIXELS_BCHW)
    target_B = (LABEL_B + 1) % 5
    for name, target, expected_B in (
        ("ce", None, cross_entropy(logits_BK, LABEL_B)),
        ("margin", None, margin(logits_BK, LABEL_B)),
        ("dlr", None, dlr(logits_BK, LABEL_B)),
        ("targeted_dlr", target_B, targeted_dlr(logits_BK, LABEL_B, target_B)),
    ):
        index_B = torch.tensor([4, 1, 3])
        loss_B, solved_B = classifier_loss(MODEL, LABEL_B, name, target)(PIXELS_BCHW[index_B], index_B)  # type: ignore[arg-type]
        torch.testing.assert_close(loss_B, expected_B[index_B])
        assert torch.equal(solved_B, logits_BK.argmax(1)[index_B] != LABEL_B[index_B])


def test_solved_means_misclassified_even_if_not_as_the_target() -> None:
    def model(pixels_BCHW: Tensor) -> Tensor:
        return torch.tensor([[3.0, 2.0, 1.0, 0.0]]).expand(len(pixels_BCHW), 4)

    label_B, target_B = torch.tensor([0, 1, 1]), torch.tensor([1, 0, 2])
    loss_B, solved_B = classifier_loss(model, label_B, "targeted_dlr", target_B)(
        torch.zeros(3, 1, 1, 1), torch.arange(3)
    )
    assert solved_B.tolist() == [False, True, True]
    assert (loss_B > 0).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: margin(LOGITS_BK[:, :1], CLASS_B * 0), "at least 2 classes, got 1"),
        (lambda: dlr(LOGITS_BK[:, :2], CLASS_B % 2), "at least 3 classes, got 2"),
        (lambda: targeted_dlr(LOGITS_BK[:, :3], CLASS_B % 3, TARGET_B % 3), "at least 4 classes, got 3"),
        (lambda: cross_entropy(LOGITS_BK, CLASS_B[:3]), "label: expected one class number per row"),
        (lambda: dlr(LOGITS_BK[0], CLASS_B), "label"),
        (lambda: targeted_dlr(LOGITS_BK, CLASS_B, TARGET_B[:3]), "target: expected one class number per row"),
        (lambda: feature_distance(torch.zeros(2, 3), torch.zeros(2, 3)), r"\[B, 1, D\]"),
        (lambda: feature_distance(torch.zeros(2, 1, 3), torch.zeros(2, 2, 3)), "two equal shapes"),
        (lambda: classifier_loss(MODEL, LABEL_B, "hinge"), "loss: expected"),  # type: ignore[arg-type]
        (lambda: classifier_loss(MODEL, LABEL_B, "targeted_dlr"), "target_B"),
        (lambda: classifier_loss(MODEL, LABEL_B, "dlr", LABEL_B + 1), "target_B"),
        (lambda: classifier_loss(MODEL, LABEL_B, "targeted_dlr", LABEL_B[:2]), "target_B: expected shape"),
        (lambda: classifier_loss(MODEL, torch.tensor([0, 1]), "targeted_dlr", torch.tensor([1, 1])), "sample 1"),
    ],
)
def test_bad_arguments_are_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
