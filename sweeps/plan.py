"""What a sweep consists of: candidates, benchmarks, budgets, and the artifacts they lead to."""

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from rllava.conditions.attack import Attack
from rllava.conditions.condition import Condition
from rllava.data.benchmarks import BenchmarkSpec, build_benchmark, list_benchmark
from rllava.data.files import missing_data
from rllava.data.instructions import InstructionSpec, build_instructions, list_data
from rllava.data.prompts import is_pinned, missing_prompts, pin_benchmark, stand_in_file
from rllava.data.shards import Listing, Tasks, in_this_process, read_description
from rllava.encoders import EncoderSpec, check_encoder
from rllava.errors import UserError
from rllava.evaluation.target_tokens import check_corpus
from rllava.faults import explain
from rllava.filesystem import check_answers
from rllava.fingerprint import fingerprint
from rllava.graph import step_of
from rllava.image_spec import ImageSpec
from rllava.judgement_spec import JudgementSpec
from rllava.metrics.judges.judge import JudgeSpec
from rllava.missing import Missing, refuse_missing
from rllava.model.checkpoint import check_checkpoint
from rllava.model.checkpoint_spec import CheckpointSpec
from rllava.model.language import LanguageModelSpec, check_language_model_files
from rllava.recipes import Candidate, Grid, check_grid, trial_name
from rllava.snapshot import Snapshot
from rllava.specs import EvalSpec, ModelSpec
from rllava.steps import Facts, Step, WorkItem, Workshop, ensure, item_of, levels
from rllava.store import Artifact, Store
from rllava.training.data_folders import DataFolder
from rllava.weights import Weighted, has_weights, missing_weights, pin_weights, stand_in, weights_of

Spec = InstructionSpec | BenchmarkSpec
Weights = TypeVar("Weights", EncoderSpec, LanguageModelSpec)
DATA = (InstructionSpec, BenchmarkSpec)

LINE_EVERY_S = 5.0
"""Data that is being built makes at most one line in so many seconds."""


