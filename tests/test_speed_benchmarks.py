"""The benchmarks of speed at the smallest size: what they count and compare is right, however long it takes."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import large_llava, published_loop, where_time_goes
from benchmarks.common import ready_benchmark
from benchmarks.random_llava import Size, parameters, random_llava
from benchmarks.where_time_goes import ATTACK, ENCODER, HEAD, LANGUAGE, PARTS
from rllava.attacks.protocols import PROTOCOLS
from rllava.conditions.attack import within
from rllava.data.benchmarks import BENCHMARKS
from rllava.encoders import encoder_spec
from rllava.errors import UserError
from rllava.evaluation.shard import evaluate_shard
from rllava.evaluation.shard_checks import CHECKED_PER_SHARD
from rllava.evaluation.victim import Victim
from rllava.model.conversation import IGNORE
from rllava.model.llava import Llava
from rllava.recipes import PRESETS
from rllava.specs import EvalSpec, ModelSpec
from tests.model.test_llava import make

SMALL = Size(image_size=32, patch=8, tower_width=64, width=64, layers=1, vocabulary=2000)

STAND_IN = '''
"""Has the signature of the published attack; it is ours on one image."""
from rllava.attacks.apgd import apgd as attack


def apgd(model, x, norm, eps, n_iter, alpha, pert_init=None):
    start = "clean" if pert_init is None else x + pert_init
    found = attack(
        lambda pixels, index: model(pixels), x, epsilon=255 * eps, steps=n_iter, start=start, step_size=alpha
    )
    return found.images_BCHW, None, None
'''


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    code = tmp_path / "robustvlm" / "vlm_eval" / "attacks" / "apgd.py"
    code.parent.mkdir(parents=True)
    code.write_text(STAND_IN)
    return tmp_path / "robustvlm"


def untrained(storage: Path, candidate: str) -> tuple[Llava, ModelSpec]:
    llava = make(candidate, dtype=torch.float32)
    return llava, replace(PRESETS.get("tiny").model, encoders=(encoder_spec(candidate),))


def rows_of(sheet: Path) -> list[list[str]]:
    lines = [line for line in sheet.read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_large_model_has_about_100m_parameters() -> None:
    with torch.device("meta"):
        llava, spec = random_llava(Size())
    assert 80e6 < parameters(llava) < 130e6
    assert 38e6 < parameters(llava.encoders) < 86e6
    assert llava.connector.language_model.lm_head.weight.shape[0] == 32000  # type: ignore[union-attr]
    assert spec.encoders[0].tokens == 196


def test_random_weights_follow_the_seed_and_answer_in_words_of_the_tokenizer() -> None:
    (one, _), (same, _), (other, _) = (random_llava(SMALL, seed) for seed in (0, 0, 1))
    pixels_BCHW = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    prompts = [one.tokens("<image>\nwhat?")] * 3
    answers, again, others = (llava.generate(pixels_BCHW, prompts, 6) for llava in (one, same, other))
    assert answers == again != others
    assert all(answer.replace(" ", "").isalpha() for answer in answers)
    assert one.tokenizer.decode([SMALL.vocabulary - 1, 31999]) == ""


def test_a_large_model_is_attacked_by_both_sides_alike(checkout: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.md"
    large_llava.main(
        large_llava.Options(
            checkout, size=SMALL, samples=4, epsilon=1.0, protocol="paper_ensemble_3steps",
            fast_protocol="paper_ensemble_10steps", threads=1, output=sheet,
        )
    )  # fmt: skip
    rows = rows_of(sheet)
    assert [row[0] for row in rows] == [
        "easy_vqa", "easy_vqa, paper_ensemble_10steps", "easy_captions", "easy_captions, paper_ensemble_10steps",
    ]  # fmt: skip
    for row in rows[::2]:
        assert row[1] == row[2], "the two sides score differently"
        assert row[3] == "0 (0 higher)"
    assert 0 < float(rows[0][1]) < 100, "nothing was attacked, or nothing was left to the later rounds"
    ratios = [float(row[6]) for row in rows[::2]]
    text = sheet.read_text()
    assert f"{parameters(random_llava(SMALL)[0]) / 1e6:.1f}M random parameters" in text
    assert ("not met" in text) or min(ratios) >= large_llava.GOAL - 0.05


def test_own_answers_are_right_and_captions_have_others_beside_them() -> None:
    llava, model = random_llava(SMALL)
    for name, count in (("easy_vqa", 10), ("easy_captions", 3)):
        benchmark = replace(BENCHMARKS.get(name), samples=4)
        samples, metric, state = ready_benchmark(benchmark, llava.image_size)
        protocol = PROTOCOLS.get("paper_ensemble_3steps")
        evaluation = EvalSpec("random", model, model.encoders, benchmark, within(protocol, 0.0), 4)
        answered, state = large_llava.answered_by_itself(llava, evaluation, samples, metric, state, captions=2)
        assert {len(sample.references) for sample in answered} == {count}
        ((_, table),) = evaluate_shard(Victim(llava, torch.device("cpu")), answered, [evaluation], metric, state)
        scores = table.column("clean_score").to_pylist()
        assert scores == [100.0] * 4 if name == "easy_vqa" else max(scores) > benchmark.task.drop_threshold


def test_the_published_side_answers_as_ours_does_but_reads_everything_for_every_token(checkout: Path) -> None:
    llava, _ = random_llava(SMALL)
    pixels_1CHW = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    prompt = llava.tokens("<image>\nwhat?")
    _, metric, state = ready_benchmark(replace(BENCHMARKS.get("easy_vqa"), samples=1), llava.image_size)
    seen: list[int] = []
    llava.encoders[0].register_forward_hook(lambda module, inputs, output: seen.append(1))
    (expected,) = llava.generate(pixels_1CHW, [prompt], 6)
    assert len(seen) == 1
    loop = published_loop.PublishedLoop(checkout, llava, metric, state)
    language_model, tower = llava.connector.language_model, llava.encoders[0].tower
    with published_loop.released_attention(llava):
        assert {part.config._attn_implementation for part in (language_model, tower)} == {"eager"}
        assert loop.decoded(pixels_1CHW, prompt, 6) == expected
    assert len(seen) == 7
    assert {part.config._attn_implementation for part in (language_model, tower)} == {"sdpa"}


def test_attack_checks_are_work_of_our_side_alone_and_can_be_left_out() -> None:
    llava, model = random_llava(SMALL)
    benchmark = replace(BENCHMARKS.get("easy_vqa"), samples=2)
    samples, metric, state = ready_benchmark(benchmark, llava.image_size)
    protocol = PROTOCOLS.get("paper_ensemble_3steps")
    evaluation = EvalSpec("random", model, model.encoders, benchmark, within(protocol, 1.0), 2)
    samples, state = large_llava.answered_by_itself(llava, evaluation, samples, metric, state, captions=0)
    passes = []
    for checked in (CHECKED_PER_SHARD, 0):
        seen: list[int] = []
        handle = llava.encoders[0].register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(1))
        published_loop.ours(evaluation, llava, samples, metric, state, checked)
        handle.remove()
        passes.append(len(seen))
    assert passes[0] > passes[1] > 0


def test_the_goal_is_judged_by_the_slowest_benchmark() -> None:
    fast, slow = (published_loop.Comparison(name, ([1.0], s), ([1.0], 1.0)) for name, s in (("a", 1.6), ("b", 1.4)))
    assert "not met" in large_llava.verdict([fast, slow])
    assert "samples per second at the same protocol: met" in large_llava.verdict([fast])


def test_a_checkout_that_is_not_there_is_missed_before_anything_is_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--robustvlm takes the folder"):
        large_llava.main(large_llava.Options(tmp_path, output=tmp_path / "sheet.md"))


def test_higher_scores_of_another_protocol_are_counted(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = published_loop.Comparison("a", ([0.0, 50.0, 9.0], 6.0), ([0.0, 60.0, 3.0], 3.0))
    assert compared.row() == ("a", "19.67", "21.00", "2 (1 higher)", "0.5", "1", "2.00")
    monkeypatch.setattr(published_loop, "trained_llava", untrained)
    for fast, count in ((None, 1), ("paper_ensemble_10steps", 2)):
        options = published_loop.Options(
            checkout, model="tiny-clip", benchmarks=("easy_vqa",), samples=3, protocol="paper_ensemble_3steps",
            fast_protocol=fast, threads=1, output=tmp_path / "sheet.md",
        )  # fmt: skip
        published_loop.main(options)
        assert len(rows_of(options.output)) == count


def small_options(sheet: Path) -> where_time_goes.Options:
    return where_time_goes.Options(
        model="tiny-clip", size=SMALL, steps=2, batch_size=3, large_batch_size=2, repeats=2, squares=(64, 128),
        threads=1, output=sheet,
    )  # fmt: skip


def test_the_parts_of_a_step_sum_to_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(where_time_goes, "trained_llava", untrained)
    options = small_options(tmp_path / "sheet.md")
    where_time_goes.main(options)
    rows = rows_of(options.output)
    assert len(rows) == 2 * (len(PARTS) + 2)
    for first in (0, len(PARTS) + 2):
        mine = rows[first : first + len(PARTS) + 2]
        assert [row[1] for row in mine] == [*PARTS, "not accounted for", "whole"]
        shares = [float(row[3]) for row in mine[:-1]]
        assert sum(shares) == pytest.approx(100, abs=1)
        assert all(float(row[4]) > 0 for row in mine if row[1].startswith((ENCODER, LANGUAGE, HEAD)))
        assert float(mine[-1][4]) == pytest.approx(sum(float(row[4] or 0) for row in mine[:-1]), rel=1e-2)


@pytest.mark.parametrize("names", [("tiny-clip",), ("tiny-clip", "tiny-advxl")])
def test_operations_are_counted_in_the_part_that_does_them(names: tuple[str, ...], tmp_path: Path) -> None:
    options = small_options(tmp_path / "sheet.md")
    work = where_time_goes.workload("untrained", make(*names, dtype=torch.float32), options, options.batch_size)
    with where_time_goes.flop_counter() as counter:
        counted = where_time_goes.attack(work, counter.get_total_flops)
    assert sum(counted.values()) == counter.get_total_flops() > 0
    assert counted[ATTACK] == 0
    head = work.llava.connector.language_model.lm_head.weight.numel()  # type: ignore[union-attr,operator]
    labelled = sum(label != IGNORE for tokens in work.tokens for label in tokens.labels)
    assert counted[f"{HEAD}, forward"] == 2 * head * labelled * (options.steps + 1)
    assert counted[f"{HEAD}, backward"] == 2 * head * labelled * options.steps
    with FlopCounterMode(display=False) as alone, torch.no_grad():
        work.llava.features(work.images_BCHW)
    assert counted[f"{ENCODER}, forward"] == alone.get_total_flops() * (options.steps + 1)
    assert 0 < counted[f"{ENCODER}, backward"] <= counted[f"{ENCODER}, forward"]
    assert 0 < counted[f"{LANGUAGE}, backward"] <= counted[f"{LANGUAGE}, forward"]


def test_watching_leaves_no_hook_and_changes_no_result(tmp_path: Path) -> None:
    options = small_options(tmp_path / "sheet.md")
    llava = make("tiny-clip", dtype=torch.float32)
    work = where_time_goes.workload("untrained", llava, options, options.batch_size)
    spent = where_time_goes.attack(work)
    assert set(spent) == set(PARTS)
    assert all(seconds > 0 for seconds in spent.values())
    modules = list(llava.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def test_matrix_products_are_timed_at_their_shapes(tmp_path: Path) -> None:
    options = small_options(tmp_path / "sheet.md")
    work = where_time_goes.workload("random", random_llava(SMALL)[0], options, 2)
    found = where_time_goes.measure(work, 1)
    products = sum(where_time_goes.product_flops(product) * count for product, count in found.products.items())
    assert 0 < products / work.units <= sum(found.flops.values())
    assert where_time_goes.own_rate(found.products, repeats=1) > 0
    assert 0 <= found.outside < 1
