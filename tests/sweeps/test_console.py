"""What goes to a person and what goes to the log."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import logging, os, subprocess, sys, warnings
from dataclasses import dataclass
from pathlib import Path
from rllava.errors import UserError
from sweeps.console import current_log, note, run_script, say

@dataclass(frozen=True)
class Options:
    how: str = "well"
    folder: str = ""

def main(options):
    say("a result with an ε")
    note("something to know")
    if options.how == "silent":
        return
    print("a library prints")
    for name in ("rllava.data.llava_json", "rllava.data.llava_json", "transformers.tokenization"):
        logging.getLogger(name).warning("%s: of %d rows, 3 have no <image>", name, 5)
    if options.folder:
        current_log().move(Path(options.folder))
    warnings.warn("a library warns")
    os.write(2, b"a core library writes\\n")
    subprocess.run(["echo", "a child prints"])
    if options.how == "mistake":
        raise UserError("--how mistake: say well")
    if options.how == "broken":
        raise ValueError("broken\\nat length")

if __name__ == "__main__":
    run_script(main, Options, None, log=True)
    print("afterwards")
"""
SHOWN = ("a result with an ε\n", "note: something to know\n")
WARNED = "warning: rllava.data.llava_json: of 5 rows, 3 have no <image>\n"


def run(tmp_path: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], list[Path]]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    (tmp_path / "tmp").mkdir()
    done = subprocess.run(
        [sys.executable, str(script), *options],
        env={"PYTHONPATH": str(Path.cwd()), "TMPDIR": str(tmp_path / "tmp"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done, sorted((tmp_path / "tmp").rglob("*.log"))


def test_a_person_sees_what_is_said_and_the_log_takes_the_rest(tmp_path: Path) -> None:
    done, (log,) = run(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, SHOWN[0] + "afterwards\n", SHOWN[1] + WARNED)
    assert re.fullmatch(r"script-\d{8}-\d{6}-\d+\.log", log.name)
    text = log.read_text()
    for source in ("a library prints", "a library warns", "a core library writes", "a child prints", "transformers"):
        assert source in text


def test_a_log_that_moves_keeps_what_it_has(tmp_path: Path) -> None:
    done, left = run(tmp_path, "--folder", str(tmp_path / "results/logs"))
    assert (done.returncode, left) == (0, [])
    (log,) = (tmp_path / "results/logs").iterdir()
    assert "a library prints" in log.read_text()
    assert "a child prints" in log.read_text()
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("how", "status", "line"),
    [
        ("mistake", 2, r"error: --how mistake: say well"),
        ("broken", 1, r"error: ValueError: broken; the traceback is in (\S+)"),
    ],
)
def test_an_error_is_one_line_and_the_traceback_of_a_fault_is_in_the_log(
    tmp_path: Path, how: str, status: int, line: str
) -> None:
    done, (log,) = run(tmp_path, "--how", how)
    assert (done.returncode, done.stdout) == (status, SHOWN[0])
    told = re.fullmatch(re.escape(SHOWN[1] + WARNED) + line + "\n", done.stderr)
    assert told, done.stderr
    assert ("Traceback" in log.read_text()) == (how == "broken"), "a mistake told before the work has no more to say"
    if how == "broken":
        assert told.group(1) == str(log)


def test_an_empty_log_is_not_left(tmp_path: Path) -> None:
    done, left = run(tmp_path, "--how", "silent")
    assert (done.returncode, left) == (0, [])
    assert list((tmp_path / "tmp").iterdir()) == []
