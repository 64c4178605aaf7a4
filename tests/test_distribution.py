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
def tracked():
    return object()

@pytest.fixture
def child():
    subprocess.run([sys.executable, "-c", ""], check=True)
"""
TESTS = """
import os
import pytest

@pytest.mark.parametrize("k", range(4))
def test_on_ray(ray_head, k):
    pass

@pytest.mark.parametrize("k", range(4))
def test_on_its_own_ray(tracked, k):
    pass

@pytest.mark.parametrize("k", range(4))
def test_on_both(tracked, ray_head, k):
    pass

@pytest.mark.parametrize("k", range(4))
def test_alone(k):
    pass
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    pytester.makeini("[pytest]\nmarkers = processes: starts processes")
    pytester.makeconftest(CONFTEST)
    return pytester


@pytest.mark.processes
def test_what_shares_a_ray_runs_in_one_process_and_what_starts_one_in_another(project: pytest.Pytester) -> None:
    project.makepyfile(test_one=TESTS, test_two=TESTS, test_three=TESTS)
    done = project.runpytest_subprocess("-n", "2", "-v")
    done.assert_outcomes(passed=48)
    ran = re.findall(r"\[(gw\d)\].*PASSED \S+::(test_\w+)", done.stdout.str())
    (shared,) = {worker for worker, name in ran if name in ("test_on_ray", "test_on_both")}
    (own,) = {worker for worker, name in ran if name == "test_on_its_own_ray"}
    assert shared != own


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
