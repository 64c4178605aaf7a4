"""What every step of a sweep takes, in operations, bytes and units of work, whatever it runs on.

Counted from specs (:mod:`rllava.footprint`), so that neither data nor weights have to be here; what had to be assumed
is collected beside.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster.rates import Work
from rllava.data.benchmarks import BenchmarkSpec
from rllava.footprint import (
    BYTES,
    Cost,
    Llava,
    Texts,
    answer_flops,
    answering_bytes,
    attack_step,
    encoder_flops,
    parameters,
    step_flops,
    train_step,
)
from rllava.image_spec import ImageSpec
from rllava.model.checkpoint_spec import CheckpointSpec
from rllava.model.language import LanguageModelSpec
from rllava.model.shapes import shape_of
from rllava.pinned import Pinned
from rllava.specs import EvalSpec, ModelSpec
from sweeps.plan import Plan
from sweeps.texts import Measured, texts_of_benchmark, texts_of_stage

IMAGE_BYTES = 100e3
"""Of an encoded photo: assumed. Embedded images are 64 pixels wide and have about 500."""

TOKENS_PER_TARGET = 20
"""Of a sentence that a universal image aims at: assumed."""


@dataclass(frozen=True)
class Amount:
    """Operations of one kind, in one precision.

    Attributes:
        flops: all in all, of all workers.
        calls: of the model, in which they are done.
        most: as :attr:`flops`, if no sample ever stops early.
    """

    work: Work
    precision: str
    flops: float
    calls: float
    most: float


@dataclass(frozen=True)
class Needed:
    """What one step takes.

    Attributes:
        cost: of a training, that of its largest pass: memory.
        read: bytes from storage or disk.
        written: bytes to storage.
        steps: gradient steps, expected; of a training, those of the optimiser.
        trains_language_model: of a training, by stage.
    """

    amounts: tuple[Amount, ...]
    cost: Cost | None = None
    read: float = 0.0
    written: float = 0.0
    steps: float = 0.0
    trains_language_model: tuple[bool, ...] = ()

    @property
    def flops(self) -> float:
        """Expected, of all kinds."""
        return sum(amount.flops for amount in self.amounts)


@dataclass
class Counter:
    """Counts the steps of a plan.

    Attributes:
        workers: of a training.
        share: from an attack's protocol and budget to the share of its gradient steps that is expected.
        assumed: what was not counted, for people, each once.
    """

    plan: Plan
    workers: int
    share: "dict[tuple[str, float], float]" = field(default_factory=dict)
    assumed: dict[str, None] = field(default_factory=dict)

    def llava(self, model: ModelSpec | CheckpointSpec, encoders: Sequence[object] | None = None) -> Llava | None:
        """What is counted for a model; None if its language model's shape is not known."""
        spec = _language_model_of(model) if isinstance(model, CheckpointSpec) else model.language_model
        shape = shape_of(spec)
        if shape is None:
            self.assumed[
                f"{spec.label}: neither its files nor a published shape are here; its phases are not counted"
            ] = None
            return None
        used = tuple(encoders) if encoders is not None else model.encoders
        return Llava(used, shape, model.projector)  # type: ignore[arg-type]

    def training(self, spec: ModelSpec) -> Needed:
        """All stages of a training."""
        llava = self.llava(spec)
        if llava is None:
            return Needed(())
        amounts, costs, read, steps = [], [], 0.0, 0
        for stage in spec.stages:
            texts = self._note(texts_of_stage(stage, spec.language_model))
            cost = train_step(llava, stage, texts, self.workers)
            batches = stage.steps * stage.global_batch / stage.micro_batch
            flops = cost.flops * batches
            amounts.append(Amount("training", stage.precision, flops, batches, flops))
            costs.append(cost)
            read += stage.steps * stage.global_batch * _image_bytes(stage.data.source)
            steps += stage.steps
        found = parameters(llava)
        saved = 2 * found.projectors * 4 + found.language_model * BYTES[spec.stages[-1].precision]
        return Needed(
            tuple(amounts),
            max(costs, key=lambda cost: cost.memory),
            read + self.workers * len(spec.stages) * found.total * 2,
            saved + self._checkpoints(spec, found.projectors, found.language_model),
            steps,
            tuple(stage.rates.language_model is not None for stage in spec.stages),
        )

    def _checkpoints(self, spec: ModelSpec, projectors: int, language_model: int) -> float:
        """Bytes of weights and optimiser that are saved on the way."""
        every, total = self.plan.grid.checkpoint_every, 0.0
        for stage in spec.stages:
            trained = projectors + (language_model if stage.rates.language_model is not None else 0)
            saves = max(0, (stage.steps - 1) // every) if every else 0
            total += saves * trained * (12 + BYTES[stage.precision])
        return total

    def evaluation(self, spec: EvalSpec, batch: int) -> Needed:
        """One cell of the grid.

        Args:
            batch: samples that are in flight together.
        """
        llava = self.llava(spec.model, spec.encoders)
        if llava is None:
            return Needed(())
        samples, found = self.plan.samples(spec.benchmark), self._texts(spec.model, spec.benchmark)
        portions = -(-samples // max(1, min(batch, spec.benchmark.rows_per_shard)))
        share, texts, task = self._share(spec), found.texts, spec.benchmark.task
        new = min(task.decoding.max_new_tokens, texts.answer)
        amounts, taken = [], 0.0
        for passes in spec.condition.passes(spec.benchmark, found.labels):
            if passes.steps or passes.looks:
                step, look = (
                    encoder_flops(llava, gradient) if passes.encoders_only else step_flops(llava, texts, gradient)
                    for gradient in (True, False)
                )
                each = passes.steps * step + passes.looks * look
                calls = portions * (passes.steps + passes.looks)
                amounts.append(Amount("attack", passes.precision, samples * share * each, calls, samples * each))
                taken += samples * passes.steps * share
            if passes.answers:
                each = passes.answers * answer_flops(llava, texts, new) * task.decoding.draws
                calls = portions * passes.answers * new
                amounts.append(Amount("answers", passes.precision, samples * share * each, calls, samples * each))
        total, size = parameters(llava).total, max(encoder.image_size for encoder in spec.encoders)
        return Needed(
            tuple(amounts),
            read=samples * _image_bytes(spec.benchmark.source) + total * BYTES[spec.precisions[-1]],
            written=samples * 3 * size**2 * (1.0 if taken else 0.5),
            steps=taken,
        )

    def unit_flops(self, spec: EvalSpec, work: Work) -> float:
        """Operations of one sample's look with a gradient, or of its answer."""
        llava = self.llava(spec.model, spec.encoders)
        assert llava is not None
        texts = self.texts(spec).texts
        return step_flops(llava, texts) if work == "attack" else answer_flops(llava, texts, self.new_tokens(spec))

    def new_tokens(self, spec: EvalSpec) -> float:
        """Tokens of an answer, about: those of the first label, at most as many as may be generated."""
        return float(min(spec.benchmark.task.decoding.max_new_tokens, self.texts(spec).texts.answer))

    def pool_memory(self, spec: EvalSpec, batch: int) -> Cost | None:
        """Memory of an attack worker at its largest pass: weights in all precisions, and what a batch needs on top."""
        llava = self.llava(spec.model, spec.encoders)
        if llava is None:
            return None
        texts, precisions = self.texts(spec).texts, self.precisions(spec)
        weights = sum(parameters(llava).total * BYTES[precision] for precision in precisions)
        needs = [answering_bytes(llava, texts, entry, batch, texts.answer) for entry in precisions]
        if spec.condition.searches:
            needs += [attack_step(llava, texts, precision, batch).activations for precision in precisions]
        return Cost(0.0, weights, max(needs))

    def precisions(self, spec: EvalSpec) -> tuple[str, ...]:
        """In which the weights lie there at the same time: float32 and a copy in half, or one of them."""
        return tuple(dict.fromkeys(spec.precisions))

    def image(self, spec: ImageSpec) -> Needed:
        """A universal image: steps on one picture against some targets each."""
        llava = self.llava(spec.model, spec.encoders)
        if llava is None:
            return Needed(())
        recipe = spec.making.recipe
        texts = Texts(0, 60, recipe.batch * TOKENS_PER_TARGET)
        self.assumed[f"universal images: targets of {TOKENS_PER_TARGET} tokens, the prompt 60"] = None
        if recipe.rate_every:
            self.assumed[f"{recipe.label}: the answers by which its images are rated are not counted"] = None
        flops = recipe.steps * step_flops(llava, texts)
        amount = Amount("images", spec.making.precision, flops, recipe.steps, flops)
        size = max(encoder.image_size for encoder in spec.encoders)
        return Needed((amount,), written=3 * size**2, steps=recipe.steps)

    def texts(self, spec: EvalSpec) -> Measured:
        """Of an evaluation's questions and answers."""
        return self._texts(spec.model, spec.benchmark)

    def _texts(self, model: ModelSpec | CheckpointSpec, benchmark: BenchmarkSpec) -> Measured:
        language_model = _language_model_of(model) if isinstance(model, CheckpointSpec) else model.language_model
        found = texts_of_benchmark(benchmark, model.conversation, language_model)
        self._note(found)
        return found

    def _note(self, found: Measured) -> Texts:
        if found.assumed:
            self.assumed[found.assumed] = None
        return found.texts

    def _share(self, spec: EvalSpec) -> float:
        if not spec.condition.searches or spec.condition.epsilon is None:
            return 1.0
        return self.share.get((spec.condition.label, spec.condition.epsilon), 1.0)


def _language_model_of(checkpoint: CheckpointSpec) -> LanguageModelSpec:
    """The language model's folder of a checkpoint: its last place."""
    return LanguageModelSpec(checkpoint.name, Pinned(checkpoint.weights[-1]))


def _image_bytes(source: str) -> float:
    return 500.0 if source.startswith("easy") else IMAGE_BYTES
