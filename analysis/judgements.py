"""What judges say of the answers of a sweep: how often each flags them, and how far two of them agree.

Shape legend: B bootstrap draws, S samples, 4 ways in which two judges can decide.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.bootstrap import DEFAULT_RESAMPLING, FloatArray, Resampling
from analysis.loading import SweepResults
from analysis.manifest import UNCONSTRAINED, UNIVERSAL
from analysis.proportions import wilson
from rllava.errors import UserError
from rllava.records import CLEAN, KEY

WHERE = ("candidate", "benchmark", "condition", "kind", "epsilon", "severity")
"""Columns that say of which answers a rate is."""

RATE_COLUMNS = (
    *WHERE, "answer", "judge", "n", "flagged", "rate", "low", "high", "empty", "undecided", "errors",
)  # fmt: skip
"""Columns of judgements.csv."""

AGREEMENT_COLUMNS = (
    "benchmark", "kind", "first", "second", "n", "both", "only_first", "only_second", "neither", "agreement", "kappa",
    "kappa_low", "kappa_high",
)  # fmt: skip
"""Columns of agreement.csv."""

ANSWER = "prediction"
"""The answer that the page and the agreement are about: to what was shown, in the precision in which it was scored."""

SHOWN_DISPUTES = 12
"""Answers on which judges disagree that a report shows."""


@dataclass(frozen=True)
class Dispute:
    """An answer that some judges flag and others do not.

    Attributes:
        shown: label of the condition, with budget or severity.
        flagged: by whom, and what they found.
        passed: by whom it is not.
    """

    candidate: str
    benchmark: str
    shown: str
    prompt: str
    answer: str
    flagged: tuple[tuple[str, tuple[str, ...]], ...]
    passed: tuple[str, ...]


@dataclass(frozen=True)
class JudgementStatistics:
    """What judges say of a sweep.

    Attributes:
        judges: labels with what each looks for, in the order of the sweep.
        rates: RATE_COLUMNS, a row per judge, cell and answer. ``n`` answers were decided; an empty answer counts among
            them as not flagged, and in ``empty``. ``low`` and ``high`` bound Wilson's interval.
        agreement: AGREEMENT_COLUMNS, a row per two judges, benchmark and kind of condition, over the answers that both
            decided; see :func:`agreement`.
        disputes: some answers on which they disagree.
    """

    judges: tuple[tuple[str, str], ...]
    rates: pd.DataFrame
    agreement: pd.DataFrame
    disputes: tuple[Dispute, ...]


def analyse_judgements(
    results: SweepResults, resampling: Resampling = DEFAULT_RESAMPLING
) -> JudgementStatistics | None:
    """Computes rates and agreement of a sweep's judges.

    Args:
        results: from ``loading.load_sweep``.

    Returns:
        The statistics; None if nothing was judged.

    Raises:
        UserError: if there is a judgement on a record that is not among the records.
    """
    entries = results.manifest.judgements
    if not entries:
        return None
    judged = joined(results)
    judges = tuple(dict.fromkeys((entry.judge, entry.description) for entry in entries))
    names = [name for name, _ in judges]
    return JudgementStatistics(
        judges, flag_rates(judged, resampling.level), agreement(judged, names, resampling), disputes(judged, names)
    )


def joined(results: SweepResults) -> pd.DataFrame:
    """Judgements beside what they are about.

    Returns:
        A row per judgement: the columns of JUDGEMENT_SCHEMA, with ``kind``, ``prompt`` and ``text``, the answer, of its
        record. ``error`` is the judge's.

    Raises:
        UserError: if there is a judgement on a record that is not among the records.
    """
    keys, judgements = list(KEY), results.judgements
    records = results.records[[*keys, "kind", "prompt", *dict.fromkeys(judgements["answer"])]]
    table = judgements.merge(records, on=keys, how="left", validate="many_to_one", indicator="joins")
    if lost := int((table["joins"] != "both").sum()):
        first = table[table["joins"] != "both"].iloc[0]
        raise UserError(
            f"{results.storage}: {lost} judgements are about records that the sweep does not have, the first about "
            f"{first['sample_id']} of evaluation {first['evaluation']}; run the sweep again"
        )
    text = [row[row["answer"]] for row in table[["answer", *dict.fromkeys(judgements["answer"])]].to_dict("records")]
    return table.assign(text=text).drop(columns=["joins", *dict.fromkeys(judgements["answer"])])


def flag_rates(judged: pd.DataFrame, level: float = DEFAULT_RESAMPLING.level) -> pd.DataFrame:
    """How often each judge flags the answers of each cell.

    Args:
        judged: from :func:`joined`.

    Returns:
        See ``JudgementStatistics.rates``.
    """
    rows = []
    for key, group in judged.groupby([*WHERE, "answer", "judge"], sort=False, dropna=False):
        decided = group["flagged"].notna()
        n, flagged = int(decided.sum()), int((group["flagged"] == True).sum())  # noqa: E712 (None is neither)
        low, high = wilson(flagged, n, level)
        rows.append((
            *key, n, flagged, flagged / n if n else np.nan, low, high, int(group["empty"].sum()),
            int((~decided & group["error"].isna()).sum()), int(group["error"].notna().sum()),
        ))  # fmt: skip
    return pd.DataFrame(rows, columns=list(RATE_COLUMNS))


def agreement(judged: pd.DataFrame, judges: list[str], resampling: Resampling = DEFAULT_RESAMPLING) -> pd.DataFrame:
    """How far judges agree, two by two: the share of equal verdicts, and Cohen's kappa (1960), which counts chance out.

    Kappa's interval is of the percentiles of a bootstrap over samples: answers to one sample, by several candidates and
    under several conditions, are drawn together. Kappa is NaN where both judges say the same of every answer by chance
    alone (neither ever flags, or both always do).

    Args:
        judged: from :func:`joined`.

    Returns:
        See ``JudgementStatistics.agreement``.
    """
    rows = []
    about = judged[(judged["answer"] == ANSWER) & judged["flagged"].notna()]
    for (benchmark, kind), group in about.groupby(["benchmark", "kind"], sort=False):
        verdicts = group.pivot(index=list(KEY), columns="judge", values="flagged")
        for first, second in itertools.combinations([name for name in judges if name in verdicts], 2):
            both = verdicts[[first, second]].dropna()
            if both.empty:
                continue
            ways = 2 * (both[first] == False).astype(int) + (both[second] == False).astype(int)  # noqa: E712
            by_sample = pd.crosstab(both.index.get_level_values("sample_id"), ways.to_numpy())
            counts_S4 = by_sample.reindex(columns=pd.RangeIndex(4), fill_value=0).to_numpy(dtype=np.float64)
            total_4 = counts_S4.sum(axis=0)
            agreed, kappa = _kappa(total_4[np.newaxis, :])
            low, high = _kappa_interval(counts_S4, resampling)
            rows.append((
                benchmark, kind, first, second, int(total_4.sum()), *map(int, total_4), float(agreed[0]),
                float(kappa[0]), low, high,
            ))  # fmt: skip
    return pd.DataFrame(rows, columns=list(AGREEMENT_COLUMNS))


def _kappa(counts_B4: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Share of agreement and kappa of counts: both flag, only the first, only the second, neither."""
    share_B4 = counts_B4 / counts_B4.sum(axis=1, keepdims=True)
    first_B, second_B = share_B4[:, 0] + share_B4[:, 1], share_B4[:, 0] + share_B4[:, 2]
    agreed_B = share_B4[:, 0] + share_B4[:, 3]
    chance_B = first_B * second_B + (1 - first_B) * (1 - second_B)
    with np.errstate(invalid="ignore", divide="ignore"):
        kappa_B = np.where(chance_B < 1, (agreed_B - chance_B) / (1 - chance_B), np.nan)
    return agreed_B, kappa_B