@dataclass(frozen=True)
class Plan:
    """A grid, and where and how its results come about.

    Attributes:
        sweep: name of the report folder.
        grid: candidates x benchmarks x conditions.
        save_every_s: seconds between two saved states of an attack in flight.
        compiled: whether attacked models go through torch.compile.
        first_samples: how many of each benchmark's list are asked about, rounded up to whole shards; None: all.
        judges: who reads the answers afterwards.
    """

    sweep: str
    storage: str
    grid: Grid
    save_every_s: float = 60.0
    compiled: bool = False
    first_samples: int | None = None
    judges: tuple[JudgeSpec, ...] = ()

    @cached_property
    def store(self) -> Store:
        """The results folder."""
        return Store(self.storage)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Plan, tuple(getattr(self, field.name) for field in dataclasses.fields(self)))

    def candidate(self, name: str) -> Candidate:
        """A candidate by the name of its trial."""
        return next(candidate for candidate in self.grid.candidates if candidate.trial == name)

    def model(self, candidate: Candidate) -> tuple[ModelSpec | CheckpointSpec, Artifact]:
        """The LLaVA a candidate needs.

        Returns:
            Its spec and artifact. Of a checkpoint from elsewhere the artifact holds the spec alone.
        """
        spec = candidate.model
        return spec, self.store.artifact("models", spec.name, spec)

    def evaluations(self, candidate: Candidate) -> list[tuple[EvalSpec, Artifact]]:
        """A candidate's cells of the grid.

        Returns:
            Specs with their artifacts, in the order of the conditions within each benchmark.
        """
        if candidate.trial not in self._evaluations:
            specs = [
                self._evaluation(candidate, benchmark, condition)
                for benchmark in self.grid.benchmarks
                for condition in self.grid.conditions
            ]
            artifacts = [self.store.artifact("records", spec.name, spec) for spec in specs]
            self._evaluations[candidate.trial] = list(zip(specs, artifacts, strict=True))
        return self._evaluations[candidate.trial]

    def images(self, candidate: Candidate) -> list[tuple[ImageSpec, Artifact]]:
        """Images that are made for a candidate.

        Returns:
            Specs with their artifacts, each once.
        """
        needed = (image for spec, _ in self.evaluations(candidate) for image in spec.condition.images(spec))
        return [(spec, self.store.artifact("images", spec.name, spec)) for spec in dict.fromkeys(needed)]

    def judgements(self, candidate: Candidate) -> list[tuple[JudgementSpec, Artifact]]:
        """What is said of a candidate's answers.

        Returns:
            Specs with their artifacts, judge by judge.
        """
        cells = [spec for spec, _ in self.evaluations(candidate)]
        specs = [JudgementSpec(spec, judge) for judge in self.judges for spec in cells]
        return [(spec, self.store.artifact("judgements", spec.name, spec)) for spec in specs]

    @cached_property
    def _evaluations(self) -> dict[str, list[tuple[EvalSpec, Artifact]]]:
        """Known cells."""
        return {}

    @cached_property
    def _specs(self) -> dict[tuple[str, str, str], EvalSpec]:
        """Those of known cells: one that starts from others holds theirs, and each is made once."""
        return {}

    def _evaluation(self, candidate: Candidate, benchmark: BenchmarkSpec, condition: Condition) -> EvalSpec:
        key = (candidate.trial, benchmark.name, fingerprint(condition))
        if key not in self._specs:
            self._specs[key] = self._new_evaluation(candidate, benchmark, condition)
        return self._specs[key]

    def _new_evaluation(self, candidate: Candidate, benchmark: BenchmarkSpec, condition: Condition) -> EvalSpec:
        before, sources = None, []
        if isinstance(condition, Attack):
            protocol, budget = condition.protocol, condition.budget
            sizes = [attack.budget.size for attack in self.grid.attacks if attack.budget.norm == budget.norm]
            smaller = max((size for size in sizes if size < budget.size), default=None)
            if protocol.chained and smaller is not None:
                attack = dataclasses.replace(condition, budget=dataclasses.replace(budget, size=smaller))
                before = self._evaluation(candidate, benchmark, attack)
            # Its own first, then by name: not by the order on the command line, which must not change a fingerprint. Of
            # other seeds none: what a training scores does not depend on which others were asked for.
            same = [other for other in self.grid.candidates if other.seed == candidate.seed]
            others = sorted(same, key=lambda other: (other.name != candidate.name, other.name))
            first = [dataclasses.replace(condition, protocol=other) for other in protocol.after]
            sources = [self._evaluation(other, benchmark, attack) for other in others for attack in first]
        if condition.stored_under is not None:
            shown = self._shown_by(candidate, condition)
            sources = [self._evaluation(shown, benchmark, condition.stored_under)]
        model, _ = self.model(candidate)
        return EvalSpec(
            candidate=candidate.name,
            model=model,
            encoders=candidate.judged,
            benchmark=benchmark,
            condition=condition,
            batch_size=self.grid.batch_size,
            compiled=self.compiled,
            smaller=before,
            sources=tuple(sources),
        )

    def _shown_by(self, candidate: Candidate, condition: Condition) -> Candidate:
        """Whose stored images a condition shows: another candidate's, of the same seed if there is one, or its own."""
        if not condition.source:
            return candidate
        named = [other for other in self.grid.candidates if other.name == condition.source]
        if not named:
            raise UserError(
                f"condition {condition.label}: {condition.source}, whose images it shows, is none of the candidates"
            )
        return next((other for other in named if other.seed == candidate.seed), named[0])

    def instruction_specs(self) -> tuple[InstructionSpec, ...]:
        """Data of the training stages, each once; nothing if nothing is trained."""
        return tuple(dict.fromkeys(stage.data for model in self.grid.models for stage in model.stages))

    def data_specs(self) -> tuple[InstructionSpec | BenchmarkSpec, ...]:
        """All data that the sweep reads, each once."""
        return tuple(dict.fromkeys((*self.instruction_specs(), *self.grid.benchmarks)))

    def data(self, spec: InstructionSpec | BenchmarkSpec) -> Artifact:
        """Where data lies."""
        return self.store.artifact("data", spec.name, spec)

    def benchmark_folder(self, spec: BenchmarkSpec) -> str:
        """Where a benchmark's shards lie."""
        return self.data(spec).path

    def data_folders(self, model: ModelSpec) -> tuple[DataFolder, ...]:
        """Where the data of each training stage lies; it must have been prepared."""
        folders = []
        for stage in model.stages:
            artifact = self.data(stage.data)
            folders.append(DataFolder(artifact.path, int(self.store.facts(artifact)["rows"])))
        return tuple(folders)

    def tasks(self) -> list[WorkItem]:
        """All that the sweep makes or finds: data, models, and records, those that it only starts from as well."""
        data = map(step_of, self.data_specs())
        return [self.task(step) for step in (*data, *(s for level in self.levels for of in level.values() for s in of))]

    def artifacts(self) -> list[Artifact]:
        """The artifacts of :meth:`tasks`."""
        return [task.artifact for task in self.tasks()]

    def step(self, spec: EvalSpec | JudgementSpec) -> Step:
        """The step of an evaluation, or of judgements on one, of as many samples as are asked about."""
        return step_of(spec, self.first_samples)

    def samples(self, benchmark: BenchmarkSpec) -> int:
        """How many samples of a benchmark are asked about."""
        first = self.shards(benchmark)
        return benchmark.samples if first is None else min(benchmark.samples, first * benchmark.rows_per_shard)

    def shards(self, benchmark: BenchmarkSpec) -> int | None:
        """How many of a benchmark's first shards are asked about; None: all."""
        return None if self.first_samples is None else benchmark.shards_of(self.first_samples)

    def task(self, step: Step) -> WorkItem:
        """A step with its artifact."""
        return item_of(step, self.store)

    @cached_property
    def levels(self) -> list[dict[str, list[Step]]]:
        """What each candidate's trial makes, by its name; all trials of a level end before the next level begins."""
        owners: dict[Step, str] = {}
        for candidate in self.in_training_order():
            model, _ = self.model(candidate)
            if isinstance(model, ModelSpec):
                owners.setdefault(step_of(model), candidate.trial)
            for spec, _ in self.evaluations(candidate):
                made = (*spec.sources, spec)
                owners.update({self.step(found): trial_name(found.candidate, found.seed) for found in made})
            owners.update({step_of(found): candidate.trial for found, _ in self.images(candidate)})
            owners.update({self.step(found): candidate.trial for found, _ in self.judgements(candidate)})
        found = []
        for level in levels(owners):
            by_candidate: dict[str, list[Step]] = {}
            for step in level:
                by_candidate.setdefault(owners[step], []).append(step)
            found.append(by_candidate)
        return found

    def in_training_order(self) -> list[Candidate]:
        """Candidates such that those which only plug into another's LLaVA come last."""
        return sorted(self.grid.candidates, key=lambda candidate: candidate.plugged)


