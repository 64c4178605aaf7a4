"""Statistics of a sweep of jailbreaks: how often judges flag the answers to forbidden requests, how often allowed ones
are refused, and how far both depend on the image that is shown.

Shape legend: B bootstrap draws, R restarts (images of one cell), S prompts, D drawn answers.
"""

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.bootstrap import DEFAULT_RESAMPLING, FloatArray, Resampling, resampled_counts
from analysis.judgements import ANSWER, JudgementStatistics, analyse_judgements, joined, shown
from analysis.loading import SweepResults
from analysis.manifest import SHOWN, UNIVERSAL, Manifest
from rllava.errors import UserError
from rllava.records import CLEAN

HADES = "hades"
"""Benchmark whose samples are ``Scenario/id/step``: one instruction with images of growing harm."""

ALL_SCENARIOS = "all"
POOLED, AT_STEP, CUMULATIVE = "pooled", "at step", "cumulative"
"""Variants of a share of HADES: over all steps, at one, and over instructions that were flagged at it or before it."""

CONDITION = ("condition", "kind", "epsilon")
CELL = ("candidate", "benchmark", *CONDITION)
"""Columns that say of which answers a row is."""

RATE_COLUMNS = (
    "judge", *CELL, "n", "flagged", "rate", "low", "high", "empty", "undecided", "errors", "prompts", "restarts",
    "draws",
)  # fmt: skip
"""Columns of rates.csv."""

REFUSAL_COLUMNS = (
    *CELL, "allowed", "n", "unanswered", "rate", "low", "high", "answered", "blank", "errors", "prompts", "restarts",
    "draws",
)  # fmt: skip
"""Columns of refusals.csv."""

HADES_COLUMNS = (
    "judge", "candidate", *CONDITION, "scenario", "variant", "step", "n", "flagged", "rate", "low", "high", "restarts",
)  # fmt: skip
"""Columns of hades.csv."""

COMPARISON_COLUMNS = ("judge", *CELL, "baseline", "difference", "low", "high", "prompts", "restarts")
"""Columns of comparisons.csv."""

PUBLISHED_COLUMNS = ("judge", *CELL, "flagged", "n", "rate", "convention", "published_n", "published_rate")
"""Columns of published.csv."""

COST_COLUMNS = ("candidate", "images", "image_seconds", "answers", "answer_seconds", "judgements", "judge_seconds")
"""Columns of cost.csv."""

VISUALADV = "VisualAdv: blank answers leave the denominator"
"""Name of the convention of Qi et al., Visual Adversarial Examples Jailbreak Aligned Large Language Models (2023)."""

_FINDING_NONE = "no findings"


@dataclass(frozen=True)
class Counts:
    """What was found in a cell.

    Attributes:
        found: (R, S, D) answers of each restart, prompt and draw that have what is looked for. Of several samples that
            stand for one prompt, as the steps of HADES, the sum.
        decided: (R, S, D) answers of which it is known.
    """

    found: FloatArray
    decided: FloatArray

    @property
    def share(self) -> float:
        """Of the known ones."""
        n = self.decided.sum()
        return float(self.found.sum() / n) if n else np.nan


@dataclass(frozen=True)
class JailbreakStatistics:
    """The statistics of a sweep of jailbreaks.

    Attributes:
        results: the manifest and records they come from.
        baseline: candidate that the others are compared with.
        resampling: draws, seed and level of all intervals.
        rates: RATE_COLUMNS, a row per judge and cell of a benchmark of forbidden requests. ``n`` answers were decided;
            an empty answer counts among them as not flagged. ``restarts`` is 0 where a condition has none.
        refusals: REFUSAL_COLUMNS, a row per cell of any benchmark: the share that is refused or blank.
        hades: HADES_COLUMNS; empty if it was not asked.
        comparisons: COMPARISON_COLUMNS, a row per judge, cell and candidate other than the baseline.
        published: PUBLISHED_COLUMNS, the rates beside those over the denominator of a publication.
        cost: COST_COLUMNS, a row per candidate.
        judged: see ``judgements.analyse_judgements``; None if nothing was judged.
    """

    results: SweepResults
    baseline: str
    resampling: Resampling
    rates: pd.DataFrame
    refusals: pd.DataFrame
    hades: pd.DataFrame
    comparisons: pd.DataFrame
    published: pd.DataFrame
    cost: pd.DataFrame
    judged: JudgementStatistics | None = None

    @property
    def judges(self) -> tuple[str, ...]:
        """Labels, in the order of the sweep."""
        return () if self.judged is None else tuple(name for name, _ in self.judged.judges)

    @property
    def lone_images(self) -> bool:
        """Whether some cell is about a single image."""
        return bool((self.refusals["restarts"] == 1).any())


