"""Artifacts, markers, leases; on a local disk and on S3."""

import json
import os
import pickle
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from rllava import store as store_module
from rllava.errors import UserError
from rllava.fingerprint import fingerprint
from rllava.store import Store
from tests.fixtures.processes import wait_for


@dataclass(frozen=True)
class Spec:
    value: int
    training: str = "words for people"


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        made = Store(str(tmp_path / "results"))
    else:
        made = Store(f"{request.getfixturevalue('s3_storage')}/{tmp_path.name}")
    made.prepare()
    return made


def test_an_artifact_is_complete_when_its_marker_is_there(store: Store) -> None:
    artifact = store.artifact("models", "b@a+c", Spec(1))
    store.write(f"{artifact.path}/weights", b"w")
    assert not store.is_complete(artifact)
    store.finish(artifact, Spec(1), {"seconds": 2})
    assert store.is_complete(artifact)
    assert store.facts(artifact) == {"seconds": 2}
    assert artifact.relative == f"models/b_in_a_and_c-{fingerprint(Spec(1))}"
    assert json.loads(store.filesystem.cat_file(f"{artifact.path}/spec.json"))["value"] == 1


def test_fingerprints_follow_what_decides_a_result() -> None:
    assert fingerprint(Spec(1)) != fingerprint(Spec(2))
    assert fingerprint(Spec(1)) == fingerprint(Spec(1, "other words"))


def test_a_store_travels_to_workers(store: Store) -> None:
    artifact = store.artifact("records", "r", Spec(1))
    pickle.loads(pickle.dumps(store)).finish(artifact, Spec(1), {})
    assert store.is_complete(artifact)


def test_a_lease_makes_the_second_wait_until_the_first_is_done(store: Store) -> None:
    artifact = store.artifact("models", "m", Spec(1))
    with store.lease(artifact):
        other = another_driver(store, 0.0)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(6.0)
    assert other.wait(60.0) == 0


def another_driver(store: Store, seconds: float) -> "subprocess.Popen[bytes]":
    """A process that takes the lease of artifact m, holds it, and ends."""
    code = (
        "import sys, time\nfrom rllava.store import Store\n"
        "from tests.test_store import Spec\nstore = Store(sys.argv[1])\n"
        "with store.lease(store.artifact('models', 'm', Spec(1))): time.sleep(float(sys.argv[2]))"
    )
    return subprocess.Popen([sys.executable, "-c", code, store.url, str(seconds)])


def test_the_lease_of_a_killed_process_is_taken_over_at_once(store: Store) -> None:
    artifact = store.artifact("models", "m", Spec(1))
    other = another_driver(store, 600.0)
    path = f"{store.root}/leases/{artifact.kind}-{artifact.name}-{artifact.fingerprint}.json"
    wait_for(lambda: store.exists(path), 60, "the other driver's lease")
    other.kill()
    other.wait()
    started = time.time()
    with store.lease(artifact):
        assert time.time() - started < store_module.LEASE_TTL_S / 4


def test_the_lease_of_a_silent_host_runs_out(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = store.artifact("models", "m", Spec(1))
    path = f"{store.root}/leases/{artifact.kind}-{artifact.name}-{artifact.fingerprint}.json"
    holder = {"host": "elsewhere/1", "pid": 1, "started": 0.0, "token": "t", "heard": time.time()}
    store.write(path, json.dumps(holder).encode())
    monkeypatch.setattr(store_module, "LEASE_TTL_S", 2.0)
    heard: list[str] = []
    with store.lease(artifact, heard.append):
        assert time.time() - float(str(holder["heard"])) >= 2.0
    assert heard == ["elsewhere/1:1"]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds something else"):
        Store(str(tmp_path)).prepare()
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_storage_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match=r"storage .*file/results cannot be written"):
        Store(str(file / "results")).prepare()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"):
        Store(str(tmp_path / "results")).prepare()


def test_a_missing_bucket_and_an_unknown_scheme_are_named(s3_storage: str) -> None:
    assert s3_storage.startswith("s3://")
    with pytest.raises(UserError, match="no such bucket"):
        Store("s3://no-such-bucket-here/results").prepare()
    with pytest.raises(UserError, match="use a path or s3://"):
        Store("nonsense://x")


def test_files_go_in_and_come_out_whole(store: Store, tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    (tmp_path / "weights").write_bytes(content)
    path = f"{store.root}/models/m[a=b]/stage2/weights"
    store.put(path, tmp_path / "weights")
    assert store.filesystem.cat_file(path) == content
    store.fetch(path, tmp_path / "deep" / "copy")
    assert (tmp_path / "deep" / "copy").read_bytes() == content
    with pytest.raises(FileNotFoundError):
        store.fetch(f"{path}-missing", tmp_path / "nothing")


def test_a_snapshot_answers_for_many_artifacts_and_takes_old_facts_for_what_they_are(store: Store) -> None:
    artifacts = [store.artifact("records", "r", Spec(number)) for number in range(3)]
    for number, artifact in enumerate(artifacts[:2]):
        for part in range(2):
            store.write(f"{artifact.path}/part-{part:05d}.parquet", b"rows")
        store.finish(artifact, Spec(number), {"parts": 2, "seconds": number})
    first = store.snapshot(artifacts, keep=True)
    assert [first.is_complete(artifact.relative) for artifact in artifacts] == [True, True, False]
    assert first.shards(artifacts[0].relative) == ["part-00000.parquet", "part-00001.parquet"]
    assert store.exists(f"{store.root}/facts/records.json")

    store.filesystem.rm_file(f"{artifacts[0].path}/part-00001.parquet")
    store.finish(artifacts[1], Spec(1), {"parts": 2, "seconds": 77})
    later = store.snapshot(artifacts)
    assert [later.is_complete(artifact.relative) for artifact in artifacts] == [False, True, False]
    assert (later.lost(artifacts[0].relative), later.is_finished(artifacts[0].relative)) == (1, True)
    assert later.facts(artifacts[1].relative)["seconds"] == 77, "of the marker that was there before"
    store.write(f"{store.root}/facts/records.json", b"torn")
    assert store.snapshot(artifacts).facts(artifacts[1].relative)["seconds"] == 77
