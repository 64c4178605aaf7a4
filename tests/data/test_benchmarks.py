"""Benchmarks: fixed sample lists, frozen prompts, builds that do not stop at damaged data."""

import dataclasses
import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rllava.data import benchmarks
from rllava.data.benchmarks import (
    BENCHMARK_SCHEMA,
    BENCHMARKS,
    SOURCES,
    BenchmarkSpec,
    build_benchmark,
    list_samples,
    read_metric,
)
from rllava.data.easy_vqa_source import easy_images
from rllava.data.entries import Entry
from rllava.data.images import DamagedImage, preprocess
from rllava.data.sampling import sample_list
from rllava.data.shards import LISTING, list_shards, read_shard
from rllava.errors import UserError
from rllava.metrics.metric import METRICS

GOLDEN: dict[str, Any] = json.loads(Path(__file__).parent.joinpath("golden/easy.json").read_text("utf-8"))
NAMES = ["easy_captions", "easy_vqa"]


def rows_of(filesystem: Any, folder: str) -> list[dict[str, Any]]:
    return [row for path in list_shards(filesystem, folder) for row in read_shard(filesystem, path).to_pylist()]


@pytest.fixture
def source() -> Iterator[Callable[[list[Entry]], BenchmarkSpec]]:
    """Registers samples as a source and gives a spec of all of them."""

    def register(samples: list[Entry]) -> BenchmarkSpec:
        SOURCES.register("toy", lambda split: samples)
        return dataclasses.replace(BENCHMARKS.get("easy_vqa"), source="toy", samples=max(1, len(samples)))

    yield register
    SOURCES._entries.pop("toy", None)


def sample(name: str, image: bytes = b"", references: tuple[str, ...] = ("yes",) * 10) -> Entry:
    return Entry(name, lambda: image, references, "is it?")


@pytest.mark.parametrize("name", NAMES)
def test_first_rows_and_sample_list_are_the_golden_ones(name: str, local: Any, folder: str) -> None:
    spec = BENCHMARKS.get(name)
    build_benchmark(spec, local, folder)
    rows = rows_of(local, folder)
    golden = GOLDEN["benchmarks"][name]
    first = [{key: row[key] for key in ("row", "sample_id", "prompt", "references")} for row in rows[:6]]
    assert first == golden["first_rows"]
    ids = "\n".join(row["sample_id"] for row in rows)
    assert hashlib.sha256(ids.encode()).hexdigest() == golden["sha256_of_ids"]
    assert [row["row"] for row in rows] == list(range(500))
    assert len({row["sample_id"] for row in rows}) == 500


@pytest.mark.parametrize("name", NAMES)
def test_a_rebuild_gives_the_same_bytes(name: str, local: Any, folder: str) -> None:
    spec = dataclasses.replace(BENCHMARKS.get(name), samples=60)
    first = {path.name: path.read_bytes() for path in _built(spec, local, folder)}
    second = {path.name: path.read_bytes() for path in _built(spec, local, folder)}
    assert first == second
    assert sorted(first) == [LISTING, "metric.json", *(f"part-0000{index}.parquet" for index in range(3))]