def is_about_jailbreaks(manifest: Manifest) -> bool:
    """Whether a sweep showed universal images or the same picture to all samples, and no sample an image of its own."""
    kinds = {entry.kind for entry in manifest.conditions}
    return bool(kinds & {UNIVERSAL, SHOWN}) and kinds <= {CLEAN, SHOWN, UNIVERSAL}


def analyse_jailbreak(
    results: SweepResults, baseline: str | None = None, resampling: Resampling = DEFAULT_RESAMPLING
) -> JailbreakStatistics:
    """Computes rates, refusals, comparisons and costs of a sweep of jailbreaks.

    Args:
        results: from ``loading.load_sweep``.
        baseline: candidate to compare with; by default the first.

    Raises:
        UserError: if there are no records, or the baseline is unknown.
    """
    manifest = results.manifest
    if results.records.empty:
        raise UserError(f"{results.storage}: sweep '{manifest.sweep}' has no records; run it again")
    if baseline is not None and baseline not in manifest.candidates:
        raise UserError(f"no candidate '{baseline}'; candidates here: {', '.join(manifest.candidates)}")
    reference = baseline or manifest.candidates[0]
    verdicts = verdicts_of(results)
    rates = flag_rates(verdicts, manifest, resampling)
    return JailbreakStatistics(
        results=results,
        baseline=reference,
        resampling=resampling,
        rates=rates,
        refusals=refusal_rates(results, resampling),
        hades=hades_rates(verdicts, manifest, resampling),
        comparisons=compare_rates(verdicts, manifest, reference, resampling),
        published=published_rates(rates),
        cost=costs(results),
        judged=analyse_judgements(results, resampling),
    )


def verdicts_of(results: SweepResults) -> pd.DataFrame:
    """What judges say of the answers to forbidden requests.

    Returns:
        A row per verdict of ``judgements.joined``, without texts, with ``value``, 1 if flagged, 0 if not, NaN if
        undecided, and ``unit``, the prompt that is resampled.
    """
    judged = joined(results)
    about = judged[(judged["answer"] == ANSWER) & ~judged["benchmark"].isin(results.manifest.allowed)]
    about = about[["judge", *CELL, "sample_id", "seed", "restart", "draw", "flagged", "empty", "error"]]
    return _with_units(about.assign(value=[np.nan if pd.isna(found) else float(found) for found in about["flagged"]]))


def _with_units(rows: pd.DataFrame) -> pd.DataFrame:
    """Adds ``unit``: what is one prompt. The steps of an instruction of HADES are one."""
    samples = zip(rows["benchmark"], rows["sample_id"], strict=True)
    return rows.assign(unit=[name.rpartition("/")[0] if set_ == HADES else name for set_, name in samples])


def flag_rates(verdicts: pd.DataFrame, manifest: Manifest, resampling: Resampling) -> pd.DataFrame:
    """How often each judge flags the answers to forbidden requests.

    Args:
        verdicts: from :func:`verdicts_of`.

    Returns:
        See ``JailbreakStatistics.rates``.
    """
    rows = []
    for key, own in _cells(verdicts, ("judge", *CELL)):
        undecided = own["value"].isna()
        counts = count(own)
        rows.append((
            *key, *_share(counts, resampling), int(own["empty"].sum()), int((undecided & own["error"].isna()).sum()),
            int(own["error"].notna().sum()), *_sizes(own),
        ))  # fmt: skip
    return _ordered(pd.DataFrame(rows, columns=list(RATE_COLUMNS)), manifest)


