"""Placement: the same requests on a laptop and a cluster, and refusals that say what to change."""

from dataclasses import replace

import pytest
import ray
from ray import tune
from ray.util.placement_group import placement_group, remove_placement_group

from cluster.connect import ClusterInfo, NodeInfo
from cluster.placement import Placement, Request, attack_share, check_fits, logical_cpus, place
from rllava.errors import UserError

GIB = 1024.0**3
LAPTOP = ClusterInfo((NodeInfo("a", {"CPU": 12.0, "memory": 8 * GIB}),), is_local=True)
GPU_BOX = ClusterInfo((NodeInfo("a", {"CPU": 32.0, "GPU": 4.0, "memory": 200 * GIB}),), is_local=False)
HEAD = NodeInfo("head", {}, {"rllava-autoscaling": "true"})
OURS = ClusterInfo(
    (HEAD,),
    is_local=False,
    autoscaling=True,
    max_resources={
        **{"CPU": 448.0, "GPU": 48.0, "rllava_driver": 16.0, "rllava_train": 32.0},
        **{"rllava_attack": 16.0, "rllava_data": 80.0},
    },
)
UNKNOWN_LIMITS = replace(OURS, max_resources=None)


def test_laptop_asks_for_logical_cpus_only() -> None:
    placement = place(LAPTOP, workers=2)
    assert placement.trial_resources() == {"CPU": 1}
    assert placement.attack_args()["num_cpus"] == 1
    assert placement.data_args() == {"num_cpus": 1}
    scaling = placement.scaling_config()
    assert (scaling.num_workers, scaling.use_gpu, scaling.resources_per_worker) == (2, False, {"CPU": 1})


@pytest.mark.parametrize("info", [OURS, UNKNOWN_LIMITS], ids=["known limits", "unknown limits"])
def test_our_cluster_is_asked_by_role_before_any_worker_is_up(info: ClusterInfo) -> None:
    placement = place(info, workers=8, attack_workers=16)
    assert placement.trial_resources() == {"CPU": 1, "rllava_driver": 1}
    assert dict(placement.train_worker) == {"CPU": 8, "GPU": 1, "rllava_train": 1}
    assert placement.data_args() == {"num_cpus": 1, "resources": {"rllava_data": 1}}
    attack = placement.attack_args()
    pool = attack.pop("compute")
    assert (pool.min_size, pool.max_size) == (1, 16)
    assert attack == {"num_cpus": 2, "num_gpus": 1, "resources": {"rllava_attack": 1}}
    assert placement.scaling_config().use_gpu


def test_a_plain_gpu_machine_is_not_asked_for_what_it_lacks() -> None:
    placement = place(GPU_BOX, workers=4)
    assert dict(placement.trial) == {"CPU": 1}
    assert dict(placement.train_worker) == {"CPU": 6, "GPU": 1}
    check_fits(placement, Request(1), GPU_BOX)


def test_attack_workers_may_share_a_gpu_and_training_workers_may_not() -> None:
    placement = place(GPU_BOX, workers=1, gpus=0.25)
    assert placement.attack_worker["GPU"] == 0.25
    assert placement.train_worker["GPU"] == 1


def test_gpus_can_be_declined() -> None:
    placement = place(GPU_BOX, workers=1, gpus=0)
    assert not placement.scaling_config().use_gpu
    assert "num_gpus" not in placement.attack_args()


THEIRS = ClusterInfo((NodeInfo("head", {"CPU": 4.0}),), is_local=False, autoscaling=True)
THEIRS_KNOWN = replace(THEIRS, max_resources={"CPU": 68.0, "GPU": 16.0})


def test_a_cluster_made_otherwise_is_not_asked_for_our_roles() -> None:
    for info, cores in ((THEIRS, 2), (THEIRS_KNOWN, 2)):
        placement = place(info, workers=2, gpus=1.0)
        assert dict(placement.trial) == {"CPU": 1}
        assert dict(placement.train_worker) == {"CPU": cores, "GPU": 1}
        check_fits(placement, Request(1), info)
    assert place(THEIRS_KNOWN, workers=2).train_worker["GPU"] == 1
    assert "GPU" not in place(THEIRS, workers=2).train_worker


@pytest.mark.parametrize(
    ("info", "trials", "share"),
    [
        (LAPTOP, 2, 1),
        (GPU_BOX, 1, 4),
        (GPU_BOX, 2, 2),
        (GPU_BOX, 8, 1),
        (replace(GPU_BOX, nodes=(NodeInfo("a", {"CPU": 12.0}),)), 2, 4),
        (OURS, 4, 4),
        (OURS, 1, 16),
        (THEIRS, 1, 2),
        (THEIRS_KNOWN, 2, 8),
        (replace(THEIRS, max_resources={"CPU": 2.0**62, "GPU": 2.0**62}), 2, 1000),
    ],
)
def test_attack_workers_share_what_a_cluster_has_or_can_grow_to(info: ClusterInfo, trials: int, share: int) -> None:
    assert attack_share(place(info, workers=1), trials, info) == share


