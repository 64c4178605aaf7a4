"""What a sweep takes of the machines it finds."""

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.connect import AUTOSCALING_LABEL, ClusterInfo, NodeInfo
from rllava.errors import UserError
from rllava.recipes import PRESETS
from sweeps import runner
from sweeps.console import log_of
from sweeps.encoder_ablation import Options, make_plan
from sweeps.plan import Plan
from sweeps.runner import Machines, find_machines, gpus_per_worker

LAPTOP = ClusterInfo((NodeInfo("127.0.0.1", {"CPU": 12.0}),), is_local=True)
CPUS = ClusterInfo((NodeInfo("10.0.0.1", {"CPU": 64.0}),), is_local=False)
GPUS = ClusterInfo((NodeInfo("10.0.0.1", {"CPU": 64.0, "GPU": 8.0}),), is_local=False)
GROWS = replace(CPUS, autoscaling=True)
OURS = ClusterInfo(
    (NodeInfo("10.0.0.1", {}, {AUTOSCALING_LABEL: "true"}),),
    is_local=False,
    autoscaling=True,
    max_resources={
        **{"CPU": 672.0, "GPU": 64.0, "rllava_driver": 16.0, "rllava_train": 32.0},
        **{"rllava_attack": 32.0, "rllava_data": 144.0},
    },
)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A small grid that says of itself that it is for GPUs."""
    made = make_plan(Options(preset="smoke", encoders=("tiny-clip", "tiny-advxl"), storage=str(tmp_path)))
    return replace(made, grid=replace(made.grid, for_gpus=True))


def test_the_paper_is_for_gpus_and_nothing_that_runs_on_a_laptop() -> None:
    assert {name for name in PRESETS if PRESETS.get(name).for_gpus} == {"paper"}


@pytest.mark.parametrize(
    ("info", "where"), [(LAPTOP, "this machine shows none"), (CPUS, "the cluster has none and can")]
)
def test_what_is_meant_for_gpus_is_not_trained_on_cpus_unasked(plan: Plan, info: ClusterInfo, where: str) -> None:
    with pytest.raises(UserError, match=rf"is meant to be trained on GPUs, and {where}.* insist on CPUs with --gpus 0"):
        gpus_per_worker(plan, None, info)
    assert gpus_per_worker(plan, 0.0, info) == 0.0
    other = replace(plan, grid=replace(plan.grid, for_gpus=False))
    assert gpus_per_worker(other, None, info) is None


def test_hidden_gpus_are_named(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match=r"CUDA_VISIBLE_DEVICES hides all"):
        gpus_per_worker(plan, None, LAPTOP)


def test_gpus_that_may_come_are_asked_for(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpus_per_worker(plan, None, GROWS) == 1.0
    assert (
        capsys.readouterr().err
        == "note: no GPU is there yet: workers ask for one each, and wait until the cluster brings them\n"
    )
    assert gpus_per_worker(plan, None, GPUS) is None


def test_what_trains_nothing_may_attack_on_cpus(plan: Plan) -> None:
    for candidate in plan.grid.candidates:
        spec, artifact = plan.model(candidate)
        plan.store.finish(artifact, spec, {})
    assert gpus_per_worker(plan, None, LAPTOP) is None


@pytest.mark.parametrize(
    ("info", "given", "trials", "attack_workers"),
    [(LAPTOP, None, 2, 1), (GPUS, None, 2, 4), (GPUS, 3, 2, 3), (OURS, None, 2, 16), (OURS, 1, 2, 1)],
)
def test_a_cluster_is_shared_by_its_trials(
    info: ClusterInfo,
    given: int | None,
    trials: int,
    attack_workers: int,
    plan: Plan,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(runner, "connect", lambda *_, **__: info)  # clusters that no test can start
    small = replace(plan, grid=replace(plan.grid, for_gpus=False))
    _, placement, running = find_machines(small, Machines(None, 1, given, 2, None, 0.0), missing=2)
    assert (running, placement.attack_workers) == (trials, attack_workers)
    told = capsys.readouterr().out
    assert told == ("" if info.is_local else f"{info.summary()}\n")


def test_a_storage_that_takes_no_log_does_not_hide_why_a_run_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = make_plan(Options(preset="smoke", encoders=("tiny-clip",), storage=f"memory://{tmp_path.name}"))
    machines = Machines(address=None, workers=0, attack_workers=None, trials=None, gpus=None, memory_gib=0.0)

    def refuses(*_: object, **__: object) -> None:
        raise OSError("the credentials have expired")

    with log_of("script"):
        with pytest.raises(UserError, match="--workers 0"):
            runner.run(made, machines)
        (kept,) = made.store.filesystem.find(f"{made.store.root}/{runner.LOGS}")
        assert kept.endswith(".log")
        monkeypatch.setattr(made.store.filesystem, "put_file", refuses)
        monkeypatch.setattr(made.store.filesystem, "pipe_file", refuses)
        monkeypatch.setattr(made.store, "prepare", lambda: None)
        with pytest.raises(UserError, match="--workers 0"):
            runner.run(made, machines)