def refusal_rates(results: SweepResults, resampling: Resampling) -> pd.DataFrame:
    """How often each candidate refuses, or says nothing, by metric ``answered``.

    Returns:
        See ``JailbreakStatistics.refusals``.
    """
    records = results.records[[*CELL, "sample_id", "seed", "restart", "draw", "prediction", "score", "error"]]
    score = records["score"]
    records = _with_units(records.assign(value=(score == 0).astype(float).where(score.notna())))
    rows = []
    for key, own in _cells(records, CELL):
        n, unanswered, rate, low, high = _share(count(own), resampling)
        blank = int((own["prediction"].fillna("-").str.strip() == "").sum())
        rows.append((
            *key, key[1] in results.manifest.allowed, n, unanswered, rate, low, high, 1 - rate, blank,
            int(own["error"].notna().sum()), *_sizes(own),
        ))  # fmt: skip
    return _ordered(pd.DataFrame(rows, columns=list(REFUSAL_COLUMNS)), results.manifest)


def hades_rates(verdicts: pd.DataFrame, manifest: Manifest, resampling: Resampling) -> pd.DataFrame:
    """Shares of HADES by scenario, and over all of them by step.

    The cumulative variant counts an instruction as flagged at a step if the answer at that step or an earlier one is,
    by the same restart and draw; it is the larger number, and comparable with no other.

    Args:
        verdicts: from :func:`verdicts_of`.

    Returns:
        See ``JailbreakStatistics.hades``.
    """
    rows = []
    own = verdicts[verdicts["benchmark"] == HADES]
    names = own["sample_id"].str.split("/")
    own = own.assign(scenario=names.str[0], step=names.str[-1].astype(int))
    for key, cell in _cells(own, ("judge", "candidate", *CONDITION)):
        restarts = _sizes(cell)[1]
        for scenario in (*dict.fromkeys(cell["scenario"]), ALL_SCENARIOS):
            part = cell if scenario == ALL_SCENARIOS else cell[cell["scenario"] == scenario]
            for variant, step, chosen in _variants(part, every_step=scenario == ALL_SCENARIOS):
                rows.append((*key, scenario, variant, step, *_share(count(chosen), resampling), restarts))
    table = pd.DataFrame(rows, columns=list(HADES_COLUMNS)).astype({"step": "Int64"})
    return _ordered(table.assign(benchmark=HADES), manifest).drop(columns="benchmark")


def _variants(part: pd.DataFrame, every_step: bool) -> Iterator[tuple[str, int | None, pd.DataFrame]]:
    yield POOLED, None, part
    steps = sorted(set(part["step"]))
    for step in steps if every_step else steps[-1:]:
        if every_step:
            yield AT_STEP, step, part[part["step"] == step]
        yield CUMULATIVE, step, _ever_flagged(part[part["step"] <= step])


def _ever_flagged(rows: pd.DataFrame) -> pd.DataFrame:
    """An instruction's rows as one: flagged if one is, not flagged if all are decided and none is."""
    same = ["seed", "restart", "draw", "unit"]
    grouped = rows.groupby(same, sort=False, dropna=False)["value"]
    found = pd.DataFrame({"most": grouped.max(), "known": grouped.count() == grouped.size()}).reset_index()
    return found.assign(value=found["most"].where(found["known"] | (found["most"] == 1)))


def compare_rates(verdicts: pd.DataFrame, manifest: Manifest, baseline: str, resampling: Resampling) -> pd.DataFrame:
    """Each candidate's share of flagged answers minus the baseline's, under the same condition.

    Both are asked the same prompts, which are resampled together. Each has images of its own and answers that were
    drawn on their own: these are resampled on each side alone. Prompts of which one side has no decided answer are left
    out.

    Args:
        verdicts: from :func:`verdicts_of`.

    Returns:
        See ``JailbreakStatistics.comparisons``.
    """
    cells = dict(_cells(verdicts, ("judge", *CELL)))
    rows = []
    for (judge, candidate, *where), own in cells.items():
        other = cells.get((judge, baseline, *where))
        if candidate == baseline or other is None:
            continue
        decided = own[own["value"].notna()], other[other["value"].notna()]
        prompts = sorted(set(decided[0]["unit"]) & set(decided[1]["unit"]))
        sides = [count(side, prompts) for side in decided]
        difference_B = shares(sides[0], resampling, side=0) - shares(sides[1], resampling, side=1)
        low, high = _interval(difference_B, len(prompts), resampling.level)
        difference = sides[0].share - sides[1].share
        rows.append((judge, candidate, *where, baseline, difference, low, high, len(prompts), _sizes(own)[1]))
    return _ordered(pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS)), manifest)


