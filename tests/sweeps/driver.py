"""Starting the ablation as users do, watching its storage, killing it, and comparing what it leaves."""

import contextlib
import json
import os
import pty
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rllava.store import Store
from tests.fixtures.processes import Tracked

SMOKE = (sys.executable, "sweeps/encoder_ablation.py", "--preset", "smoke")


def start(
    storage: str, tracked: Tracked, *options: str, script: str = "sweeps/encoder_ablation.py",
    packages: Path | None = None, preset: str = "smoke",
) -> "subprocess.Popen[str]":  # fmt: skip
    """Starts the smoke ablation, or another sweep, in the background.

    Args:
        *options: more of the command line.
        packages: folder of packages that are installed beside those of this environment.
    """
    path = os.pathsep.join(filter(None, [str(packages or ""), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, script, "--preset", preset, "--storage", storage, *options],
        env={**tracked.env, **({"PYTHONPATH": path} if path else {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(driver: "subprocess.Popen[str]", timeout_s: float = 800.0) -> str:
    """Waits for a driver that must succeed and returns what it printed.

    Args:
        driver: from :func:`start`.
        timeout_s: seconds.
    """
    output, _ = driver.communicate(timeout=timeout_s)
    assert driver.returncode == 0, output[-4000:]
    return output


def run_on_terminal(
    storage: str, tracked: Tracked, *options: str, timeout_s: float = 800.0, watch: Callable[[str], None] | None = None
) -> str:
    """Runs the smoke ablation on a terminal of its own, where it shows a live table; it must succeed.

    Args:
        *options: more of the command line.
        timeout_s: seconds.
        watch: called with what was shown so far, again and again.

    Returns:
        All that the terminal was sent.
    """
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (40, 160))
    driver = subprocess.Popen([*SMOKE, "--storage", storage, *options], env=tracked.env, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = bytearray()
    deadline = time.monotonic() + timeout_s
    with contextlib.suppress(OSError):  # Linux reports the end of a terminal as an error
        while time.monotonic() < deadline and (part := os.read(ours, 1 << 16)):
            shown += part
            if watch is not None:
                watch(shown.decode(errors="replace"))
    os.close(ours)
    status = driver.wait(timeout=300)
    output = shown.decode()
    assert status == 0, output[-4000:]
    return output


def records(storage: str) -> dict[str, pa.Table]:
    """Every record of a storage, by artifact, in the order of the parts.

    Args:
        storage: results folder, local or s3://.
    """
    store = Store(storage)
    tables = {}
    for folder in sorted(store.filesystem.ls(f"{store.root}/records", detail=False)):
        parts = sorted(path for path in store.filesystem.ls(folder, detail=False) if path.endswith(".parquet"))
        tables[folder.rsplit("/", 1)[-1]] = pa.concat_tables(
            [pq.read_table(pa.BufferReader(store.filesystem.cat_file(part))) for part in parts]
        )
    return tables


def weights(storage: str) -> dict[str, bytes]:
    """The trained weights of a storage, byte for byte.

    Args:
        storage: results folder, local or s3://.
    """
    store = Store(storage)
    found = store.filesystem.find(f"{store.root}/models")
    return {
        path.removeprefix(store.root): store.filesystem.cat_file(path)
        for path in sorted(found)
        if path.endswith(".safetensors")
    }


def assert_same_results(storage: str, reference: str, candidate: str = "") -> None:
    """Asserts that two storages hold the same weights and the same records, cell by cell, and no open lease.

    Args:
        candidate: the only one of the reference's that the storage is to hold, named as its artifacts are; by default
            all. The models must be the same.
    """
    mine, theirs = weights(storage), weights(reference)
    assert mine
    assert mine.keys() == theirs.keys()
    assert [path for path in mine if mine[path] != theirs[path]] == []
    rows, expected = records(storage), records(reference)
    expected = {
        name: table for name, table in expected.items() if name.startswith(f"{candidate}-" if candidate else "")
    }
    assert rows.keys() == expected.keys() != set()
    for name, table in expected.items():
        for column in table.column_names:
            assert rows[name].column(column).to_pylist() == table.column(column).to_pylist(), f"{name}: {column}"
    store = Store(storage)
    left = store.filesystem.find(f"{store.root}/leases") if store.exists(f"{store.root}/leases") else []
    assert left == []


def manifest(storage: str) -> dict[str, Any]:
    """The sweep's manifest."""
    content: dict[str, Any] = json.loads((Path(storage) / "reports/encoder_ablation/sweep.json").read_text())
    return content
