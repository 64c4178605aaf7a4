"""Replays searches on a grid that is computed already: how much of its front do they find, at what cost?

    python -m benchmarks.search_replay

Every search asks the very :class:`rllava.search.history.Study` that ``sweeps/search.py`` asks, seed by seed, and is
told what ``benchmarks/search_grid.csv`` holds. A training is paid for once, whoever is judged with it, an evaluation
for the samples that an earlier rung has not seen. Hypervolumes are of the configurations that finished the last rung,
above the worst of the grid in each objective, as shares of the whole grid's.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from benchmarks.common import write_sheet
from benchmarks.search_grid import PREFIXES
from rllava.errors import UserError
from rllava.fronts import FloatArray, hypervolume, non_dominated
from rllava.search.history import Event, History, Limits, Study
from rllava.search.rungs import Rung
from rllava.search.space import Choice, Configuration
from sweeps.console import run_script

SETTINGS = ("trained", "used", "projector", "rate", "steps")
LAST = PREFIXES[-1]

SEARCHES: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "tpe": ("tpe", (PREFIXES[0], LAST)),
    "tpe, one rung": ("tpe", (LAST,)),
    "nsga2": ("nsga2", (PREFIXES[0], LAST)),
    "random, with rungs": ("random", (PREFIXES[0], LAST)),
    "random search": ("random", (LAST,)),
}
"""Sampler and rungs (samples) of each."""


@dataclass(frozen=True)
class Options:
    """What to replay.

    Attributes:
        table: made by ``benchmarks.search_grid``.
        seeds: searches of each kind.
        shares: of the whole grid's cost, at which they are compared.
        output: Markdown file to write.
    """

    table: Path = Path("benchmarks/search_grid.csv")
    seeds: int = 24
    shares: tuple[float, ...] = (0.1, 0.2, 1 / 3)
    output: Path = Path("benchmarks/sheets/search_replay.md")


@dataclass(frozen=True)
class Table:
    """The grid: a space of what is in it, and what each point of it costs and comes to.

    Attributes:
        rows: values as text, by column.
    """

    rows: tuple[Mapping[str, str], ...]

    @cached_property
    def settings(self) -> tuple[Choice, ...]:
        """All of it are choices."""
        return tuple(Choice(name, tuple(dict.fromkeys(row[name] for row in self.rows))) for name in SETTINGS)

    @cached_property
    def _places(self) -> dict[tuple[str, ...], int]:
        return {tuple(row[name] for name in SETTINGS): place for place, row in enumerate(self.rows)}

    def place(self, configuration: Configuration) -> int | None:
        """Its row; None: it is not there."""
        return self._places.get(tuple(str(configuration[name]) for name in SETTINGS))

    def refusal(self, configuration: Configuration) -> str | None:
        """What is not in the table cannot be built."""
        return None if self.place(configuration) is not None else "it was not computed"

    @property
    def finite(self) -> bool:
        """It ends."""
        return True

    def points(self) -> Iterator[Configuration]:
        """Its rows."""
        return ({name: row[name] for name in SETTINGS} for row in self.rows)

    def built(self) -> Iterator[tuple[Configuration, str | None]]:
        """Its rows."""
        return ((point, None) for point in self.points())

    def values(self, place: int, samples: int) -> tuple[float, float]:
        """Clean and robust score."""
        row = self.rows[place]
        return float(row[f"clean_{samples}"]), float(row[f"robust_{samples}"])

    def training(self, place: int) -> tuple[str, ...]:
        """What names the LLaVA that it is judged with."""
        return tuple(self.rows[place][name] for name in SETTINGS if name != "used")

    @cached_property
    def whole_cost(self) -> float:
        """CPU seconds of the whole grid, every training once."""
        trainings = {self.training(place): float(row["training_s"]) for place, row in enumerate(self.rows)}
        return sum(trainings.values()) + sum(float(row[f"evaluation_s_{LAST}"]) for row in self.rows)

    @cached_property
    def points_ND(self) -> FloatArray:  # noqa: N802 (a shape)
        """All of it on the last rung."""
        return np.array([self.values(place, LAST) for place in range(len(self.rows))])

    def share(self, places: Sequence[int]) -> float:
        """Hypervolume of some rows as a share of the whole grid's."""
        worst = self.points_ND.min(axis=0)
        found = hypervolume(self.points_ND[list(places)], worst) if places else 0.0
        return found / hypervolume(self.points_ND, worst)


