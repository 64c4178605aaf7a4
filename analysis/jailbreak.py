"""Statistics of a sweep of jailbreaks: how often judges flag the answers to forbidden requests, how often allowed ones
are refused, and how far both depend on the image that is shown.

Shape legend: B bootstrap draws.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.beside import Beside, find_beside
from analysis.bootstrap import DEFAULT_RESAMPLING, Resampling
from analysis.jailbreak_counts import CELL, CONDITION, cells, count, interval, share_of, shares, sizes
from analysis.jailbreak_front import front_of
from analysis.judgements import ANSWER, JudgementStatistics, analyse_judgements, joined
from analysis.loading import SweepResults
from analysis.manifest import SHOWN, UNIVERSAL, Manifest
from analysis.targeted import targeted_success
from rllava.errors import UserError
from rllava.records import CLEAN

HADES = "hades"
"""Benchmark whose samples are ``Scenario/id/step``: one instruction with images of growing harm."""

ALL_SCENARIOS = "all"
POOLED, AT_STEP, CUMULATIVE = "pooled", "at step", "cumulative"
"""Variants of a share of HADES: over all steps, at one, and over instructions that were flagged at it or before it."""

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
        beside: what other sweeps of the storage say of these candidates.
        front: see ``jailbreak_front.front_of``; empty where the storage has no clean scores of them.
        strings: see ``targeted.targeted_success``; empty where the storage has no targeted attacks on them.
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
    beside: Beside
    front: pd.DataFrame
    strings: pd.DataFrame
    judged: JudgementStatistics | None = None

    @property
    def judges(self) -> tuple[str, ...]:
        """Labels, in the order of the sweep."""
        return () if self.judged is None else tuple(name for name, _ in self.judged.judges)

    @property
    def harm(self) -> tuple[str, ...]:
        """Those of the judges whose flag speaks against a model."""
        good = _good(self.results.manifest)
        return tuple(name for name in self.judges if name not in good)

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
    beside = find_beside(results)
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
        beside=beside,
        front=ordered(front_of(verdicts[~verdicts["judge"].isin(_good(manifest))], beside.clean, resampling), manifest),
        strings=targeted_success(beside.targeted, resampling.level),
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


def _good(manifest: Manifest) -> set[str]:
    """Judges whose flag speaks for a model."""
    return {entry.judge for entry in manifest.judgements if entry.good}


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
    for key, own in cells(verdicts, ("judge", *CELL)):
        undecided = own["value"].isna()
        counts = count(own)
        rows.append((
            *key, *share_of(counts, resampling), int(own["empty"].sum()), int((undecided & own["error"].isna()).sum()),
            int(own["error"].notna().sum()), *sizes(own),
        ))  # fmt: skip
    return ordered(pd.DataFrame(rows, columns=list(RATE_COLUMNS)), manifest)


def refusal_rates(results: SweepResults, resampling: Resampling) -> pd.DataFrame:
    """How often each candidate refuses, or says nothing, by metric ``answered``.

    Returns:
        See ``JailbreakStatistics.refusals``.
    """
    records = results.records[[*CELL, "sample_id", "seed", "restart", "draw", "prediction", "score", "error"]]
    score = records["score"]
    records = _with_units(records.assign(value=(score == 0).astype(float).where(score.notna())))
    rows = []
    for key, own in cells(records, CELL):
        n, unanswered, rate, low, high = share_of(count(own), resampling)
        blank = int((own["prediction"].fillna("-").str.strip() == "").sum())
        rows.append((
            *key, key[1] in results.manifest.allowed, n, unanswered, rate, low, high, 1 - rate, blank,
            int(own["error"].notna().sum()), *sizes(own),
        ))  # fmt: skip
    return ordered(pd.DataFrame(rows, columns=list(REFUSAL_COLUMNS)), results.manifest)


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
    for key, cell in cells(own, ("judge", "candidate", *CONDITION)):
        restarts = sizes(cell)[1]
        for scenario in (*dict.fromkeys(cell["scenario"]), ALL_SCENARIOS):
            part = cell if scenario == ALL_SCENARIOS else cell[cell["scenario"] == scenario]
            for variant, step, chosen in _variants(part, every_step=scenario == ALL_SCENARIOS):
                rows.append((*key, scenario, variant, step, *share_of(count(chosen), resampling), restarts))
    table = pd.DataFrame(rows, columns=list(HADES_COLUMNS)).astype({"step": "Int64"})
    return ordered(table.assign(benchmark=HADES), manifest).drop(columns="benchmark")


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
    found = dict(cells(verdicts, ("judge", *CELL)))
    rows = []
    for (judge, candidate, *where), own in found.items():
        other = found.get((judge, baseline, *where))
        if candidate == baseline or other is None:
            continue
        decided = own[own["value"].notna()], other[other["value"].notna()]
        prompts = sorted(set(decided[0]["unit"]) & set(decided[1]["unit"]))
        sides = [count(side, prompts) for side in decided]
        difference_B = shares(sides[0], resampling, side=0) - shares(sides[1], resampling, side=1)
        low, high = interval(difference_B, len(prompts), resampling.level)
        difference = sides[0].share - sides[1].share
        rows.append((judge, candidate, *where, baseline, difference, low, high, len(prompts), sizes(own)[1]))
    return ordered(pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS)), manifest)


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


def ordered(table: pd.DataFrame, manifest: Manifest) -> pd.DataFrame:
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
