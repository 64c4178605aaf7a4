"""What a search has found: its front with intervals, its course, what mattered, and every trial with its end.

Shape legend: B bootstrap draws, S samples of one benchmark, C configurations, D objectives (larger is better).
"""

import json
import logging
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
import pandas as pd

from analysis.bootstrap import (
    DEFAULT_RESAMPLING,
    Bootstrap,
    FloatArray,
    Resampling,
    average_bootstraps,
    bca_interval,
    bootstrap_means,
)
from analysis.loading import load_artifacts
from analysis.objectives import Column, sample_values
from analysis.summary import benchmark_seed
from rllava.errors import UserError
from rllava.filesystem import open_filesystem
from rllava.fronts import hypervolume, non_dominated

FILE = "seed-{}.json"
"""File in a search's report folder, by the seed of its sampler."""


@dataclass(frozen=True)
class SearchResults:
    """A search as it was written.

    Attributes:
        run: what ``sweeps.search_report`` wrote: objectives, settings, rungs, configurations, the timeline.
        others: the same of searches with other seeds, by seed.
        records: of all configurations at the largest rung that any has reached.
        judgements: on them.
        front_records: of the front, on all samples and with all final seeds; none where it was not scored again.
        front_judgements: on them.
    """

    storage: str
    run: Mapping[str, Any]
    others: Mapping[int, Mapping[str, Any]]
    records: pd.DataFrame
    judgements: pd.DataFrame
    front_records: pd.DataFrame
    front_judgements: pd.DataFrame

    @property
    def columns(self) -> tuple[Column, ...]:
        """The objectives, in their order."""
        return tuple(Column(**column) for column in self.run["columns"])

    def at(self, rung: int) -> dict[int, dict[str, Any]]:
        """Trials of a rung by configuration."""
        return _trials(self.run, rung)


@dataclass(frozen=True)
class SearchStatistics:
    """The statistics of a search.

    Attributes:
        table: a row per configuration at the largest rung: ``number``, ``candidate``, of each objective its value with
            ``_low`` and ``_high``, ``on_front`` and ``front_probability``, ``hours``.
        fresh: a row per configuration of the front and training seed: of each objective its value on the samples it was
            chosen by (``chosen``) and on those that no rung has seen (``fresh``, with ``_low`` and ``_high``), and the
            front's probability on them. Empty where it was not scored again.
        course: ``hours``, ``hypervolume``, ``seed``: of the configurations at the last rung so far.
        attainment: ``share`` of the searches with another seed that attain ``x`` and ``y``, the first two objectives.
        importances: ``setting``, ``objective``, ``importance`` (PED-ANOVA); empty where too few are known.
        trials: a row per configuration: where it comes from, how far it came, why it ended.
        reference: what the hypervolume is above, larger is better.
    """

    results: SearchResults
    resampling: Resampling
    table: pd.DataFrame
    fresh: pd.DataFrame
    course: pd.DataFrame
    attainment: pd.DataFrame
    importances: pd.DataFrame
    trials: pd.DataFrame
    reference: FloatArray = field(default_factory=lambda: np.zeros(0))


def load_search(storage: str, name: str = "search", seed: int | None = None) -> SearchResults:
    """Loads a search, and the records of its configurations.

    Args:
        storage: path or ``s3://`` URL of the results folder.
        name: of the search.
        seed: of its sampler; None: the first there is.

    Raises:
        UserError: if there is no such search, or records of it are missing or damaged.
    """
    filesystem, root = open_filesystem(storage)
    folder = f"{root}/reports/{name}"
    named = {path: re.fullmatch(r"seed-(\d+)\.json", path.rsplit("/", 1)[-1]) for path in filesystem.find(folder)}
    files = {int(match[1]): path for path, match in named.items() if match}
    if not files or (seed is not None and seed not in files):
        there = ", ".join(map(str, sorted(files))) or "none"
        raise UserError(
            f"{storage}: no search '{name}' with seed {seed or 0} (seeds here: {there}); run sweeps/search.py"
        )
    runs = {number: json.loads(filesystem.cat_file(path)) for number, path in sorted(files.items())}
    chosen = min(runs) if seed is None else seed
    run = runs.pop(chosen)
    others = {number: other for number, other in runs.items() if _same_study(run, other)}
    at_top = _trials(run, run["top"]).values()
    records, judgements = _of(storage, [t["records"] for t in at_top]), _of(storage, [t["judgements"] for t in at_top])
    front_records, front_judgements = _front(filesystem, root, storage, run)
    return SearchResults(storage, run, others, records, judgements, front_records, front_judgements)