def read_table(path: Path) -> Table:
    """Reads the grid.

    Raises:
        UserError: if it is not there.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; run python -m benchmarks.search_grid")
    with path.open() as file:
        return Table(tuple(csv.DictReader(file)))


def replay(table: Table, sampler: str, rungs: Sequence[int], seed: int, most: float) -> list[tuple[float, float]]:
    """One search, one trial at a time.

    Args:
        most: CPU seconds after which nothing more is begun.

    Returns:
        After each trial, the seconds spent and the share of the grid's hypervolume that is found.
    """
    study = Study(table, History(len(rungs), (1.0, 1.0)), tuple(map(Rung, rungs)), Limits(), sampler, seed)
    trained: set[tuple[str, ...]] = set()
    spent, course = 0.0, []
    while spent < most and (begun := study.next()) is not None:
        number, rung = begun
        place = table.place(study.history.proposed[number].configuration)
        assert place is not None
        row = table.rows[place]
        cost = float(row[f"evaluation_s_{rungs[rung]}"])
        cost -= float(row[f"evaluation_s_{rungs[rung - 1]}"]) if rung else 0.0
        if table.training(place) not in trained:
            cost += float(row["training_s"])
            trained.add(table.training(place))
        spent += cost
        study.happened(Event("begun", number, rung))
        study.happened(Event("finished", number, rung, values=table.values(place, rungs[rung]), hours=cost / 3600))
        done = study.history.finished[-1]
        places = [table.place(study.history.proposed[n].configuration) for n in done]
        course.append((spent, table.share([place for place in places if place is not None])))
    return course


def at_cost(course: Sequence[tuple[float, float]], seconds: float) -> float:
    """Share of the hypervolume that was found within some seconds; a trial that ends later does not count."""
    return max((share for spent, share in course if spent <= seconds), default=0.0)


def interval(values: FloatArray) -> tuple[float, float]:
    """95 % bootstrap interval of a mean over seeds, by percentiles."""
    draws = np.random.default_rng(0).choice(values, (10_000, len(values))).mean(axis=1)
    return float(np.quantile(draws, 0.025)), float(np.quantile(draws, 0.975))


def main(options: Options) -> None:
    """Replays and writes the sheet."""
    table = read_table(options.table)
    most = max(options.shares) * table.whole_cost
    found: dict[str, FloatArray] = {}
    for name, (sampler, rungs) in SEARCHES.items():
        courses = [replay(table, sampler, rungs, seed, most) for seed in range(options.seeds)]
        found[name] = np.array([[at_cost(c, share * table.whole_cost) for share in options.shares] for c in courses])
        print(name, found[name].mean(axis=0).round(4), flush=True)
    plain = found["random search"]
    rows = []
    for name, shares in found.items():
        cells = []
        for place in range(len(options.shares)):
            low, high = interval(shares[:, place])
            cells.append(f"{shares[:, place].mean():.1%} ({low:.1%} to {high:.1%})")
        low, high = interval(shares[:, -1] - plain[:, -1])
        against = (
            "–" if name == "random search" else f"{(shares - plain)[:, -1].mean():+.1%} ({low:+.1%} to {high:+.1%})"
        )
        rows.append([name, ", ".join(map(str, SEARCHES[name][1])), *cells, against])
    front = int(non_dominated(table.points_ND).sum())
    text = (
        f"`python -m benchmarks.search_replay --seeds {options.seeds}` on the {len(table.rows)} configurations of "
        f"`benchmarks/search_grid.csv` (clean and robust score at ε = 8/255, {front} of them on the front; the whole "
        f"grid cost {table.whole_cost / 60:.1f} CPU minutes, every training once). Share of the whole grid's "
        "hypervolume above its worst scores, at shares of its cost: mean over "
        f"{options.seeds} seeds and its 95 % bootstrap interval; last column: minus random search, at the largest "
        "share, seed by seed."
    )
    head = [
        "search",
        "rungs (samples)",
        *(f"at {share:.0%} of the cost" for share in options.shares),
        "minus random search",
    ]
    write_sheet(options.output, "Searches replayed on a grid", text, head, rows)


if __name__ == "__main__":
    run_script(main, Options, __doc__)
