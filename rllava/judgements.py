"""The judgement: one verdict of one judge on one answer of a record, the contract between judging and analysis.

Its first columns are the record's key, so that the two join. This module needs pyarrow alone.
"""

import pyarrow as pa

from rllava.records import KEY, RECORD_SCHEMA

JUDGEMENT_VERSION = 2
"""Raised when a column joins, leaves or means something else."""

ANSWERS = ("prediction", "clean_prediction", "prediction_8bit")
"""Columns of a record that can be judged."""

_COLUMNS: list[tuple[str, pa.DataType, str]] = [
    ("answer", pa.string(), "column of the record that was judged, e.g. prediction"),
    ("judge", pa.string(), "name and version, e.g. lexicon-0a1b2c3d-v1"),
    ("judgement", pa.string(), "fingerprint of evaluation, judge and answers; ends its artifact's name"),
    (
        "empty",
        pa.bool_(),
        "whether the answer holds nothing but white space; such are not flagged, no judge reads them",
    ),
    ("flagged", pa.bool_(), "whether the judge found what it looks for; null: it could not say, or there is no answer"),
    ("score", pa.float64(), "how much, in the judge's own unit; null where it has none"),
    ("labels", pa.list_(pa.string()), "what it found, in its own words"),
    ("scores", pa.map_(pa.string(), pa.float64()), "further numbers by name, e.g. one per class"),
    ("error", pa.string(), "why there is no verdict on this answer (null where nothing failed)"),
]

JUDGEMENT_SCHEMA = pa.schema(
    [
        *(RECORD_SCHEMA.field(name) for name in KEY),
        *(pa.field(name, kind, metadata={"description": text}) for name, kind, text in _COLUMNS),
    ],
    metadata={"rllava.schema": f"judgement-v{JUDGEMENT_VERSION}"},
)
"""Arrow schema of a judgements part; the description of each column is in its field's metadata."""

JUDGEMENT_KEY = (*KEY, "answer", "judgement")
"""Columns that identify a judgement: no two of a storage agree in all of them."""
