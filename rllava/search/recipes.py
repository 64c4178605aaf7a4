"""What searches choose from and how they go about it, by the preset whose models they vary."""

from dataclasses import dataclass

from rllava.registry import Registry
from rllava.search.rungs import Rung
from rllava.search.space import Space, StageSpace


@dataclass(frozen=True)
class SearchRecipe:
    """A space, and how it is searched.

    Attributes:
        rungs: the last one leaves samples that nobody has chosen by.
        samples: of each benchmark's list; None: the preset's.
        rows_per_shard: of benchmarks; rungs are whole shards. None: the preset's.
        protocol: of attacks; None: the preset's.
    """

    space: Space
    rungs: tuple[Rung, ...]
    objectives: tuple[str, ...] = ("clean", "robust@8")
    trials: int | None = None
    samples: int | None = None
    rows_per_shard: int | None = None
    protocol: str | None = None


SEARCHES: Registry[SearchRecipe] = Registry("preset of searches", "rllava.searches")

_TINY = Space(
    encoders=("tiny-clip", "tiny-fare4", "tiny-tecoa4", "tiny-advxl"),
    ensembles=True,
    plugged=True,
    projectors=("linear", "mlp2x_gelu"),
    instruct=StageSpace(steps=(100, 300), rate=(3e-4, 3e-3)),
    trains=("projectors", "language_model"),
)

SEARCHES.register(
    "tiny",
    SearchRecipe(_TINY, (Rung(16, 0.25), Rung(32)), trials=16, samples=64, rows_per_shard=16),
)
SEARCHES.register(
    "smoke",
    SearchRecipe(
        Space(
            encoders=("tiny-clip", "tiny-advxl"), plugged=True, projectors=("linear", "mlp2x_gelu"),
            instruct=StageSpace(steps=(3, 6)),
        ),
        (Rung(4, 0.5), Rung(4)),
        trials=4,
    ),
)  # fmt: skip
SEARCHES.register(
    "paper",
    SearchRecipe(
        Space(
            encoders=("clip-l-336", "advxl-h", "advxl-g"),
            ensembles=True,
            plugged=True,
            projectors=("linear", "mlp2x_gelu"),
            align=StageSpace(rate=(3e-4, 3e-3)),
            instruct=StageSpace(rate=(5e-6, 5e-5)),
        ),
        (Rung(50, 0.1), Rung(100, 0.3), Rung(250)),
    ),
)
