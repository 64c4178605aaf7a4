"""APGD against RobustVLM's own trajectories, and the promises every attack makes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rllava.attacks import apgd, pgd, random_noise, square
from tests.attacks.classifier import Classifier, images
from tests.attacks.courses import Recorder, assert_hardly_any_tie, first_tie, same_course

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "apgd.json").read_text())
MODEL = Classifier()
PIXELS_BCHW, LABEL_B = images(6)


def cross_entropy(pixels_BCHW: Tensor, index_B: Tensor) -> Tensor:
    return F.cross_entropy(MODEL(pixels_BCHW), LABEL_B[index_B], reduction="none")


@pytest.mark.parametrize("steps", [1, 3, 10, 33, 100])
@pytest.mark.parametrize("epsilon", [8.0, 32.0])
def test_batched_trajectories_are_those_of_the_reference_one_image_at_a_time(steps: int, epsilon: float) -> None:
    result = apgd(cross_entropy, PIXELS_BCHW, epsilon=epsilon, steps=steps)
    rows = [row for row in GOLDEN if row["steps"] == steps and row["epsilon"] == epsilon]
    assert len(rows) == len(LABEL_B)
    for row in rows:
        loss_S, expected_S = result.history.loss_SB[:, row["sample"]], torch.tensor(row["losses"], dtype=torch.float64)
        sure = first_tie(row["losses"])
        torch.testing.assert_close(loss_S[:sure], expected_S[:sure], rtol=0, atol=1e-9)
        # After a tie the step size may fall earlier or later; by then the point moves about the maximum.
        torch.testing.assert_close(loss_S, expected_S, rtol=0, atol=1e-3)
        if sure > steps:
            assert float(result.loss_B[row["sample"]]) == pytest.approx(row["best_loss"], abs=1e-9)
            assert float(result.images_BCHW[row["sample"]].sum()) == pytest.approx(row["image_sum"], abs=1e-6)


def test_hardly_any_golden_trajectory_meets_a_tie() -> None:
    assert_hardly_any_tie([first_tie(row["losses"]) > row["steps"] for row in GOLDEN])


def test_step_size_is_halved_per_sample() -> None:
    sizes_SB = apgd(cross_entropy, PIXELS_BCHW, epsilon=32, steps=100).history.step_size_SB
    torch.testing.assert_close(sizes_SB[0], torch.full((6,), 32 / 255, dtype=torch.float64))
    ratios_SB = sizes_SB[1:] / sizes_SB[:-1]
    assert set(ratios_SB.unique().tolist()) == {0.5, 1.0}
    assert len({tuple(column) for column in sizes_SB.T.tolist()}) > 1, "all samples halved together"


def test_a_sample_does_not_depend_on_its_batch_and_keeps_its_budget() -> None:
    whole: list[bool] = []

    @settings(max_examples=25)
    @given(
        which=st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True),
        epsilon=st.floats(0.1, 64),
        steps=st.integers(1, 12),
    )
    @example(which=[5], epsilon=2.0, steps=12)  # in the end it goes to and fro between points of equal loss: a tie
    def some_of_them(which: list[int], epsilon: float, steps: int) -> None:
        of_all = Recorder(cross_entropy, 6)
        of_some = Recorder(lambda x, i: cross_entropy(x, torch.tensor(which)[i]), len(which))
        together = apgd(of_all, PIXELS_BCHW, epsilon=epsilon, steps=steps)
        subset = apgd(of_some, PIXELS_BCHW[which], epsilon=epsilon, steps=steps)
        expected, seen = of_all.courses(together.images_BCHW), of_some.courses(subset.images_BCHW)
        for b, course in zip(which, seen, strict=True):
            whole.append(same_course(course, expected[b]))
        for result, clean_BCHW in ((together, PIXELS_BCHW), (subset, PIXELS_BCHW[which])):
            assert float((result.images_BCHW - clean_BCHW).abs().max()) <= epsilon / 255 + 1e-12
            assert float(result.images_BCHW.min()) >= 0
            assert float(result.images_BCHW.max()) <= 1
            assert torch.all(result.loss_B >= result.history.loss_SB[0])

    some_of_them()
    assert_hardly_any_tie(whole)


def test_random_start_depends_on_the_seed_of_the_sample_alone() -> None:
    seeds = [3, 1, 4, 1, 5, 9]
    images_BCHW = [
        pgd(cross_entropy, PIXELS_BCHW[:count], epsilon=8, steps=2, step_size=0.5, seeds=seeds[:count])
        for count in (2, 6)
    ]
    torch.testing.assert_close(images_BCHW[0], images_BCHW[1][:2], rtol=0, atol=0)


def test_one_failed_sample_is_flagged_and_leaves_the_others_alone() -> None:
    def broken(pixels_BCHW: Tensor, index_B: Tensor) -> Tensor:
        loss_B = cross_entropy(pixels_BCHW, index_B)
        return loss_B + torch.where(index_B == 2, float("nan"), 0.0)

    result, whole = (apgd(loss, PIXELS_BCHW, epsilon=8, steps=10) for loss in (broken, cross_entropy))
    assert result.failed_B.tolist() == [False, False, True, False, False, False]
    keep = [0, 1, 3, 4, 5]
    torch.testing.assert_close(result.images_BCHW[keep], whole.images_BCHW[keep], rtol=0, atol=0)
    torch.testing.assert_close(result.images_BCHW[2], PIXELS_BCHW[2], rtol=0, atol=0)


def test_pgd_leaves_a_broken_sample_where_it_started() -> None:
    def broken(pixels_BCHW: Tensor, index_B: Tensor) -> Tensor:
        return cross_entropy(pixels_BCHW, index_B) * torch.where(index_B == 2, float("nan"), 1.0)

    images_BCHW, whole_BCHW = (
        pgd(loss, PIXELS_BCHW, epsilon=8, steps=3, step_size=0.5, start="clean") for loss in (broken, cross_entropy)
    )
    keep = [0, 1, 3, 4, 5]
    assert torch.equal(images_BCHW[keep], whole_BCHW[keep])
    assert torch.equal(images_BCHW[2], PIXELS_BCHW[2])


@pytest.mark.parametrize("count", [1, 6])
def test_a_loss_that_is_finite_nowhere_is_refused_by_every_attack(count: int) -> None:
    def nan(pixels_BCHW: Tensor, index_B: Tensor) -> Tensor:
        return cross_entropy(pixels_BCHW, index_B) * float("nan")

    pixels_BCHW, seeds = PIXELS_BCHW[:count], list(range(count))
    which = "sample 0" if count == 1 else "samples 0 to 5"
    attacks: tuple[Callable[[], object], ...] = (
        lambda: apgd(nan, pixels_BCHW, epsilon=8, steps=2),
        lambda: pgd(nan, pixels_BCHW, epsilon=8, steps=2, step_size=0.5, start="clean"),
        lambda: square(nan, pixels_BCHW, epsilon=8, queries=2, seeds=seeds),
        lambda: random_noise(nan, pixels_BCHW, epsilon=8, draws=2, seeds=seeds),
    )
    for attack in attacks:
        with pytest.raises(ValueError, match=rf"loss: not finite at the start point of {which} \(nan\)"):
            attack()


def no_gradient(pixels_BCHW: Tensor, index_B: Tensor) -> Tensor:
    with torch.no_grad():
        return cross_entropy(pixels_BCHW, index_B)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": -1.0}, "epsilon"),
        ({"epsilon": 256.0}, "epsilon"),
        ({"steps": 0}, "steps"),
        ({"step_size": 0.0}, "step_size"),
        ({"images_BCHW": PIXELS_BCHW * 2}, "sample 0"),
        ({"images_BCHW": PIXELS_BCHW.half()}, "float16"),
        ({"images_BCHW": PIXELS_BCHW[0]}, "shape"),
        ({"loss": lambda x, i: cross_entropy(x, i).mean()}, "one value per sample"),
        ({"loss": no_gradient}, "does not depend on the pixels"),
        (
            {"loss": lambda x, i: cross_entropy(x, i) / 0},
            r"loss: not finite at .* samples 0 to 5 \(inf\)",
        ),
        ({"start": "random"}, "seed"),
        ({"start": "somewhere"}, "start"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], message: str) -> None:
    arguments = {"loss": cross_entropy, "images_BCHW": PIXELS_BCHW, "epsilon": 8.0, "steps": 2, **change}
    with pytest.raises(ValueError, match=message):
        apgd(arguments.pop("loss"), arguments.pop("images_BCHW"), **arguments)  # type: ignore[arg-type]