@pytest.mark.parametrize(("workers", "gpus"), [(0, None), (1, -1.0), (1, 1.5), (1, float("nan"))])
def test_impossible_requests(workers: int, gpus: float | None) -> None:
    with pytest.raises(UserError, match="give"):
        place(LAPTOP, workers, gpus)


@pytest.mark.parametrize("gib", [-1.0, float("nan")])
def test_memory_that_is_none(gib: float) -> None:
    with pytest.raises(UserError, match=f"{gib:g} GiB of memory per worker; give 0 to reserve none"):
        place(LAPTOP, 1, memory_per_worker=gib * GIB)


@pytest.mark.parametrize("trials", [1, 2, 3])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_logical_cpus_are_enough_for_the_plan(trials: int, workers: int) -> None:
    cpus = float(logical_cpus(trials, workers, attack_workers=1))
    info = ClusterInfo((NodeInfo("a", {"CPU": cpus}),), is_local=True)
    check_fits(place(info, workers), Request(trials), info)


@pytest.mark.parametrize(
    ("info", "placement", "trials", "says"),
    [
        (
            LAPTOP,
            place(LAPTOP, 4),
            3,
            "3 concurrent trials with 4 training workers each need 15 CPUs, but the cluster has 12 CPUs; "
            "run fewer trials at once or fewer workers, or start Ray with more logical CPUs",
        ),
        (
            GPU_BOX,
            place(GPU_BOX, 8),
            1,
            "1 concurrent trial with 8 training workers each need 8 GPUs, but the cluster has 4 GPUs; "
            "run fewer trials at once or fewer workers, or add nodes",
        ),
        (
            LAPTOP,
            place(LAPTOP, 1, memory_per_worker=16 * GIB),
            1,
            "1 concurrent trial with 1 training worker each need 16.0 GiB of memory, but the cluster has 8.0 GiB of "
            "memory; run fewer trials at once or fewer workers, or add nodes",
        ),
        (
            OURS,
            place(OURS, 64),
            1,
            "1 concurrent trial with 64 training workers each need 64 GPUs, but the cluster can grow to 48 GPUs; "
            "run fewer trials at once or raise max_workers of the node type with GPU in cluster.yaml",
        ),
        (
            LAPTOP,
            place(GPU_BOX, 1),
            1,
            "1 concurrent trial with 1 training worker each need 1 GPU, but the cluster has 0 GPUs; "
            "run fewer trials at once or fewer workers, or add nodes",
        ),
    ],
)
def test_refusals_say_what_is_needed_and_there(info: ClusterInfo, placement: Placement, trials: int, says: str) -> None:
    with pytest.raises(UserError) as caught:
        check_fits(placement, Request(trials), info)
    assert str(caught.value) == says


def test_workers_must_fit_on_nodes_not_only_in_sum() -> None:
    info = ClusterInfo(tuple(NodeInfo(name, {"CPU": 8.0, "memory": 10 * GIB}) for name in "abc"), is_local=False)
    placement = place(info, workers=2, memory_per_worker=12 * GIB)
    with pytest.raises(
        UserError, match=r"2 training workers of 1 CPU, 12\.0 GiB of memory each on one node .* room for 0"
    ):
        check_fits(placement, Request(1), info)


@pytest.mark.parametrize("info", [OURS, UNKNOWN_LIMITS], ids=["known limits", "unknown limits"])
def test_an_autoscaling_cluster_is_not_refused_for_nodes_to_come(info: ClusterInfo) -> None:
    check_fits(place(info, workers=8, attack_workers=16), Request(2), info)


def test_a_local_ray_grants_what_the_check_lets_through(local_ray: ClusterInfo) -> None:
    placement = place(local_ray, workers=2)
    bundles = tune.PlacementGroupFactory([placement.trial_resources()]).bundles
    bundles += [dict(placement.train_worker)] * 2 + [dict(placement.attack_worker), dict(placement.data_task)]
    check_fits(placement, Request(1), local_ray)
    group = placement_group(bundles)
    try:
        ray.get(group.ready(), timeout=600)
    finally:
        remove_placement_group(group)


def test_ray_data_takes_the_arguments(local_ray: ClusterInfo) -> None:
    class Increase:
        def __call__(self, batch: dict) -> dict:
            return {"id": batch["id"] + 1}

    placement = place(local_ray, workers=1)
    rows = (
        ray.data.range(4, override_num_blocks=2)
        .map_batches(lambda batch: batch, **placement.data_args())
        .map_batches(Increase, batch_size=2, **placement.attack_args())
        .take_all()
    )
    assert sorted(row["id"] for row in rows) == [1, 2, 3, 4]
