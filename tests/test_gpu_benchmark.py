"""The GPU benchmark at a small size on a CPU: what it counts, what it writes, and what it does without."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_7b
from benchmarks.gpu import measure
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.flops import estimated_flops
from benchmarks.gpu.models import VisionTower, build_language_model, build_llava
from benchmarks.gpu.options import Options
from benchmarks.gpu.results import PARTS, Batch, Flops, MatrixRate, TowerResult
from benchmarks.gpu.shapes import SHAPES
from benchmarks.gpu.sheet import Report, goal_lines, sheet
from benchmarks.gpu.stopwatch import divide_time
from rllava.errors import SweepError

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
QUICK = ("--shapes", "tiny", "--device", "cpu", "--steps", "2", "--repeats", "3")
GIB = 1 << 30


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    output = tmp_path_factory.mktemp("sheet") / "new folder" / "gpu_7b.md"
    return gpu_7b.run(gpu_7b.parse([*QUICK, "--max-batch", "3", "--output", str(output)]))


def options(tmp_path: Path, *arguments: str) -> Options:
    return gpu_7b.parse([*QUICK, "--output", str(tmp_path / "sheet.md"), *arguments])


def tiny_bench(chosen: Options, tower: str = "clip-l") -> Bench:
    torch.manual_seed(0)
    shapes = SHAPES["tiny"]
    language_model = build_language_model(shapes, chosen.dtype, CPU)
    return Bench(build_llava(shapes, shapes.towers[tower], language_model, chosen.dtype, CPU), shapes, chosen)


def test_the_sheet_has_every_tower_batch_size_and_product(report: Report) -> None:
    rows = [line.split(" | ") for line in report.options.output.read_text().splitlines()]
    for tower in SHAPES["tiny"].towers.values():
        mine = [row[1:] for row in rows if row[0] == f"| {tower.label}"]
        assert [row[0] for row in mine] == [f"{tower.layers_run} of {tower.layers}", "1", "2", "3", mine[-1][0]]
    assert sum(row[0].count(" x ") == 2 for row in rows) == len(report.rates) == 2 + 6
    assert "Attacks of 2 steps were timed" in report.options.output.read_text()


def test_batches_grow_to_the_largest_wanted(report: Report) -> None:
    assert len(report.results) == len(SHAPES["tiny"].towers)
    for result in report.results:
        assert [batch.count for batch in result.batches] == [1, 2, 3]
        assert result.too_large is None
        assert all(batch.step_s > 0 and batch.forward_s > 0 for batch in result.batches)
        assert result.best.sample_s == min(batch.sample_s for batch in result.batches)
        assert set(result.parts_s) == set(PARTS)
        assert all(seconds > 0 for seconds in result.parts_s.values())


def test_counted_operations_are_those_of_the_shapes(report: Report) -> None:
    for result in report.results:
        assert 0 < result.flops.attention < result.flops.counted
        assert result.flops.counted == pytest.approx(result.flops.estimated, rel=0.2)


def test_the_estimate_for_7b_follows_the_rule_of_parameters_times_tokens() -> None:
    """Two operations per parameter and token forward, two more backward; attention and the head aside."""
    shapes = SHAPES["7b"]
    language, tower = 32 * (4 * 4096**2 + 3 * 4096 * 11008), 23 / 24 * 303.5e6
    estimate = estimated_flops(shapes, shapes.towers["clip-l"], 40, 12)
    assert estimate == pytest.approx(4 * (language * 628 + tower * 577), rel=0.06)
    assert estimate > 4 * (language * 628 + tower * 577)


def test_7b_has_the_published_sizes_in_bfloat16() -> None:
    """On the meta device, where nothing is allocated: Llama-2-7B, and the towers up to the layer that is used."""
    shapes, meta = SHAPES["7b"], torch.device("meta")
    language_model = build_language_model(replace(shapes, layers=1), torch.bfloat16, meta)
    one_layer = sum(p.numel() for p in language_model.model.layers[0].parameters())
    assert sum(p.numel() for p in language_model.parameters()) + 31 * one_layer == 6_738_415_616
    for name, millions in {"clip-l": 303.5 * 23 / 24, "advxl-h": 631.2, "advxl-g": 1011.7}.items():
        llava = build_llava(shapes, shapes.towers[name], language_model, torch.bfloat16, meta)
        found = sum(parameter.numel() for parameter in llava.encoders.parameters())
        assert found == pytest.approx(millions * 1e6, rel=0.003), name
        assert {parameter.dtype for parameter in llava.parameters()} == {torch.bfloat16}
        assert {parameter.device.type for parameter in llava.parameters()} == {"meta"}
        assert not any(parameter.requires_grad for parameter in llava.parameters())
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_the_gradient_reaches_the_pixels_of_every_sample(precision: str, tmp_path: Path) -> None:
    bench = tiny_bench(options(tmp_path, "--precision", precision))
    encoder = bench.llava.encoders[0]
    assert isinstance(encoder, VisionTower)
    assert encoder.statistics(torch.zeros(1, 3, 2, 2))[0].dtype == torch.float32
    assert next(encoder.parameters()).dtype == getattr(torch, precision)
    pixels_BCHW = bench.images(3).requires_grad_(True)
    loss_B = bench.loss(3)(pixels_BCHW, torch.arange(3))
    assert isinstance(loss_B, torch.Tensor)
    (gradient_BCHW,) = torch.autograd.grad(loss_B.sum(), pixels_BCHW)
    assert loss_B.dtype == gradient_BCHW.dtype == torch.float32
    assert bool(gradient_BCHW.isfinite().all())
    assert bool((gradient_BCHW.flatten(1) != 0).any(1).all())
    assert all(parameter.grad is None for parameter in bench.llava.parameters())


def test_the_stopwatch_leaves_the_model_and_the_loss_as_they_were(tmp_path: Path) -> None:
    bench = tiny_bench(options(tmp_path))
    images_BCHW, index_B = bench.images(2), torch.arange(2)
    before_B = bench.loss(2)(images_BCHW, index_B)
    divide_time(bench, 2)
    torch.testing.assert_close(bench.loss(2)(images_BCHW, index_B), before_B, rtol=0, atol=0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in bench.llava.modules())


def test_growing_stops_where_memory_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = measure._measure_batch

    def limited(bench: Bench, count: int) -> Batch:
        if count == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(bench, count)

    monkeypatch.setattr(measure, "_measure_batch", limited)
    chosen = options(tmp_path, "--max-batch", "8", "--towers", "clip-l")
    (result,) = gpu_7b.run(chosen).results
    assert [batch.count for batch in result.batches] == [1]
    assert result.too_large == 2
    assert "| tiny CLIP | 2 | out of memory |" in chosen.output.read_text()
    assert "batch 2: out of memory" in capsys.readouterr().out


@pytest.mark.parametrize(("error", "status"), [(torch.OutOfMemoryError, 2), (RuntimeError, None)])
def test_only_a_lack_of_memory_is_taken_as_one(
    error: type[Exception], status: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(bench: Bench, count: int) -> Batch:
        raise error("something else")

    monkeypatch.setattr(measure, "_measure_batch", failing)
    arguments = [*QUICK, "--towers", "clip-l", "--output", str(tmp_path / "sheet.md")]
    if status is None:
        with pytest.raises(RuntimeError, match="something else"):
            gpu_7b.main(arguments)
    else:
        assert gpu_7b.main(arguments) == status


def test_compiled_layers_are_those_of_both_transformers_and_only_within(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def wrapped(function: object, dynamic: bool) -> object:
        assert not dynamic
        calls.append(function)
        return function

    monkeypatch.setattr(torch, "compile", wrapped)
    bench = tiny_bench(options(tmp_path))
    with measure.compiled(bench.llava):
        assert sum("forward" in module.__dict__ for module in bench.llava.modules()) == len(calls) == 2 + 2
        assert measure.measure_batch(bench, 1) is not None
    assert not any("forward" in module.__dict__ for module in bench.llava.modules())


def made_up(step_s: float, peaks: tuple[int | None, ...], tmp_path: Path) -> Report:
    """A report of a GPU that does 100 TFLOP/s, and of attacks with 10 TFLOP per step and sample."""
    batches = tuple(Batch(2**place, step_s * 2**place, 0.0, peak) for place, peak in enumerate(peaks))
    flops = Flops(counted=int(1e13), attention=int(1e11), estimated=int(1e13))
    parts = dict.fromkeys(PARTS, step_s / len(PARTS))
    result = TowerResult("clip-l", SHAPES["7b"].towers["clip-l"], 14 * GIB, flops, batches, None, parts, None)
    chosen = replace(options(tmp_path), shapes="7b")
    return Report(chosen, SHAPES["7b"], (MatrixRate(1, 1, 1, 5e13), MatrixRate(2, 2, 2, 1e14)), [result])


@pytest.mark.parametrize(
    ("step_s", "seconds", "share"), [(0.2, "missed: 20 s", "missed: 50.0%"), (0.01, "met: 1 s", "met")]
)
def test_goals_are_judged_by_the_measurement(step_s: float, seconds: str, share: str, tmp_path: Path) -> None:
    lines = goal_lines(made_up(step_s, (GIB,), tmp_path))
    assert len(lines) == 2
    assert seconds in lines[0]
    assert share in lines[1]
    assert "missed" not in lines[1] or share.startswith("missed")


def test_memory_per_sample_is_the_slope(tmp_path: Path) -> None:
    known = made_up(0.1, (17 * GIB, 20 * GIB, 26 * GIB), tmp_path)
    assert known.results[0].sample_bytes == pytest.approx(3 * GIB)
    assert "| 14 | 3 |" in sheet(known)
    assert made_up(0.1, (17 * GIB,), tmp_path).results[0].sample_bytes is None
    assert made_up(0.1, (None, None), tmp_path).results[0].sample_bytes is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "cpu"), "needs a CUDA GPU"),
        (("--device", "abacus"), "abacus"),
        (("--device", "meta"), "neither cuda nor cpu"),
        (("--device", "cuda:99"), "CUDA GPUs"),
        (("--shapes", "tiny", "--towers", "resnet"), "resnet"),
        (("--shapes", "tiny", "--steps", "0"), "at least 1"),
        (("--shapes", "tiny", "--max-batch", "many"), "at least 1"),
        (("--shapes", "tiny", "--unknown"), "--help"),
        (("--shapes", "tiny", "--device", "cpu", "--output", "."), "another path"),
        (("--shapes", "tiny", "--device", "cpu", "--output", "/dev/null/sheet.md"), "another path"),
    ],
)
def test_a_mistake_is_said_in_one_line(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = arguments if "--output" in arguments else (*arguments, "--output", str(tmp_path / "sheet.md"))
    assert gpu_7b.main(given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


WITHOUT = """
import importlib.machinery, runpy, sys
absent = set(sys.argv.pop(1).split(","))
found = importlib.machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.split(".")[0] in absent else found(name, path, target)
importlib.machinery.PathFinder.find_spec = find_spec
for name in absent:
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise AssertionError(f"{name} is still there")
sys.argv[0] = "gpu_7b"
runpy.run_module("benchmarks.gpu_7b", run_name="__main__")
"""


def test_it_runs_where_the_cluster_and_data_packages_are_not_installed(tmp_path: Path) -> None:
    absent = "ray,deepspeed,tyro,pyarrow,fsspec,s3fs,pycocoevalcap,pandas,optuna,timm,torchvision,altair,PIL"
    output = tmp_path / "sheet.md"
    command = [sys.executable, "-c", WITHOUT, absent, *QUICK, "--towers", "clip-l", "--max-batch", "1"]
    done = subprocess.run(
        [*command, "--output", str(output)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "| tiny CLIP | 1 |" in output.read_text()


def test_the_small_shapes_differ_from_7b_in_size_alone() -> None:
    tiny, large = SHAPES["tiny"], SHAPES["7b"]
    assert list(tiny.towers) == list(large.towers)
    for name, tower in tiny.towers.items():
        assert (tower.layer, tower.activation) == (large.towers[name].layer, large.towers[name].activation)
    assert large.visual_tokens == 576


def test_an_attack_on_a_loss_that_is_not_finite_is_not_timed(tmp_path: Path) -> None:
    bench = tiny_bench(options(tmp_path))
    with torch.no_grad():
        next(bench.llava.connector.projectors[0].parameters()).fill_(float("nan"))
    with pytest.raises(SweepError, match="--precision float32"):
        bench.attack(bench.loss(2), bench.images(2), 2)
