"""The numbers that Robust-LLaVA (arXiv 2502.01576) printed, as data: checked, and beside a sweep's own.

``paper/tables.csv`` holds Tables 1, 2, 3, 4, 14, 15, 20, 21 and 22, a number per row; Table 6 repeats numbers of
Table 14 but for the one that is there, and Table 19 lists the wordings of Table 20. Candidates have the names of
``rllava/recipes/paper.py``. ``paper/defects.csv`` says what is wrong with the published code, by encoder.
"""

import functools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from rllava.fronts import non_dominated
from rllava.records import CLEAN

PAPER_COLUMNS = ("table", "candidate", "benchmark", "measure", "condition", "epsilon", "value", "unit", "note")
"""Columns of tables.csv. ``condition``: clean, or the name of a protocol or condition, without its version;
``epsilon``: in 1/255."""

BESIDE_COLUMNS = (
    "candidate", "benchmark", "condition", "epsilon", "table", "paper", "ours", "low", "high", "n", "within",
    "adaptive", "note", "defects",
)  # fmt: skip
"""Columns of paper.csv."""

CAPTIONING = ("coco", "flickr30k")
ANSWERING = ("textvqa", "vqav2", "vizwiz", "okvqa")
"""What the paper's claims about captioning and about question answering are means over."""

ROUNDING = 0.011
"""Printed averages are of cells with more digits than are printed, and have two decimals themselves."""

MISPRINT = "misprint"
"""What the note of a number begins with that contradicts others of its table."""

_STORED = re.compile(r"prompted\[(\w+),stored,non-adaptive,paper_ensemble-v\d+,([\d.]+)/255\]-v\d+")
"""Label of stored images of the paper's attack in another wording (``rllava.conditions.prompted``): its Table 20."""

_FOLDER = Path(__file__).parent / "paper"
_AVERAGE_OF = "average of "


@functools.cache
def paper_numbers() -> pd.DataFrame:
    """All numbers: PAPER_COLUMNS, and ``defects`` of the published code that touch the row's candidate."""
    table = pd.read_csv(
        _FOLDER / "tables.csv", dtype={"table": str}, keep_default_na=False, na_values={"epsilon": [""]}
    )
    known = pd.read_csv(_FOLDER / "defects.csv")

    def defects(candidate: str) -> str:
        used = candidate.partition("@")[0].split("+")
        own = [f"{row['encoder']}: {row['defect']}" for row in known.to_dict("records") if row["encoder"] in used]
        return "; ".join(own)

    return table.assign(defects=table["candidate"].map(defects))


def recomputed_averages() -> pd.DataFrame:
    """The averages that the paper prints, beside those of its own cells.

    Returns:
        Rows ``table, candidate, condition, epsilon, measure, printed, recomputed, misprint``; the last says whether the
        data knows that the printed one is wrong.
    """
    columns = ["table", "candidate", "condition", "epsilon", "measure", "printed", "recomputed", "misprint"]
    return pd.DataFrame(_averages(paper_numbers()), columns=columns)


def _averages(numbers: pd.DataFrame) -> Iterator[tuple[object, ...]]:
    of = {
        "targeted": ("targeted: ", 100 / 25),
        "flagged: average": ("flagged: ", 1.0),
        "f1: mean": ("f1: ", 1.0),
        "accuracy: mean": ("accuracy: ", 1.0),
    }
    of_epsilon = numbers["epsilon"].fillna(-1)
    for position, row in enumerate(numbers.to_dict("records")):
        same_budget = of_epsilon == of_epsilon.iloc[position]
        own = numbers[same_budget & (numbers["candidate"] == row["candidate"])]
        own = own[own["condition"] == row["condition"]]
        if row["benchmark"].startswith(_AVERAGE_OF):
            table = "14" if row["table"] == "6" else row["table"]
            names = row["benchmark"].removeprefix(_AVERAGE_OF).split(", ")
            found = own[(own["table"] == table) & own["benchmark"].isin(names)]["value"].mean()
        elif row["measure"] in of:
            prefix, factor = of[row["measure"]]
            parts = own[(own["table"] == row["table"]) & own["measure"].str.startswith(prefix)]
            found = factor * parts[parts["measure"] != row["measure"]]["value"].mean()
        else:
            continue
        told = (row[name] for name in ("table", "candidate", "condition", "epsilon", "measure", "value"))
        yield *told, found, row["note"].startswith(MISPRINT)


