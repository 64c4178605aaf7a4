"""One image against many targets: a small linear model "says" one of 20 sentences of four words."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rllava.attacks.universal import UniversalResult, read_corpus, universal
from rllava.errors import UserError
from tests.attacks.classifier import images

WORDS, LENGTH, SENTENCES = 10, 4, 20
WEIGHT = torch.from_numpy(np.random.RandomState(3).randn(LENGTH * WORDS, 3 * 8 * 8))
# Three words make up the sentences, so that one image can make all of them likelier.
CORPUS_NT = torch.from_numpy(np.random.RandomState(5).randint(0, 3, (SENTENCES, LENGTH)))
IMAGE_CHW = images(1)[0][0]


def say(image_1CHW: Tensor, index_N: Tensor) -> Tensor:
    """Minus the cross-entropy of each drawn sentence: to be maximised."""
    logits_TV = (WEIGHT.to(image_1CHW.dtype) @ image_1CHW.flatten()).reshape(LENGTH, WORDS)
    words_NT = CORPUS_NT[index_N]
    loss_NT = F.cross_entropy(logits_TV.T.expand(len(index_N), -1, -1), words_NT, reduction="none")
    return -loss_NT.mean(1)


def attack(**change: object) -> UniversalResult:
    arguments = {
        "loss": say, "image_CHW": IMAGE_CHW, "targets": SENTENCES, "steps": 60, "epsilon": 32.0, "seed": 0, **change,
    }  # fmt: skip
    return universal(arguments.pop("loss"), arguments.pop("image_CHW"), **arguments)  # type: ignore[arg-type]


def mean_loss(image_CHW: Tensor) -> float:
    return float(say(image_CHW[None], torch.arange(SENTENCES)).mean())


@pytest.mark.parametrize("epsilon", [4.0, 32.0, None])
def test_all_targets_become_likelier_and_the_budget_is_kept(epsilon: float | None) -> None:
    result = attack(epsilon=epsilon)
    first_S, last_S = result.loss_S[:10], result.loss_S[-10:]
    assert result.loss_S.shape == result.zero_gradient_S.shape == (60,)
    assert float(last_S.mean()) > float(first_S.mean())
    assert mean_loss(result.image_CHW) > mean_loss(IMAGE_CHW) + 0.3
    radius = 1.0 if epsilon is None else epsilon / 255
    assert torch.all(result.image_CHW >= (IMAGE_CHW - radius).clamp(min=0))
    assert torch.all(result.image_CHW <= (IMAGE_CHW + radius).clamp(max=1))
    assert not result.failed
    assert float(result.zero_gradient_S.max()) == 0


def test_a_larger_budget_does_better_and_an_attack_better_than_its_start() -> None:
    reached = [mean_loss(attack(epsilon=epsilon, steps=200).image_CHW) for epsilon in (1.0, 4.0, 16.0, 64.0)]
    assert reached == sorted(reached)
    assert reached[-1] > reached[0] + 0.5


def test_unconstrained_uses_the_whole_box_and_forgets_the_image() -> None:
    result = attack(epsilon=None, steps=255)
    assert torch.equal(
        result.image_CHW, attack(epsilon=None, steps=255, image_CHW=torch.zeros_like(IMAGE_CHW)).image_CHW
    )
    assert float(result.image_CHW.min()) == 0
    assert float(result.image_CHW.max()) == 1
    assert float((result.image_CHW - IMAGE_CHW).abs().max()) > 128 / 255
    start_CHW = attack(epsilon=None, steps=1, step_size=1e-9).image_CHW
    assert 0.4 < float(start_CHW.mean()) < 0.6
    assert 0.25 < float(start_CHW.std()) < 0.33, "uniform noise in [0, 1] has a standard deviation of 0.289"


def test_the_start_is_noise_within_the_budget_and_a_step_is_one_level() -> None:
    grey_CHW = torch.full((3, 8, 8), 0.5, dtype=torch.float64)
    start_CHW = attack(image_CHW=grey_CHW, steps=1, step_size=1e-9).image_CHW
    noise_CHW = (start_CHW - grey_CHW) * 255 / 32
    assert 0.9 < float(noise_CHW.abs().max()) <= 1
    assert abs(float(noise_CHW.mean())) < 0.15
    step_CHW = attack(image_CHW=grey_CHW, steps=1).image_CHW - start_CHW
    free_CHW = noise_CHW.abs() < 0.95  # elsewhere the budget may cut the step short
    torch.testing.assert_close(step_CHW[free_CHW].abs() * 255, torch.ones_like(step_CHW[free_CHW]), rtol=0, atol=1e-6)


def test_the_step_follows_the_gradient_of_the_drawn_targets() -> None:
    drawn: list[Tensor] = []

    def watch(image_1CHW: Tensor, index_N: Tensor) -> Tensor:
        assert image_1CHW.shape == (1, 3, 8, 8)
        drawn.append(index_N)
        return say(image_1CHW, index_N)

    before_CHW, after_CHW = (attack(loss=watch, steps=steps, epsilon=None).image_CHW for steps in (9, 10))
    leaf_1CHW = before_CHW[None].clone().requires_grad_(True)
    (gradient_1CHW,) = torch.autograd.grad(say(leaf_1CHW, drawn[-1]).mean(), leaf_1CHW)
    expected_CHW = (before_CHW + gradient_1CHW[0].sign() / 255).clamp(0, 1)
    torch.testing.assert_close(after_CHW, expected_CHW, rtol=0, atol=1e-12)

    attack(loss=watch, steps=100)
    draws_SN = torch.stack(drawn)
    assert draws_SN.shape[1] == 8
    assert all(len(draw_N.unique()) == 8 for draw_N in draws_SN), "a target was drawn twice in a step"
    assert set(draws_SN.flatten().tolist()) == set(range(SENTENCES))
    assert len({tuple(draw_N.tolist()) for draw_N in draws_SN[-100:]}) > 90, "the draws repeat"


def test_the_seed_decides() -> None:
    first, again, other = attack(seed=1), attack(seed=1), attack(seed=2)
    assert torch.equal(first.image_CHW, again.image_CHW)
    assert torch.equal(first.loss_S, again.loss_S)
    assert not torch.equal(first.image_CHW, other.image_CHW)
    state = torch.random.get_rng_state()
    attack()
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator was used"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_result_has_the_type_of_the_image(dtype: torch.dtype) -> None:
    assert attack(image_CHW=IMAGE_CHW.to(dtype), steps=3).image_CHW.dtype == dtype


def test_a_loss_that_breaks_stops_the_attack_before_the_step() -> None:
    def broken(image_1CHW: Tensor, index_N: Tensor) -> Tensor:
        calls.append(0)
        return say(image_1CHW, index_N) * (float("nan") if len(calls) == 5 else 1.0)

    calls: list[int] = []
    result = attack(loss=broken)
    assert result.failed
    assert result.loss_S.shape == (5,)
    assert result.loss_S[-1].isnan()
    assert torch.equal(result.image_CHW, attack(steps=4).image_CHW)


def no_gradient(image_1CHW: Tensor, index_N: Tensor) -> Tensor:
    with torch.no_grad():
        return say(image_1CHW, index_N)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": -1.0}, "epsilon"),
        ({"epsilon": 256.0}, "epsilon"),
        ({"steps": 0}, "steps"),
        ({"step_size": 0.0}, "step_size"),
        ({"batch": 0}, "batch"),
        ({"batch": 21}, "batch: expected 1 to 20"),
        ({"targets": 0}, "targets"),
        ({"image_CHW": IMAGE_CHW * 2}, "not in"),
        ({"image_CHW": IMAGE_CHW.half()}, "float16"),
        ({"image_CHW": IMAGE_CHW[0]}, "shape"),
        ({"loss": lambda x, i: say(x, i).mean()}, "one value per target"),
        ({"loss": no_gradient}, "does not depend on the image"),
        (
            {"loss": lambda x, i: say(x, i) * float("nan")},
            r"loss: its mean over targets \[.*\] is not finite",
        ),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attack(**change)


def test_corpora_are_read_line_by_line_or_from_the_first_column(tmp_path: Path) -> None:
    lines, table = tmp_path / "corpus.txt", tmp_path / "corpus.CSV"
    lines.write_bytes('\ufeffSay \u00e9t\u00e9, now\r\n\r\n  \n  second one \n"third"'.encode())
    assert read_corpus(lines) == ["Say \u00e9t\u00e9, now", "second one", '"third"']
    table.write_text('"Say ""this"", now",1\n\n,2\n  second one \n"two\nlines",x\n', encoding="utf-8")
    assert read_corpus(str(table)) == ['Say "this", now', "second one", "two\nlines"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "cannot be read"),
        ("empty.txt", b"", "holds no target"),
        ("blank.csv", b"\n ,x\n", "holds no target"),
        ("latin.txt", "\u00e9t\u00e9".encode("latin-1"), "UTF-8"),
    ],
)
def test_a_corpus_at_fault_is_named_in_one_line(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_corpus(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cannot be read"):
        read_corpus(tmp_path)
