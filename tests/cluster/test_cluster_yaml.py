"""cluster.yaml: valid for Ray, launchable as far as a stand-in for AWS can tell, and in step with placement."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster import placement
from cluster.connect import AUTOSCALING_LABEL, ClusterInfo, NodeInfo, max_resources
from cluster.placement import Request, check_fits, place
from tests.fixtures.s3_server import run_s3_server

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def config() -> dict[str, Any]:
    loaded = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert isinstance(loaded, dict)
    return loaded


def nodes_with(config: dict[str, Any], resource: str) -> set[str]:
    return {name for name, kind in config["available_node_types"].items() if kind["resources"].get(resource, 0) > 0}


def test_ray_schema_accepts_it_and_ray_prepares_it(config: dict[str, Any]) -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["available_node_types"]["head"]["max_workers"] == 0


def test_schema_check_is_awake(config: dict[str, Any]) -> None:
    config["available_node_types"]["head"]["resources"]["CPU"] = "many"
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(config))


def test_head_takes_no_work_and_says_that_the_cluster_grows(config: dict[str, Any]) -> None:
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert head["labels"][AUTOSCALING_LABEL] == "true"


@pytest.mark.parametrize(
    ("resource", "types"),
    [
        (placement.DRIVER, {"driver"}),
        (placement.TRAIN, {"train_8xA100"}),
        (placement.ATTACK, {"attack_1xL40S"}),
        (placement.DATA, {"driver", "attack_1xL40S"}),
        ("GPU", {"train_8xA100", "attack_1xL40S"}),
    ],
)
def test_each_role_is_served_by_the_intended_nodes_alone(
    config: dict[str, Any], resource: str, types: set[str]
) -> None:
    assert nodes_with(config, resource) == types


def test_no_resource_of_ours_is_unknown_to_placement(config: dict[str, Any]) -> None:
    known = {placement.DRIVER, placement.TRAIN, placement.ATTACK, placement.DATA}
    named = {name for kind in config["available_node_types"].values() for name in kind["resources"]}
    assert {name for name in named if name.startswith("rllava")} == known


def test_spot_is_for_attacks_and_nothing_that_must_last(config: dict[str, Any]) -> None:
    for name, kind in config["available_node_types"].items():
        spot = kind["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        assert spot == (name == "attack_1xL40S"), name
        assert kind["labels"]["rllava-market"] == ("spot" if spot else "on-demand")


def test_every_machine_may_use_the_bucket(config: dict[str, Any]) -> None:
    profiles = {
        n: kind["node_config"]["IamInstanceProfile"]["Name"] for n, kind in config["available_node_types"].items()
    }
    assert profiles.pop(config["head_node_type"]) == "rllava-head"
    assert set(profiles.values()) == {"rllava-worker"}
    results = [words for words in words_of_roles() if words[1] == "put-role-policy" and "results" in words]
    commands = {words[words.index("--role-name") + 1]: words[-1] for words in results}
    for role in ("rllava-head", "rllava-worker"):
        policy = json.loads(commands[role])
        allowed = {action: rule["Resource"] for rule in policy["Statement"] for action in as_list(rule["Action"])}
        objects = {"s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"}
        assert allowed == {
            "s3:ListBucket": "arn:aws:s3:::my-bucket",
            **dict.fromkeys(objects, "arn:aws:s3:::my-bucket/*"),
        }


def as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def test_an_idle_cluster_shrinks_to_its_head(config: dict[str, Any]) -> None:
    workers = {name: kind for name, kind in config["available_node_types"].items() if name != "head"}
    assert all(kind["min_workers"] == 0 and kind["max_workers"] >= 1 for kind in workers.values())
    assert config["idle_timeout_minutes"] <= 15
    assert all(kind["idle_timeout_s"] <= 900 for kind in workers.values())
    assert sum(kind["max_workers"] for kind in workers.values()) == config["max_workers"]


def test_a_request_of_every_role_fits_on_one_node_of_its_type(config: dict[str, Any]) -> None:
    head = NodeInfo("head", {}, {AUTOSCALING_LABEL: "true"})
    info = ClusterInfo((head,), is_local=False, autoscaling=True, max_resources=max_resources(config))
    placed = place(info, workers=8, attack_workers=32)
    roles = {
        "driver": (placed.trial, 8),
        "train_8xA100": (placed.train_worker, 8),
        "attack_1xL40S": (placed.attack_worker, 1),
    }
    for name, (request, count) in roles.items():
        node = config["available_node_types"][name]["resources"]
        assert all(node.get(resource, 0) >= count * amount for resource, amount in request.items()), name
    # An attack machine has room for the tasks that feed its worker.
    attack = config["available_node_types"]["attack_1xL40S"]["resources"]
    assert attack["CPU"] >= placed.attack_worker["CPU"] + attack[placement.DATA] * placed.data_task["CPU"]
    check_fits(placed, Request(trials=4), info)


def test_what_it_copies_is_there_and_installs_the_project(config: dict[str, Any]) -> None:
    token = {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    local = {here for there, here in config["file_mounts"].items() if there not in token}
    assert {here for here in local if not (ROOT / here).exists()} == set()
    assert token.items() <= config["file_mounts"].items()
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}  # not installed
    assert {f"./{package}" for package in packages} <= local
    assert any("pip install -c constraints/gpu.txt -e ." in command for command in config["setup_commands"])


def test_image_has_the_ray_that_the_constraints_name(config: dict[str, Any]) -> None:
    (pinned,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints" / "gpu.txt").read_text(), flags=re.MULTILINE)
    assert config["docker"]["image"] == f"rayproject/ray:{pinned}-py311-gpu"


def test_every_start_demands_the_token(config: dict[str, Any]) -> None:
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        (start,) = [command for command in commands if "ray start" in command]
        assert "RAY_AUTH_MODE=token ray start" in start
    assert "--dashboard-host=127.0.0.1" in " ".join(config["head_start_ray_commands"])


LAUNCH = """
import copy, json, sys
import boto3, yaml
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.providers import _get_node_provider