def _same_study(run: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(run[key] == other[key] for key in ("columns", "settings", "rungs"))


def _trials(run: Mapping[str, Any], rung: int) -> dict[int, dict[str, Any]]:
    return {c["number"]: trial for c in run["configurations"] for trial in c["rungs"] if trial["rung"] == rung}


def _of(storage: str, folders: Sequence[Mapping[str, int | None]]) -> pd.DataFrame:
    merged = {path: parts for own in folders for path, parts in own.items()}
    return load_artifacts(storage, merged) if merged else pd.DataFrame()


def _front(filesystem: Any, root: str, storage: str, run: Mapping[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    path = f"{root}/reports/{run['front_sweep']}/sweep.json"
    if run["front_sweep"] is None or not filesystem.exists(path):
        return pd.DataFrame(), pd.DataFrame()
    manifest = json.loads(filesystem.cat_file(path))
    found = [
        _of(storage, [{entry["path"]: entry["parts"]} for entry in manifest[kind]])
        for kind in ("records", "judgements")
    ]
    return found[0], found[1]


def analyse_search(results: SearchResults, resampling: Resampling = DEFAULT_RESAMPLING) -> SearchStatistics:
    """Computes all that the report of a search shows."""
    run = results.run
    above = reference(results)
    return SearchStatistics(
        results=results,
        resampling=resampling,
        table=_table(results, resampling),
        fresh=_fresh(results, resampling),
        course=pd.concat(
            [_course(r, results.columns, above) for r in (run, *results.others.values())], ignore_index=True
        ),
        attainment=attainment([_points(r, results.columns) for r in (run, *results.others.values())]),
        importances=_importances(run, results.columns),
        trials=_ends(run),
        reference=above,
    )


def reference(results: SearchResults) -> FloatArray:
    """What the hypervolume is above: the worst there can be of an objective, else the worst that was seen."""
    runs = (results.run, *results.others.values())
    seen = [t["values"] for r in runs for c in r["configurations"] for t in c["rungs"]]
    worst = [
        column.sign * column.worst if column.worst is not None
        else min((column.sign * values[place] for values in seen), default=0.0)
        for place, column in enumerate(results.columns)
    ]  # fmt: skip
    return np.array(worst, dtype=np.float64)


def _table(results: SearchResults, resampling: Resampling) -> pd.DataFrame:
    trials = results.at(results.run["top"])
    names = {number: trial["candidate"] for number, trial in trials.items()}
    values_DC = {place: [trial["values"][place] for trial in trials.values()] for place in range(len(results.columns))}
    table = _scored(results.columns, results.records, results.judgements, list(names.values()), values_DC, resampling)
    head = {"number": list(names), "hours": [trial["hours"] for trial in trials.values()]}
    return pd.concat([pd.DataFrame(head), table], axis=1)


def _scored(
    columns: Sequence[Column], records: pd.DataFrame, judgements: pd.DataFrame, candidates: Sequence[str],
    whole: Mapping[int, Sequence[float]], resampling: Resampling,
) -> pd.DataFrame:  # fmt: skip
    """Values of candidates with intervals, and the probability of each to be on the front.

    In a bootstrap draw all candidates and objectives see the same samples.

    Args:
        whole: values, by the place of the objective, of what is no mean over samples.
    """
    table = pd.DataFrame({"candidate": list(candidates)})
    points_BCD = []
    means_CD = []
    for place, column in enumerate(columns):
        if column.per_sample:
            drawn = _bootstrap(sample_values(records, judgements, column), candidates, resampling)
            low_C, high_C = bca_interval(drawn, resampling.level)
            mean_C, draws_BC = drawn.mean, drawn.draws
        else:
            mean_C = np.array(whole[place], dtype=np.float64)
            low_C = high_C = mean_C
            draws_BC = np.broadcast_to(mean_C, (resampling.draws, len(mean_C)))
        table[column.name], table[f"{column.name}_low"], table[f"{column.name}_high"] = mean_C, low_C, high_C
        points_BCD.append(column.sign * draws_BC)
        means_CD.append(column.sign * mean_C)
    table["on_front"] = non_dominated(np.stack(means_CD, axis=-1))
    draws = np.stack(points_BCD, axis=-1)
    # A slice at a time: all pairs of candidates in every draw would be large.
    on_front = [non_dominated(draws[start : start + 500]) for start in range(0, len(draws), 500)]
    table["front_probability"] = np.concatenate(on_front).mean(axis=0)
    return table


def _bootstrap(values: pd.DataFrame, candidates: Sequence[str], resampling: Resampling) -> Bootstrap:
    """The mean over benchmarks of each candidate's mean; the same seed draws the same samples for every objective."""
    parts = []
    for benchmark, rows in values.groupby("benchmark", sort=True):
        values_SC = rows.pivot_table(index="sample_id", columns="candidate", values="value", dropna=False)
        values_SC = values_SC.reindex(columns=list(candidates)).sort_index()
        seed = benchmark_seed(resampling, str(benchmark))
        parts.append(bootstrap_means(values_SC.to_numpy(dtype=np.float64), resampling.draws, seed))
    return average_bootstraps(parts)


def _fresh(results: SearchResults, resampling: Resampling) -> pd.DataFrame:
    """The front on samples that nobody has chosen by, beside what it was chosen by."""
    if results.front_records.empty:
        return pd.DataFrame()
    run = results.run
    seen = _part(results.records).groupby(results.records["benchmark"]).max()
    front = results.front_records
    records = front[_part(front) > front["benchmark"].map(seen)]
    if set(records["benchmark"]) != set(front["benchmark"]):  # of one nothing is left: another mean than the chosen
        return pd.DataFrame()
    judgements = results.front_judgements
    seeds = records[["candidate", "seed"]].drop_duplicates()
    tables = []
    for seed in dict.fromkeys(seeds["seed"]):
        own = records[records["seed"] == seed]
        names = list(dict.fromkeys(own["candidate"]))
        whole = _whole_values(results, names)
        scored = _scored(results.columns, own, judgements, names, whole, resampling)
        tables.append(scored.assign(seed=int(seed), samples=_samples(own)))
    fresh = pd.concat(tables, ignore_index=True)
    chosen, unknown = _values_by_name(run), [math.nan] * len(results.columns)
    for place, column in enumerate(results.columns):
        fresh[f"{column.name}_chosen"] = [chosen.get(name, unknown)[place] for name in fresh["candidate"]]
    return fresh


def _part(records: pd.DataFrame) -> pd.Series:
    """Number of the part that each record lies in."""
    return records["part"].str.extract(r"part-(\d+)", expand=False).astype(int)


def _samples(records: pd.DataFrame) -> int:
    """Of the benchmark that has most: rungs are whole shards."""
    return int(records.groupby("benchmark")["sample_id"].nunique().max())


def _whole_values(results: SearchResults, names: Sequence[str]) -> dict[int, list[float]]:
    values = _values_by_name(results.run)
    return {
        place: [values.get(name, [math.nan] * len(results.columns))[place] for name in names]
        for place, column in enumerate(results.columns)
        if not column.per_sample
    }


def _values_by_name(run: Mapping[str, Any]) -> dict[str, list[float]]:
    """What configurations were chosen by, by the names that they have when they are trained in full."""
    names = {entry["number"]: entry["name"] for entry in run["configurations"]}
    return {names[number]: trial["values"] for number, trial in _trials(run, run["top"]).items()}


def _points(run: Mapping[str, Any], columns: Sequence[Column]) -> FloatArray:
    """Of all configurations at the last rung, larger is better, [N, D]."""
    signs_D = np.array([column.sign for column in columns], dtype=np.float64)
    values = [trial["values"] for trial in _trials(run, len(run["rungs"]) - 1).values()]
    return np.asarray(np.array(values, dtype=np.float64).reshape(-1, len(columns)) * signs_D)


def _course(run: Mapping[str, Any], columns: Sequence[Column], above: FloatArray) -> pd.DataFrame:
    """Hypervolume over the hours that were spent, of what has finished the last rung by then."""
    last = len(run["rungs"]) - 1
    values = {number: trial["values"] for number, trial in _trials(run, last).items()}
    signs = np.array([column.sign for column in columns])
    rows, points = [{"hours": 0.0, "hypervolume": 0.0}], []
    for number, rung, spent in run["timeline"]:
        if rung == last and number in values:
            points.append(np.array(values[number]) * signs)
        rows.append({"hours": spent, "hypervolume": hypervolume(np.array(points), above) if points else 0.0})
    return pd.DataFrame(rows).assign(seed=run["seed"])


def attainment(searches: Sequence[FloatArray]) -> pd.DataFrame:
    """Empirical attainment of the first two objectives (Grunert da Fonseca et al. 2001).

    Where one, half and all of some searches get.

    Args:
        searches: points of each, [N, D], larger is better.

    Returns:
        ``share`` of the searches, ``x`` and the largest ``y`` that so many of them attain at ``x`` or more.
    """
    found = [points[np.isfinite(points).all(axis=1)] for points in searches]
    xs = np.unique(np.concatenate([points[:, 0] for points in found])) if found else np.zeros(0)
    rows = []
    for needed in sorted({1, math.ceil(len(found) / 2), len(found)}):
        for x in xs:
            best = sorted((max(points[points[:, 0] >= x, 1], default=-np.inf) for points in found), reverse=True)
            if math.isfinite(best[needed - 1]):
                rows.append(
                    {"share": needed / len(found), "searches": needed, "x": float(x), "y": float(best[needed - 1])}
                )
    return pd.DataFrame(rows, columns=["share", "searches", "x", "y"])


def _importances(run: Mapping[str, Any], columns: Sequence[Column]) -> pd.DataFrame:
    """Optuna's, of each objective, at the largest rung that enough configurations have finished.

    PED-ANOVA (Watanabe et al. 2023): how far the best tenth's settings differ from everybody's. Only settings that
    every configuration has.
    """
    empty = pd.DataFrame(columns=["setting", "objective", "importance"])
    enough = [rung for rung in range(len(run["rungs"])) if len(_trials(run, rung)) >= run["startup"]]
    if not enough:
        return empty
    trials = _trials(run, max(enough))
    configurations = {c["number"]: c["configuration"] for c in run["configurations"]}
    settings = [s for s in run["settings"] if all(s["name"] in configurations[number] for number in trials)]
    distributions = {s["name"]: _distribution(s) for s in settings}
    rows = []
    optuna.logging.set_verbosity(logging.WARNING)
    for place, column in enumerate(columns):
        study = optuna.create_study(direction="maximize")
        for number, trial in trials.items():
            if not math.isfinite(trial["values"][place]):
                continue
            study.add_trial(optuna.trial.create_trial(
                params={name: configurations[number][name] for name in distributions},
                distributions=distributions,
                value=column.sign * trial["values"][place],
            ))  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = optuna.importance.get_param_importances(study)
            except (RuntimeError, ValueError):  # nothing varies
                continue
        rows += [{"setting": name, "objective": column.name, "importance": value} for name, value in found.items()]
    return pd.DataFrame(rows) if rows else empty


def _distribution(setting: Mapping[str, Any]) -> optuna.distributions.BaseDistribution:
    if "values" in setting:
        return optuna.distributions.CategoricalDistribution(setting["values"])
    return optuna.distributions.FloatDistribution(setting["low"], setting["high"], log=True)


def _ends(run: Mapping[str, Any]) -> pd.DataFrame:
    names = [column["name"] for column in run["columns"]]
    rows = []
    for entry in run["configurations"]:
        last = entry["rungs"][-1] if entry["rungs"] else None
        row = {
            "number": entry["number"],
            "candidate": last["candidate"] if last else ", ".join(map(str, entry["configuration"].values())),
            "source": entry["source"],
            "rung": last["rung"] if last else None,
            **{name: last["values"][place] if last else math.nan for place, name in enumerate(names)},
            "hours": sum(trial["hours"] for trial in entry["rungs"]),
            "end": entry["fate"],
        }
        rows.append(row)
    return pd.DataFrame(rows, columns=["number", "candidate", "source", "rung", *names, "hours", "end"])


def format_search(statistics: SearchStatistics) -> str:
    """The front for a terminal: on the samples it was chosen by, and on fresh ones."""
    run, columns = statistics.results.run, statistics.results.columns
    front = statistics.table[statistics.table["on_front"]].sort_values(columns[0].name, ascending=columns[0].sign < 0)
    names = {entry["number"]: entry["name"] for entry in run["configurations"]}
    again_of = statistics.fresh.to_dict("records")
    fresh = {str(row["candidate"]): row for row in again_of if int(row["seed"]) == run["training_seed"]}
    width = max([len("on the front"), *(len(str(name)) for name in front["candidate"])])
    titles = "".join(f" | {column.name:>14}  {'fresh':>14}" for column in columns)
    head = f"{'on the front':<{width}}{titles} | p(front)"
    lines = [head, "-" * width + "".join("-+-" + "-" * 30 for _ in columns) + "-+---------"]
    for row in front.to_dict("records"):
        again = fresh.get(names[row["number"]])
        cells = "".join(f" | {_cell(row, c.name):>14}  {_cell(again, c.name) if again else '':>14}" for c in columns)
        lines.append(f"{row['candidate']:<{width}}{cells} | {row['front_probability']:>7.0%}")
    samples = _samples(statistics.results.records)
    unseen = f", fresh ones {int(statistics.fresh['samples'].max())}" if len(statistics.fresh) else ", no fresh ones"
    lines += [
        "",
        f"{run['trials']} trials of {len(run['configurations'])} configurations, {run['spent']:.3g} worker-hours; "
        f"chosen by {samples} samples of each benchmark{unseen}; ± half the width of the "
        f"{statistics.resampling.level:.0%} interval",
        "p(front): share of bootstrap draws in which a configuration is on the front of all that came so far",
    ]
    return "\n".join(lines)


def _cell(row: Mapping[Any, Any], name: str) -> str:
    half = (row[f"{name}_high"] - row[f"{name}_low"]) / 2
    return f"{row[name]:.4g} ±{half:.1f}" if half > 0 else f"{row[name]:.4g}"