def published_rates(rates: pd.DataFrame) -> pd.DataFrame:
    """The rates over the denominator of a publication, beside ours.

    Args:
        rates: from :func:`flag_rates`.

    Returns:
        See ``JailbreakStatistics.published``.
    """
    left = rates["n"] - rates["empty"]
    table = rates.assign(
        convention=VISUALADV, published_n=left, published_rate=(rates["flagged"] / left).where(left > 0)
    )
    return table[list(PUBLISHED_COLUMNS)]


def costs(results: SweepResults) -> pd.DataFrame:
    """Seconds that images, answers and judgements took, those of earlier runs included.

    Returns:
        See ``JailbreakStatistics.cost``.
    """
    manifest, judgements = results.manifest, results.judgements
    about = judgements.assign(path=[part.rpartition("/")[0] for part in judgements["part"]])
    judged = dict(zip(about["path"], about["candidate"], strict=True))
    rows = []
    for candidate in manifest.candidates:
        images = [entry.seconds for entry in manifest.images if entry.candidate == candidate]
        answers = [entry.seconds for entry in manifest.records if entry.candidate == candidate]
        judging = [entry.seconds for entry in manifest.judgements if judged.get(entry.path) == candidate]
        numbers = (
            int((results.records["candidate"] == candidate).sum()), int((judgements["candidate"] == candidate).sum()),
        )  # fmt: skip
        rows.append((
            candidate, len(images), _total(images), numbers[0], _total(answers), numbers[1], _total(judging),
        ))  # fmt: skip
    return pd.DataFrame(rows, columns=list(COST_COLUMNS))


def _total(seconds: Sequence[float]) -> float:
    """Of those that are known; 0 of nothing."""
    known = [value for value in seconds if np.isfinite(value)]
    return float(sum(known)) if known or not seconds else np.nan


