"""What the README tells readers to type exists."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
SWEEP = "sweeps/encoder_ablation.py"
SHELLS = {"", "bash", "sh", "shell", "console"}


def shell_commands(text: str) -> list[list[str]]:
    """Returns the commands of a Markdown text's fenced shell blocks, each split into words.

    Comments, prompts and leading assignments go; lines ending in a backslash are joined; ``&&`` and ``|`` separate.
    """
    commands = []
    for language, block in re.findall(r"^ *```([\w-]*)[^\n]*\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL):
        if language not in SHELLS:
            continue
        for line in re.sub(r"\\\n", " ", block).splitlines():
            for part in re.split(r"&&|\||;", line.strip().removeprefix("$ ")):
                try:
                    words = shlex.split(part, comments=True)
                except ValueError:
                    continue  # a piece of a quoted text, or output
                while words and re.fullmatch(r"\w+=.*", words[0]):
                    words.pop(0)
                if words:
                    commands.append(words)
    return commands


def options_of(words: list[str]) -> set[str]:
    return {word.split("=")[0] for word in words if re.match(r"--[a-z]", word)}


def python_scripts(words: list[str]) -> list[tuple[str, list[str]]]:
    """Returns the scripts that a command runs by python, with the words behind them."""
    found = []
    for index, word in enumerate(words[:-1]):
        if re.fullmatch(r"(.*/)?python[\d.]*", word) and words[index + 1].endswith(".py"):
            found.append((words[index + 1], words[index + 2 :]))
    return found


def targets_of(makefile: str) -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", makefile, flags=re.MULTILINE))


def links_of(text: str) -> set[str]:
    """Returns the relative links, and the paths in backticks that start with one of our folders."""
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    links = {link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", prose)}
    links |= set(re.findall(r'(?:src|href)="([^"]+)"', prose))
    folders = "|".join(path.name for path in sorted(ROOT.iterdir()) if path.is_dir() and not path.name.startswith("."))
    links |= set(re.findall(rf"`((?:{folders})/[\w./-]*)`", prose))
    return {link for link in links if link and "://" not in link and not link.startswith("mailto:")}


@pytest.fixture(scope="module")
def commands() -> list[list[str]]:
    return shell_commands(README.read_text())


def test_make_targets_exist(commands: list[list[str]]) -> None:
    targets = targets_of((ROOT / "Makefile").read_text())
    used = {
        word for words in commands if words[0] == "make" for word in words[1:] if re.fullmatch(r"[a-z][\w-]*", word)
    }
    assert used, "the README shows no make command"
    assert used <= targets, used - targets


def test_scripts_exist(commands: list[list[str]]) -> None:
    scripts = {script for words in commands for script, _ in python_scripts(words)}
    assert {script for script in scripts if not (ROOT / script).exists()} == set()


def test_options_of_the_sweep_are_in_its_help(commands: list[list[str]]) -> None:
    used = {
        option for words in commands for script, rest in python_scripts(words) if script == SWEEP
        for option in options_of(rest)
    }  # fmt: skip
    # `make ablation ARGS="..."` passes its words on.
    for words in commands:
        if words[:2] == ["make", "ablation"]:
            used |= {o for word in words if word.startswith("ARGS=") for o in options_of(shlex.split(word[5:]))}
    done = subprocess.run([sys.executable, SWEEP, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    known = set(re.findall(r"--[a-z][\w-]*", done.stdout))
    assert used <= known, used - known


def test_linked_files_exist() -> None:
    missing = {link for link in links_of(README.read_text()) if not (ROOT / link).exists()}
    assert {link for link in missing if not link.startswith("results")} == set()


EXAMPLE = """
Text with [a link](docs/a.md#part), `rllava/nothing.py` and [web](https://example.org).

```bash
$ make ablation ARGS="--budgets 4 8" # a comment
FOO=1 .venv/bin/python sweeps/encoder_ablation.py --storage s3://b/p \\
    --trials=2 && make test
```
```python
make = "not a command"
```
"""


def test_the_reader_of_commands() -> None:
    found = shell_commands(EXAMPLE)
    assert found == [
        ["make", "ablation", "ARGS=--budgets 4 8"],
        [".venv/bin/python", SWEEP, "--storage", "s3://b/p", "--trials=2"],
        ["make", "test"],
    ]
    ((script, rest),) = python_scripts(found[1])
    assert script == SWEEP
    assert options_of(rest) == {"--storage", "--trials"}
    assert links_of(EXAMPLE) == {"docs/a.md", "rllava/nothing.py"}
    assert targets_of("setup: x\n\ttouch\n.PHONY: a\nA := 1\ntest: setup\n") == {"setup", "test"}