def check_inputs(plan: Plan) -> Plan:
    """Looks at everything a sweep reads, before anything expensive starts.

    Returns:
        The plan, every encoder of which names one set of weights, and every benchmark one content of its file.

    Raises:
        UserError: if files of the data or weights are missing (all of them are listed), weights have another hash, are
            damaged or do not fit, a file of prompts is not in its format, two benchmarks have one name, a task cannot
            be evaluated or attacked, what a judge reads is damaged, or the protocol is not for a benchmark or for so
            many candidates.
    """
    check_grid(plan.grid)
    refuse_missing(missing_inputs(plan))
    found = pin_inputs(plan)
    _open_weights(found)
    return found


def pin_inputs(plan: Plan, *, look: bool = True, lenient: bool = False) -> Plan:
    """A plan in which every encoder names one set of weights, and every benchmark one content of its file.

    Args:
        look: whether weights are hashed; else those without a known hash get one that nothing has.
        lenient: whether what is missing gets such a hash, too; judges that lack something are left out.

    Raises:
        UserError: if weights are missing or have another hash, or two benchmarks have one name.
    """

    def pinned_weights(spec: Weights) -> Weights:
        here = look and (not lenient or has_weights(spec))
        return pin_weights(spec) if here else stand_in(spec)

    gone = lenient and any(item for spec in plan.grid.benchmarks for item in missing_prompts(spec))
    benchmarks = tuple(map(stand_in_file, plan.grid.benchmarks)) if gone else _pinned_benchmarks(plan.grid.benchmarks)
    heard = [judge for judge in plan.judges if not (lenient and judge.missing())]
    judges = {fingerprint(judge): judge for judge in (judge.pinned() for judge in heard)}
    pinned = {spec.name: pinned_weights(spec) for spec in _encoders(plan)}
    language_models = {spec: pinned_weights(spec) for spec in {model.language_model for model in plan.grid.models}}

    def pin(model: ModelSpec | CheckpointSpec) -> ModelSpec | CheckpointSpec:
        encoders = tuple(pinned[spec.name] for spec in model.encoders)
        if isinstance(model, CheckpointSpec):
            return dataclasses.replace(model, encoders=encoders)
        return dataclasses.replace(model, encoders=encoders, language_model=language_models[model.language_model])

    models = {model: pin(model) for model in dict.fromkeys(candidate.model for candidate in plan.grid.candidates)}
    candidates = tuple(
        dataclasses.replace(
            candidate, model=models[candidate.model], used=tuple(pinned[spec.name] for spec in candidate.used)
        )
        for candidate in plan.grid.candidates
    )
    grid = dataclasses.replace(plan.grid, candidates=candidates, benchmarks=benchmarks)
    return dataclasses.replace(plan, grid=grid, judges=tuple(judges.values()))


