"""Connecting: a local Ray that dies with its driver, and clear answers to wrong addresses."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.connect import (
    AUTOSCALING_LABEL,
    ClusterInfo,
    NodeInfo,
    connect,
    max_resources,
    warning_of_open_cluster,
)
from cluster.machine import usable_cores
from rllava.errors import UserError
from tests.fixtures.processes import Tracked
from tests.fixtures.ray_cluster import RayHead, free_port, run_ray_head

# A worker that computes without pause and one whose own child has left its process group: the hard ones to end.
DRIVER = """
import os, subprocess, sys, time
import ray
from cluster.connect import connect

info = connect(cpus=8)
assert info.is_local and info.cpus == 8, info

@ray.remote
def compute(folder):
    open(folder + "/computing", "w").close()
    while True:
        pass

@ray.remote
def environment():
    subprocess.Popen(["sleep", "3600"], start_new_session=True)
    return os.environ["OMP_NUM_THREADS"], os.environ.get("DS_ACCELERATOR")

running = compute.remote(sys.argv[1])
print(*ray.get(environment.remote()), flush=True)
while not os.path.exists(sys.argv[1] + "/computing"):
    time.sleep(0.1)
if sys.argv[2] == "stay":
    print("ready", flush=True)
    time.sleep(3600)
"""


@pytest.fixture
def driver_script(tmp_path: Path) -> Path:
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    return script


def start_driver(script: Path, what: str, tracked: Tracked) -> subprocess.Popen[str]:
    env = {name: value for name, value in tracked.env.items() if not name.startswith(("RAY_", "OMP_", "DS_"))}
    env["PYTHONPATH"] = os.getcwd()
    return subprocess.Popen(
        [sys.executable, str(script), str(script.parent), what],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_local_ray_dies_with_a_killed_driver(driver_script: Path, tracked: Tracked) -> None:
    driver = start_driver(driver_script, "stay", tracked)
    assert driver.stdout is not None
    assert driver.stderr is not None
    threads, accelerator = driver.stdout.readline().split()
    assert int(threads) == max(1, usable_cores() // 2)
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        assert accelerator == "cpu"
    assert driver.stdout.readline() == "ready\n"
    assert len(tracked.ray_processes()) >= 5
    driver.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    driver.wait()
    tracked.assert_gone()
    print(f"all processes gone {time.monotonic() - killed:.1f} s after the driver was killed")
    driver.stdout.close()
    driver.stderr.close()


def test_local_ray_leaves_nothing_and_says_nothing_at_a_normal_exit(driver_script: Path, tracked: Tracked) -> None:
    driver = start_driver(driver_script, "go", tracked)
    out, err = driver.communicate(timeout=600)
    assert driver.returncode == 0, err
    assert len(out.splitlines()) == 1
    assert err == ""
    tracked.assert_gone()


LAST_WORDS = """
import os
import ray._private.worker as worker
from cluster.connect import connect

disconnect = worker.disconnect

def speak(*given):
    if worker.global_worker.connected:
        os.write(2, b"task_manager.cc:1545: Failed to push error to driver\\n")
    disconnect(*given)

worker.disconnect = speak
connect(cpus=2)
print("connected")
"""


def test_what_ray_says_on_leaving_is_not_shown(tmp_path: Path, tracked: Tracked) -> None:
    script = tmp_path / "last_words.py"
    script.write_text(LAST_WORDS)
    driver = start_driver(script, "go", tracked)
    out, err = driver.communicate(timeout=600)
    assert (driver.returncode, out, err) == (0, "connected\n", "")
    tracked.assert_gone()


def test_second_connect_describes_the_same_ray(local_ray: ClusterInfo) -> None:
    again = connect()
    assert again.is_local
    assert again.cpus == local_ray.cpus == 12
    assert again.nodes[0].address == local_ray.nodes[0].address
    assert again.memory > 0
    assert not again.autoscaling


def run_connect(address: str, tracked: Tracked) -> str:
    """Connects in a process of its own and returns the message of the UserError."""
    script = (
        "import sys; from cluster.connect import connect; from rllava.errors import UserError\n"
        "try: connect(sys.argv[1])\n"
        "except UserError as error: print(error)"
    )
    env = {**tracked.env, "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", script, address], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://127.0.0.1:8265", "ray job submit --address"),
        ("somewhere", "give host:port"),
        ("127.0.0.1:{port}", "nothing answers there"),
    ],
)
def test_wrong_address_is_answered_in_one_line(address: str, says: str, tracked: Tracked) -> None:
    message = run_connect(address.format(port=free_port()), tracked)
    assert says in message
    assert message.count("\n") == 1


def test_ray_address_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UserError, match=r"Ray address '127\.0\.0\.1:1': nothing answers"):
        connect()


def test_limits_of_a_launcher_config() -> None:
    config = {
        "max_workers": 10,
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 0}},
            "gpu": {"max_workers": 3, "resources": {"CPU": 8, "GPU": 1}},
            "cpu": {"max_workers": 40, "resources": {"CPU": 2}},
        },
    }
    assert max_resources(config) == {"CPU": 3 * 8 + 10 * 2, "GPU": 3}


def test_info_adds_up_its_nodes() -> None:
    nodes = (NodeInfo("a", {"CPU": 2.0, "GPU": 1.0, "memory": 5.0}), NodeInfo("b", {"CPU": 3.0}))
    info = ClusterInfo(nodes, is_local=False)
    assert (info.cpus, info.gpus, info.memory) == (5, 1, 5)
    assert info.knows("GPU")
    assert not info.knows("rllava_train")
    ours = NodeInfo("head", {}, {AUTOSCALING_LABEL: "true"})
    assert ClusterInfo((*nodes, ours), is_local=False, autoscaling=True).knows("rllava_train")
    theirs = ClusterInfo(nodes, is_local=False, autoscaling=True)
    assert not theirs.knows("rllava_train")
    assert theirs.unlimited


@pytest.mark.parametrize(
    ("info", "says"),
    [
        (ClusterInfo((NodeInfo("a", {"CPU": 4.0}),), False), "cluster of 1 node with 4 CPUs and 0 GPUs; it does not"),
        (
            ClusterInfo((NodeInfo("a", {}),) * 2, False, True),
            "of 2 nodes with 0 CPUs and 0 GPUs; it autoscales, to what",
        ),
        (
            ClusterInfo((NodeInfo("a", {"CPU": 4.0}),), False, True, {"CPU": float(sys.maxsize), "GPU": 16.0}),
            "it autoscales to any number of CPUs and 16 GPUs",
        ),
    ],
)
def test_what_was_found_is_one_line(info: ClusterInfo, says: str) -> None:
    assert says in info.summary()


THERE = """
import os, ray
from cluster.connect import connect, warning_of_open_cluster

