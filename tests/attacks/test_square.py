"""Square Attack and uniform noise: their promises, the paper's schedule, and what masked gradients cannot hide."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rllava.attacks.apgd import apgd
from rllava.attacks.losses import classifier_loss
from rllava.attacks.noise import QueryResult, random_noise
from rllava.attacks.square import square, square_side
from tests.attacks.classifier import Classifier, images

MODEL = Classifier()
PIXELS_BCHW, LABEL_B = images(6)
SEEDS = [3, 1, 4, 1, 5, 9]


def cross_entropy(pixels_BCHW: Tensor, index_B: Tensor) -> Tensor:
    return F.cross_entropy(MODEL(pixels_BCHW), LABEL_B[index_B], reduction="none")


def one_by_one(pixels_BCHW: Tensor, index_B: Tensor) -> Tensor:
    """The same, bit by bit whatever the batch: a sum's order may depend on the batch size."""
    pairs = zip(pixels_BCHW, index_B, strict=True)
    return torch.cat([cross_entropy(pixels_CHW[None], index[None]) for pixels_CHW, index in pairs])


def search(kind: str, loss: object, images_BCHW: Tensor, epsilon: float, queries: int, seeds: list[int]) -> QueryResult:
    if kind == "square":
        return square(loss, images_BCHW, epsilon=epsilon, queries=queries, seeds=seeds)  # type: ignore[arg-type]
    return random_noise(loss, images_BCHW, epsilon=epsilon, draws=queries, seeds=seeds)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["square", "noise"])
@settings(max_examples=15)
@given(
    which=st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True),
    epsilon=st.floats(0, 255),
    queries=st.integers(1, 30),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_a_sample_does_not_depend_on_its_batch_and_keeps_its_budget(
    kind: str, which: list[int], epsilon: float, queries: int, dtype: torch.dtype
) -> None:
    clean_BCHW = PIXELS_BCHW.to(dtype)
    together = search(kind, one_by_one, clean_BCHW, epsilon, queries, SEEDS)

    def subset_loss(pixels_BCHW: Tensor, index_B: Tensor) -> Tensor:
        return one_by_one(pixels_BCHW, torch.tensor(which)[index_B])

    subset = search(kind, subset_loss, clean_BCHW[which], epsilon, queries, [SEEDS[b] for b in which])
    assert torch.equal(subset.images_BCHW, together.images_BCHW[which])
    assert torch.equal(subset.loss_QB, together.loss_QB[:, which])

    radius = epsilon / 255
    assert torch.all(together.images_BCHW >= (clean_BCHW - radius).clamp(min=0))
    assert torch.all(together.images_BCHW <= (clean_BCHW + radius).clamp(max=1))
    assert together.loss_QB.shape == (queries, 6)
    assert torch.all(together.loss_QB.diff(dim=0) >= 0)
    assert torch.equal(together.loss_B, one_by_one(together.images_BCHW, torch.arange(6)).to(dtype))
    assert together.queries_B.tolist() == [queries] * 6
    assert not together.failed_B.any()
    assert not together.solved_B.any()


@pytest.mark.parametrize("kind", ["square", "noise"])
def test_seeds_make_the_points(kind: str) -> None:
    twins_BCHW = PIXELS_BCHW[[0, 0, 0]]

    def same(pixels_BCHW: Tensor, index_B: Tensor) -> Tensor:
        return cross_entropy(pixels_BCHW, torch.zeros_like(index_B))

    result = search(kind, same, twins_BCHW, 8, 5, [7, 7, 8])
    assert torch.equal(result.images_BCHW[0], result.images_BCHW[1])
    assert not torch.equal(result.images_BCHW[0], result.images_BCHW[2])


def test_square_does_better_than_noise_with_as_many_queries() -> None:
    for queries in (50, 300):
        of_square, of_noise = (
            search(kind, cross_entropy, PIXELS_BCHW, 8, queries, SEEDS) for kind in ("square", "noise")
        )
        assert torch.all(of_square.loss_B > of_noise.loss_B)
        assert float((of_square.loss_B - of_noise.loss_B).mean()) > 0.5


