"""How ``make test`` hands tests out, and what ``make check`` leaves out."""

import re
from pathlib import Path

import pytest

CONFTEST = """
import subprocess, sys
import pytest
pytest_plugins = ["tests.fixtures.distribution"]

@pytest.fixture(scope="session")
def ray_head():
    return object()

@pytest.fixture
def local_ray():
    return object()

@pytest.fixture
def tracked():
    return object()

@pytest.fixture
def unbroken():
    return object()

@pytest.fixture
def child():
    subprocess.run([sys.executable, "-c", ""], check=True)
"""
TESTS = """
import os
import time
from pathlib import Path
import pytest

@pytest.mark.parametrize("k", range(4))
def test_alone(k):
    pass

@pytest.mark.parametrize("k", range(4))
def test_a_sweep(tracked, unbroken, k):
    # The first one goes on when the other process has begun one too.
    folder = Path(os.environ["SWEEPS"])
    (folder / os.environ["PYTEST_XDIST_WORKER"]).touch()
    deadline = time.monotonic() + 120
    while len(list(folder.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)

@pytest.mark.parametrize("k", range(4))
def test_on_both(tracked, ray_head, k):
    pass

@pytest.mark.parametrize("k", range(4))
def test_on_its_process_ray(local_ray, k):
    pass

@pytest.mark.parametrize("k", range(4))
def test_on_ray(ray_head, unbroken, k):
    pass
"""


ORDER = ["test_on_both", "test_on_ray", "test_on_its_process_ray", "test_a_sweep", "test_alone"]


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    pytester.makeini("[pytest]\nmarkers = processes: starts processes")
    pytester.makeconftest(CONFTEST)
    return pytester


@pytest.mark.processes
def test_what_shares_a_ray_runs_in_one_process_and_sweeps_where_there_is_room(
    project: pytest.Pytester, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWEEPS", str(tmp_path_factory.mktemp("sweeps")))
    project.makepyfile(test_one=TESTS, test_two=TESTS, test_three=TESTS)
    done = project.runpytest_subprocess("-n", "2", "-v")
    done.assert_outcomes(passed=60)
    ran = re.findall(r"\[(gw\d)\].*PASSED (\S+)::(test_\w+)", done.stdout.str())
    (head,) = {worker for worker, _, name in ran if name in ("test_on_ray", "test_on_both")}
    (local,) = {worker for worker, _, name in ran if name == "test_on_its_process_ray"}
    assert head != local
    sweeps = {(worker, file) for worker, file, name in ran if name == "test_a_sweep"}
    assert len(sweeps) > 3, "the sweeps of one file are for one process alone"
    alone = [file for _, file, name in ran if name == "test_alone"]
    assert len({(worker, file) for worker, file, name in ran if name == "test_alone"}) == len(set(alone)) == 3
    for worker in ("gw0", "gw1"):
        own = [name for who, _, name in ran if who == worker]
        assert own == sorted(own, key=lambda name: max(1, ORDER.index(name))), "what takes longest does not come first"


@pytest.mark.processes
def test_the_mark_follows_from_what_a_test_and_its_fixtures_and_helpers_name(project: pytest.Pytester) -> None:
    project.makepyfile("""
        import subprocess
        import pytest
        from tests.sweeps.driver import start

        def test_by_itself():
            subprocess.run(["true"])

        def test_by_a_fixture(child):
            pass

        def test_by_a_helper(tmp_path):
            start(str(tmp_path), None)

        @pytest.mark.processes
        def test_by_its_own_word():
            pass

        class Loop:
            def run(self):
                pass

        def test_not_at_all():
            Loop().run()
        """)
    done = project.runpytest_subprocess("--collect-only", "-q", "-m", "processes")
    names = re.findall(r"::(test_\w+)", done.stdout.str())
    assert names == ["test_by_itself", "test_by_a_fixture", "test_by_a_helper", "test_by_its_own_word"]


@pytest.mark.processes
def test_a_process_without_the_mark_is_a_failure(project: pytest.Pytester) -> None:
    project.makepyfile("""
        import os

        def test_unseen():
            os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
        """)
    done = project.runpytest_subprocess()
    done.assert_outcomes(passed=1, errors=1)
    done.stdout.fnmatch_lines(["*starts a process without @pytest.mark.processes: os.posix_spawn*"])