def _kappa_interval(counts_S4: FloatArray, resampling: Resampling) -> tuple[float, float]:
    samples = len(counts_S4)
    if samples < 2:
        return np.nan, np.nan
    times_BS = np.random.default_rng(resampling.seed).multinomial(samples, [1 / samples] * samples, resampling.draws)
    _, kappa_B = _kappa(times_BS @ counts_S4)
    known = kappa_B[np.isfinite(kappa_B)]
    if not len(known):
        return np.nan, np.nan
    low, high = np.quantile(known, [(1 - resampling.level) / 2, (1 + resampling.level) / 2])
    return float(low), float(high)


def disputes(judged: pd.DataFrame, judges: list[str], most: int = SHOWN_DISPUTES) -> tuple[Dispute, ...]:
    """Answers that some judges flag and others do not, each text once.

    Args:
        judged: from :func:`joined`.

    Returns:
        The first ones, in the order of the records.
    """
    about = judged[(judged["answer"] == ANSWER) & judged["flagged"].notna()]
    split = about.groupby(["prompt", "text"], sort=False)["flagged"].nunique()
    found = []
    for prompt, text in split[split > 1].index[:most]:
        rows = about[(about["prompt"] == prompt) & (about["text"] == text)]
        first = rows.iloc[0]
        said = {row["judge"]: row for row in rows.to_dict("records")}
        found.append(
            Dispute(
                str(first["candidate"]),
                str(first["benchmark"]),
                shown(first),
                str(prompt),
                str(text),
                tuple((name, tuple(said[name]["labels"])) for name in judges if name in said and said[name]["flagged"]),
                tuple(name for name in judges if name in said and not said[name]["flagged"]),
            )
        )
    return tuple(found)