def _pinned_benchmarks(benchmarks: Sequence[BenchmarkSpec]) -> tuple[BenchmarkSpec, ...]:
    for name, count in Counter(spec.name for spec in benchmarks).items():
        if count > 1:
            files = ", ".join(spec.file.path for spec in benchmarks if spec.name == name and spec.file is not None)
            raise UserError(f"{count} benchmarks would be called {name} in the records ({files}); rename a file")
    return tuple(map(pin_benchmark, benchmarks))


def _open_weights(plan: Plan) -> None:
    """Looks into every file of weights that does not come with the package: a wrong one would be found hours later."""
    for spec in _encoders(plan):
        if not (weights_of(spec) or "asset:").startswith("asset:"):
            check_encoder(spec)
    templates: dict[LanguageModelSpec, dict[str, None]] = {}
    for model in plan.grid.models:
        templates.setdefault(model.language_model, {}).update(dict.fromkeys(s.conversation for s in model.stages))
    for language_model, names in templates.items():
        if not (weights_of(language_model) or "asset:").startswith("asset:"):
            check_language_model_files(language_model, list(names))
    for candidate in plan.grid.candidates:
        if isinstance(candidate.model, CheckpointSpec):
            check_checkpoint(candidate.model, candidate.used)
    # Images that differ in budget and number alone are made against the same targets.
    images = [image for candidate in plan.grid.candidates for image, _ in plan.images(candidate)]
    targets = {
        (image.model, image.encoders, image.making.recipe.conversation, image.making.corpus): image for image in images
    }
    for image in targets.values():
        check_corpus(image)


def _encoders(plan: Plan) -> list[EncoderSpec]:
    return list({spec.name: spec for c in plan.grid.candidates for spec in (*c.trained, *c.used)}.values())


def missing_inputs(plan: Plan) -> list[Missing]:
    """Looks which weights, which files of the data and which of judges a sweep needs and does not find; none is opened.

    Returns:
        The weights, the files of those data sets whose shards are not in storage yet, and what judges read.

    Raises:
        UserError: if files are missing and the storage, which may hold the shards, cannot be read.
    """
    needed = [spec for spec in plan.data_specs() if _missing_files([spec])]
    # What a file held that is not there is not known, so that shards of it cannot be looked for.
    unknown = [spec for spec in needed if isinstance(spec, BenchmarkSpec) and not is_pinned(spec)]
    language_models = dict.fromkeys(model.language_model for model in plan.grid.models)
    weighted: list[Weighted] = [*language_models, *_encoders(plan)]
    weights = [spec for spec in weighted if not has_weights(spec)]
    known = [spec for spec in needed if spec not in unknown]
    files = _missing_files([*unknown, *_not_built(plan, known)])
    return [*map(missing_weights, weights), *files, *(item for judge in plan.judges for item in judge.missing())]


