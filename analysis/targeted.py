"""Targeted attacks: how often a model was made to say a given string."""

import re

import pandas as pd

from analysis.bootstrap import DEFAULT_RESAMPLING
from analysis.cells import require_one_evaluation
from analysis.proportions import wilson
from analysis.scores import is_error

_CELL = ("candidate", "benchmark", "epsilon")

TARGET_PREFIX = "target-"
"""What the names of rounds that aim at a string begin with; the string follows."""


STRING_COLUMNS = (*_CELL, "target", "attacked", "successes", "rate", "low", "high", "score")
"""Columns of strings.csv."""


def targeted_success(records: pd.DataFrame, level: float = DEFAULT_RESAMPLING.level) -> pd.DataFrame:
    """Tabulates targeted rounds, as table 2 of Robust-LLaVA does: a round succeeds if its answer contains its string.

    Case does not count (``run_evaluation.py`` there compares lower-case text).

    Args:
        records: rows of RECORD_SCHEMA; other rounds than ``target-STRING`` are passed over.
        level: of the intervals.

    Returns:
        STRING_COLUMNS, a row per candidate, benchmark, budget and target: ``attacked`` samples, ``successes``, ``rate``
        in [0, 1] with Wilson's interval over samples, and ``score``, the mean over the answers of these rounds (not the
        worst case over rounds).

    Raises:
        UserError: if the records mix evaluations (see ``cells``).
    """
    require_one_evaluation(records)
    rows = []
    valid = records[~is_error(records) & (records["epsilon"] > 0)]
    for record in valid.to_dict("records"):
        rounds = zip(record["rounds"], record["round_predictions"], record["round_scores"], strict=True)
        for name, answer, score in rounds:
            if name.startswith(TARGET_PREFIX) and answer is not None:
                target = name.removeprefix(TARGET_PREFIX)
                key = {column: record[column] for column in _CELL}
                rows.append({**key, "target": target, "success": contains(answer, target), "score": score})
    columns = [*_CELL, "target"]
    if not rows:
        return pd.DataFrame(columns=list(STRING_COLUMNS))
    grouped = pd.DataFrame(rows).groupby(columns, sort=False)
    table = grouped.agg(attacked=("success", "size"), successes=("success", "sum"), score=("score", "mean"))
    table["rate"] = table["successes"] / table["attacked"]
    bounds = [wilson(found, n, level) for found, n in zip(table["successes"], table["attacked"], strict=True)]
    table[["low", "high"]] = bounds
    return table.reset_index()[list(STRING_COLUMNS)]


def contains(answer: str, target: str) -> bool:
    """Says whether an answer contains a target string.

    Returns:
        True if it does, whatever the case and the blanks.
    """
    return _plain(target) in _plain(answer)


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().lower()
