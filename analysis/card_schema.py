"""The robustness card as data: one row per candidate and column, in a schema that others can fill in too.

A column is a benchmark under a condition, at a budget if it has one, over its severities or at one of them. No two rows
agree in all of CARD_KEY. :mod:`analysis.card_check` says what is wrong with a file.
"""

from dataclasses import dataclass

import pyarrow as pa

CARD = "robustness_card"
"""Name of the sweep whose report is a card."""

CARD_VERSION = 1
"""Raised when a column joins, leaves or means something else."""

_COLUMNS: list[tuple[str, pa.DataType, str, bool]] = [
    ("source", pa.string(), "who measured it: ours, or a name of the submitter's", False),
    ("candidate", pa.string(), "a: LLaVA on encoder a; a+b: ensemble; b@a: b plugged into the LLaVA of a", False),
    ("benchmark", pa.string(), "data set + prompt + metric, by its name", False),
    ("condition", pa.string(), "what the model was shown, name and version: clean, paper_ensemble-v1, fog-v1", False),
    ("kind", pa.string(), "of the condition: clean, attack, corruption, or another's word", False),
    ("epsilon", pa.float64(), "budget, L-inf, in 1/255; 0: the clean image; null where a condition has none", True),
    ("severity", pa.int64(), "of a corruption, from 1; null: the mean over all, or a condition without any", True),
    ("measure", pa.string(), "what the numbers count, see MEASURES", False),
    ("adaptive", pa.bool_(), "whether what was shown was searched against the very model and prompt", False),
    ("mean", pa.float64(), "over the samples, in the unit of the measure; null: no score", True),
    ("low", pa.float64(), "lower end of its interval; null where there is none", True),
    ("high", pa.float64(), "upper end", True),
    ("level", pa.float64(), "that intervals cover, e.g. 0.95", False),
    ("relative", pa.float64(), "mean over the candidate's own clean one on this benchmark; null where that is 0", True),
    ("relative_low", pa.float64(), "lower end of its interval, by draws of the same samples for both", True),
    ("relative_high", pa.float64(), "upper end", True),
    ("n", pa.int64(), "samples that have a score", False),
    ("errors", pa.int64(), "samples without one", False),
    ("seeds", pa.int64(), "trainings of the candidate that the mean is over", False),
    ("steps", pa.float64(), "gradient steps over all samples; null where unknown", True),
    ("seconds", pa.float64(), "wall-clock time of the evaluation; null where unknown", True),
    ("model", pa.string(), "fingerprint of the model as trained; several are joined by a blank", True),
]

CARD_SCHEMA = pa.schema(
    [pa.field(name, kind, nullable, {"description": text}) for name, kind, text, nullable in _COLUMNS],
    metadata={"rllava.schema": f"card-v{CARD_VERSION}"},
)
"""Arrow schema of card.parquet and columns of card.csv; the description of each column is in its field's metadata."""

CARD_KEY = ("source", "candidate", "benchmark", "condition", "epsilon", "severity", "measure")
"""Columns that tell rows apart."""

OURS = "ours"
"""Source of the rows of a sweep's own card."""

SCORE, TARGETED, FLAGGED = "score", "targeted", "flagged"


@dataclass(frozen=True)
class Measure:
    """What a number counts.

    Attributes:
        good: whether larger is better.
        highest: no number is larger, and none is below 0.
    """

    text: str
    good: bool
    highest: float


MEASURES = {
    SCORE: Measure("mean of the benchmark's metric: accuracy in percent, CIDEr times 100", True, 1000.0),
    TARGETED: Measure("percent of attacked answers that hold the string aimed at", False, 100.0),
    FLAGGED: Measure("percent of answers that a judge of harm flags", False, 100.0),
}
"""By name; of several judges each has its own, ``flagged: JUDGE``."""


def measure_of(name: str) -> Measure | None:
    """What a measure is, by its name; None: there is none of that name."""
    return MEASURES.get(name.partition(":")[0])