def _missing_files(specs: Sequence[Spec]) -> list[Missing]:
    named = (item for spec in specs if isinstance(spec, BenchmarkSpec) for item in missing_prompts(spec))
    return [*missing_data(spec.source for spec in specs), *named]


def _not_built(plan: Plan, specs: Sequence[Spec]) -> list[Spec]:
    if not specs:
        return []
    try:
        check_answers(plan.storage)
        return missing_shards(plan, plan.store.snapshot(map(plan.data, specs)), specs)
    except Exception as error:  # each file system has its own
        raise UserError(f"storage {plan.storage} cannot be read: {explain(error, plan.storage)}") from error


def missing_shards(plan: Plan, found: Snapshot, specs: Iterable[Spec] | None = None) -> list[Spec]:
    """Data that is not there whole. Markers and the number of shards tell; no shard is opened.

    A damaged shard is found, and named, where it is read.

    Args:
        specs: of the data to look for; None: all of the plan.

    Returns:
        Specs of what has to be built, or completed.
    """
    wanted = plan.data_specs() if specs is None else specs
    return [spec for spec in wanted if not found.is_complete(plan.data(spec).relative)]


def prepare_data(plan: Plan, say: Callable[[str], None], tasks: Tasks = in_this_process) -> None:
    """Builds the shards of data that are missing.

    Raises:
        UserError: if a data set cannot be built.
    """

    def build(missing: Sequence[WorkItem]) -> Iterator[tuple[WorkItem, Facts]]:
        for task in missing:
            yield task, _build(plan.store, task.artifact, task.spec, say, tasks)

    def waiting(task: WorkItem, holder: str) -> None:
        say(f"{task.spec.name}: waiting for {holder}, which is preparing it")

    ensure(map(step_of, plan.data_specs()), Workshop(plan.store, dict.fromkeys(DATA, build), waiting=waiting))


def check_sources(plan: Plan, found: Snapshot) -> int:
    """Reads what the data that has to be built consists of, so that a mistake in it is told at once.

    Returns:
        Rows of the largest data set that will be built; 0 if none will.

    Raises:
        UserError: if a source is unknown, damaged, or too small.
    """
    return max((len(_listing(spec).entries) for spec in missing_shards(plan, found)), default=0)


def _listing(spec: Spec) -> Listing:
    return list_data(spec) if isinstance(spec, InstructionSpec) else list_benchmark(spec)


def _build(store: Store, artifact: Artifact, spec: Spec, say: Callable[[str], None], tasks: Tasks) -> Facts:
    found = store.snapshot([artifact])
    if found.is_finished(artifact.relative):
        _refuse_another_source(store, artifact, spec)
        lost = found.lost(artifact.relative)
        say(f"{spec.name}: {abs(lost)} shards {'are missing' if lost > 0 else 'too many'}; preparing them again")
    else:
        say(f"{spec.name}: preparing shards")
    told = time.monotonic()

    def progress(done: int, of: int) -> None:
        nonlocal told
        if time.monotonic() - told > LINE_EVERY_S:
            told = time.monotonic()
            say(f"{spec.name}: {done} of {of} shards")

    if isinstance(spec, InstructionSpec):
        shards = build_instructions(spec, store.filesystem, artifact.path, tasks, progress)
    else:
        shards = build_benchmark(spec, store.filesystem, artifact.path, tasks, progress)
    description = read_description(store.filesystem, artifact.path) or {}
    return {"rows": description["rows"], "shards": len(shards)}


def _refuse_another_source(store: Store, artifact: Artifact, spec: Spec) -> None:
    """What was trained or judged on the whole data must not meet shards of other data under the same name."""
    before = read_description(store.filesystem, artifact.path)
    if before is not None and before["digest"] != _listing(spec).digest():
        raise UserError(
            f"data {artifact.path}: shards are missing, and source '{spec.source}' has other rows than when they were "
            "written; bring its files back, or give the data another version"
        )