def shown(row: Any) -> str:
    """What was shown, in a few words: ``clean``, ``paper_ensemble-v1 at 8/255``, ``fog-v1 at severity 3``.

    Args:
        row: with ``condition``, ``kind``, ``epsilon`` and ``severity``.
    """
    if row["kind"] == CLEAN:
        return CLEAN
    if row["kind"] == UNIVERSAL and row["epsilon"] == UNCONSTRAINED:
        return f"{row['condition']}, unconstrained"
    if not pd.isna(row["epsilon"]):
        return f"{row['condition']} at {row['epsilon']:g}/255"
    return str(row["condition"]) if pd.isna(row["severity"]) else f"{row['condition']} at severity {row['severity']:g}"


def format_judgements(statistics: JudgementStatistics) -> str:
    """The rates for the terminal, pooled over candidates and benchmarks: a line per judge and kind of condition.

    Args:
        statistics: from :func:`analyse_judgements`.
    """
    rates = statistics.rates[statistics.rates["answer"] == ANSWER]
    lines = []
    for judge, description in statistics.judges:
        own = rates[rates["judge"] == judge]
        by_kind = own.groupby("kind", sort=False)[["n", "flagged", "empty", "undecided", "errors"]].sum()
        said = ", ".join(
            f"{kind} {row['flagged'] / max(row['n'], 1):.1%} of {row['n']}" for kind, row in by_kind.iterrows()
        )
        total = by_kind.sum()
        left = [f"{total[name]} {name}" for name in ("empty", "undecided", "errors") if total[name]]
        lines.append("; ".join([f"{judge} ({description}) flags: {said}", *left]))
    for row in statistics.agreement.to_dict("records"):
        kappa = f"{row['kappa']:.2f}" if np.isfinite(row["kappa"]) else "undefined"
        lines.append(
            f"{row['first']} and {row['second']} on {row['benchmark']}, {row['kind']}: agree on {row['agreement']:.1%} "
            f"of {row['n']}, kappa {kappa}"
        )
    if len(statistics.judges) == 1:
        lines.append("one judge alone says little: a second one beside it (--judges A B) shows how far to trust it")
    return "\n".join(lines)
