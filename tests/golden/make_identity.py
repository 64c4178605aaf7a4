"""Writes identity.json: what the fingerprint of every recipe is made of, down to the last default.

    python -m tests.golden.make_identity

It holds the fingerprint of every encoder, benchmark, data set, model and evaluation that the presets and protocols lead
to, and the fields of all specs in them, each spec once, by its fingerprint. Hashes of weights that are not at hand are
made up. A change is told before it is written; one that would let old results pass for new ones is not written.
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rllava.attacks.outcome import GRID, GRID_VERSION
from rllava.attacks.protocols import PROTOCOLS
from rllava.conditions.attack import at_budgets
from rllava.conditions.condition import CONDITIONS
from rllava.conditions.smallest_budget import SmallestBudget
from rllava.data.benchmarks import BENCHMARKS
from rllava.data.corruptions import CORRUPTIONS, SIZING_VERSION
from rllava.data.images import MAX_SIDE, PADDING_COLOUR, PREPROCESSING_VERSION
from rllava.data.instructions import INSTRUCTIONS
from rllava.encoders import EncoderSpec, encoder_names, encoder_spec
from rllava.fingerprint import FORMAT, fields_of, fingerprint, to_json, versions_of
from rllava.judgement_spec import VERDICTS_VERSION, JudgementSpec
from rllava.metrics.judges.lexicon import Lexicon
from rllava.metrics.judges.refusal import ENGLISH
from rllava.metrics.metric import METRICS
from rllava.model.checkpoint_spec import CheckpointSpec
from rllava.model.conversation import TEMPLATES
from rllava.pinned import Pinned
from rllava.recipes import PRESETS, Candidate, Grid
from rllava.records import CLEAN
from rllava.tasks.decoys import BANK_SIZE, DECOYS_VERSION
from rllava.tasks.task import TASKS
from rllava.training.objectives import OBJECTIVES
from rllava.weights import Weighted, hash_of, weights_of
from sweeps import jailbreak
from sweeps.grid import corruption_conditions
from sweeps.plan import Plan, check_inputs

GOLDEN = Path(__file__).with_name("identity.json")
WITH_OTHERS = ("tiny strong tiny-clip easy_vqa",)
"""Evaluations that start from those of all other candidates and of smaller budgets."""

REGENERATE = "python -m tests.golden.make_identity"

SpecT = TypeVar("SpecT", bound=Weighted)


@dataclasses.dataclass(frozen=True)
class Change:
    """One difference between the golden file and the code.

    Attributes:
        collides: whether results of two meanings would share a name.
    """

    text: str
    collides: bool = False


def pinned(spec: SpecT) -> SpecT:
    """A spec with a hash, made up where none is known."""
    path = weights_of(spec)
    if path is None:
        return spec
    made_up = hashlib.sha256(path.encode()).hexdigest()
    return dataclasses.replace(spec, weights=Pinned(path, hash_of(spec) or made_up))  # type: ignore[type-var]


def pinned_all(specs: tuple[EncoderSpec, ...]) -> tuple[EncoderSpec, ...]:
    return tuple(map(pinned, specs))


def plan_of(preset: Grid, protocol: str) -> Plan:
    """The sweep over all that a preset names, under a protocol."""
    language_model = pinned(preset.model.language_model)
    candidates = tuple(
        Candidate(
            c.name,
            dataclasses.replace(c.model, encoders=pinned_all(c.trained), language_model=language_model),  # type: ignore[call-arg]
            pinned_all(c.used),
        )
        for c in preset.candidates
    )
    chosen = PROTOCOLS.get(protocol)
    benchmarks = tuple(spec for spec in preset.benchmarks if spec.task.kind in chosen.kinds)
    conditions = at_budgets(chosen, preset.budgets)
    grid = dataclasses.replace(preset, candidates=candidates, benchmarks=benchmarks, conditions=conditions)
    return Plan("golden", "nowhere", grid)


def code_constants() -> dict[str, Any]:
    """Versions of code, and the values that they are versions of."""
    return {
        "preprocessing": {"version": PREPROCESSING_VERSION, "colour": list(PADDING_COLOUR), "most": MAX_SIDE},
        "grid": {"version": GRID_VERSION, "levels": GRID},
        "sizing": {"version": SIZING_VERSION},
        **{f"corruption {name}": {"version": CORRUPTIONS.get(name).version} for name in CORRUPTIONS},
        "decoys": {"version": DECOYS_VERSION, "bank": BANK_SIZE},
        **{f"metric {name}": {"version": METRICS.get(name).version} for name in METRICS},
        **{f"task {kind}": {"version": TASKS.get(kind).version} for kind in TASKS},
        **{f"condition {kind}": {"version": CONDITIONS.get(kind).version} for kind in CONDITIONS},
        **{f"objective {name}": {"version": OBJECTIVES.get(name).version} for name in OBJECTIVES},
        "judge lexicon": {"version": Lexicon.version},
        "answered by": {"version": METRICS.get("answered").version, "judge": ENGLISH.label},
        "verdicts": {"version": VERDICTS_VERSION},
        **{f"template {name}": to_json(TEMPLATES.get(name)) for name in TEMPLATES},
    }


class Snapshot:
    """What the golden file holds, as the code says it now: specs by fingerprint, their types, recipes by name."""

    def __init__(self) -> None:
        self.specs: dict[str, dict[str, Any]] = {}
        self.kinds: dict[str, type] = {}
        self.recipes: dict[str, Any] = {}
        for name, protocol in ((name, PROTOCOLS.get(name)) for name in PROTOCOLS):
            self._note(f"protocol {name}", protocol)
        for name in encoder_names():
            self._note(f"encoder {name}", pinned(encoder_spec(name)))
        for name in BENCHMARKS:
            self._note(f"benchmark {name}", BENCHMARKS.get(name))
        for name in INSTRUCTIONS:
            self._note(f"data {name}", INSTRUCTIONS.get(name))
        tower = pinned_all((encoder_spec("clip-l-336"),))
        folder = ("hub:llava-hf/llava-1.5-7b-hf",)
        self.checkpoint = CheckpointSpec(
            "llava", "hugging_face", folder, "0" * 64, tower, ("multi_modal_projector",), "mlp2x_gelu", "vicuna_v1"
        )
        self._note("checkpoint", self.checkpoint)
        for preset in map(PRESETS.get, PRESETS):
            self._note_preset(preset)
        self._note_jailbreaks()
        self._note_smallest_budgets()

    def _note_preset(self, preset: Grid) -> None:
        plan = plan_of(preset, preset.protocols[0].name)
        for candidate in plan.grid.candidates:
            self._note(f"{preset.name} model {candidate.name}", plan.model(candidate)[0])
        corrupted = dataclasses.replace(
            plan, grid=dataclasses.replace(plan.grid, conditions=corruption_conditions(preset, ()))
        )
        for spec, _ in corrupted.evaluations(plan.grid.candidates[0]):
            self._note(f"{preset.name} {spec.condition.label} {spec.candidate} {spec.benchmark.name}", spec)
            if spec.condition.kind == CLEAN:
                judged = JudgementSpec(spec, Lexicon("words.txt", ("red", "blue")))
                self._note(f"{preset.name} {spec.candidate} {spec.benchmark.name} judged by a lexicon", judged)
        for name in PROTOCOLS:
            plan = plan_of(preset, name)
            for candidate in plan.grid.candidates:
                for benchmark in plan.grid.benchmarks:
                    cells = [spec for spec, _ in plan.evaluations(candidate) if spec.benchmark == benchmark]
                    key = f"{preset.name} {name} {candidate.name} {benchmark.name}"
                    # All names, but the fields of other protocols' evaluations only of few: they repeat themselves.
                    whole = name == preset.protocols[0].name or preset.name == "smoke" or key in WITH_OTHERS
                    self.recipes[key] = " ".join(self._hold(spec) if whole else fingerprint(spec) for spec in cells)

    def _note_jailbreaks(self) -> None:
        plan = check_inputs(jailbreak.make_plan(jailbreak.Options(encoders=("tiny-clip",))))
        for candidate in plan.grid.candidates:
            for spec, _ in plan.images(candidate):
                self._note(f"jailbreak image {spec.name}", spec)
            for evaluation, _ in plan.evaluations(candidate):
                self._note(f"jailbreak {evaluation.name}", evaluation)

    def _note_smallest_budgets(self) -> None:
        for preset in map(PRESETS.get, ("tiny", "paper")):
            plan = plan_of(preset, preset.protocols[0].name)
            searched = (SmallestBudget(plan.grid.protocols[0], max(preset.budgets)),)
            plan = dataclasses.replace(plan, grid=dataclasses.replace(plan.grid, conditions=searched))
            for spec, _ in plan.evaluations(plan.grid.candidates[0]):
                self._note(f"{preset.name} {spec.condition.label} {spec.candidate} {spec.benchmark.name}", spec)

    def _note(self, key: str, spec: Any) -> None:
        self.recipes[key] = self._hold(spec)

    def _hold(self, spec: Any) -> str:
        """Takes a spec and all within into the table; its fingerprint."""
        name = fingerprint(spec)
        if name not in self.specs:
            self.specs[name] = {}  # its place: before those that it holds
            described = {"type": type(spec).__name__, **to_json(spec, lambda inner: f"#{self._hold(inner)}")}
            if versions := dict(versions_of(spec)):
                described["versions()"] = versions
            self.specs[name] = described
            self.kinds[type(spec).__name__] = type(spec)
        return name

    def content(self) -> dict[str, Any]:
        """All of it as JSON."""
        defaults = {
            name: {field.name: json.loads(field.default) for field in fields_of(kind) if field.default is not None}
            for name, kind in sorted(self.kinds.items())
        }
        return {
            "format": FORMAT,
            "code": code_constants(),
            "defaults": defaults,
            "recipes": dict(sorted(self.recipes.items())),
            "specs": dict(sorted(self.specs.items(), key=lambda pair: (pair[1]["type"], pair[0]))),
        }


def outside_fields(kinds: Mapping[str, type]) -> set[tuple[str, str]]:
    """Fields that are not part of an identity, with their types."""
    return {
        (name, field.name) for name, kind in kinds.items() for field in fields_of(kind) if field.outside is not None
    }


def changes(old: Mapping[str, Any], new: Mapping[str, Any], outside: set[tuple[str, str]]) -> Iterator[Change]:
    """What changed between two golden files.

    Args:
        outside: see :func:`outside_fields`.

    Yields:
        Every difference.
    """
    if old["format"] != new["format"]:
        yield Change(f"FORMAT was {old['format']}, is {new['format']}: every fingerprint is another one")
        return
    yield from _changed_code(old["code"], new["code"])
    for kind in old["defaults"].keys() & new["defaults"].keys():
        was, now = old["defaults"][kind], new["defaults"][kind]
        for field in sorted(was.keys() & now.keys()):
            if not _same(was[field], now[field]):
                yield Change(
                    f"the default of {kind}.{field} was {was[field]!r}, is {now[field]!r}: specs that leave it out "
                    "keep their fingerprint and mean something else; keep the default, or raise FORMAT in "
                    "rllava/fingerprint.py",
                    collides=True,
                )
        for field in sorted(now.keys() - was.keys()):
            yield Change(f"{kind}.{field} is new; its default {now[field]!r} has to be what was done before it")
    for name in old["specs"].keys() & new["specs"].keys():
        yield from _changed_fields(name, old["specs"][name], new["specs"][name], outside)
    for key in sorted(old["recipes"].keys() | new["recipes"].keys()):
        was, now = old["recipes"].get(key, "not there"), new["recipes"].get(key, "not there")
        if was != now:
            yield Change(f"{key}: fingerprints were {was}, are {now}{_why(old['specs'], new['specs'], was, now)}")


def _changed_code(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    for name in sorted(old.keys() & new.keys()):
        if old[name] != new[name]:
            unversioned = old[name]["version"] == new[name]["version"]
            remedy = ", without a version: raise the one beside it" if unversioned else ""
            yield Change(f"{name} was {old[name]}, is {new[name]}{remedy}", collides=unversioned)
    for name in sorted(old.keys() ^ new.keys()):
        yield Change(f"{name} is {'new' if name in new else 'gone'}")


def _changed_fields(
    name: str, old: Mapping[str, Any], new: Mapping[str, Any], outside: set[tuple[str, str]]
) -> Iterator[Change]:
    kind = new["type"]
    for field in sorted(old.keys() & new.keys()):
        if not _same(old[field], new[field]):
            described = (kind, field) in outside
            text = f"{kind}.{field} of {old.get('name', name)} was {old[field]!r}, is {new[field]!r}"
            kept = f", and its fingerprint {name} is the same: raise a version (see rllava/fingerprint.py)"
            yield Change(text + ("" if described else kept), collides=not described)


def _why(old: Mapping[str, Any], new: Mapping[str, Any], was: str, now: str) -> str:
    """The fields by which the first two specs of two recipes differ."""
    for a, b in zip(was.split(), now.split(), strict=False):
        if a != b and a in old and b in new:
            return f" ({', '.join(_differences(old, new, a, b)) or 'the code of rllava/fingerprint.py'})"
    return ""


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], a: str, b: str, path: str = "") -> list[str]:
    found = []
    for field in sorted(old[a].keys() | new[b].keys()):
        pairs = [(old[a].get(field), new[b].get(field))]
        if isinstance(pairs[0][0], list) and isinstance(pairs[0][1], list) and len(pairs[0][0]) == len(pairs[0][1]):
            pairs = list(zip(*pairs[0], strict=True))
        for x, y in pairs:
            if _same(x, y):
                continue
            if all(isinstance(value, str) and value[:1] == "#" and len(value) == 17 for value in (x, y)):
                found += _differences(old, new, x[1:], y[1:], f"{path}{field}.")
            else:
                found.append(f"{path}{field} was {x!r}, is {y!r}")
    return list(dict.fromkeys(found))


def _same(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)  # 1 is not 1.0, nor true


def written(content: Mapping[str, Any]) -> str:
    """The golden file's text: one line for each entry, so that a change reads as one."""

    def lines(entries: Mapping[str, Any]) -> str:
        return ",\n".join(
            f"{json.dumps(key)}:{json.dumps(value, separators=(',', ':'))}" for key, value in entries.items()
        )

    parts = [
        f"{json.dumps(name)}:{{\n{lines(part)}\n}}" if isinstance(part, dict) else f"{json.dumps(name)}:{part}"
        for name, part in content.items()
    ]
    return "{" + ",\n".join(parts) + "}\n"


def main() -> None:
    snapshot = Snapshot()
    content = snapshot.content()
    found = list(
        changes(json.loads(GOLDEN.read_text()), content, outside_fields(snapshot.kinds)) if GOLDEN.exists() else []
    )
    for change in found:
        print(change.text)
    if any(change.collides for change in found):
        sys.exit("not written: results of two meanings would share a name")
    GOLDEN.write_text(written(content))
    print(f"written to {GOLDEN}: {len(content['recipes'])} recipes, {len(content['specs'])} specs")


if __name__ == "__main__":
    main()
