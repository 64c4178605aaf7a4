"""Targeted attacks: how often a model was made to say a given string."""

import re

import numpy as np
import pandas as pd

from analysis.cells import require_one_evaluation
from analysis.scores import is_error

_CELL = ("candidate", "benchmark", "epsilon")

TARGET_PREFIX = "target-"
"""What the names of rounds that aim at a string begin with; the string follows."""


def targeted_success(records: pd.DataFrame) -> pd.DataFrame:
    """Tabulates targeted rounds, as table 2 of Robust-LLaVA does: a round succeeds if its answer contains its string.

    Case does not count (``run_evaluation.py`` there compares lower-case text).

    Args:
        records: rows of RECORD_SCHEMA; other rounds than ``target-STRING`` are passed over.

    Returns:
        One row per candidate, benchmark, budget and target: ``attacked`` samples, ``successes``, ``rate`` in [0, 1],
        and ``score``, the mean over the answers of these rounds (not the worst case over rounds).

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
        return pd.DataFrame(columns=[*columns, "attacked", "successes", "rate", "score"])
    grouped = pd.DataFrame(rows).groupby(columns, sort=False)
    table = grouped.agg(attacked=("success", "size"), successes=("success", "sum"), score=("score", "mean"))
    table["rate"] = table["successes"] / np.maximum(table["attacked"], 1)
    return table.reset_index()[[*columns, "attacked", "successes", "rate", "score"]]


def contains(answer: str, target: str) -> bool:
    """Says whether an answer contains a target string.

    Returns:
        True if it does, whatever the case and the blanks.
    """
    return _plain(target) in _plain(answer)


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().lower()
