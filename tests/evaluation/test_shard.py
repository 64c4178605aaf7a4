"""The attack worker on real shards: error rows, shared clean pass, attacks that attack."""

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch._dynamo.utils import counters

from rllava.attacks.common import PIXEL
from rllava.attacks.outcome import unpack_images
from rllava.attacks.protocols import PROTOCOLS, Protocol, in_precision
from rllava.attacks.rounds import CLEAN, Round, reference
from rllava.conditions.attack import within
from rllava.data.benchmarks import BENCHMARK_SCHEMA, BENCHMARKS, list_samples
from rllava.evaluation import shard_checks
from rllava.evaluation.in_flight import Saving
from rllava.evaluation.pipeline import load_dtype
from rllava.evaluation.samples import Sample, decode_shard, pack, unpack
from rllava.evaluation.shard import evaluate_shard, seed_of
from rllava.evaluation.victim import Scoring, Victim
from rllava.metrics.metric import METRICS
from rllava.recipes import PRESETS
from rllava.specs import EvalSpec
from tests.model.test_llava import make

PRESET = PRESETS.get("smoke")


def shard(name: str, count: int) -> pa.Table:
    spec = dataclasses.replace(BENCHMARKS.get(name), samples=count)
    rows = [
        {
            "row": row,
            "sample_id": sample.sample_id,
            "image": sample.load_image and sample.load_image(),
            "prompt": spec.task.ask(sample.question),
            "references": list(sample.references),
        }
        for row, sample in enumerate(list_samples(spec))
    ]
    return pa.Table.from_pylist(rows, schema=BENCHMARK_SCHEMA)


def spec_of(
    name: str, epsilon: float, batch_size: int = 4, protocol: str | Protocol = "paper_ensemble_3steps"
) -> EvalSpec:
    llava = make("tiny-clip")
    encoders = tuple(encoder.spec for encoder in llava.encoders)  # type: ignore[misc]
    benchmark = dataclasses.replace(BENCHMARKS.get(name), samples=6)
    model = dataclasses.replace(PRESET.model, encoders=encoders)  # type: ignore[arg-type]
    chosen = PROTOCOLS.get(protocol) if isinstance(protocol, str) else protocol
    return EvalSpec("tiny-clip", model, encoders, benchmark, within(chosen, epsilon), batch_size)  # type: ignore[arg-type]


def evaluate(
    name: str, samples: list[Sample], epsilons: tuple[float, ...], batch_size: int = 4,
    protocol: str | Protocol = "paper_ensemble_3steps", worker: Victim | None = None, **others: Any,
) -> list[list[dict[str, Any]]]:  # fmt: skip
    metric = METRICS.get(BENCHMARKS.get(name).task.metric)
    state = metric.prepare([sample.references or ("none",) for sample in samples])
    worker = worker or Victim(make("tiny-clip", dtype=torch.float32), torch.device("cpu"))
    # An untrained LLaVA answers nothing right; references that it does give make it worth attacking.
    specs = [spec_of(name, epsilon, batch_size, protocol) for epsilon in epsilons]
    return [table.to_pylist() for _, table in evaluate_shard(worker, samples, specs, metric, state, **others)]


def answered_by_itself(name: str, samples: list[Sample]) -> list[Sample]:
    (clean,) = evaluate(name, samples, (0.0,))
    return [
        dataclasses.replace(sample, references=(str(row["clean_prediction"]) or "x",) * 10)
        if sample.error is None
        else sample
        for sample, row in zip(samples, clean, strict=True)
    ]


def test_damaged_and_missing_images_and_empty_answers_become_error_rows() -> None:
    table = shard("easy_vqa", 6)
    rows = table.to_pylist()
    rows[1]["image"] = rows[1]["image"][:100]
    rows[2]["image"] = None
    rows[4]["references"] = ["", " "]
    samples = decode_shard(pa.Table.from_pylist(rows, schema=BENCHMARK_SCHEMA), 64)
    (clean, attacked) = evaluate("easy_vqa", samples, (0.0, 8.0))
    for records in (clean, attacked):
        assert [row["sample_id"] for row in records] == [row["sample_id"] for row in rows]
        errors = [row["error"] for row in records]
        assert str(errors[1]).startswith("damaged image")
        assert errors[2] == "no image"
        assert errors[4] == "no references"
        assert [row["score"] is None for row in records] == [False, True, True, False, True, False]