def _built(spec: BenchmarkSpec, local: Any, folder: str) -> list[Path]:
    build_benchmark(spec, local, folder)
    return sorted(Path(folder).iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_test_images_with_their_bytes(name: str, local: Any, folder: str) -> None:
    paths = build_benchmark(BENCHMARKS.get(name), local, folder)
    schema = read_shard(local, paths[0]).schema
    assert schema == BENCHMARK_SCHEMA
    assert schema.metadata == BENCHMARK_SCHEMA.metadata
    assert [field.metadata for field in schema] == [field.metadata for field in BENCHMARK_SCHEMA]
    pngs = {image.sample_id: image.png for image in easy_images("test")}
    for row in rows_of(local, folder):
        assert row["image"] == pngs[row["sample_id"]]
        assert row["prompt"].startswith("<image>\n")
        assert "{" not in row["prompt"]


def test_a_right_answer_scores_100_and_any_other_0(local: Any, folder: str) -> None:
    build_benchmark(BENCHMARKS.get("easy_vqa"), local, folder)
    metric, state = read_metric(local, folder)
    answers = {row["references"][0] for row in rows_of(local, folder)}
    assert len(answers) == 13
    for row in rows_of(local, folder):
        scores = {answer: metric.score(metric.clean(answer), row["references"], state) for answer in answers}
        assert scores.pop(row["references"][0]) == 100.0
        assert set(scores.values()) == {0.0}


def test_kinds_of_questions_are_balanced() -> None:
    answers = Counter(s.references[0] for s in list_samples(BENCHMARKS.get("easy_vqa")))
    assert 0.35 < (answers["yes"] + answers["no"]) / 500 < 0.45
    assert max(answers.values()) < 125


def test_wrong_captions_score_less_than_right_ones(local: Any, folder: str) -> None:
    spec = BENCHMARKS.get("easy_captions")
    build_benchmark(spec, local, folder)
    metric, state = read_metric(local, folder)
    rows = {row["sample_id"]: row["references"] for row in rows_of(local, folder)}
    for image in easy_images("test"):
        if image.sample_id in rows:
            references = rows[image.sample_id]
            right = metric.score(f"A {image.colour} {image.shape}.", references, state)
            colour = "red" if image.colour != "red" else "blue"
            shape = "circle" if image.shape != "circle" else "triangle"
            assert right > metric.score(f"A {colour} {image.shape}.", references, state)
            assert right > metric.score(f"A {image.colour} {shape}.", references, state)
            assert spec.task.drops(metric.score(f"A {colour} {shape}.", references, state))
            assert not spec.task.drops(right)


def test_state_comes_from_the_fixed_sample_list_alone(local: Any, folder: str) -> None:
    spec = dataclasses.replace(BENCHMARKS.get("easy_captions"), samples=40)
    build_benchmark(spec, local, folder)
    _, state = read_metric(local, folder)
    assert state == METRICS.get("cider").prepare([row["references"] for row in rows_of(local, folder)])
    assert state is not None
    assert state.documents == 40


def test_sample_lists_are_nested_and_follow_numpys_legacy_choice() -> None:
    assert sample_list(1000, 500, 42) == sample_list(1000, 1000, 42)[:500]
    assert sample_list(1000, 500, 42)[:5] == [521, 737, 740, 660, 411]
    assert sample_list(1000, 500, 43) != sample_list(1000, 500, 42)
    assert sorted(sample_list(7, 7, 0)) == list(range(7))


@pytest.mark.parametrize("samples", [0, -1, 1001])
def test_sample_count_must_fit(samples: int, local: Any, folder: str) -> None:
    spec = dataclasses.replace(BENCHMARKS.get("easy_vqa"), samples=samples)
    with pytest.raises(UserError, match=rf"{samples} samples asked of a source that has 1000; ask for 1 to 1000"):
        build_benchmark(spec, local, folder)


@pytest.mark.parametrize(
    ("field", "kind"), [("source", "benchmark source"), ("metric", "metric"), ("split", "easy-VQA")]
)
def test_unknown_names_are_user_errors(field: str, kind: str, local: Any, folder: str) -> None:
    spec: Any = BENCHMARKS.get("easy_vqa")
    if field == "metric":
        spec = dataclasses.replace(spec, task=dataclasses.replace(spec.task, metric="nonsense"))
    else:
        spec = dataclasses.replace(spec, **{field: "nonsense"})
    with pytest.raises(UserError, match=kind):
        build_benchmark(spec, local, folder)


def test_captions_of_one_sample_are_refused(local: Any, folder: str) -> None:
    spec = dataclasses.replace(BENCHMARKS.get("easy_captions"), samples=1)
    with pytest.raises(UserError, match="at least 2 samples"):
        build_benchmark(spec, local, folder)


def test_damaged_rows_are_kept(source: Callable[[list[Entry]], BenchmarkSpec], local: Any, folder: str) -> None:
    def missing() -> bytes:
        raise FileNotFoundError("gone.jpg")

    samples = [
        sample("good", easy_images("test")[0].png),
        sample("no answers", easy_images("test")[1].png, ()),
        sample("damaged", b"not an image"),
        Entry("missing", missing, ("yes",), "?"),
    ]
    for metric in ("vqa_accuracy", "cider"):
        spec = _spec(source, samples)
        scored = dataclasses.replace(spec.task, metric=metric)
        build_benchmark(dataclasses.replace(spec, task=scored), local, folder)
        rows = {row["sample_id"]: row for row in rows_of(local, folder)}
        assert len(rows) == 4
        assert rows["no answers"]["references"] == []
        assert preprocess(rows["good"]["image"], 64).shape == (64, 64, 3)
        for name in ("damaged", "missing"):
            with pytest.raises(DamagedImage):
                preprocess(rows[name]["image"], 64)


def _spec(source: Callable[[list[Entry]], BenchmarkSpec], samples: list[Entry]) -> BenchmarkSpec:
    SOURCES._entries.pop("toy", None)
    return source(samples)


def test_doubled_sample_ids_are_refused(
    source: Callable[[list[Entry]], BenchmarkSpec], local: Any, folder: str
) -> None:
    spec = source([sample("a"), sample("b"), sample("a")])
    with pytest.raises(UserError, match=r"source 'toy' has 1 sample ids more than once \(a\)"):
        build_benchmark(spec, local, folder)
    assert not Path(folder).exists()


def test_braces_in_questions_are_left_alone(
    source: Callable[[list[Entry]], BenchmarkSpec], local: Any, folder: str
) -> None:
    spec = source([Entry("a", lambda: b"", ("x",), "what is {0} {question}?")])
    build_benchmark(spec, local, folder)
    assert "\nwhat is {0} {question}?\n" in rows_of(local, folder)[0]["prompt"]


def test_missing_or_damaged_metric_json_names_the_remedy(local: Any, folder: str) -> None:
    with pytest.raises(UserError, match=r"metric.json' does not exist; build the benchmark again"):
        read_metric(local, folder)
    build_benchmark(dataclasses.replace(BENCHMARKS.get("easy_vqa"), samples=2), local, folder)
    Path(folder, "metric.json").write_text("{")
    with pytest.raises(UserError, match=r"metric.json' is damaged .*; build the benchmark again"):
        read_metric(local, folder)


@pytest.mark.parametrize(
    ("name", "score", "dropped"),
    [
        ("easy_captions", 9.99, True),
        ("easy_captions", 10.0, False),
        ("easy_captions", 0.0, True),
        ("easy_vqa", 0.0, True),
        ("easy_vqa", 0.01, False),
        ("easy_vqa", 30.0, False),
    ],
)
def test_drop_rule(name: str, score: float, dropped: bool) -> None:
    assert BENCHMARKS.get(name).task.drops(score) is dropped


def test_importing_the_benchmarks_imports_neither_ray_nor_torch() -> None:
    code = f"import sys, {benchmarks.__name__}, rllava.data.instructions, rllava.data.corpus; "
    subprocess.run([sys.executable, "-c", code + "assert not {'ray', 'torch'} & set(sys.modules)"], check=True)
