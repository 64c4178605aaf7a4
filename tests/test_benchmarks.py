"""Benchmarks start from a clone, and say in one line what they lack. What they measured is in their sheets."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SHEETS = Path(__file__).parents[1] / "benchmarks" / "sheets"


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("benchmarks.classifier_attacks", "--autoattack", "nowhere", "--peers", "nowhere"), "--help"),
        (("benchmarks.published_loop", "--robustvlm", "nowhere", "--storage", "nothing"), "make ablation"),
    ],
)
def test_what_is_missing_is_said_in_one_line(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = run(*arguments, "--output", str(tmp_path / "sheet.md"))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert message in done.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "sheet.md").exists()


def test_every_sheet_names_the_command_that_made_it() -> None:
    sheets = sorted(SHEETS.glob("*.md"))
    assert sheets
    for sheet in sheets:
        named = re.search(r"`python -m benchmarks\.(\w+)", sheet.read_text())
        assert named, sheet.name
        assert (SHEETS.parent / f"{named[1]}.py").is_file(), sheet.name