def test_odd_images_reach_the_encoder_as_squares() -> None:
    rows = shard("easy_vqa", 2).to_pylist()
    for row, (mode, size) in zip(rows, (("L", (30, 90)), ("RGBA", (1, 1))), strict=True):
        buffer = io.BytesIO()
        Image.new(mode, size).save(buffer, "PNG")
        row["image"] = buffer.getvalue()
    samples = decode_shard(pa.Table.from_pylist(rows, schema=BENCHMARK_SCHEMA), 64)
    assert [sample.pixels_HWC.shape for sample in samples if sample.pixels_HWC is not None] == [(64, 64, 3)] * 2


def test_an_attack_lowers_scores_within_its_budget_and_says_how() -> None:
    samples = answered_by_itself("easy_vqa", decode_shard(shard("easy_vqa", 6), 64))
    clean, small, large = evaluate("easy_vqa", samples, (0.0, 2.0, 32.0))
    assert [row["score"] for row in clean] == [100.0] * 6
    assert sum(float(str(row["score"])) for row in large) < 600
    for row in (*small, *large):
        assert row["clean_score"] == 100.0
        assert 0 < float(str(row["linf"])) <= float(str(row["epsilon"])) + 1e-3 or row["best_round"] == "clean"
        assert float(str(row["loss_best"])) >= float(str(row["loss_clean"]))
        assert row["steps"] == 3 * len(row["rounds"])  # type: ignore[arg-type]
        image = Image.open(io.BytesIO(row["adversarial_png"]))  # type: ignore[arg-type]
        assert image.size == (64, 64)
    assert all(row["clean_png"] and row["adversarial_png"] is None for row in clean)


def test_records_do_not_depend_on_the_batch_size() -> None:
    samples = answered_by_itself("easy_captions", decode_shard(shard("easy_captions", 5), 64))
    ones, fours = (evaluate("easy_captions", samples, (0.0, 8.0), batch_size) for batch_size in (1, 4))
    for one, four in zip(ones, fours, strict=True):
        for a, b in zip(one, four, strict=True):
            assert (a["prediction"], a["score"], a["rounds"]) == (b["prediction"], b["score"], b["rounds"])
            if a["loss_best"] is not None:
                assert float(str(a["loss_best"])) == pytest.approx(float(str(b["loss_best"])), abs=2e-3)


def test_samples_survive_the_trip_to_a_worker() -> None:
    samples = decode_shard(shard("easy_vqa", 3), 64)
    samples[1] = dataclasses.replace(samples[1], pixels_HWC=None, error="damaged image: why")
    for before, after in zip(samples, unpack(pack(samples)), strict=True):
        assert (before.sample_id, before.prompt, before.references, before.error) == (
            after.sample_id,
            after.prompt,
            after.references,
            after.error,
        )
        assert (before.pixels_HWC is None) == (after.pixels_HWC is None)
        if before.pixels_HWC is not None:
            assert (before.pixels_HWC == after.pixels_HWC).all()


def test_half_precision_rounds_use_a_half_precision_model() -> None:
    worker = Victim(make("tiny-clip", dtype=torch.float32), torch.device("cpu"))
    half = worker.model("float16")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float16}
    assert {parameter.dtype for parameter in worker.model("float32").parameters()} == {torch.float32}
    assert worker.model("float16") is half


