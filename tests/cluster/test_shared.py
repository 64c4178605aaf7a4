"""What Ray Data keeps one of per cluster belongs to the process of a sweep, whatever earlier jobs left."""

import json
import subprocess
import sys
from pathlib import Path

from tests.fixtures.processes import processes_called, track
from tests.fixtures.ray_cluster import RAY, RayHead

# An earlier job's driver was on the node "lost": what it made is pinned there.
EARLIER = """
import ray
from cluster.shared import share_ray_data
ray.init()
ray.get(ray.remote(resources={"lost": 1}, num_cpus=1)(share_ray_data).remote())
"""

LATER = """
import json
import ray
from cluster.shared import NAMESPACES, _elsewhere, _small_pipeline, share_ray_data
ray.init()
share_ray_data()
made = [actor for actor in ray.util.list_named_actors(all_namespaces=True) if actor["namespace"] in NAMESPACES]
ray.get(ray.remote(num_cpus=1, max_retries=0)(_small_pipeline).remote(), timeout=60)
after = [actor for actor in ray.util.list_named_actors(all_namespaces=True) if actor["namespace"] in NAMESPACES]
print("RESULT", json.dumps({"made": made, "after": after, "elsewhere": len(_elsewhere())}))
"""


def run_driver(head: RayHead, script: str) -> str:
    env = {**head.env, "RAY_ADDRESS": head.address, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_actors_of_an_earlier_job_on_a_lost_node_are_replaced(ray_head: RayHead) -> None:
    mark = track()
    env = {**ray_head.env, mark.name: mark.value}
    command = [RAY, "start", "--address", ray_head.address, "--num-cpus", "2", "--num-gpus", "0", "--block"]
    command += ["--node-ip-address", "127.0.0.1", "--disable-usage-stats", "--resources", json.dumps({"lost": 1})]
    node = subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        run_driver(ray_head, EARLIER)
        (raylet,) = processes_called(mark, "/raylet ")
        raylet.kill()
        # At once: the cluster may not have noticed yet.
        result = json.loads(run_driver(ray_head, LATER).split("RESULT ")[1])
    finally:
        mark.kill()
        node.wait()
    assert {actor["name"] for actor in result["made"]} >= {"ActorLocationTracker", "AutoscalingCoordinator"}
    assert result["after"] == result["made"], "a trial would have made some of its own"
    assert result["elsewhere"] == 0
