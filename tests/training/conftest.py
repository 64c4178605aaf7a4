"""Trainings without Ray, in processes that need not import everything again."""

from collections.abc import Iterator

import pytest

from tests.fixtures.forks import Forks, run_forks

MODULES = ("deepspeed", "torch._dynamo", "tests.training.stage_process", "tests.training.pretrain_process")


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Where the groups of processes of this folder come from."""
    with run_forks(MODULES, {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}) as started:
        yield started
