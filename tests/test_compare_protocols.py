"""Who is the stronger attack: counts on records whose answers are known."""

from pathlib import Path

import pandas as pd
import pytest

from benchmarks.compare_protocols import Options, compare, main, paired
from rllava.errors import UserError
from tests.analysis.synthetic import make_record, write_artifact


def rows(protocol: str, scores: list[float | None], steps: int) -> list[dict[str, object]]:
    return [
        make_record("a", "vqa", f"s{i}", 8.0, score=score, protocol=protocol, steps=steps,
                    **({} if score is not None else {"error": "lost"}))
        for i, score in enumerate(scores)
    ]  # fmt: skip


def test_lower_is_stronger_and_only_shared_samples_count(tmp_path: Path) -> None:
    mine, theirs = rows("fast-v1", [0.0, 50.0, 90.0, None], 10), rows("slow-v1", [30.0, 50.0, 80.0, 0.0, 0.0], 100)
    clean = make_record("a", "vqa", "s0", 0.0, score=100.0, protocol="fast-v1")
    joined = paired(pd.DataFrame([*mine, *theirs, clean]), "fast-v1", "slow-v1")
    (row,) = compare(joined, ["benchmark"]).to_dict("records")
    assert (row["samples"], row["lower"], row["equal"], row["higher"]) == (3, 1, 1, 1)
    assert (row["steps"], row["steps_reference"]) == (30, 300)
    assert (row["score"], row["score_reference"]) == (pytest.approx(140 / 3), pytest.approx(160 / 3))
    for name, part in (("x", mine), ("y", theirs)):
        write_artifact(str(tmp_path), f"records/{name}", part)
    sheet = tmp_path / "sheet.md"
    main(Options(str(tmp_path), "fast-v1", "slow-v1", sheet))
    assert "| all | 3 | 46.67 | 53.33 | 1 | 1 | 1 | 30 | 300 | 10.00 |" in sheet.read_text()


@pytest.mark.parametrize(("protocol", "message"), [("none-v1", "no records of protocol none-v1 here"), ("slow-v1", "")])
def test_what_is_missing_is_said(protocol: str, message: str) -> None:
    records = pd.DataFrame([*rows("fast-v1", [0.0], 1), *(dict(r, sample_id="t") for r in rows("slow-v1", [0.0], 1))])
    with pytest.raises(UserError, match=message or "no sample in common"):
        paired(records, protocol, "fast-v1")