def claims() -> pd.DataFrame:
    """What the paper claims in words, from its Table 1: how many times as much is left of AdvXL-g's scores.

    Returns:
        Rows ``task, other, epsilon, ratio``; ``epsilon`` NaN: of the means over all budgets.
    """
    numbers = paper_numbers()
    table = numbers[(numbers["table"] == "1") & (numbers["condition"] != CLEAN)]
    rows = []
    for task, benchmarks in (("captioning", CAPTIONING), ("question answering", ANSWERING)):
        means = table[table["benchmark"].isin(benchmarks)].groupby(["candidate", "epsilon"])["value"].mean()
        for other in ("fare4-336@clip-l-336", "simclip4@clip-l-336"):
            ratio = means["advxl-g"] / means[other]
            rows += [(task, other, epsilon, value) for epsilon, value in ratio.items()]
            over_all = means["advxl-g"].mean() / means[other].mean()
            rows.append((task, other, np.nan, over_all))
    return pd.DataFrame(rows, columns=["task", "other", "epsilon", "ratio"])


def jailbreak_gap() -> float:
    """By how many points the best robust encoder's share of flagged answers to HADES is below the best other's."""
    numbers = paper_numbers()
    averages = numbers[(numbers["table"] == "4") & (numbers["measure"] == "flagged: average")]
    shares = averages.set_index("candidate")["value"]
    robust = [name for name in shares.index if name.startswith("advxl")]
    return float(shares.drop(robust).min() - shares[robust].min())


def paper_fronts(epsilon: float) -> pd.DataFrame:
    """The tables of clean and robust scores as fronts.

    Args:
        epsilon: budget of the robust scores, in 1/255.

    Returns:
        Rows ``panel`` (table and benchmark), ``candidate, clean, robust, on_front``.
    """
    numbers = paper_numbers()
    scores = numbers[(numbers["measure"] == "score") & numbers["table"].isin(("1", "14", "15"))]
    at = {
        name: scores[scores["epsilon"] == budget].set_index(["table", "benchmark", "candidate"])["value"]
        for name, budget in (("clean", 0.0), ("robust", epsilon))
    }
    table = pd.DataFrame(at).dropna().reset_index()
    table["panel"] = "Table " + table["table"] + ", " + table["benchmark"]
    on_front = [
        pd.Series(non_dominated(own[["clean", "robust"]].to_numpy()), own.index)
        for _, own in table.groupby("panel", sort=False)
    ]
    table["on_front"] = pd.concat(on_front)
    return table[["panel", "candidate", "clean", "robust", "on_front"]]


def plain_condition(label: str) -> str:
    """A condition's name without its version and what follows it, as the tables have it."""
    return re.sub(r"-v\d+(\[.*\])?$", "", label)


def plain_cell(label: str, epsilon: float) -> tuple[str, float]:
    """Condition and budget as the tables have them: of another wording on stored images, the label says both.

    Args:
        label: as of records.
        epsilon: budget in 1/255; NaN where the records have none.
    """
    found = _STORED.fullmatch(label)
    return (plain_condition(label), epsilon) if found is None else (f"prompted:{found[1]}", float(found[2]))


def plain_candidate(name: str) -> str:
    """A candidate's name without its encoders' variants: ``fare4-336[activation=gelu]@a`` is ``fare4-336@a``."""
    return re.sub(r"\[[^\]]*\]", "", name)


def beside_paper(ours: pd.DataFrame) -> pd.DataFrame:
    """Puts the paper's numbers beside a sweep's, where candidate, benchmark, condition and budget are the same.

    Args:
        ours: rows ``candidate, benchmark, condition, epsilon, mean, low, high, n`` of mean scores, and perhaps
            ``adaptive``; a condition is a label as of records.

    Returns:
        BESIDE_COLUMNS; ``within`` says whether the paper's number lies in our interval (False without one). Empty where
        nothing is the same.
    """
    numbers = paper_numbers()
    scores = numbers[numbers["measure"] == "score"].rename(columns={"value": "paper"})
    keys = ["plain", "benchmark", "named", "epsilon"]
    scores = scores.rename(columns={"candidate": "plain", "condition": "named"})
    cells = [plain_cell(*cell) for cell in zip(ours["condition"], ours["epsilon"].astype(float), strict=True)]
    own = ours.assign(
        plain=ours["candidate"].map(plain_candidate),
        named=[named for named, _ in cells],
        epsilon=[epsilon for _, epsilon in cells],
    )
    own = own.rename(columns={"mean": "ours"}).drop(columns=["note", "defects", "table"], errors="ignore")
    if "adaptive" not in own:
        own = own.assign(adaptive=True)
    # A join of null with null would put a condition without a budget beside another without one.
    found = own[own["epsilon"].notna() & own["ours"].notna()].merge(scores, on=keys, sort=False)
    found = found.assign(within=(found["low"] <= found["paper"]) & (found["paper"] <= found["high"]))
    return found[list(BESIDE_COLUMNS)].reset_index(drop=True)