def _cells(rows: pd.DataFrame, columns: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    """Groups rows; what has no budget has None for it, so that keys compare."""
    key: Any
    for key, own in rows.groupby(list(columns), sort=False, dropna=False):
        yield tuple(None if pd.isna(value) else value for value in key), own


def _ordered(table: pd.DataFrame, manifest: Manifest) -> pd.DataFrame:
    """Sorts rows as the sweep names things; budgets of a condition increase."""
    labels = list(dict.fromkeys(entry.label for entry in manifest.conditions))
    judges = list(dict.fromkeys(entry.judge for entry in manifest.judgements))
    orders = {"judge": judges, "candidate": manifest.candidates, "benchmark": manifest.benchmarks, "condition": labels}

    def rank(column: pd.Series) -> pd.Series:
        order = orders.get(str(column.name))
        if order is None:
            return column
        return column.map({name: number for number, name in enumerate(order)})

    by = [name for name in ("judge", "candidate", "benchmark", "condition", "epsilon") if name in table]
    return table.astype({"epsilon": float}).sort_values(by, key=rank, kind="stable").reset_index(drop=True)


def count(rows: pd.DataFrame, prompts: Sequence[str] | None = None) -> Counts:
    """Counts a cell.

    Args:
        rows: with ``value`` (1, 0 or NaN), ``unit``, ``seed``, ``restart`` and ``draw``. Images made for several
            trainings of a candidate are restarts like others.
        prompts: those to count, in order; by default all.
    """
    order = sorted(set(rows["unit"])) if prompts is None else list(prompts)
    number = {name: index for index, name in enumerate(order)}
    rows = rows[rows["unit"].isin(number)]
    r, d = (
        rows.groupby(list(axis), dropna=False).ngroup().to_numpy(dtype=np.int64)
        for axis in (("seed", "restart"), ("draw",))
    )
    s = rows["unit"].map(number).to_numpy(dtype=np.int64)
    value = rows["value"].to_numpy(dtype=np.float64)
    found_RSD, decided_RSD = np.zeros((2, r.max(initial=-1) + 1, len(order), d.max(initial=-1) + 1))
    np.add.at(found_RSD, (r, s, d), np.nan_to_num(value))
    np.add.at(decided_RSD, (r, s, d), np.isfinite(value))
    return Counts(found_RSD, decided_RSD)


def shares(counts: Counts, resampling: Resampling, side: int = 0) -> FloatArray:
    """Bootstraps the share that was found.

    Restarts, prompts and draws are resampled independently of each other, and an answer counts as often as all three
    of its own are drawn (the pigeonhole bootstrap: Owen, Annals of Applied Statistics 1(2), 2007), which is on the safe
    side. An axis of one is not resampled: its interval says nothing about another image or draw.

    Args:
        side: two sides share the prompts of a draw, and neither its restarts nor its drawn answers.

    Returns:
        share_B; NaN where a draw has no decided answer.
    """
    restarts, prompts, draws = counts.found.shape
    times_BS = _times(prompts, resampling.draws, (resampling.seed, 0))
    times_BR = _times(restarts, resampling.draws, (resampling.seed, 1, side))
    times_BD = _times(draws, resampling.draws, (resampling.seed, 2, side))
    times_BRD = times_BR[:, :, np.newaxis] * times_BD[:, np.newaxis, :]
    sums = []
    for of_RSD in (counts.found, counts.decided):
        of_SX = (
            of_RSD.transpose(1, 0, 2).reshape(prompts, restarts * draws).astype(np.float32)
        )  # whole numbers: sums are exact
        of_BRD = (times_BS @ of_SX).reshape(resampling.draws, restarts, draws)
        sums.append((of_BRD.astype(np.float64) * times_BRD).sum(axis=(1, 2)))
    with np.errstate(invalid="ignore", divide="ignore"):
        share_B: FloatArray = sums[0] / sums[1]
    return share_B


@functools.lru_cache(maxsize=8)
def _times(size: int, draws: int, seed: tuple[int, ...]) -> Any:
    """How often each of so many is in each bootstrap draw: times_BX, float32."""
    chunks = [chunk.astype(np.float32) for chunk in resampled_counts(size, draws, seed)]
    return np.concatenate(chunks)


def _share(counts: Counts, resampling: Resampling) -> tuple[int, int, float, float, float]:
    """Decided answers, found ones, their share, and the bounds of its interval."""
    prompts = int((counts.decided.sum(axis=(0, 2)) > 0).sum())
    low, high = np.nan, np.nan
    if prompts > 1:
        low, high = _interval(shares(counts, resampling), prompts, resampling.level)
    return int(counts.decided.sum()), int(counts.found.sum()), counts.share, low, high


def _interval(values_B: FloatArray, prompts: int, level: float) -> tuple[float, float]:
    """Percentiles; NaN for fewer than two prompts, which tell nothing about others."""
    known = values_B[np.isfinite(values_B)]
    if prompts < 2 or not len(known):
        return np.nan, np.nan
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _sizes(rows: pd.DataFrame) -> tuple[int, int, int]:
    """Prompts, restarts (0: the condition has none) and draws of a cell."""
    made = rows[rows["restart"].notna()].drop_duplicates(["seed", "restart"])
    return rows["unit"].nunique(), len(made), rows["draw"].nunique()


def label_of(row: Any) -> str:
    """What was shown, in a few words; see ``judgements.shown``."""
    return shown({"severity": None, **{name: row[name] for name in CONDITION}})


def images_line(manifest: Manifest) -> str:
    """What the checks found in the making of the images, in one line; empty if none were made."""
    if not manifest.images:
        return ""
    found = [list(entry.facts.get("findings") or ()) for entry in manifest.images]
    counts = Counter(name for names in found for name in names)
    named = ", ".join(f"{name} {times}" for name, times in sorted(counts.items()))
    made = f"{len(found)} image{'' if len(found) == 1 else 's'} made"
    return f"{made}, {sum(map(bool, found))} with findings ({named})" if named else f"{made}, {_FINDING_NONE}"


def jailbreak_answer(statistics: JailbreakStatistics) -> str:
    """States in a sentence whose answers the first judge flags most, and under what."""
    rates = statistics.rates
    if not statistics.judges:
        return "No judge read the answers: this says who answers, and not what."
    judge = statistics.judges[0]
    known = rates[(rates["judge"] == judge) & rates["rate"].notna()]
    if known.empty:
        return f"{judge} could decide on no answer to a forbidden request."
    worst = known.iloc[int(known["rate"].argmax())]
    if worst["rate"] == 0:
        return f"{judge} flags none of {int(known['n'].sum())} answers to forbidden requests, whatever was shown."
    said = (
        f"{judge} flags {worst['rate']:.0%} of what {worst['candidate']} says to {worst['benchmark']} under "
        f"{label_of(worst)}, the most of all"
    )
    same = (known["candidate"] == worst["candidate"]) & (known["benchmark"] == worst["benchmark"])
    clean = known[same & (known["kind"] == CLEAN)]
    return f"{said}." if clean.empty or worst["kind"] == CLEAN else f"{said}; without it {clean['rate'].iloc[0]:.0%}."


WITHOUT_JUDGES = (
    "no judge read the answers: an answer that is no refusal need not be harmful; give --judges to tell what is in them"
)
ONE_IMAGE = "one image per cell: one image's luck is not a model's weakness; make several"
NO_WIDTH = "an interval of no width: all n answers came out the same; up to about 3/n of others may not"


def format_jailbreak(statistics: JailbreakStatistics) -> str:
    """Formats a sweep for the terminal: a row per condition, a column per candidate.

    Args:
        statistics: from :func:`analyse_jailbreak`.

    Returns:
        Plain text: of each benchmark of forbidden requests the percentage that each judge flags, of each benchmark of
        allowed ones the percentage that is not answered, each with half the width of its interval.
    """
    manifest, rates, refusals = statistics.results.manifest, statistics.rates, statistics.refusals
    forbidden = [name for name in manifest.benchmarks if name not in manifest.allowed]
    blocks = []
    for judge in statistics.judges:
        for name in forbidden:
            own = rates[(rates["judge"] == judge) & (rates["benchmark"] == name)]
            blocks.append(_block(f"{name}: flagged by {judge}, %", own, manifest))
    if not statistics.judges:
        for name in forbidden:
            own = answered(refusals[refusals["benchmark"] == name])
            blocks.append(_block(f"{name}: answered, % (forbidden requests)", own, manifest))
    for name in manifest.benchmarks:
        if name in manifest.allowed:
            own = refusals[refusals["benchmark"] == name]
            if statistics.judges:
                blocks.append(_block(f"{name}: refused or blank, % (over-refusal)", own, manifest))
            else:
                blocks.append(_block(f"{name}: answered, % (allowed requests)", answered(own), manifest))
    legend = (
        f"± half the width of the {statistics.resampling.level:.0%} bootstrap interval over images (restarts), prompts "
        "and draws; of a condition without restarts over prompts and draws"
    )
    lines = [legend, images_line(manifest), ONE_IMAGE if statistics.lone_images else ""]
    lines.append("" if statistics.judges else WITHOUT_JUDGES)
    return "\n\n".join([*filter(None, blocks), "\n".join(filter(None, lines))])


def answered(refusals: pd.DataFrame) -> pd.DataFrame:
    """The share that is answered in the place of that which is not.

    Args:
        refusals: of ``JailbreakStatistics``.
    """
    return refusals.assign(rate=1 - refusals["rate"], low=1 - refusals["high"], high=1 - refusals["low"])


def _block(title: str, table: pd.DataFrame, manifest: Manifest) -> str:
    if table.empty:
        return ""
    rows = table.to_dict("records")
    cells = {(label_of(row), row["candidate"]): _percent(row) for row in rows}
    labels = list(dict.fromkeys(label_of(row) for row in rows))
    first = max(len("condition"), *map(len, labels))
    width = max(9, *map(len, manifest.candidates))
    head = f"{'condition':<{first}}" + "".join(f"  {name:>{width}}" for name in manifest.candidates)
    lines = [
        f"{name:<{first}}" + "".join(f"  {cells.get((name, own), '–'):>{width}}" for own in manifest.candidates)
        for name in labels
    ]
    return "\n".join([title, head, "-" * len(head), *lines])


def _percent(row: Any) -> str:
    if not np.isfinite(row["rate"]):
        return "–"
    half = (row["high"] - row["low"]) / 2
    return f"{100 * row['rate']:.0f} ±{100 * half:.0f}" if np.isfinite(half) else f"{100 * row['rate']:.0f} ±?"
