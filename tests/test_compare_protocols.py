"""Who is the stronger attack: counts on records whose answers are known."""

from pathlib import Path

import pandas as pd
import pytest

from benchmarks.compare_protocols import Options, compare, main, paired
from rllava.errors import UserError
from tests.analysis.synthetic import fake_fingerprint, make_record, write_artifact


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


def test_two_trainings_or_evaluations_are_not_compared_as_protocols(tmp_path: Path) -> None:
    mine, theirs = rows("fast-v1", [0.0, 50.0], 10), rows("slow-v1", [30.0, 50.0], 100)
    longer = [{**row, "model": "f" * 16, "evaluation": "e" * 16} for row in mine]
    other_samples = [{**row, "evaluation": "d" * 16, "sample_id": "t"} for row in mine[:1]]
    with pytest.raises(UserError, match="'a' stands for 2 models"):
        paired(pd.DataFrame([*longer, *theirs]), "fast-v1", "slow-v1")
    for name, part in {"mine": mine, "theirs": theirs, "longer": longer, "other": other_samples}.items():
        write_artifact(str(tmp_path), f"records/{name}", part)
    sheet = tmp_path / "sheet.md"

    def message_of(*leave_out: str) -> str:
        with pytest.raises(UserError) as caught:
            main(Options(str(tmp_path), "fast-v1", "slow-v1", sheet, leave_out))
        return str(caught.value)

    model, evaluation = fake_fingerprint("a"), fake_fingerprint("a", "vqa", 8.0, "fast-v1")
    assert (
        f"stands for 2 models, of other training or weights (column model: {'f' * 16} in records/longer, "
        in message_of()
    )
    both = message_of("f" * 16)
    assert (
        f"comes from 2 evaluations (column evaluation: {evaluation} in records/mine, {'d' * 16} in records/other)"
        in both
    )
    assert both.endswith("; leave the others out with --leave-out FINGERPRINT")
    assert model in message_of()
    main(Options(str(tmp_path), "fast-v1", "slow-v1", sheet, ("f" * 16, "d" * 16)))
    assert "| all | 2 | 25.00 | 40.00 | 1 | 1 | 0 |" in sheet.read_text()
