"""Kinds of tasks: what they ask and aim at, and that a new one, with its metric, is asked and attacked as any other."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
import torch

from rllava.attacks.common import PIXEL
from rllava.attacks.protocols import PROTOCOLS, Protocol
from rllava.attacks.rounds import BEST, CLEAN, Round, decoy, reference, target
from rllava.conditions.attack import at_budgets
from rllava.data.benchmarks import (
    BENCHMARK_SCHEMA,
    BENCHMARKS,
    SOURCES,
    BenchmarkSpec,
    build_benchmark,
    read_metric,
)
from rllava.data.easy_vqa_source import easy_images
from rllava.data.entries import Entry
from rllava.data.shards import read_shard
from rllava.errors import UserError
from rllava.evaluation.answers import answer_bank
from rllava.evaluation.samples import decode_shard, pack, unpack
from rllava.evaluation.shard import evaluate_shard
from rllava.evaluation.victim import Victim
from rllava.filesystem import open_filesystem
from rllava.fingerprint import fingerprint
from rllava.metrics.metric import METRICS, Metric
from rllava.recipes import PRESETS, check_grid
from rllava.registry import Registry
from rllava.specs import EvalSpec
from rllava.tasks.captioning import Captioning
from rllava.tasks.short_answer import ShortAnswer
from rllava.tasks.task import TASKS, Decoding, Needs, Task
from tests.evaluation.test_shard import spec_of
from tests.model.test_llava import make

ROOT = Path(__file__).parents[2]
PROMPT = "<image>\n{question}\nYes or no?"


@dataclasses.dataclass(frozen=True)
class SaySo(Task):
    """What would be one file: labels and decoys of its own."""

    kind: ClassVar[str] = "say_so"

    metric: str = "said"

    def labels(self, references: Sequence[str]) -> list[str]:
        return [f"surely {references[0]}"] if references else []

    def decoys(self, references_of_each_sample: Iterable[Sequence[str]]) -> tuple[str, ...]:
        return ("yes", "no")


@dataclasses.dataclass(frozen=True)
class Words:
    """What the metric knows: words that count for nothing."""

    stop: frozenset[str]


def said(prediction: str, references: Sequence[str], words: Words) -> float:
    """Percent of the words that count, whatever the references."""
    found = prediction.split()
    return 100.0 * sum(word not in words.stop for word in found) / len(found) if found else 0.0


SAID = Metric(
    "said",
    "%",
    clean=str.strip,
    score=said,
    prepare=lambda references: Words(frozenset(text for texts in references for text in texts[1:] if text.strip())),
    state_to_json=lambda words: sorted(words.stop),
    state_from_json=lambda stop: Words(frozenset(stop)),
    needs_references=False,
)
ERRORS = dataclasses.replace(SAID, name="errors", higher_is_better=False)

ROUNDS = (
    Round("label0", 2, "float32", CLEAN, reference(0)),
    Round("label1", 2, "float32", CLEAN, reference(1)),
    Round("maybe", 2, "float32", CLEAN, target("maybe")),
    Round("decoy0", 2, "float32", BEST, decoy(0)),
)
PROTOCOL = Protocol("asked", 1, (("say_so", ROUNDS),), drops="never")


@pytest.fixture
def registered() -> Iterator[None]:
    """What the files of a package would do when they are imported."""
    TASKS.register(SaySo.kind, SaySo)
    METRICS.register("said", SAID)
    METRICS.register("errors", ERRORS)
    PROTOCOLS.register(PROTOCOL.name, PROTOCOL)
    yield
    del PROTOCOLS._entries[PROTOCOL.name]
    del TASKS._entries["say_so"], METRICS._entries["said"], METRICS._entries["errors"]


def gone() -> bytes:
    raise FileNotFoundError("gone.png")


@pytest.fixture
def benchmark(registered: None) -> Iterator[BenchmarkSpec]:
    """Samples that lack something, of a source that is there for a test."""
    png = easy_images("test")[0].png
    samples = [
        Entry("whole", lambda: png, ("yes", "the"), "Is it red?"),
        Entry("no references", lambda: png, ("", " "), "Is it blue?"),
        Entry("no image", None, ("no",), "Is it?"),
        Entry("damaged", lambda: png[:50], ("no",), "Is it?"),
        Entry("unreadable", gone, ("no",), "Is it?"),
    ]
    SOURCES.register("asked", lambda split: samples)
    yield BenchmarkSpec("asked", "asked", "test", len(samples), 0, SaySo(PROMPT, Decoding(3)))
    del SOURCES._entries["asked"]


def of(benchmark: BenchmarkSpec, epsilon: float, protocol: Protocol = PROTOCOL) -> EvalSpec:
    return dataclasses.replace(spec_of("easy_vqa", epsilon, protocol=protocol), benchmark=benchmark)


def errors_of(benchmark: BenchmarkSpec, tmp_path: Path) -> dict[str, str | None]:
    """Why each sample is not asked, as the tasks that decode say it."""
    local, folder = open_filesystem(str(tmp_path / "data"))
    (path,) = build_benchmark(benchmark, local, folder)
    samples = decode_shard(read_shard(local, path), 64, needs=benchmark.task.needs)
    return {sample.sample_id: sample.error for sample in unpack(pack(samples))}


def test_labels_are_captions_in_order_or_answers_by_frequency() -> None:
    assert Captioning("", Decoding(1)).labels(("b", "a", "a")) == ["b", "a", "a"]
    assert ShortAnswer("", Decoding(1)).labels(("b", "a", "a")) == ["a", "b"]


def test_kinds_are_registered_under_their_names_and_those_of_all_protocols_and_benchmarks_are() -> None:
    assert list(TASKS) == ["captioning", "continuation", "description", "multiple_choice", "short_answer", "yes_no"]
    attacked_as = {name: TASKS.get(name).kind for name in TASKS}
    assert attacked_as == {name: name for name in TASKS} | {"multiple_choice": "short_answer", "yes_no": "short_answer"}
    aimed_at = {kind for name in PROTOCOLS for kind in PROTOCOLS.get(name).kinds}
    assert aimed_at == set(attacked_as.values()) - {"continuation", "description"}, "which have no labels"
    assert {type(BENCHMARKS.get(name).task) for name in BENCHMARKS} == {TASKS.get(name) for name in TASKS}
    with pytest.raises(UserError, match="unknown kind of task 'captionning'; did you mean captioning"):
        TASKS.get("captionning")


def test_every_field_of_a_task_and_its_kind_name_another_benchmark() -> None:
    spec = BENCHMARKS.get("easy_captions")
    task = spec.task
    others = [
        dataclasses.replace(task, prompt="<image>"),
        dataclasses.replace(task, decoding=Decoding(21)),
        dataclasses.replace(task, decoding=Decoding(20, temperature=1.0)),
        dataclasses.replace(task, metric="vqa_accuracy"),
        dataclasses.replace(task, drop_threshold=2.0),
        ShortAnswer(task.prompt, task.decoding, "cider", task.drop_threshold),
    ]
    names = {fingerprint(dataclasses.replace(spec, task=other)) for other in (task, *others)}
    assert len(names) == 1 + len(others)


def test_a_new_version_of_a_kind_names_another_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = BENCHMARKS.get("easy_captions")
    before = fingerprint(spec)
    monkeypatch.setattr(Captioning, "version", 2)
    assert fingerprint(dataclasses.replace(spec, task=dataclasses.replace(spec.task))) != before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 5, "temperature": -1.0}, "temperature"),
        ({"max_new_tokens": 5, "temperature": 1.0, "draws": 0}, "draws"),
        ({"max_new_tokens": 5, "draws": 3}, "greedy answers are all the same, got 3"),
    ],
)
def test_a_decoding_that_makes_no_sense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Decoding(**settings)


def test_a_row_needs_what_its_task_and_metric_need(benchmark: BenchmarkSpec, tmp_path: Path) -> None:
    unread = "damaged image: the image has no bytes"
    found = errors_of(benchmark, tmp_path)
    assert str(found.pop("damaged")).startswith("damaged image: the image cannot be decoded")
    assert found == {"whole": None, "no references": None, "no image": "no image", "unreadable": unread}
    by_references = dataclasses.replace(benchmark, task=dataclasses.replace(benchmark.task, metric="vqa_accuracy"))
    found = errors_of(by_references, tmp_path)
    del found["damaged"]
    assert found == {"whole": None, "no references": "no references", "no image": "no image", "unreadable": unread}


def test_a_row_without_image_that_its_task_allows_is_no_error(
    benchmark: BenchmarkSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SaySo, "needs_image", False)
    assert benchmark.task.needs == Needs(references=False, image=False)
    assert errors_of(benchmark, tmp_path)["no image"] is None


def test_a_new_kind_is_attacked_at_its_own_labels_and_decoys(benchmark: BenchmarkSpec, tmp_path: Path) -> None:
    local, folder = open_filesystem(str(tmp_path))
    (path,) = build_benchmark(benchmark, local, folder)
    metric, state = read_metric(local, folder)
    assert (metric, state) == (SAID, Words(frozenset({"the"}))), "its state has to come back from the file"
    bank = answer_bank(local, folder, benchmark.task)
    assert bank == ("yes", "no")
    samples = decode_shard(read_shard(local, path), 64, needs=benchmark.task.needs)
    worker = Victim(make("tiny-clip", dtype=torch.float32), torch.device("cpu"))
    specs = [of(benchmark, 0.0), of(benchmark, 8.0)]
    clean, attacked = (
        {row["sample_id"]: row for row in table.to_pylist()}
        for _, table in evaluate_shard(worker, samples, specs, metric, state, bank=bank)
    )
    by_name = {sample.sample_id: sample for sample in samples}
    for name, rounds in (("whole", ["label0", "maybe", "decoy0"]), ("no references", ["maybe", "decoy0"])):
        assert clean[name]["error"] is attacked[name]["error"] is None
        assert clean[name]["score"] == said(clean[name]["prediction"], (), state)
        assert attacked[name]["rounds"] == rounds, "there is one label, or none"
        assert 0.0 < attacked[name]["linf"] <= 8.0 or attacked[name]["best_round"] == "clean"
    whole = by_name["whole"]
    assert whole.prompt == "<image>\nIs it red?\nYes or no?"
    only = dataclasses.replace(PROTOCOL, rounds_by_kind=(("say_so", ROUNDS[:1]),))
    ((_, table),) = evaluate_shard(worker, [whole], [of(benchmark, 8.0, only)], metric, state)
    assert whole.pixels_HWC is not None
    pixels_1CHW = torch.from_numpy(whole.pixels_HWC).permute(2, 0, 1)[None].float() * PIXEL
    with torch.no_grad():
        loss_1 = worker.loss(pixels_1CHW, [worker.tokens(whole.prompt, "surely yes")], "float32")
    assert table.to_pylist()[0]["loss_clean"] == pytest.approx(float(loss_1), abs=1e-5)
    assert attacked["no image"]["error"] == "no image"


def evaluated(benchmark: BenchmarkSpec, epsilons: Sequence[float], protocol: Protocol = PROTOCOL) -> list[pa.Table]:
    row = {
        "row": 0, "sample_id": "a", "image": easy_images("test")[0].png, "prompt": "<image>\nIs it?", "references": [],
    }  # fmt: skip
    table = pa.Table.from_pylist([row], schema=BENCHMARK_SCHEMA)
    samples = decode_shard(table, 64, needs=benchmark.task.needs)
    worker = Victim(make("tiny-clip", dtype=torch.float32), torch.device("cpu"))
    metric = METRICS.get(benchmark.task.metric)
    specs = [of(benchmark, epsilon, protocol) for epsilon in epsilons]
    return [found for _, found in evaluate_shard(worker, samples, specs, metric, metric.prepare([()]))]


def refused(benchmark: BenchmarkSpec, message: str, protocol: Protocol = PROTOCOL) -> None:
    """Where a sweep is planned, and where its work is done, in the same line."""
    conditions = at_budgets(protocol, (0.0, 8.0))
    grid = dataclasses.replace(PRESETS.get("smoke"), benchmarks=(benchmark,), conditions=conditions)
    for attempt in (lambda: check_grid(grid), lambda: evaluated(benchmark, (0.0, 8.0), protocol)):
        with pytest.raises(UserError, match=message) as caught:
            attempt()
        assert "\n" not in str(caught.value)


def test_a_protocol_without_rounds_for_a_kind_refuses_it_in_one_line(benchmark: BenchmarkSpec) -> None:
    message = (
        "^protocol paper_ensemble_3steps is for captioning and short_answer benchmarks only, not for say_so; give "
        "--benchmarks of that kind, or another --protocol$"
    )
    refused(benchmark, message, PROTOCOLS.get("paper_ensemble_3steps"))


def test_a_metric_that_is_better_the_lower_it_is_is_asked_but_not_attacked(benchmark: BenchmarkSpec) -> None:
    lower = dataclasses.replace(benchmark, task=dataclasses.replace(benchmark.task, metric="errors"))
    refused(lower, "^task say_so: metric errors is better the lower it is, and an attack looks for the lowest score; ")
    (clean,) = evaluated(lower, (0.0,))
    assert clean.column("error").to_pylist() == [None]


def test_drawn_answers_are_not_attacked(benchmark: BenchmarkSpec) -> None:
    drawn = dataclasses.replace(benchmark.task, decoding=Decoding(3, temperature=0.7, draws=2))
    message = r"^task say_so: an attack keeps .* drawn answers \(temperature 0.7\) .*; give a temperature of 0"
    refused(dataclasses.replace(benchmark, task=drawn), message)
    (clean,) = evaluated(dataclasses.replace(benchmark, task=drawn), (0.0,))
    assert clean.column("draw").to_pylist() == [0, 1]


def test_what_is_attacked_as_another_kind_is_a_subclass_of_it(benchmark: BenchmarkSpec) -> None:
    @dataclasses.dataclass(frozen=True)
    class Chosen(ShortAnswer):
        metric: str = "said"

    task = Chosen(PROMPT, Decoding(2))
    other = dataclasses.replace(benchmark, task=task)
    (table,) = evaluated(other, (8.0,), PROTOCOLS.get("paper_ensemble_3steps"))
    assert table.column("rounds").to_pylist() == [["target-maybe", "target-Word"]]
    plain = ShortAnswer(PROMPT, Decoding(2), metric="said")
    assert fingerprint(other) != fingerprint(dataclasses.replace(benchmark, task=plain))


@pytest.mark.parametrize("name", ["easy_yes_no", "easy_choice"])
def test_tasks_of_few_answers_are_attacked_by_every_protocol(name: str) -> None:
    """Every one has rounds; one of them is run: the label is the right word, the decoys are the wrong ones."""
    spec = BENCHMARKS.get(name)
    for protocol in PROTOCOLS:
        if "short_answer" in PROTOCOLS.get(protocol).kinds:
            check_grid(
                dataclasses.replace(
                    PRESETS.get("smoke"), benchmarks=(spec,), conditions=at_budgets(PROTOCOLS.get(protocol), (0.0, 8.0))
                )
            )
    entries = SOURCES.get(spec.source)("test")[:3]
    asked = [
        {
            "row": row,
            "sample_id": e.sample_id,
            "image": e.load_image(),
            "prompt": spec.task.ask(e.question),
            "references": list(e.references),
        }
        for row, e in enumerate(entries)
        if e.load_image is not None
    ]
    samples = decode_shard(pa.Table.from_pylist(asked, schema=BENCHMARK_SCHEMA), 64, needs=spec.task.needs)
    metric, bank = METRICS.get(spec.task.metric), spec.task.decoys(e.references for e in entries)
    rounds = (Round("label0", 1, "float32", CLEAN, reference(0)), Round("decoy0", 1, "float32", CLEAN, decoy(0)))
    protocol = Protocol("once", 1, (("short_answer", rounds),), drops="never")
    worker = Victim(make("tiny-clip", dtype=torch.float32), torch.device("cpu"))
    rows = {}
    for shown in (samples, *([sample] for sample in samples)):
        ((_, table),) = evaluate_shard(
            worker, shown, [of(spec, 8.0, protocol)], metric, metric.prepare([e.references for e in entries]), bank=bank
        )
        for row in table.to_pylist():
            assert row["error"] is None
            assert set(row["round_scores"]) <= {0.0, 100.0}
            assert "label0" in row["rounds"]
            told = {key: row[key] for key in ("prediction", "clean_prediction", "rounds", "round_predictions", "score")}
            assert rows.setdefault(row["sample_id"], told) == told, "alone as in a batch"
    assert len(rows) == 3


def test_a_question_without_an_image_is_answered_and_not_attacked() -> None:
    spec = BENCHMARKS.get("scienceqa")
    row = {
        "row": 0,
        "sample_id": "4",
        "image": None,
        "prompt": spec.task.ask("Which?\nA. a\nB. b"),
        "references": ["A"],
    }
    samples = decode_shard(pa.Table.from_pylist([row], schema=BENCHMARK_SCHEMA), 64, needs=spec.task.needs)
    worker = Victim(make("tiny-clip", dtype=torch.float32), torch.device("cpu"))
    metric = METRICS.get(spec.task.metric)
    protocol = Protocol("once", 1, (("short_answer", ROUNDS[:1]),))
    specs = [of(spec, epsilon, protocol) for epsilon in (0.0, 8.0)]
    clean, attacked = (table.to_pylist()[0] for _, table in evaluate_shard(worker, samples, specs, metric, None))
    assert clean["error"] is None
    assert clean["score"] in (0.0, 100.0)
    assert "<image>" not in clean["prompt"]
    assert attacked["error"] == "no image, and attack is about a sample's own"


def test_the_example_of_the_documentation_runs(tmp_path: Path) -> None:
    registries: tuple[Registry[Any], ...] = (METRICS, TASKS, SOURCES, BENCHMARKS, PROTOCOLS)
    before = [dict(registry._entries) for registry in registries]
    (code,) = re.findall(r"```python\n(from collections.*?)```", (ROOT / "docs/data.md").read_text(), re.DOTALL)
    try:
        exec(code, {"__name__": "the_example"})
        added = [set(registry) - set(old) for registry, old in zip(registries, before, strict=True)]
        assert added == [{"right"}, {"red_or_not"}, {"is_it_red"}, {"is_it_red"}, {"once"}]
        spec = BENCHMARKS.get("is_it_red")
        local, folder = open_filesystem(str(tmp_path))
        paths = build_benchmark(spec, local, folder)
        samples = decode_shard(read_shard(local, paths[0]), 64, needs=spec.task.needs)[:4]
        metric, state = read_metric(local, folder)
        worker = Victim(make("tiny-clip", dtype=torch.float32), torch.device("cpu"))
        evaluation = of(spec, 8.0, dataclasses.replace(PROTOCOLS.get("once"), drops="never"))
        ((_, table),) = evaluate_shard(worker, samples, [evaluation], metric, state)
        assert table.column("rounds").to_pylist() == [["label0"]] * 4
        assert set(table.column("clean_score").to_pylist()) <= {0.0, 100.0}
    finally:
        for registry, old in zip(registries, before, strict=True):
            registry._entries.clear()
            registry._entries.update(old)


def test_an_unknown_metric_of_a_task_is_named(benchmark: BenchmarkSpec) -> None:
    unknown = dataclasses.replace(benchmark.task, metric="sayd")
    with pytest.raises(UserError, match="unknown metric 'sayd'; did you mean said"):
        unknown.check(attacked=False)
