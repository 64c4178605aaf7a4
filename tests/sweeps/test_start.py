"""What a start asks of its storage does not grow with artifacts or shards; what is missing is noticed all the same."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.loading import load_sweep
from benchmarks.start_of_sweep import lay_out, start
from benchmarks.storage_requests import counted_on_s3
from rllava.errors import UserError
from rllava.steps import lacking
from sweeps import runner
from sweeps.plan import Plan, prepare_data


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return lay_out(
        str(tmp_path_factory.mktemp("finished") / "results"), candidates=1, shards=2, benchmarks=["easy_vqa"]
    )


@pytest.fixture
def copy(finished: Plan, tmp_path: Path) -> Plan:
    shutil.copytree(finished.storage, tmp_path / "results")
    return replace(finished, storage=str(tmp_path / "results"))


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(runner, "find_machines", refuse)


def test_requests_do_not_grow_with_artifacts_or_shards(s3_storage: str) -> None:
    asked: list[Counter[str]] = []
    for candidates, shards, benchmarks in ((1, 2, ["easy_vqa"]), (2, 3, ["easy_vqa", "easy_captions"])):
        plan = lay_out(f"{s3_storage}/start", candidates, shards, benchmarks)
        start(plan)
        with counted_on_s3() as requests:
            start(plan)
        asked.append(requests.calls)
    assert asked[0] == asked[1]
    assert asked[0].total() < 40


def test_a_start_finds_the_table_that_the_parts_say(copy: Plan) -> None:
    start(copy)
    gathered = load_sweep(copy.storage, copy.sweep)
    (Path(copy.storage) / "reports" / copy.sweep / "records.parquet").write_bytes(b"torn")
    read = load_sweep(copy.storage, copy.sweep)
    assert gathered.records.equals(read.records)
    assert list(gathered.records.dtypes) == list(read.records.dtypes)

    part = next((Path(copy.storage) / "records").glob("*/part-00001.parquet"))
    part.unlink()
    with pytest.raises(UserError, match="1 parts where 2 were written; run the sweep again"):
        load_sweep(copy.storage, copy.sweep)


def test_a_lost_part_is_computed_again(copy: Plan) -> None:
    (candidate,) = copy.grid.candidates
    (level,) = copy.levels
    tasks = [copy.task(step) for step in level[candidate.name]]
    assert lacking(tasks, copy.store) == []
    assert runner.unfinished(copy, 0, copy.store.snapshot(copy.artifacts())) == []
    lost = next(task for task in tasks if task.artifact == copy.evaluations(candidate)[2][1])
    Path(lost.artifact.path, "part-00001.parquet").unlink()
    assert lacking(tasks, copy.store) == [lost]
    assert runner.unfinished(copy, 0, copy.store.snapshot(copy.artifacts())) == [candidate.name]


def test_lost_shards_of_data_are_built_again(copy: Plan) -> None:
    folder = Path(copy.benchmark_folder(copy.grid.benchmarks[0]))
    lost = folder / "part-00001.parquet"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    lost.unlink()
    said: list[str] = []
    prepare_data(copy, said.append)
    assert said == ["easy_vqa: 1 shards are missing; preparing them again"]
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_lost_shards_are_not_made_of_other_data(copy: Plan) -> None:
    folder = Path(copy.benchmark_folder(copy.grid.benchmarks[0]))
    (folder / "part-00001.parquet").unlink()
    listing = folder / "listing.json"
    listing.write_text(listing.read_text().replace('{"digest": "', '{"digest": "0'))
    with pytest.raises(UserError, match="source 'easy_vqa' has other rows than when they were written"):
        prepare_data(copy, lambda _: None)
