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
from rllava.fingerprint import FORMAT, Described, fingerprint
from rllava.store import Store
from tests.fixtures.processes import wait_for


@dataclass(frozen=True)
class Spec:
    value: int
    training: Described[str] = "words for people"


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.processes)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """With brackets, which are patterns to some of fsspec's methods."""
    if request.param == "local":
        made = Store(str(tmp_path / "results[1]"))
    else:
        made = Store(f"{request.getfixturevalue('s3_storage')}/{tmp_path.name}[1]")
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
        assert other.stdout is not None
        assert other.stdout.readline() == b"waiting\n"
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(3.0)  # it looks again every two seconds at most
    assert other.wait(300.0) == 0
    other.stdout.close()


def another_driver(store: Store, seconds: float, *within: str) -> "subprocess.Popen[bytes]":
    """A process that takes the lease of artifact m, holds it, and ends; says so if it has to wait."""
    code = (
        "import sys, time\nfrom rllava.store import Store\n"
        "from tests.test_store import Spec\nstore = Store(sys.argv[1])\n"
        "with store.lease(store.artifact('models', 'm', Spec(1)), lambda _: print('waiting', flush=True)):\n"
        "    time.sleep(float(sys.argv[2]))"
    )
    return subprocess.Popen([*within, sys.executable, "-c", code, store.url, str(seconds)], stdout=subprocess.PIPE)


def test_the_lease_of_a_killed_process_is_taken_over_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "LEASE_TTL_S", 3600.0)  # whoever waits for its end is out of time
    artifact = store.artifact("models", "m", Spec(1))
    other = another_driver(store, 600.0)
    path = f"{store.root}/leases/{artifact.kind}-{artifact.name}-{artifact.fingerprint}.json"
    wait_for(lambda: store.exists(path), 300, "the other driver's lease")
    other.kill()
    other.communicate()
    with store.lease(artifact):
        pass


def test_a_driver_in_another_container_of_this_machine_is_not_taken_for_dead(tmp_path: Path) -> None:
    container = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    if subprocess.run([*container, "true"], capture_output=True).returncode:
        pytest.skip("needs the right to make namespaces")
    store = Store(str(tmp_path / "results"))
    store.prepare()
    artifact = store.artifact("models", "m", Spec(1))
    other = another_driver(store, 600.0, *container)
    try:
        path = f"{store.root}/leases/{artifact.kind}-{artifact.name}-{artifact.fingerprint}.json"
        wait_for(lambda: store.exists(path), 60, "the other driver's lease")
        assert not store._take(path, store_module._Holder.here())
    finally:
        other.kill()
        other.wait()


def test_the_lease_of_a_silent_host_runs_out(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = store.artifact("models", "m", Spec(1))
    path = f"{store.root}/leases/{artifact.kind}-{artifact.name}-{artifact.fingerprint}.json"
    holder = {"host": "elsewhere/1", "pid": 1, "started": 0.0, "token": "t", "heard": time.time()}
    store.write(path, json.dumps(holder).encode())
    heard: list[str] = []

    def waiting(name: str) -> None:
        heard.append(name)
        monkeypatch.setattr(store_module, "LEASE_TTL_S", 2.0)

    with store.lease(artifact, waiting):
        assert time.time() - float(str(holder["heard"])) >= 2.0
    assert heard == ["process 1 on elsewhere"]


@pytest.mark.parametrize("store", ["local"], indirect=True)
def test_a_storage_that_fails_for_a_moment_costs_neither_the_lease_nor_the_work(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "HEARTBEAT_S", 0.02)
    artifact = store.artifact("models", "m", Spec(1))
    path = f"{store.root}/leases/{artifact.kind}-{artifact.name}-{artifact.fingerprint}.json"
    whole, failed = store.filesystem.cat_file, []

    def fails(name: str, *args: object, **kwargs: object) -> bytes:
        failed.append(name)
        raise OSError("no answer")

    def beaten_after(moment: float) -> bool:
        return bool(json.loads(whole(path))["heard"] > moment)

    with store.lease(artifact):
        with monkeypatch.context() as out:
            out.setattr(store.filesystem, "cat_file", fails)
            wait_for(lambda: path in failed, 10, "a missed beat", 0.02)
        again = time.time()
        wait_for(lambda: beaten_after(again), 10, "the next beat", 0.02)
        monkeypatch.setattr(store.filesystem, "cat_file", fails)
    assert store.exists(path), "it could not be seen whose it is"


def test_a_lease_of_other_fields_is_void_when_it_is_old(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = store.artifact("models", "m", Spec(1))
    path = f"{store.root}/leases/{artifact.kind}-{artifact.name}-{artifact.fingerprint}.json"
    store.write(path, json.dumps({"machine": "elsewhere"}).encode())
    monkeypatch.setattr(store_module, "LEASE_TTL_S", 0.0)
    with store.lease(artifact):
        assert store._holder(path) is not None


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds something else"):
        Store(str(tmp_path)).prepare()
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("marker", "told"),
    [
        ('{"format": 1}', r"holds results of format 1, .* choose another folder with --storage and keep this one"),
        ('{"format": 99}', r"of format 99, which a later version of rllava wrote; update rllava, or choose another"),
        ("{", r"rllava-storage\.json cannot be read; choose another folder with --storage"),
    ],
)
def test_results_of_another_format_are_told_in_one_line_and_kept(marker: str, told: str, tmp_path: Path) -> None:
    kept = tmp_path / "models/old-0123/COMPLETE"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    file = tmp_path / "rllava-storage.json"
    file.write_text(marker)
    with pytest.raises(UserError, match=told) as caught:
        Store(str(tmp_path)).prepare()
    assert "\n" not in str(caught.value)
    assert file.read_text() == marker
    assert kept.exists()


def test_a_storage_says_its_format_and_is_taken_again(store: Store) -> None:
    store.prepare()
    assert json.loads(store.filesystem.cat_file(f"{store.root}/rllava-storage.json")) == {"format": FORMAT}


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


@pytest.mark.parametrize(
    ("options", "says"), [("size=4k", "no space is left there"), ("size=4k,ro", "it is mounted read-only")]
)
def test_full_and_read_only_disks_are_named(options: str, says: str) -> None:
    prepare = (
        "from rllava.errors import UserError\nfrom rllava.store import Store\n"
        "try: Store('/mnt/results').prepare()\nexcept UserError as error: print(error)"
    )
    mounted = f'set -e; mount -t tmpfs -o {options} none /mnt; head -c 4096 /dev/zero > /mnt/full || true; exec "$@"'
    command = ["unshare", "-m", "bash", "-c", mounted, "bash", sys.executable, "-c", prepare]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip(f"needs the right to mount: {done.stderr.strip()[-200:]}")
    assert done.stdout.startswith("storage /mnt/results cannot be written: ")
    assert says in done.stdout
    assert done.stdout.count("\n") == 1


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