def test_a_model_loaded_in_half_precision_is_attacked_in_it_alone() -> None:
    samples = answered_by_itself("easy_vqa", decode_shard(shard("easy_vqa", 4), 64))
    protocol = in_precision(PROTOCOLS.get("paper_ensemble_3steps"), "bfloat16")
    assert load_dtype([spec_of("easy_vqa", 8, protocol=protocol)]) == torch.bfloat16
    assert load_dtype([spec_of("easy_vqa", 8)]) == torch.float32
    worker = Victim(make("tiny-clip", dtype=torch.bfloat16), torch.device("cpu"))
    clean, rows = evaluate("easy_vqa", samples, (0.0, 8.0), protocol=protocol, worker=worker)
    assert {parameter.dtype for parameter in worker.model("bfloat16").parameters()} == {torch.bfloat16}
    assert any(row["steps"] for row in rows)
    assert [row["score"] for row in clean] == [row["clean_score"] for row in rows]
    with pytest.raises(AssertionError, match="loaded in bfloat16 cannot run in float32"):
        worker.model("float32")


def test_prompts_reach_the_model_word_for_word() -> None:
    prompts = {json.dumps(row["prompt"]) for row in shard("easy_captions", 3).to_pylist()}
    assert prompts == {json.dumps("<image>\nProvide a short caption for this image.")}


def scored_image(row: dict[str, Any]) -> Tensor:
    """The scored image of a record, from its two columns."""
    rounded_HWC = torch.from_numpy(np.array(Image.open(io.BytesIO(row["adversarial_png"]))))
    rest_HWC = torch.from_numpy(np.frombuffer(row["adversarial_rest"], np.int8).copy()).view(rounded_HWC.shape)
    return unpack_images(rounded_HWC.permute(2, 0, 1), rest_HWC.permute(2, 0, 1))


def test_a_stored_image_gives_the_stored_answer_again() -> None:
    samples = answered_by_itself("easy_captions", decode_shard(shard("easy_captions", 6), 64))
    worker = Victim(make("tiny-clip", dtype=torch.float32), torch.device("cpu"))
    (rows,) = evaluate("easy_captions", samples, (12.5,), worker=worker)
    metric = METRICS.get("cider")
    scoring = Scoring(BENCHMARKS.get("easy_captions"), metric, metric.prepare([s.references for s in samples]))
    attacked = [(row, sample) for row, sample in zip(rows, samples, strict=True) if row["rounds"]]
    assert attacked
    for row, sample in attacked:
        image_1CHW = scored_image(row)[None]
        assert worker.answer(image_1CHW, [sample], scoring, "float32")[0] == [row["prediction"]]
        delta_CHW = (image_1CHW - worker.pixels([sample.pixels_HWC])).abs() / PIXEL
        assert float(delta_CHW.max()) == pytest.approx(row["linf"], abs=1e-3)
        assert row["linf"] <= 12.5


