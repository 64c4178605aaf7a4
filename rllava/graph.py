"""Which steps a result takes, read off its spec: what is in a spec is made before it."""

from rllava.data.benchmarks import BenchmarkSpec
from rllava.data.instructions import InstructionSpec
from rllava.encoders import EncoderSpec
from rllava.fingerprint import fingerprint
from rllava.image_spec import ImageSpec
from rllava.judgement_spec import JudgementSpec
from rllava.pinned import MadeBy
from rllava.specs import EvalSpec, ModelSpec
from rllava.steps import Step
from rllava.training.pretraining import PretrainSpec

Spec = InstructionSpec | BenchmarkSpec | PretrainSpec | ModelSpec | ImageSpec | EvalSpec | JudgementSpec
"""What a sweep makes."""


def step_of(spec: Spec, first_samples: int | None = None) -> Step:
    """The step that a spec describes, with those before it.

    Evaluations of the same LLaVA with the same encoders are one batch: the model is loaded once; so are the images made
    for it. An evaluation at a larger budget is made after that at the smaller one whose images it starts from; what it
    starts from of other protocols is made by all candidates first. Records that one judge reads are one batch: it is
    loaded once; those that cost next to nothing read in one batch.

    Args:
        spec: of data, of an encoder or LLaVA that is trained, of an image, of an evaluation, or of judgements on one.
        first_samples: how many of a benchmark's list an evaluation is asked about, rounded up to whole shards; None:
            all. They are scored as part of the whole: what they score does not change when the rest follows.

    Raises:
        TypeError: if nothing of this type is made.
    """
    match spec:
        case InstructionSpec() | BenchmarkSpec():
            return Step("data", spec)
        case PretrainSpec():
            return Step("encoders", spec, needs=() if spec.base is None else (step_of(spec.base),))
        case ModelSpec():
            data = tuple(step_of(data) for data in dict.fromkeys(stage.data for stage in spec.stages))
            return Step("models", spec, needs=(*_making(spec.encoders), *data))
        case ImageSpec():
            return Step("images", spec, needs=_loaded(spec), batch=_same_model(spec))
        case EvalSpec():
            images = map(step_of, spec.condition.images(spec))
            return Step(
                "records",
                spec,
                needs=(*_loaded(spec), *images, step_of(spec.benchmark)),
                alongside=() if spec.smaller is None else (step_of(spec.smaller, first_samples),),
                after=tuple(step_of(source, first_samples) for source in spec.sources),
                batch=_same_model(spec),
                first=None if first_samples is None else spec.benchmark.shards_of(first_samples),
            )
        case JudgementSpec():
            about = step_of(spec.evaluation, first_samples)
            together = "light" if spec.judge.light else fingerprint(spec.judge)
            return Step("judgements", spec, needs=(about,), batch=together, first=about.first)
        case _:
            raise TypeError(f"no step makes a {type(spec).__name__}")


def _same_model(spec: ImageSpec | EvalSpec) -> str:
    return " ".join(map(fingerprint, (spec.model, *spec.encoders)))


def _loaded(spec: ImageSpec | EvalSpec) -> tuple[Step, ...]:
    """The steps that make the model which is loaded."""
    trained = (step_of(spec.model),) if isinstance(spec.model, ModelSpec) else ()
    return (*trained, *_making(spec.encoders))


def _making(encoders: tuple[EncoderSpec, ...]) -> tuple[Step, ...]:
    """The steps that make the weights of some encoders, each once; of those that are there, none."""
    made = (encoder.weights.spec for encoder in encoders if isinstance(encoder.weights, MadeBy))
    return tuple(step_of(spec) for spec in dict.fromkeys(made))