def test_square_comes_near_a_white_box_attack() -> None:
    clean_B = cross_entropy(PIXELS_BCHW, torch.arange(6))
    white = apgd(cross_entropy, PIXELS_BCHW, epsilon=8, steps=50)
    black = square(cross_entropy, PIXELS_BCHW, epsilon=8, queries=1000, seeds=SEEDS)
    share_B = (black.loss_B - clean_B) / (white.loss_B - clean_B)
    assert float(share_B.min()) > 0.8, share_B


def test_the_first_point_has_vertical_stripes_of_full_strength() -> None:
    seen: list[Tensor] = []

    def watch(pixels_BCHW: Tensor, index_B: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        seen.append(pixels_BCHW - 0.5)
        return pixels_BCHW.new_zeros(len(index_B))

    grey_BCHW = torch.full((2, 3, 6, 10), 0.5, dtype=torch.float64)
    square(watch, grey_BCHW, epsilon=51, queries=400, seeds=[0, 1])
    torch.testing.assert_close(seen[0].abs(), torch.full_like(grey_BCHW, 0.2))
    assert torch.equal(seen[0], seen[0][:, :, :1].expand_as(grey_BCHW))
    assert len(seen[0][0, :, 0].unique(dim=1).T) > 1, "every column the same"
    touched_BHW = torch.zeros(2, 6, 10, dtype=torch.bool)
    for query, delta_BCHW in enumerate(seen[1:]):
        changed_BCHW = delta_BCHW != seen[0]  # the loss never rises, so every square is tried on the stripes
        side = square_side(query, 400, 0.8, 6, 10)
        for changed_CHW, delta_CHW in zip(changed_BCHW, delta_BCHW, strict=True):
            rows, columns = changed_CHW.any(0).any(1).nonzero(), changed_CHW.any(0).any(0).nonzero()
            for places in (rows, columns):
                assert len(places) == 0 or int(places.max() - places.min()) < side
            for channel in range(3):
                assert len(delta_CHW[channel][changed_CHW[channel]].unique()) <= 1, "a square has one sign per channel"
        touched_BHW |= changed_BCHW.any(1)
    assert touched_BHW.all(), "squares never reach some pixels"


def published_share(step: int, queries: int) -> float:
    """The paper's schedule as a table."""
    scaled = int(step / queries * 10000)
    table = [(10, 1), (50, 2), (200, 4), (500, 8), (1000, 16), (2000, 32), (4000, 64), (6000, 128), (8000, 256)]
    return 0.8 / next((divisor for bound, divisor in table if scaled <= bound), 512)


def test_the_schedule_is_the_papers() -> None:
    # Powers of two and 10,000: there the published division of floats is exact.
    for queries in (64, 1024, 10_000):
        for step in range(queries):
            side = max(round(math.sqrt(published_share(step, queries) * 224 * 224)), 1)
            assert square_side(step, queries, 0.8, 224, 224) == side
    assert square_side(0, 100, 1.0, 8, 20) == 8, "a square does not fit"
    assert square_side(99, 100, 0.8, 4, 4) == 1


def test_a_solved_sample_stops_at_the_point_that_solved_it() -> None:
    asked: list[list[int]] = []
    label_B = MODEL(PIXELS_BCHW).argmax(1)
    inner = classifier_loss(MODEL, label_B, "dlr")

    def loss(pixels_BCHW: Tensor, index_B: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(index_B.tolist())
        return inner(pixels_BCHW, index_B)

    result = square(loss, PIXELS_BCHW, epsilon=2, queries=60, seeds=SEEDS)
    assert torch.equal(result.solved_B, MODEL(result.images_BCHW).argmax(1) != label_B)
    assert 0 < int(result.solved_B.sum()) < 6, "the test needs both kinds"
    for b in range(6):
        queries = sum(b in index for index in asked)
        assert int(result.queries_B[b]) == queries
        assert queries == 60 or bool(result.solved_B[b])
        assert torch.all(result.loss_QB[queries - 1 :, b] == result.loss_B[b])


def test_a_point_that_solves_is_kept_though_its_loss_is_lower() -> None:
    def loss(pixels_BCHW: Tensor, index_B: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(len(index_B))
        return torch.full((len(index_B),), -float(len(calls))), (index_B == 0) & torch.tensor(len(calls) == 3)

    calls: list[int] = []
    result = random_noise(loss, PIXELS_BCHW[:2], epsilon=8, draws=5, seeds=[0, 1])
    assert result.solved_B.tolist() == [True, False]
    assert result.loss_QB.T.tolist() == [[-1, -1, -3, -3, -3], [-1, -1, -1, -1, -1]]
    assert calls == [2, 2, 2, 1, 1]
    calls = []
    everyone = random_noise(lambda x, i: (loss(x, i)[0], i >= 0), PIXELS_BCHW[:2], epsilon=8, draws=5, seeds=[0, 1])
    assert calls == [2]
    assert everyone.loss_QB.shape == (5, 2)


def test_square_breaks_a_model_whose_gradients_are_masked() -> None:
    def quantised(pixels_BCHW: Tensor) -> Tensor:
        return MODEL((pixels_BCHW * 16).round() / 16)  # round has a gradient of zero everywhere

    label_B = quantised(PIXELS_BCHW).argmax(1)
    loss = classifier_loss(quantised, label_B, "dlr")
    white = apgd(lambda x, i: loss(x, i)[0], PIXELS_BCHW, epsilon=16, steps=10)
    assert float(white.history.zero_gradient_SB.min()) == 1
    assert torch.equal(quantised(white.images_BCHW).argmax(1), label_B), "the white-box attack was not fooled"
    black = square(loss, PIXELS_BCHW, epsilon=16, queries=500, seeds=SEEDS)
    assert black.solved_B.all()
    assert torch.all(quantised(black.images_BCHW).argmax(1) != label_B)


@pytest.mark.parametrize("kind", ["square", "noise"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("since", [1, 4])
def test_one_failed_sample_is_flagged_and_leaves_the_others_alone(kind: str, since: int, value: float) -> None:
    calls: list[int] = []

    def broken(pixels_BCHW: Tensor, index_B: Tensor) -> Tensor:
        calls.append(len(index_B))
        return one_by_one(pixels_BCHW, index_B) + torch.where((index_B == 2) & (len(calls) >= since), value, 0.0)

    result = search(kind, broken, PIXELS_BCHW, 8, 10, SEEDS)
    whole = search(kind, one_by_one, PIXELS_BCHW, 8, 10, SEEDS)
    assert result.failed_B.tolist() == [False, False, True, False, False, False]
    assert result.queries_B.tolist() == [10, 10, since, 10, 10, 10]
    keep = [0, 1, 3, 4, 5]
    assert torch.equal(result.images_BCHW[keep], whole.images_BCHW[keep])
    assert torch.equal(result.loss_B[keep], whole.loss_B[keep])
    if since == 1:
        assert torch.equal(result.images_BCHW[2], PIXELS_BCHW[2])
        assert result.loss_B[2].isnan()
    else:
        assert torch.all(result.loss_QB[since - 2 :, 2] == whole.loss_QB[since - 2, 2])
        assert float(one_by_one(result.images_BCHW[[2]], torch.tensor([2]))) == float(result.loss_B[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": -1.0}, "epsilon"),
        ({"epsilon": 256.0}, "epsilon"),
        ({"queries": 0}, "queries"),
        ({"p_init": 0.0}, "p_init"),
        ({"p_init": 1.5}, "p_init"),
        ({"seeds": [1, 2]}, r"seeds: expected one per sample \(6\), got 2"),
        ({"images_BCHW": PIXELS_BCHW * 2}, "sample 0"),
        ({"images_BCHW": PIXELS_BCHW.half()}, "float16"),
        ({"loss": lambda x, i: cross_entropy(x, i).mean()}, "one value per sample"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], message: str) -> None:
    arguments = {
        "loss": cross_entropy,
        "images_BCHW": PIXELS_BCHW,
        "epsilon": 8.0,
        "queries": 2,
        "seeds": SEEDS,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        square(arguments.pop("loss"), arguments.pop("images_BCHW"), **arguments)  # type: ignore[arg-type]


def test_draws_are_named() -> None:
    with pytest.raises(ValueError, match="draws"):
        random_noise(cross_entropy, PIXELS_BCHW, epsilon=8, draws=0, seeds=SEEDS)
