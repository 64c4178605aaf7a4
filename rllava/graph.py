"""Which steps a result takes, read off its spec: what is in a spec is made before it."""

from rllava.data.benchmarks import BenchmarkSpec
from rllava.data.instructions import InstructionSpec
from rllava.fingerprint import fingerprint
from rllava.specs import EvalSpec, ModelSpec
from rllava.steps import Step

Spec = InstructionSpec | BenchmarkSpec | ModelSpec | EvalSpec
"""What a sweep makes."""


def step_of(spec: Spec) -> Step:
    """The step that a spec describes, with those before it.

    Evaluations of the same LLaVA with the same encoders are one batch: the model is loaded once. An evaluation at a
    larger budget is made after that at the smaller one whose images it starts from; what it starts from of other
    protocols is made by all candidates first.

    Args:
        spec: of data, of a LLaVA that is trained, or of an evaluation.

    Returns:
        The step.
    """
    match spec:
        case InstructionSpec() | BenchmarkSpec():
            return Step("data", spec)
        case ModelSpec():
            return Step("models", spec, needs=(step_of(spec.stage1.data), step_of(spec.stage2.data)))
        case EvalSpec():
            trained = (step_of(spec.model),) if isinstance(spec.model, ModelSpec) else ()
            return Step(
                "records",
                spec,
                needs=(*trained, step_of(spec.benchmark)),
                alongside=() if spec.smaller is None else (step_of(spec.smaller),),
                after=tuple(map(step_of, spec.sources)),
                batch=" ".join(map(fingerprint, (spec.model, *spec.encoders))),
            )
