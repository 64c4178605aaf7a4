"""Machines that are not as Ray needs them: one line each, before Ray is started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import machine
from cluster.machine import check_compiler, check_machine, cpu_quota, memory_limit, usable_cores
from rllava.errors import UserError

CHECK = """
import sys
from cluster.machine import check_machine
from rllava.errors import UserError
try:
    check_machine()
except UserError as error:
    print(error)
"""


def said(before: str, **env: str) -> str:
    """What the check says in a shell in which something was done before."""
    command = ["bash", "-c", f'{before}\nexec "$@"', "bash", sys.executable, "-c", CHECK]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=120)
    if "Operation not permitted" in done.stderr:
        pytest.skip("this user may not do that")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") <= 1
    return done.stdout


def test_a_good_machine_is_let_through() -> None:
    assert said("") == ""


@pytest.mark.parametrize(
    ("before", "says"),
    [
        ("ulimit -n 500", "a limit of this shell is too low for Ray: 500, not 1024 open files; raise it: ulimit -n"),
        ("ulimit -v 8000000", "7.63, not 16 GiB of address space; raise it: ulimit -v unlimited"),
    ],
)
def test_limits_that_cannot_be_raised_are_named(before: str, says: str) -> None:
    assert says in said(before)


def test_soft_limits_are_raised() -> None:
    assert said("ulimit -S -n 300; ulimit -S -v 8000000") == ""


def in_namespace(option: str, commands: str) -> str:
    """What the check says in a namespace of its own, with the commands done in it."""
    command = ["unshare", option, "bash", "-c", f'{commands}\nexec "$@"', "bash", sys.executable, "-c", CHECK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip(f"needs the right to make namespaces: {done.stderr.strip()[-200:]}")
    return done.stdout


def test_no_network_at_all_is_named() -> None:
    assert "does not reach itself at 127.0.0.1" in in_namespace("-n", "true")


@pytest.mark.parametrize(
    ("options", "says"),
    [("size=50m", "0.05 GiB are free, Ray needs 0.25"), ("size=500m,ro", "cannot be written (Read-only file system)")],
)
def test_small_and_read_only_disks_are_named(options: str, says: str, tmp_path: Path) -> None:
    with_tmp = f"set -e; mount -t tmpfs -o {options} none /mnt; export TMPDIR=/mnt"
    assert says in in_namespace("-m", with_tmp)


def test_a_long_temporary_folder_is_named(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 60)
    folder.mkdir()
    message = said("", TMPDIR=str(folder))
    assert message.startswith(f"TMPDIR {folder}: too long by ")
    assert "set RAY_TMPDIR to a short path" in message
    assert said("", TMPDIR=str(folder), RAY_TMPDIR="/tmp") == ""


@pytest.mark.parametrize("home", ["/dev/null/home", "/proc/home"])
def test_a_home_that_cannot_be_written_is_named(home: str) -> None:
    message = said("unset TORCH_EXTENSIONS_DIR XDG_CACHE_HOME", HOME=home)
    assert message.startswith(f"cache folder {home}/.cache cannot be written")


def test_no_home_at_all_is_named() -> None:
    assert said("unset TORCH_EXTENSIONS_DIR XDG_CACHE_HOME", HOME="relative").startswith("no home folder")


def test_where_nothing_else_is_needed_of_it_home_may_be_read_only(tmp_path: Path) -> None:
    env = {"HOME": "/dev/null/home", "TORCH_EXTENSIONS_DIR": str(tmp_path), "RAY_AUTH_MODE": "disabled"}
    assert said("", **env) == ""


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check_compiler()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"no C\+\+ compiler .*\(apt-get install g\+\+\)"):
        check_compiler()


def test_cores_are_those_this_process_may_use(tmp_path: Path) -> None:
    count = "from cluster.machine import usable_cores; print(usable_cores())"
    one = min(os.sched_getaffinity(0))
    pinned = ["taskset", "-c", str(one), sys.executable, "-c", count]
    assert subprocess.run(pinned, capture_output=True, text=True, check=True).stdout == "1\n"
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, float("inf")),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, float("inf")),
        ({}, float("inf")),
    ],
)
def test_quotas_of_containers_are_read(files: dict[str, str], cores: float, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == cores


def test_a_container_with_little_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text(f"{2**29}\n")
    assert memory_limit(tmp_path) == 2**29
    assert memory_limit(tmp_path / "none") == float("inf")
    monkeypatch.setattr(machine, "memory_limit", lambda _: 2.0**29)
    with pytest.raises(UserError, match=r"this container may use 0\.50 GiB of memory, a sweep needs 2"):
        check_machine()


def test_a_table_with_greek_letters_is_printed_in_any_locale() -> None:
    code = "from cluster.machine import plain_output; plain_output(); print('ε = 8/255 ± 1')"
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "? = 8/255 ? 1\n")