class Memory:
    """Keeps states in memory, serialised as the store does, and breaks off after some."""

    def __init__(self, breaks_after: int = 1 << 30, breaks_in_checks: bool = False) -> None:
        self.kept: dict[float, bytes] = {}
        self.left = breaks_after
        self.breaks_in_checks = breaks_in_checks
        self.loaded = 0

    def load(self, spec: EvalSpec) -> Mapping[str, Any] | None:
        if spec.condition.epsilon not in self.kept:
            return None
        self.loaded += 1
        state: Mapping[str, Any] = torch.load(io.BytesIO(self.kept[spec.condition.epsilon]), weights_only=True)
        return state

    def save(self, spec: EvalSpec, state: Mapping[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        self.kept[spec.condition.epsilon] = buffer.getvalue()
        self.left -= 1
        if self.left == 0 or (self.breaks_in_checks and "findings" in state):
            raise KeyboardInterrupt


def test_an_attack_that_broke_off_goes_on_to_the_same_rows() -> None:
    samples = answered_by_itself("easy_vqa", decode_shard(shard("easy_vqa", 6), 64))
    unbroken = evaluate("easy_vqa", samples, (4.0, 8.0), batch_size=2)
    memory = Memory(breaks_after=11)
    with pytest.raises(KeyboardInterrupt):
        evaluate("easy_vqa", samples, (4.0, 8.0), batch_size=2, saving=Saving(memory, every_s=0.0))
    memory.left = 1 << 30
    assert evaluate("easy_vqa", samples, (4.0, 8.0), batch_size=2, saving=Saving(memory, every_s=0.0)) == unbroken
    assert memory.loaded == 1


def test_checks_that_broke_off_go_on_where_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = answered_by_itself("easy_vqa", decode_shard(shard("easy_vqa", 6), 64))
    unbroken = evaluate("easy_vqa", samples, (8.0,), batch_size=2, checked=6)
    memory = Memory(breaks_in_checks=True)
    with pytest.raises(KeyboardInterrupt):
        evaluate("easy_vqa", samples, (8.0,), batch_size=2, checked=6, saving=Saving(memory, every_s=0.0))
    state = torch.load(io.BytesIO(memory.kept[8.0]), weights_only=True)
    assert not state["running"]
    assert 0 < len(state["findings"]) <= 2
    checked: list[int] = []
    check = shard_checks._check

    def noted(who: Sequence[int], *arguments: Any) -> list[list[str]]:
        checked.extend(who)
        return check(who, *arguments)

    monkeypatch.setattr(shard_checks, "_check", noted)
    memory.breaks_in_checks = False
    assert evaluate("easy_vqa", samples, (8.0,), batch_size=2, checked=6, saving=Saving(memory, 0.0)) == unbroken
    everyone = {b for b, row in enumerate(unbroken[0]) if row["checked"]}
    assert len(everyone) > 2
    assert sorted(checked) == sorted(everyone - set(state["findings"]))


def test_a_batch_size_of_zero_takes_the_whole_shard() -> None:
    samples = answered_by_itself("easy_vqa", decode_shard(shard("easy_vqa", 5), 64))
    whole, five = (evaluate("easy_vqa", samples, (8.0,), batch_size=size) for size in (0, 5))
    assert whole == five


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_attacks_keep_images_in_float32(precision: str) -> None:
    samples = answered_by_itself("easy_vqa", decode_shard(shard("easy_vqa", 4), 64))
    protocol = in_precision(PROTOCOLS.get("paper_ensemble_3steps"), precision)
    seen: set[tuple[torch.dtype, torch.dtype]] = set()
    worker = Victim(make("tiny-clip", dtype=torch.float32), torch.device("cpu"))
    for encoder in worker.model(precision).encoders:
        encoder.register_forward_hook(lambda module, inputs, output: seen.add((inputs[0].dtype, output.dtype)))
    (rows,) = evaluate("easy_vqa", samples, (8.0,), protocol=protocol, worker=worker)
    half = torch.float16 if precision == "float16" else torch.bfloat16
    assert seen == {(torch.float32, half)}
    for row in rows:
        if row["rounds"]:
            assert row["condition"] == f"paper_ensemble_3steps_{precision}-v1"
            assert row["error"] is None
            assert row["linf"] <= 8.0
            assert row["loss_best"] >= row["loss_clean"]


def test_normalisation_is_not_rounded_with_the_weights() -> None:
    encoder = make("tiny-clip", dtype=torch.float32).encoders[0].bfloat16()
    mean_1C11, std_1C11 = encoder.statistics(torch.zeros(1, 3, 64, 64))
    assert mean_1C11.flatten().tolist() == torch.tensor(encoder.spec.mean).tolist()
    assert std_1C11.flatten().tolist() == torch.tensor(encoder.spec.std).tolist()


def test_a_compiled_model_gives_the_same_attack() -> None:
    samples = answered_by_itself("easy_vqa", decode_shard(shard("easy_vqa", 2), 64))
    protocol = Protocol("once", 1, (("short_answer", (Round("label0", 2, "float32", CLEAN, reference(0)),)),))
    llava = make("tiny-clip", dtype=torch.float32)
    compiled = Victim(llava, torch.device("cpu"), compiler="eager")
    assert all(encoder._compiled_call_impl is not None for encoder in llava.encoders)
    rows = [evaluate("easy_vqa", samples, (8.0,), protocol=protocol, worker=worker)[0] for worker in (compiled, None)]
    for mine, theirs in zip(*rows, strict=True):
        assert mine["prediction"] == theirs["prediction"]
        assert mine["loss_best"] == pytest.approx(theirs["loss_best"], abs=1e-4)


def test_all_layers_of_a_compiled_language_model_share_their_graphs() -> None:
    """One of its own for every layer would soon reach the limit, beyond which layers are not compiled at all."""
    samples = answered_by_itself("easy_vqa", decode_shard(shard("easy_vqa", 2), 64))
    protocol = Protocol(
        "once", 1, (("short_answer", (Round("label0", 1, "float32", CLEAN, reference(0)),)),), drops="never"
    )
    graphs = []
    for removed in (0, 1):
        llava = make("tiny-clip", dtype=torch.float32)
        language_model: Any = llava.connector.language_model
        kept = len(language_model.model.layers) - removed
        language_model.config.num_hidden_layers = kept
        language_model.model.layers = language_model.model.layers[:kept]
        torch.compiler.reset()
        counters.clear()
        worker = Victim(llava, torch.device("cpu"), compiler="eager")
        evaluate("easy_vqa", samples, (8.0,), protocol=protocol, worker=worker)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] > 0


def test_decoys_are_the_worst_answers_the_likeliest_first() -> None:
    (sample,) = answered_by_itself("easy_vqa", decode_shard(shard("easy_vqa", 1), 64))
    worker = Victim(make("tiny-clip", dtype=torch.float32), torch.device("cpu"))
    metric = METRICS.get("vqa_accuracy")
    bank = ("red", "blue", sample.references[0], "green", "triangle", "yes", "no", "teal", "circle", "gray")
    image_1CHW = worker.pixels([sample.pixels_HWC])
    found = worker.decoys(image_1CHW, sample, Scoring(BENCHMARKS.get("easy_vqa"), metric, None, bank))
    assert sorted(found) == sorted(set(bank) - {sample.references[0]})
    with torch.no_grad():
        losses = [float(worker.loss(image_1CHW, [worker.tokens(sample.prompt, text)], "float32")) for text in found]
    assert losses == sorted(losses)
    assert seed_of("a") != seed_of("b")


class Rounded(torch.autograd.Function):
    """8 levels, and no gradient: a defence that masks it."""

    @staticmethod
    def forward(context: Any, pixels_BCHW: Tensor) -> Tensor:
        return (pixels_BCHW * 8).round() / 8

    @staticmethod
    def backward(context: Any, gradient_BCHW: Tensor) -> Tensor:  # type: ignore[override]
        return torch.zeros_like(gradient_BCHW)


def shifted(pixels_BCHW: Tensor) -> Tensor:
    """Another random shift in each pass: a randomised defence."""
    return pixels_BCHW.roll(int(torch.randint(1, 9, ())), 3)


@pytest.mark.parametrize(
    ("defence", "check"), [(Rounded.apply, "zero_gradient"), (shifted, "stochastic")], ids=["rounding", "shifting"]
)
def test_a_defence_that_fools_the_attack_is_found_and_recorded(defence: Any, check: str) -> None:
    samples = answered_by_itself("easy_vqa", decode_shard(shard("easy_vqa", 4), 64))
    llava = make("tiny-clip", dtype=torch.float32)
    llava.encoders[0].register_forward_pre_hook(lambda module, inputs: (defence(inputs[0]),))
    (defended,) = evaluate("easy_vqa", samples, (16.0,), worker=Victim(llava, torch.device("cpu")))
    checked = [row for row in defended if row["checked"]]
    assert checked
    assert any(check in row["findings"] for row in checked), checked[0]["findings"]
    (sound,) = evaluate("easy_vqa", samples, (16.0,))
    assert all(check not in row["findings"] for row in sound if row["checked"])
