"""The shared fixtures do what they say."""

import subprocess
import sys

import pytest

from rllava.filesystem import open_filesystem
from tests.fixtures.processes import Tracked, is_running, kill_tree, wait_for


def test_s3_storage_takes_and_returns_bytes_by_our_file_system(s3_storage: str) -> None:
    filesystem, path = open_filesystem(f"{s3_storage}/fixtures/a.bin")
    filesystem.pipe_file(path, b"abc")
    assert filesystem.cat_file(path) == b"abc"
    assert filesystem.ls(path.rsplit("/", 1)[0]) == [path]


def test_tracked_finds_grandchildren_whose_parent_is_gone(tracked: Tracked) -> None:
    script = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)'])"
    subprocess.run([sys.executable, "-c", script], env=tracked.env, check=True)
    (orphan,) = wait_for(tracked.alive, 60, "the orphan")
    with pytest.raises(AssertionError, match=rf"left behind after 0.3 s: {orphan.pid} "):
        tracked.assert_gone(0.3)
    tracked.kill()
    tracked.assert_gone()


def test_kill_tree_takes_the_children_too(tracked: Tracked) -> None:
    script = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)']);"
        "print(p.pid, flush=True); p.wait()"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], env=tracked.env, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    kill_tree(parent.pid)
    parent.wait()
    assert not is_running(child)
    parent.stdout.close()


def test_wait_for_names_what_did_not_come() -> None:
    with pytest.raises(AssertionError, match=r"waited 0.1 s in vain for godot"):
        wait_for(lambda: False, 0.1, "godot", poll_s=0.05)
