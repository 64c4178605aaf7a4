"""Fixtures of the data tests."""

from pathlib import Path
from typing import Any

import fsspec
import pytest


@pytest.fixture(scope="session")
def local() -> Any:
    """The local file system, as rllava opens it."""
    return fsspec.filesystem("file", auto_mkdir=True)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A folder that does not exist yet."""
    return str(tmp_path / "deep" / "data")