config = yaml.safe_load(open("cluster.yaml"))
ec2 = boto3.client("ec2", region_name=config["provider"]["region"])
image = ec2.describe_images()["Images"][0]["ImageId"]
for kind in config["available_node_types"].values():
    kind["node_config"]["ImageId"] = image
ready = _bootstrap_config(config, no_config_cache=True)
provider = _get_node_provider(ready["provider"], ready["cluster_name"])
for name, kind in ready["available_node_types"].items():
    tags = {"ray-node-kind": "worker", "ray-user-node-type": name, "ray-node-name": name, "ray-node-status": "x"}
    provider.create_node(copy.deepcopy(kind["node_config"]), tags, 1)
launched = [node for group in ec2.describe_instances()["Reservations"] for node in group["Instances"]]
markets = {node["InstanceType"]: node.get("InstanceLifecycle", "on-demand") for node in launched}
roles = {node["InstanceType"]: node["IamInstanceProfile"]["Arn"].rsplit("/", 1)[-1] for node in launched}
resources = {name: kind["resources"] for name, kind in ready["available_node_types"].items()}
json.dump({"markets": markets, "resources": resources, "roles": roles}, open(sys.argv[1], "w"))
"""

ROLES = """
import json, sys
import boto3

for words in json.load(open(sys.argv[2])):
    service, verb, *options = words
    names = ["".join(part.title() for part in word.removeprefix("--").split("-")) for word in options[::2]]
    getattr(boto3.client(service), verb.replace("-", "_"))(**dict(zip(names, options[1::2], strict=True)))
"""
"""Does what Amazon's command line would, as far as cluster.yaml uses it."""


