"""From records and a judge to judgements, one part at a time, on any machine: nothing here knows Ray."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from rllava.fingerprint import fingerprint
from rllava.judgement_spec import JudgementSpec
from rllava.judgements import ANSWERS, JUDGEMENT_SCHEMA
from rllava.metrics.judges.judge import Exchange, Judge, Verdict
from rllava.records import KEY

READ = (*KEY, "prompt", "question", *ANSWERS, "error")
"""Columns of a records part that judging reads."""

_NOTHING_SAID = Verdict(False)


def judgements_of(records: pa.Table, spec: JudgementSpec, judge: Judge) -> pa.Table:
    """Judges the answers of some records.

    An answer that stands in several of them, to the same prompt, is judged once. One that is empty is not put to the
    judge. Of a record that failed, the error is passed on; an answer that a record has none of by its kind (that to an
    8-bit image, where nothing was attacked) is passed over.

    Args:
        records: columns :data:`READ` of them.

    Returns:
        Per record and answer one row of :data:`rllava.judgements.JUDGEMENT_SCHEMA`, in the order of the records.
    """
    rows = records.to_pylist()
    answers = [(row, column) for row in rows for column in spec.answers if row[column] is not None or row["error"]]
    exchanges = dict.fromkeys(_exchange(row, column) for row, column in answers if not _is_empty(row[column] or ""))
    verdicts = dict(_ask(judge, list(exchanges), spec.judge.batch_size))
    name, label = fingerprint(spec), spec.judge.label
    judged = []
    for row, column in answers:
        text, verdict = row[column], _NOTHING_SAID
        if text is None:
            verdict = Verdict(None, error=f"no answer: {row['error']}")
        elif not _is_empty(text):
            verdict = verdicts[_exchange(row, column)]
        head = {key: row[key] for key in KEY}
        own = {"answer": column, "judge": label, "judgement": name, "empty": text is not None and _is_empty(text)}
        judged.append({**head, **own, **_columns(verdict)})
    return pa.Table.from_pylist(judged, schema=JUDGEMENT_SCHEMA)


def _exchange(row: Mapping[str, Any], column: str) -> Exchange:
    return Exchange(row["question"] or row["prompt"], row[column])


def _ask(judge: Judge, exchanges: list[Exchange], at_a_time: int) -> Iterator[tuple[Exchange, Verdict]]:
    for start in range(0, len(exchanges), at_a_time):
        batch = exchanges[start : start + at_a_time]
        yield from zip(batch, judge(batch), strict=True)


def _is_empty(text: str) -> bool:
    return not text.strip()


def _columns(verdict: Verdict) -> dict[str, Any]:
    return {
        "flagged": verdict.flagged,
        "score": verdict.score,
        "labels": list(verdict.labels),
        "scores": list(verdict.scores.items()),
        "error": verdict.error,
    }
