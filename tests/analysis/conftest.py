"""A synthetic sweep and its report, made once."""

from pathlib import Path

import pytest

from analysis.bootstrap import Resampling
from analysis.loading import load_sweep
from analysis.report import ReportPaths, write_statistics
from analysis.statistics import Statistics, analyse
from tests.analysis.synthetic import SyntheticSweep, write_sweep

SWEEP = SyntheticSweep(
    clean={"tiny-clip": 0.9, "tiny-robust": 0.75, "tiny-clip+tiny-robust": 0.85, "tiny-robust@tiny-clip": 0.6},
    decay={"tiny-clip": 0.7, "tiny-robust": 0.97, "tiny-clip+tiny-robust": 0.85, "tiny-robust@tiny-clip": 0.93},
    budgets=(0.0, 2.0, 8.0),
    errors={"tiny-robust": 2},
)
QUICK = Resampling(draws=1000)


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A results folder with one sweep: four candidates, two benchmarks, two errors per attacked cell of one of them."""
    root = str(tmp_path_factory.mktemp("results"))
    write_sweep(root, SWEEP)
    return root


@pytest.fixture(scope="session")
def statistics(storage: str) -> Statistics:
    return analyse(load_sweep(storage), resampling=QUICK)


@pytest.fixture(scope="session")
def report(statistics: Statistics) -> ReportPaths:
    return write_statistics(statistics)


@pytest.fixture(scope="session")
def page(report: ReportPaths) -> str:
    return Path(report.index).read_text(encoding="utf-8")
