"""The fingerprints of all recipes, down to the last default, beside a golden file."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

import tests
from rllava.attacks.protocols import PROTOCOLS, with_steps
from rllava.conditions.attack import within
from rllava.conditions.clean import Clean
from rllava.conditions.corruption import Corruption
from rllava.conditions.shown import Shown
from rllava.conditions.smallest_budget import SmallestBudget
from rllava.conditions.universal import Universal
from rllava.data.benchmarks import BENCHMARKS
from rllava.data.instructions import INSTRUCTIONS
from rllava.encoders import encoder_spec
from rllava.fingerprint import Field, fields_of, fingerprint
from rllava.image_spec import ImageSpec
from rllava.judgement_spec import JudgementSpec
from rllava.metrics import metric as metric_module
from rllava.metrics.judges.lexicon import Lexicon
from rllava.metrics.metric import METRICS
from rllava.model import conversation
from rllava.pinned import MadeBy, Pinned
from rllava.recipes import PRESETS
from rllava.recipes.jailbreaks import EMBEDDED
from rllava.specs import EvalSpec, ModelSpec
from rllava.training.objectives import OBJECTIVES
from rllava.training.pretraining import RECIPES
from rllava.universal_spec import RECIPES as UNIVERSAL
from rllava.universal_spec import Corpus, Making
from tests.golden.make_identity import GOLDEN, REGENERATE, Snapshot, changes, outside_fields, plan_of

ROOT = Path(tests.__file__).parents[1]


@pytest.fixture(scope="module")
def snapshot() -> Snapshot:
    return Snapshot()


def test_all_recipes_are_what_they_were(snapshot: Snapshot) -> None:
    found = list(changes(json.loads(GOLDEN.read_text()), snapshot.content(), outside_fields(snapshot.kinds)))
    shown = "\n".join(change.text for change in found[:20])
    assert not found, (
        f"{len(found)} changes:\n{shown}\nIf artifacts have to be computed anew, or none is concerned, run "
        f"{REGENERATE} and commit the file; it says which changes need a version first"
    )


def test_every_preset_protocol_benchmark_and_candidate_is_in_the_golden_file() -> None:
    keys = json.loads(GOLDEN.read_text())["recipes"]
    for preset in map(PRESETS.get, PRESETS):
        for name in (candidate.name for candidate in preset.candidates):
            assert f"{preset.name} model {name}" in keys
            for benchmark in preset.benchmarks:
                if benchmark.task.kind not in preset.protocols[0].kinds:
                    assert preset.name in ("manners", "candid"), "whose requests are for the jailbreak sweep"
                    continue
                prints = keys[f"{preset.name} {preset.protocols[0].name} {name} {benchmark.name}"].split()
                assert len(set(prints)) == len(preset.budgets)


def edit(folder: Path, name: str, before: str, after: str) -> None:
    text = (folder / name).read_text()
    assert text.count(before) == 1, (name, before)
    (folder / name).write_text(text.replace(before, after))


def regenerated(folder: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tests.golden.make_identity"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_what_changes_a_result_needs_a_version_and_is_not_written_without(tmp_path: Path) -> None:
    """On a copy of the tree, by the script that a change of the code would go through."""
    for name in ("rllava", "sweeps", "cluster", "analysis", "tests/golden"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "tests/__init__.py", tmp_path / "tests")
    golden = tmp_path / "tests/golden/identity.json"
    edit(tmp_path, "rllava/specs.py", "    warmup: float = 0.03\n", "    warmup: float = 0.05\n")
    edit(tmp_path, "rllava/tasks/decoys.py", "BANK_SIZE = 32\n", "BANK_SIZE = 16\n")
    edit(tmp_path, "rllava/model/conversation.py", 'user: str = "USER"', 'user: str = "HUMAN"')
    field = "    version: int = 1\n"
    edit(tmp_path, "rllava/encoders/base.py", field, f"{field}    pooled: bool = False\n")
    done = regenerated(tmp_path)
    assert done.returncode == 1, done.stderr
    assert "not written: results of two meanings would share a name" in done.stderr
    assert "the default of Stage.warmup was 0.03, is 0.05: specs that leave it out keep their" in done.stdout
    assert "Stage.warmup of " in done.stdout
    assert "decoys was {'version': 1, 'bank': 32}, is {'version': 1, 'bank': 16}, without a version" in done.stdout
    assert "template vicuna_v1 was " in done.stdout
    assert "EncoderSpec.pooled is new; its default False" in done.stdout
    assert ": fingerprints were" not in done.stdout  # that of the new field is what was, the others collide
    assert golden.read_text() == GOLDEN.read_text()

    edit(tmp_path, "rllava/specs.py", "    warmup: float = 0.05\n", "    warmup: float = 0.03\n")
    edit(tmp_path, "rllava/model/conversation.py", 'user: str = "HUMAN"', 'user: str = "USER"')
    edit(tmp_path, "rllava/tasks/decoys.py", "DECOYS_VERSION = 1\n", "DECOYS_VERSION = 2\n")
    done = regenerated(tmp_path)
    assert done.returncode == 0, done.stderr
    before, after = (json.loads(path.read_text())["recipes"] for path in (GOLDEN, golden))
    changed = {key for key in before if before[key] != after[key]}
    aims = {key for key in before if key.split()[1:2] in (["fast"], ["strong"]) and not key.startswith("protocol")}
    assert changed == aims
    for key in changed:
        clean, *attacked = (pair[0] == pair[1] for pair in zip(before[key].split(), after[key].split(), strict=True))
        assert clean
        assert not any(attacked)
    assert "(versions() was {'preprocessing': 1, 'grid': 1, 'decoys': 1}, is" in done.stdout


def other(field: Field, spec: Any) -> Iterator[Any]:
    """Values that a field may have instead of a spec's."""
    value, kinds = getattr(spec, field.name), (field.kind, *get_args(field.kind))
    special: dict[str, tuple[Any, ...]] = {
        "conversation": tuple(conversation.TEMPLATES),
        "metric": tuple(METRICS),
        "sha256": ("1" * 64,),
        "objective": ("mine",),
        "file": (Pinned("prompts.txt", "1" * 64), Pinned("prompts.txt", "2" * 64)),
        "weights": (Pinned("elsewhere", "1" * 64), MadeBy(RECIPES[1]), MadeBy(RECIPES[2])),
        "protocol": (with_steps(PROTOCOLS.get("strong"), 7), with_steps(PROTOCOLS.get("fast"), 7)),
        "below": (0.25,),
        "condition": (Clean("float16"), within(PROTOCOLS.get("strong"), 7.0)),
        "evaluation": (dataclasses.replace(spec.evaluation, candidate="b"),) if isinstance(spec, JudgementSpec) else (),
        "judge": (Lexicon("words.txt", ("red",)),),
        "corpus": (Corpus("other", ("Say this.",) * 8),),
        "smaller": (spec,),
        "sources": ((spec,),),
        "after": ((PROTOCOLS.get("paper_apgd"),),),
        "benchmark": (BENCHMARKS.get("coco"),),
        "data": (INSTRUCTIONS.get("easy_align"),),
    }
    if field.name in special:
        yield from special[field.name]
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, (int, float)):
        yield value + 1
    elif isinstance(value, tuple):
        yield value[1:]
        yield tuple(entry + 1 for entry in value if isinstance(entry, (int, float)))
        yield from ((*value, entry) for entry in (*value, ("further", 1), "further", 1))
    elif dataclasses.is_dataclass(value):
        inner = [field.name for field in fields_of(type(value)) if field.outside is None]
        yield from (with_value(value, name, new) for name in inner for new in ("another", 77))
    else:
        yield from (entry for entry in (*kinds, *(arg for kind in kinds for arg in get_args(kind))) if entry != value)
        yield from ("another", 1, 1.5, None)


