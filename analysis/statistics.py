"""All that the analysis finds out about a sweep, computed once and used by the report, the tables and the notebook."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis.bootstrap import DEFAULT_RESAMPLING, Resampling
from analysis.comparisons import compare
from analysis.conditions import ConditionStatistics, analyse_conditions, others
from analysis.evidence import ATTACK, attack_evidence
from analysis.judgements import JudgementStatistics, analyse_judgements
from analysis.loading import SweepResults
from analysis.manifest import Manifest
from analysis.paper_numbers import beside_paper
from analysis.pareto import pareto_front
from analysis.scores import AVERAGE, Scores, default_epsilon, sweep_scores
from analysis.summary import best_candidate, bootstrap_scores, summarise
from analysis.yes_no import analyse_yes_no
from rllava.records import CLEAN


@dataclass(frozen=True)
class Statistics:
    """The statistics of a sweep.

    Attributes:
        results: the manifest and records they come from.
        epsilon: budget of the headline numbers, in 1/255.
        baseline: candidate that the others are compared with.
        resampling: draws, seed and level of all intervals and tests.
        summary: see ``summary.summarise``.
        comparisons: see ``comparisons.compare``.
        front: see ``pareto.pareto_front``, on average over the benchmarks, at ``epsilon``.
        evidence: see ``evidence.attack_evidence``.
        others: of conditions that are no attacks; None: there are none, see ``conditions.analyse_conditions``.
        paper: the paper's numbers beside these, see ``paper_numbers.beside_paper``.
        judged: see ``judgements.analyse_judgements``.
        yes_no: see ``yes_no.yes_no_table``.
    """

    results: SweepResults
    scores: Scores
    epsilon: float
    baseline: str
    resampling: Resampling
    summary: pd.DataFrame
    comparisons: pd.DataFrame
    front: pd.DataFrame
    evidence: pd.DataFrame
    others: ConditionStatistics | None = None
    paper: pd.DataFrame = field(default_factory=pd.DataFrame)
    judged: JudgementStatistics | None = None
    yes_no: pd.DataFrame = field(default_factory=pd.DataFrame)


def analyse(
    results: SweepResults,
    epsilon: float | None = None,
    baseline: str | None = None,
    resampling: Resampling = DEFAULT_RESAMPLING,
) -> Statistics:
    """Computes means, intervals, comparisons, the Pareto front and the attack evidence of a sweep.

    Args:
        results: from ``loading.load_sweep``.
        epsilon: budget of the headline numbers, in 1/255; by default 8 where it was run, else the largest.
        baseline: candidate to compare with; by default the best on average at that budget.

    Raises:
        UserError: if there are no records, no clean records, or the budget or baseline is unknown.
    """
    scores = sweep_scores(results)
    bootstraps = bootstrap_scores(scores, resampling)
    chosen = default_epsilon(scores.epsilons) if epsilon is None else float(epsilon)
    scores.cell(scores.candidates[0], chosen)
    reference = best_candidate(scores, chosen) if baseline is None else baseline
    summary = summarise(scores, bootstraps, resampling)
    return Statistics(
        results=results,
        scores=scores,
        epsilon=chosen,
        baseline=reference,
        resampling=resampling,
        summary=summary,
        comparisons=compare(scores, reference, resampling),
        front=pareto_front(scores, bootstraps, summary, chosen),
        evidence=attack_evidence(results.records, scores),
        others=analyse_conditions(results, baseline, resampling) if others(results.manifest) else None,
        paper=_beside_paper(summary, results.manifest),
        judged=analyse_judgements(results, resampling),
        yes_no=analyse_yes_no(results, resampling),
    )


def _beside_paper(summary: pd.DataFrame, manifest: Manifest) -> pd.DataFrame:
    labels = {entry.epsilon: entry.label for entry in manifest.conditions if entry.kind in (CLEAN, ATTACK)}
    scores = summary[summary["epsilon"].isin(list(labels))]
    return beside_paper(scores.assign(condition=scores["epsilon"].map(labels)))


def answer(statistics: Statistics) -> str:
    """States in a sentence or two which candidates are on the Pareto front, and what the most robust one costs."""
    front = statistics.front[statistics.front["on_front"]].sort_values("clean", ascending=False)
    if front.empty:
        return "No candidate has both a clean and a robust score on every benchmark, so there is no Pareto front yet."
    accurate, robust = front.iloc[0], front.iloc[-1]
    if statistics.epsilon == 0:
        return f"No attack was run: {accurate['candidate']} has the best clean score, {accurate['clean']:.1f}."
    total = int(statistics.front[["clean", "robust"]].notna().all(axis=1).sum())
    budget = f"At ε = {statistics.epsilon:g}/255"
    if total == 1:
        return f"{budget}, {accurate['candidate']} has {_points(accurate)}; there is no other to compare with."
    if len(front) == 1:
        return f"{budget}, {accurate['candidate']} beats all others, clean and robust: {_points(accurate)}."
    names = [str(name) for name in front["candidate"]]
    listed = f"{', '.join(names[:-1])} and {names[-1]}"
    return (
        f"{budget}, {len(front)} of {total} candidates are on the Pareto front: {listed}. "
        f"Going from the most accurate, {names[0]} ({_points(accurate)}), to the most robust, {names[-1]} "
        f"({_points(robust)}), buys {robust['robust'] - accurate['robust']:.1f} robust points "
        f"for {accurate['clean'] - robust['clean']:.1f} clean points."
    )


def confidence(statistics: Statistics) -> str:
    """States how sure the ranking at the headline budget is: who differs from the baseline, after Holm's correction."""
    table = statistics.comparisons
    rows = table[(table["benchmark"] == AVERAGE) & (table["epsilon"] == statistics.epsilon)]
    rows = rows[np.isfinite(rows["p_holm"].to_numpy(dtype=float))]
    if rows.empty:
        return ""
    unclear = [str(name) for name in rows[rows["p_holm"] >= 1 - statistics.resampling.level]["candidate"]]
    start = f"On the same samples at ε = {statistics.epsilon:g}/255, "
    if not unclear:
        return f"{start}{statistics.baseline} differs from every other candidate (Holm-corrected sign-flip test)."
    return (
        f"{start}{statistics.baseline} cannot be told from {', '.join(unclear)} "
        f"with this many samples ({rows['n'].max()} pairs, Holm-corrected sign-flip test)."
    )


def _points(row: "pd.Series[float]") -> str:
    return f"clean {row['clean']:.1f}, robust {row['robust']:.1f}"
