"""The trade-off between clean and robust score: which candidates no other candidate beats in both.

Shape legend: B bootstrap draws, C candidates, E budgets; the last axis of points is (clean, robust).
"""

from collections.abc import Mapping

import pandas as pd

from analysis.bootstrap import Bootstrap
from analysis.scores import AVERAGE, Scores
from rllava.fronts import non_dominated


def pareto_front(
    scores: Scores,
    bootstraps: Mapping[str, Bootstrap],
    summary: pd.DataFrame,
    epsilon: float,
    benchmark: str = AVERAGE,
) -> pd.DataFrame:
    """Places every candidate by its clean and its robust score.

    Args:
        bootstraps: from ``statistics.bootstrap_scores``; a draw uses the same samples for all candidates.
        summary: from ``statistics.summarise``.
        epsilon: budget of the robust score, in 1/255.

    Returns:
        One row per candidate: ``candidate``; ``clean`` and ``robust`` with ``_low`` and ``_high``; ``retained`` (robust
        over clean); ``on_front``; and ``front_probability``, the share of draws in which it is on the front.

    Raises:
        UserError: if the budget was not run, or there are no clean records (budget 0).
    """
    _, e = scores.cell(scores.candidates[0], epsilon)
    clean = scores.clean
    shape = (len(scores.candidates), len(scores.epsilons))
    draws_BC2 = bootstraps[benchmark].draws.reshape(-1, *shape)[:, :, [clean, e]]
    means_1C2 = bootstraps[benchmark].mean.reshape(1, *shape)[:, :, [clean, e]]
    rows = summary[summary["benchmark"] == benchmark]
    at_clean, at_epsilon = (
        rows[rows["epsilon"] == scores.epsilons[column]].set_index("candidate").loc[list(scores.candidates)]
        for column in (clean, e)
    )
    front = {"candidate": list(scores.candidates)}
    table = pd.DataFrame(front)
    for name, part in (("clean", at_clean), ("robust", at_epsilon)):
        for column, suffix in (("mean", ""), ("low", "_low"), ("high", "_high")):
            table[name + suffix] = part[column].to_numpy()
    table["retained"] = at_epsilon["retained"].to_numpy()
    table["on_front"] = non_dominated(means_1C2)[0]
    table["front_probability"] = non_dominated(draws_BC2).mean(axis=0)
    return table
