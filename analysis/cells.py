"""Which records may stand in one table.

A candidate's name and training seed, a benchmark, a kind of condition, its budget or label, and the number of the image
that was made for it make a cell of it. Names are for people: one storage may hold two trainings under one of them, or
two evaluations that differ in the sample list or the protocol. A mean or a pairing over both would be a number about
nothing, so whoever groups records asks here first.
"""

import pandas as pd

from rllava.errors import UserError
from rllava.records import CLEAN, SMALLEST

CELL = ("candidate", "seed", "benchmark", "epsilon", "severity", "restart")
"""Columns that make a cell, beside the label of a condition that has no budget or is universal: of attacks, one
protocol is shown."""

UNLABELLED = (CLEAN, "attack", SMALLEST)
"""Kinds of which one label is shown per budget; others may share a budget."""

KEEP_ONE = "keep the rows of one of them"

_NAMED = 3
"""Fingerprints that an error names at most."""


def require_one_model(records: pd.DataFrame, remedy: str = KEEP_ONE) -> None:
    """Refuses records in which one candidate's name and training seed stand for several models.

    Args:
        remedy: what to do about it.

    Raises:
        UserError: if there are such.
    """
    for within, column in ((("candidate",), "recipe"), (("candidate", "seed"), "model")):
        found = _several(records, within, column)
        if found is None:
            continue
        raise UserError(
            f"records: candidate '{found['candidate'].iloc[0]}' stands for {found['model'].nunique()} models, of other "
            f"training or weights (column model: {_named(found, 'model')}); {remedy}"
        )


def require_one_evaluation(records: pd.DataFrame, remedy: str = KEEP_ONE) -> None:
    """Refuses records that mix evaluations: several in one cell, or of several models under one candidate's name.

    Args:
        remedy: what to do about it.

    Raises:
        UserError: if they do.
    """
    require_one_model(records, remedy)
    found = _several(_with_cells(records), (*CELL, "variety"), "evaluation")
    if found is None:
        return
    first = found.iloc[0]
    under = f"ε = {first['epsilon']:g}/255" if first["epsilon"] == first["epsilon"] else first["condition"]
    if found["condition"].nunique() > 1:
        raise UserError(
            f"records: samples of '{first['candidate']}' were scored under several protocols "
            f"({', '.join(sorted(set(found['condition'])))}), on {first['benchmark']} at {under}; {remedy}"
        )
    raise UserError(
        f"records: '{first['candidate']}' on {first['benchmark']} at {under} comes from "
        f"{found['evaluation'].nunique()} evaluations (column evaluation: {_named(found, 'evaluation')}); {remedy}"
    )


def _with_cells(records: pd.DataFrame) -> pd.DataFrame:
    """Records with what else makes their cell: the label, where it is no attack's or clean image's."""
    labelled = records["epsilon"].isna() | ~records["kind"].isin(UNLABELLED)
    return records.assign(variety=records["condition"].where(labelled, ""))


def _several(records: pd.DataFrame, within: tuple[str, ...], column: str) -> pd.DataFrame | None:
    """The rows of the first group that has several values of a column."""
    pairs = records[[*within, column]].drop_duplicates()
    repeated = pairs[pairs.duplicated(subset=list(within))]
    if repeated.empty:
        return None
    return records.merge(repeated.iloc[:1][list(within)], on=list(within))


def _named(records: pd.DataFrame, column: str) -> str:
    """Fingerprints, each with an artifact whose ``spec.json`` says what it is."""
    first = records.drop_duplicates(subset=[column])
    where = [f" in {part.rpartition('/')[0]}" for part in first["part"]] if "part" in records else [""] * len(first)
    named = [f"{value}{part}" for value, part in zip(first[column], where, strict=True)]
    return ", ".join([*named[:_NAMED], *(["…"] if len(named) > _NAMED else [])])
