"""A run that was killed while it compiled does not keep the next one from starting."""

import os
import shutil
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton

from rllava.training.extensions import extensions_at_hand, extensions_folder, operator_is_built


def locked(folder: Path, age_s: float) -> Path:
    lock = folder / "py311_cpu" / "operator" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    os.utime(lock, (time.time() - age_s, time.time() - age_s))
    return lock


def test_the_environments_own_ninja_is_used_whatever_else_is_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two versions of it would compile the operator again, in turn."""
    other = tmp_path / "ninja"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    programs = str(Path(sys.executable).parent)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    for path in (str(tmp_path), f"{tmp_path}{os.pathsep}{programs}", ""):
        monkeypatch.setenv("PATH", path)
        with extensions_at_hand():
            assert shutil.which("ninja") == f"{programs}/ninja"


def test_a_lock_without_owner_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = locked(tmp_path, age_s=1000)
    waiting = threading.Thread(target=FileBaton(str(lock), wait_seconds=0.01).wait, daemon=True)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive(), "PyTorch does not wait for the lock"
    with extensions_at_hand(stale_s=100, every_s=0.01):
        waiting.join(20)
    assert not waiting.is_alive()


def test_a_lock_in_use_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = locked(tmp_path, age_s=1)
    with extensions_at_hand(stale_s=100, every_s=0.01):
        time.sleep(0.1)
    assert lock.exists()


def test_no_folder_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "none"))
    with extensions_at_hand():
        pass


def test_a_built_operator_needs_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert operator_is_built()  # `make setup` builds it where DeepSpeed does
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert not operator_is_built()


def test_every_environment_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch compiles again, in place, what another environment's paths were compiled with."""
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    mine = extensions_folder()
    monkeypatch.setattr(torch, "__file__", "/elsewhere/torch/__init__.py")
    assert extensions_folder() != mine
    assert extensions_folder().parent == mine.parent
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/chosen")
    assert extensions_folder() == Path("/chosen")


def test_pytorch_looks_where_the_operator_was_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    expected = extensions_folder()
    with monkeypatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", "")  # put back afterwards, whatever is set meanwhile
        with extensions_at_hand():
            assert cpp_extension._get_build_directory("an_operator", verbose=False) == str(expected / "an_operator")
    (expected / "an_operator").rmdir()
