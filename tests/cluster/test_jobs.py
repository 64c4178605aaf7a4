"""Jobs on a real head with a token: what the README tells users to do."""

import json
import os
import subprocess
import zipfile
from pathlib import Path

import pytest
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

from tests.fixtures.ray_cluster import RAY, RayHead

ROOT = Path(__file__).resolve().parent.parent.parent

JOB = """
import json, os
import ray
from cluster.connect import connect
from cluster.placement import Request, check_fits, place

info = connect()
placement = place(info, workers=2)
check_fits(placement, Request(2), info)

@ray.remote(num_cpus=1)
def where():
    return open("note.txt").read(), os.environ.get("DS_ACCELERATOR")

note, accelerator = ray.get(where.remote())
print("RESULT " + json.dumps({"local": info.is_local, "cpus": info.cpus, "note": note, "accelerator": accelerator}))
"""


@pytest.fixture
def job_folder(tmp_path: Path) -> Path:
    (tmp_path / "script.py").write_text(JOB)
    (tmp_path / "note.txt").write_text("carried along")
    return tmp_path


def submit(head: RayHead, folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [
        RAY,
        "job",
        "submit",
        "--address",
        head.jobs_url,
        "--working-dir",
        str(folder),
        "--",
        "python",
        "script.py",
    ]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)


def test_a_job_with_the_token_joins_the_cluster_with_its_files(ray_head: RayHead, job_folder: Path) -> None:
    done = submit(ray_head, job_folder, ray_head.env)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    result = json.loads(line.removeprefix("RESULT "))
    assert result == {"local": False, "cpus": 8, "note": "carried along", "accelerator": "cpu"}


@pytest.mark.parametrize("token", [None, "0" * 64], ids=["no token", "a wrong token"])
def test_a_job_without_the_token_is_refused(
    ray_head: RayHead, job_folder: Path, tmp_path: Path, token: str | None
) -> None:
    env = {name: value for name, value in ray_head.env.items() if not name.startswith("RAY_")}
    env["HOME"] = str(tmp_path)  # no token of the user's either
    if token:
        env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    done = submit(ray_head, job_folder, env)
    assert done.returncode != 0
    assert "RESULT" not in done.stdout
    assert any(word in done.stdout + done.stderr for word in ("Unauthorized", "Authentication", "authentication")), done


def test_what_a_job_uploads_is_small_and_holds_the_code(tmp_path: Path) -> None:
    """Ray refuses more than 100 MiB; a virtual environment or results in it would be the way there."""
    package = tmp_path / "package.zip"
    create_package(str(ROOT), package, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    assert package.stat().st_size < 30 * 2**20
    names = [name for name in zipfile.ZipFile(package).namelist() if not name.endswith("/")]
    tops = {name.split("/")[0] for name in names}
    assert {"rllava", "cluster", "sweeps", "analysis", "pyproject.toml"} <= tops
    assert tops.isdisjoint({".git", ".venv", "results", "tests", "docs", "rllava.egg-info"})
    assert not [name for name in names if "__pycache__" in name or name.endswith(".ipynb")]
    assets = {str(path.relative_to(ROOT)) for path in (ROOT / "rllava" / "assets").rglob("*") if path.is_file()}
    assert assets <= set(names)


def test_the_fixture_head_is_not_the_users(ray_head: RayHead) -> None:
    assert "RAY_ADDRESS" not in ray_head.env
    assert ray_head.env["RAY_AUTH_TOKEN_PATH"] != os.path.expanduser("~/.ray/auth_token")
