"""Yes/no benchmarks: accuracy, precision, recall, F1 and the share of "yes", as POPE reports them.

A record does not say what kind of task it is of. A benchmark counts as one of yes/no questions if each of its records
has one reference, and that is yes or no.

Shape legend: B bootstrap draws, S samples, 4 shares that the rates are made of: right, hits, said, gold.
"""

from collections.abc import Collection

import numpy as np
import pandas as pd

from analysis.bootstrap import DEFAULT_RESAMPLING, FloatArray, Resampling, bootstrap_means, column_quantiles
from analysis.cells import require_one_evaluation
from analysis.loading import SweepResults
from analysis.scores import is_error
from analysis.summary import benchmark_seed
from rllava.metrics.yes_no import RATES, READERS, YES, rates_of, right_answer
from rllava.records import SMALLEST

_CELL = ["candidate", "seed", "benchmark", "condition", "kind", "epsilon", "severity", "restart"]

YES_NO_COLUMNS = (
    *_CELL, "adaptive", "parser", "n", "errors",
    *(f"{rate}{bound}" for rate in RATES for bound in ("", "_low", "_high")),
)  # fmt: skip
"""Columns of yes_no.csv."""


def yes_no_benchmarks(records: pd.DataFrame) -> tuple[str, ...]:
    """Names of the benchmarks of yes/no questions, sorted.

    Args:
        records: rows of RECORD_SCHEMA.
    """
    asked = records.drop_duplicates(["benchmark", "sample_id"])
    about = asked["references"].map(lambda texts: texts is not None and right_answer(list(texts)) is not None)
    every = about.astype(bool).groupby(asked["benchmark"]).all()
    return tuple(str(name) for name, all_are in every.items() if all_are)


def analyse_yes_no(results: SweepResults, resampling: Resampling = DEFAULT_RESAMPLING) -> pd.DataFrame:
    """Tabulates the rates of a sweep's yes/no benchmarks; see :func:`yes_no_table`."""
    fixed = {entry.label for entry in results.manifest.conditions if not entry.adaptive}
    return yes_no_table(results.records, resampling, fixed)


def yes_no_table(
    records: pd.DataFrame, resampling: Resampling = DEFAULT_RESAMPLING, non_adaptive: Collection[str] = ()
) -> pd.DataFrame:
    """Tabulates the rates of yes/no benchmarks: answers are read both by LLaVA's parser and exactly.

    Under an attack the answer is that to the worst image by the benchmark's own metric, so that only the parser of
    that one is attacked at its weakest. Searches for smallest budgets have no answer at a budget, and are left out.

    Args:
        records: rows of RECORD_SCHEMA, of any benchmarks.
        resampling: draws, seed and level of the intervals, which cover the choice of samples.
        non_adaptive: labels of conditions that show what was searched against something else than what answers.

    Returns:
        YES_NO_COLUMNS, a row per candidate, training seed, benchmark, condition, budget or severity, and parser; rates
        in [0, 1] with percentile intervals, NaN where one is undefined. Empty where there is no such benchmark.

    Raises:
        UserError: if the records mix evaluations (see ``cells``).
    """
    own = records[records["benchmark"].isin(yes_no_benchmarks(records)) & (records["kind"] != SMALLEST)]
    if own.empty:
        return pd.DataFrame(columns=list(YES_NO_COLUMNS))
    require_one_evaluation(own)
    tables = [_of_benchmark(rows, resampling) for _, rows in own.groupby("benchmark", sort=False)]
    table = pd.concat(tables, ignore_index=True)
    return table.assign(adaptive=~table["condition"].isin(list(non_adaptive)))[list(YES_NO_COLUMNS)]


def _of_benchmark(records: pd.DataFrame, resampling: Resampling) -> pd.DataFrame:
    """The rows of one benchmark: in a draw of the bootstrap, all cells see the same samples."""
    cells = [
        (dict(zip(_CELL, key, strict=True)), parser, cell)
        for key, cell in records.groupby(_CELL, sort=False, dropna=False)
        for parser in READERS
    ]
    samples = sorted(set(records["sample_id"]))
    shares_SK = np.concatenate(
        [_shares(cell[~is_error(cell)], parser).reindex(samples).to_numpy(np.float64) for _, parser, cell in cells],
        axis=1,
    )
    seed = benchmark_seed(resampling, str(records["benchmark"].iloc[0]))
    bootstrap = bootstrap_means(shares_SK, resampling.draws, seed)
    rows = []
    for number, (of, parser, cell) in enumerate(cells):
        own = slice(4 * number, 4 * number + 4)
        n = int(bootstrap.n[own.start])
        rates = _rates(bootstrap.mean[own], bootstrap.draws[:, own], n, resampling.level)
        rows.append({**of, "parser": parser, "n": n, "errors": int(is_error(cell).sum()), **rates})
    return pd.DataFrame(rows)


def _rates(mean_4: FloatArray, draws_B4: FloatArray, n: int, level: float) -> dict[str, float]:
    """Rates of one cell, and their bounds."""
    point, drawn = _of(mean_4[np.newaxis]), _of(draws_B4)
    found = {}
    for rate in RATES:
        found[rate] = float(point[rate][0])
        usable_1 = np.isfinite(point[rate]) & (n > 1)
        for bound, tail in (("_low", (1 - level) / 2), ("_high", (1 + level) / 2)):
            share_1 = np.where(usable_1, tail, np.nan)
            found[f"{rate}{bound}"] = float(column_quantiles(drawn[rate][:, np.newaxis], share_1)[0])
    return found


def _of(shares_B4: FloatArray) -> dict[str, FloatArray]:
    right_B, hits_B, said_B, gold_B = shares_B4.T
    return rates_of(right_B, hits_B, said_B, gold_B, np.ones_like(right_B))


def _shares(records: pd.DataFrame, parser: str) -> pd.DataFrame:
    """Per sample, over its draws: right, said "yes" rightly, said "yes", and that it is right."""
    said = [READERS[parser](str(answer)) for answer in records["prediction"]]
    gold = [right_answer(list(texts)) for texts in records["references"]]
    columns = {
        "right": [answer == right for answer, right in zip(said, gold, strict=True)],
        "hits": [answer == right == YES for answer, right in zip(said, gold, strict=True)],
        "said": [answer == YES for answer in said],
        "gold": [right == YES for right in gold],
    }
    table = pd.DataFrame(columns, dtype=float, index=records["sample_id"])
    return table.groupby(level=0).mean()