def with_value(spec: Any, name: str, value: Any) -> Any:
    """A copy, whether the value makes sense or not."""
    made = object.__new__(type(spec))
    made.__dict__.update({field.name: getattr(spec, field.name) for field in fields_of(type(spec))} | {name: value})
    return made


def moves(spec: Any, field: Field) -> bool:
    """Whether other values of a field give other fingerprints: all of its kind (there must be some), or none."""
    prints = set()
    for value in other(field, spec):
        if value == getattr(spec, field.name):
            continue
        try:
            prints.add(fingerprint(with_value(spec, field.name, value)))
        except (TypeError, ValueError):
            continue
    assert prints, f"no other value for {type(spec).__name__}.{field.name}"
    assert fingerprint(spec) not in prints or prints == {fingerprint(spec)}
    return fingerprint(spec) not in prints


def all_specs(value: Any) -> Iterator[Any]:
    """The specs in a value, itself included."""
    if isinstance(value, tuple):
        yield from (spec for entry in value for spec in all_specs(entry))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield value
        yield from (spec for field in fields_of(type(value)) for spec in all_specs(getattr(value, field.name)))


def test_every_field_of_every_spec_is_in_the_identity_or_declared_not_to_be(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OBJECTIVES._entries, "mine", OBJECTIVES.get("llava"))
    plan = plan_of(PRESETS.get("tiny"), "fast")
    evaluations = [spec for spec, _ in plan.evaluations(plan.grid.candidates[3])]
    answers, captions = evaluations[2], evaluations[-1]
    judged = JudgementSpec(answers, Lexicon("words.txt", ("red", "blue")))
    continued = BENCHMARKS.get("real_toxicity_prompts")
    picture = EMBEDDED.picture.pinned()  # type: ignore[union-attr]
    corpus, strong = EMBEDDED.corpus, UNIVERSAL.get("visualadv_strong")
    assert corpus is not None
    making = Making(strong, corpus, 16.0, picture, held_out=EMBEDDED.held_out)
    shown = (Shown("picture", picture), Universal(making), ImageSpec(answers.model, answers.encoders, making))
    searched = SmallestBudget(PROTOCOLS.get("fast"), 16.0)
    few = map(BENCHMARKS.get, ("pope_random", "scienceqa", "multitrust_clean"))
    held = (
        snapshot.checkpoint,
        continued,
        *few,
        captions.benchmark,
        judged,
        Clean(),
        Corruption("fog"),
        searched,
        *shown,
    )
    specs = {type(spec).__name__: spec for spec in all_specs(held)}
    assert specs.keys() == snapshot.kinds.keys()
    found = {(name, f.name) for name, spec in specs.items() for f in fields_of(type(spec)) if not moves(spec, f)}
    assert found == outside_fields(snapshot.kinds)
    assert found == {
        *(("EncoderSpec", name) for name in ("training", "licence", "origin", "parameters")),
        ("LanguageModelSpec", "origin"),
        ("Pinned", "path"),
        ("Lexicon", "path"),
        ("Picture", "source"),
        ("Corpus", "name"),
        ("CheckpointSpec", "weights"),
        *(("Stage", name) for name in ("zero_stage", "gradient_checkpointing")),
        *(("EvalSpec", name) for name in ("batch_size", "compiled")),
    }


