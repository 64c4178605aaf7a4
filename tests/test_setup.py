"""What a stranger meets first: pins, the check of the machine, the make targets."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("bash", "env", "awk", "df")


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "constraints" / name).read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in pairs}


def preflight(path: str, python: str = sys.executable, disk_gb: int = 1) -> subprocess.CompletedProcess[str]:
    command = [str(shutil.which("bash")), str(ROOT / ".ci" / "preflight"), python, str(disk_gb)]
    return subprocess.run(command, env={"PATH": path}, cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_both_constraints_pin_the_same_versions_and_no_build_of_torch() -> None:
    cpu = pins("cpu.txt")
    assert cpu == pins("gpu.txt")
    assert "+" not in cpu["torch"]
    assert not [package for package in cpu if "nvidia" in package or package == "triton"]


def test_every_direct_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", line)[0]).lower() for line in wanted}  # type: ignore[index]
    assert names - pins("cpu.txt").keys() == set()


def test_preflight_is_silent_where_nothing_lacks() -> None:
    done = preflight(os.environ["PATH"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_preflight_names_all_that_lacks_with_its_remedy(tmp_path: Path) -> None:
    for tool in TOOLS:
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    done = preflight(str(tmp_path), python="", disk_gb=10**6)
    assert done.returncode == 1
    assert re.findall(r"missing: (Python 3\.11|make|a C\+\+ compiler|disk space)", done.stderr) == [
        "Python 3.11",
        "make",
        "a C++ compiler",
        "disk space",
    ]
    for remedy in ("python3.11-venv", "apt-get install make", "apt-get install g++", "1000000 GB needed"):
        assert remedy in done.stderr


def test_preflight_refuses_an_old_python(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    # Answers as 3.9 does to the question for its version.
    old.write_text('#!/bin/sh\ncase "$2" in *version_info*"<"*) exit 1;; *) echo 3.9.1;; esac\n')
    old.chmod(0o755)
    done = preflight(os.environ["PATH"], python=str(old))
    assert done.returncode == 1
    assert f"missing: Python 3.11 ({old} is 3.9.1)" in done.stderr


@pytest.mark.parametrize("target", ["setup", "ablation", "test", "check", "lint", "clean"])
def test_make_knows_the_target(target: str) -> None:
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def test_setup_is_redone_when_a_pin_or_dependency_changes() -> None:
    rule = re.search(r"^\$\(STAMP\):(.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert rule is not None
    assert rule.group(1).split() == ["pyproject.toml", "$(CONSTRAINTS)"]


def test_hooks_run_the_tools_of_make_lint_without_network() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    assert all(hook["language"] == "system" and hook["entry"].startswith(".venv/bin/") for hook in hooks)
    lint = (ROOT / "Makefile").read_text().split("\nlint:")[1].split("\n\n")[0]
    for hook in hooks:
        tool = " ".join(word for word in hook["entry"].removeprefix(".venv/bin/").split() if not word.startswith("--"))
        assert f"$(BIN)/{tool}" in lint, tool