info = connect(os.environ["ADDRESS"])
print(info.autoscaling, info.unlimited, info.knows("GPU"), info.knows("rllava_train"))
from ray._private.worker import global_worker
from ray.core.generated import autoscaler_pb2
kinds = [autoscaler_pb2.NodeGroupConfig(resources={"CPU": 8, "GPU": 4}, max_count=3, name="gpu")]
global_worker.gcs_client.internal_kv_put(
    ray._raylet.GCS_AUTOSCALER_CLUSTER_CONFIG_KEY.encode(),
    autoscaler_pb2.ClusterConfig(node_group_configs=kinds).SerializeToString(),
    True,
    ray._raylet.GCS_AUTOSCALER_STATE_NAMESPACE.encode(),
)
told = connect()
limits = sorted(told.max_resources.items())
print(told.autoscaling, told.unlimited, limits, told.knows("GPU"), told.knows("rllava_train"))
print(warning_of_open_cluster(told))
"""


def ask(head: RayHead, **env: str) -> str:
    environment = {**head.env, "ADDRESS": head.address, "PYTHONPATH": os.getcwd(), **env}
    done = subprocess.run(
        [sys.executable, "-c", THERE], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    return done.stdout + done.stderr


def test_a_cluster_without_our_label_says_that_it_grows() -> None:
    """No label, no launcher's file: as under KubeRay. First by its autoscaler alone, then as a platform tells Ray."""
    kinds = {"gpu": {"resources": {"CPU": 4, "GPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 3}}
    with run_ray_head(num_cpus=2, node_types=kinds) as head:
        lines = ask(head).splitlines()
        assert lines[0] == "True True False False"
        assert lines[1] == "True False [('CPU', 24.0), ('GPU', 12.0)] True False"
        assert lines[2] == "None"
        refused = ask(head, RAY_AUTH_MODE="disabled", RAY_AUTH_TOKEN_PATH="/nowhere")
        assert "the cluster asks for another token than this process has; export RAY_AUTH_MODE=token" in refused


def test_a_cluster_of_the_second_autoscaler_says_that_it_grows() -> None:
    """What KubeRay's operator gives its pods where the autoscaler is on."""
    given = {"RAY_enable_autoscaler_v2": "1", "RAY_NODE_TYPE_NAME": "headgroup"}
    with run_ray_head(num_cpus=2, extra_env=given) as head:
        assert ask(head).splitlines()[0] == "True True False False"


def test_a_cluster_that_does_not_grow_says_so(ray_head: RayHead) -> None:
    script = "import os; from cluster.connect import connect; print(connect(os.environ['ADDRESS']).autoscaling)"
    env = {**ray_head.env, "ADDRESS": ray_head.address, "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize(
    ("address", "mode", "warns"),
    [("10.0.0.1", "disabled", True), ("127.0.0.1", "disabled", False), ("10.0.0.1", "token", False)],
)
def test_a_cluster_that_anybody_may_use_warns(
    address: str, mode: str, warns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._raylet import AuthenticationMode

    found = AuthenticationMode.TOKEN if mode == "token" else AuthenticationMode.DISABLED
    monkeypatch.setattr("cluster.connect.get_authentication_mode", lambda: found)
    warning = warning_of_open_cluster(ClusterInfo((NodeInfo("127.0.0.1", {}), NodeInfo(address, {})), is_local=False))
    assert (warning is not None) == warns
    assert warning is None or ("whoever reaches 10.0.0.1 runs code on it" in warning and "\n" not in warning)