def test_a_new_version_of_a_metric_or_template_names_other_results(monkeypatch: pytest.MonkeyPatch) -> None:
    def prints() -> tuple[set[str], set[str], set[str], str]:
        plan = plan_of(PRESETS.get("smoke"), "paper_ensemble_3steps")
        # Specs keep the name they were once given.
        fresh = [dataclasses.replace(spec, task=dataclasses.replace(spec.task)) for spec in plan.grid.benchmarks]
        plan = dataclasses.replace(plan, grid=dataclasses.replace(plan.grid, benchmarks=tuple(fresh)))
        cells = [spec for candidate in plan.grid.candidates for spec, _ in plan.evaluations(candidate)]
        scored = {fingerprint(spec) for spec in cells if spec.benchmark.task.metric == "cider"}
        others = {fingerprint(spec) for spec in cells if spec.benchmark.task.metric != "cider"}
        model, _ = plan.model(plan.grid.candidates[0])
        assert isinstance(model, ModelSpec)
        stages = {fingerprint(dataclasses.replace(stage)) for stage in model.stages}
        return scored, others, stages, fingerprint(BENCHMARKS.get("easy_vqa"))

    before = prints()
    newer = dataclasses.replace(METRICS.get("cider"), version=2)
    with monkeypatch.context() as patch:
        patch.setitem(metric_module.METRICS._entries, "cider", newer)
        scored, *rest = prints()
    assert not scored & before[0]
    assert rest == list(before[1:])
    template = dataclasses.replace(conversation.TEMPLATES.get("plain"), version=2)
    with monkeypatch.context() as patch:
        patch.setitem(conversation.TEMPLATES._entries, "plain", template)
        assert len(prints()[2] & before[2]) == 1  # stage 2 speaks another one
    assert prints() == before


def test_evaluations_that_hold_dozens_of_others_are_named_at_once() -> None:
    """10 candidates x 6 benchmarks x 4 budgets under a protocol that starts from what two others found for all."""
    plan = plan_of(PRESETS.get("paper"), "strong")
    started = time.process_time()
    cells = [cell for candidate in plan.grid.candidates for cell in plan.evaluations(candidate)]
    assert time.process_time() - started < 5.0  # 0.4 s; a minute where each names all that it holds anew
    assert len({artifact.path for _, artifact in cells}) == 240
    assert {len(spec.sources) for spec, _ in cells} == {0, 20}


def test_where_and_in_what_portions_does_not_name_a_result() -> None:
    plan = plan_of(PRESETS.get("smoke"), "paper_ensemble_3steps")
    spec, _ = plan.evaluations(plan.grid.candidates[0])[1]
    for other_run in ({"batch_size": 0}, {"compiled": True}):
        assert fingerprint(dataclasses.replace(spec, **other_run)) == fingerprint(spec)
    assert isinstance(spec, EvalSpec)
    stage = PRESETS.get("smoke").model.stages[1]
    assert fingerprint(dataclasses.replace(stage, zero_stage=3)) == fingerprint(stage)
    assert fingerprint(dataclasses.replace(stage, micro_batch=4)) != fingerprint(stage)  # the loss is a mean over each
    other_words = dataclasses.replace(encoder_spec("tiny-clip"), training="other words", licence="MIT")
    assert fingerprint(other_words) == fingerprint(encoder_spec("tiny-clip"))
