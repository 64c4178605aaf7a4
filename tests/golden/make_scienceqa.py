"""Writes metrics/scienceqa.json: how often LLaVA-1.5-13B gave which answer to ScienceQA's test questions.

    python -m tests.golden.make_scienceqa FOLDER

FOLDER is ``playground/data/eval/scienceqa`` of Robust-LLaVA's repository, which holds the published answers. The table
has counts alone: answers that begin with a letter and a full stop are cut behind them, as no parser looks further.
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path

GOLDEN = Path(__file__).parent / "metrics/scienceqa.json"


def shortened(answer: str) -> str:
    """What decides how an answer is read."""
    return f"{answer[:3]}…" if re.match(r"[A-E]\. .", answer, re.DOTALL) else answer


def main(folder: Path) -> None:
    questions = json.loads((folder / "llava_test_CQM-A.json").read_text())
    lines = (folder / "answers/llava-v1.5-13b.jsonl").read_text().splitlines()
    answers = {row["question_id"]: row["text"] for row in map(json.loads, lines)}
    counts: Counter[tuple[str, str, int, bool]] = Counter()
    for question in questions:
        asked, right = (turn["value"] for turn in question["conversations"])
        choices = len(re.findall(r"^[A-E]\. ", asked, re.MULTILINE))
        counts[shortened(answers[question["id"]]), right, choices, "image" in question] += 1
    rows = [[*key, count] for key, count in sorted(counts.items())]
    text = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    GOLDEN.write_text(f"[\n{text}\n]\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