def words_of_roles() -> list[list[str]]:
    """The words of every aws command by which cluster.yaml says the roles are made, as a shell makes them."""
    aws = """aws() { printf '%s\\1' "$@"; printf '\\2'; }\n"""
    done = subprocess.run(["bash", "-e", "-c", aws + role_commands()], capture_output=True, text=True, check=True)
    return [command.split("\1")[:-1] for command in done.stdout.split("\2")[:-1]]


def role_commands() -> str:
    """The shell commands by which cluster.yaml says the roles are made."""
    lines = [line.removeprefix("#") for line in (ROOT / "cluster.yaml").read_text().splitlines() if line[:1] == "#"]
    first = next(index for index, line in enumerate(lines) if "BUCKET=" in line)
    return "\n".join(lines[first : lines.index(" Then:")])


def test_ray_launches_every_node_type_on_a_stand_in_for_aws(tmp_path: Path, config: dict[str, Any]) -> None:
    """Ray's own launcher goes all the way to EC2's API: roles, keys, subnets, instance types, spot."""
    script, result, home = tmp_path / "launch.py", tmp_path / "launched.json", tmp_path / "home"
    script.write_text(ROLES + LAUNCH)
    commands = tmp_path / "commands.json"
    commands.write_text(json.dumps(words_of_roles()))
    home.mkdir()  # the launcher writes a key there
    with run_s3_server(tmp_path, {"MOTO_IAM_LOAD_MANAGED_POLICIES": "true"}) as server:
        env = {**os.environ, **server.env, "HOME": str(home)}
        done = subprocess.run(
            [sys.executable, str(script), str(result), str(commands)],
            env=env,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=600,
        )
    assert done.returncode == 0, done.stderr
    launched = json.loads(result.read_text())
    assert launched["markets"] == {
        "m6i.2xlarge": "on-demand",
        "m6i.4xlarge": "on-demand",
        "p4de.24xlarge": "on-demand",
        "g6e.2xlarge": "spot",
    }
    assert launched["roles"] == {
        "m6i.2xlarge": "rllava-head",
        "m6i.4xlarge": "rllava-worker",
        "p4de.24xlarge": "rllava-worker",
        "g6e.2xlarge": "rllava-worker",
    }
    for name, kind in config["available_node_types"].items():
        # What AWS says of the instance type leaves our numbers as they are, and they are true.
        assert kind["resources"].items() <= launched["resources"][name].items()
    assert launched["resources"]["train_8xA100"]["accelerator_type:A100"] == 1
    assert launched["resources"]["attack_1xL40S"]["accelerator_type:L40S"] == 1


def test_our_numbers_of_cpus_and_gpus_are_those_of_the_instance_types(config: dict[str, Any]) -> None:
    from moto.ec2.models.instance_types import INSTANCE_TYPES

    def true_resources(name: str) -> dict[str, int]:
        facts = INSTANCE_TYPES[name]
        gpus = facts.get("GpuInfo", {}).get("Gpus", [])
        return {"CPU": facts["VCpuInfo"]["DefaultVCpus"], "GPU": sum(gpu["Count"] for gpu in gpus)}

    for name, kind in config["available_node_types"].items():
        if name != "head":
            true = true_resources(kind["node_config"]["InstanceType"])
            assert {resource: kind["resources"].get(resource, 0) for resource in true} == true, name


@pytest.mark.parametrize(
    "break_it",
    [
        lambda config: config["available_node_types"]["driver"]["resources"].pop("rllava_driver"),
        lambda config: config["available_node_types"]["train_8xA100"].update(max_workers=0),
    ],
)
def test_a_missing_role_is_refused(config: dict[str, Any], break_it: Callable[[dict[str, Any]], object]) -> None:
    intact = ClusterInfo((), is_local=False, autoscaling=True, max_resources=max_resources(config))
    placed = place(intact, workers=8)
    break_it(config)
    broken = ClusterInfo((), is_local=False, autoscaling=True, max_resources=max_resources(config))
    with pytest.raises(ValueError, match="can grow to"):
        check_fits(placed, Request(1), broken)
