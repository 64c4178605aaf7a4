"""One unbroken run that the tests of this folder compare with."""

from dataclasses import dataclass

import pytest

from tests.fixtures.processes import track
from tests.sweeps.driver import finish, start


@dataclass(frozen=True)
class Run:
    """A finished smoke ablation."""

    storage: str
    output: str


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Run:
    storage = str(tmp_path_factory.mktemp("unbroken") / "results")
    mark = track()
    output = finish(start(storage, mark))
    mark.assert_gone()
    return Run(storage, output)
