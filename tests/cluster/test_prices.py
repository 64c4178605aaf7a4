"""Prices and node types."""

from pathlib import Path

import pytest
import yaml

from cluster.connect import max_resources
from cluster.node_types import LAUNCHER, NodeType, gpus, read_launcher, running_nodes
from cluster.prices import check_prices, read_prices
from rllava.errors import UserError


def test_the_template_is_read_as_the_cluster_would_be() -> None:
    found = read_launcher(LAUNCHER)
    assert found.resources == max_resources(yaml.safe_load(LAUNCHER.read_text()))
    kinds = {kind.name: kind for kind in found.kinds}
    assert {name for name, kind in kinds.items() if kind.spot} == {"attack_1xL40S"}
    assert kinds["train_8xA100"].gpu == gpus()["A100-80GB"]
    assert (kinds["attack_1xL40S"].idle_s, kinds["head"].there, kinds["driver"].there) == (180.0, 1, 0)


def test_what_a_launcher_keeps_is_there_from_the_start(tmp_path: Path) -> None:
    config = yaml.safe_load(LAUNCHER.read_text())
    name = next(name for name in config["available_node_types"] if name != config["head_node_type"])
    config["available_node_types"][name]["min_workers"] = 2
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(config))
    found = {kind.name: kind for kind in read_launcher(tmp_path / "cluster.yaml").kinds}
    assert (found[name].there, found[name].kept) == (2, 2)
    assert sum(kind.there for kind in found.values()) == 3  # the head


def test_every_node_type_of_the_template_has_a_price() -> None:
    prices = read_prices()
    assert all(prices.of(kind) for kind in read_launcher(LAUNCHER).kinds)
    assert "read 20" in prices.source  # dated


def test_a_table_of_ones_own_has_to_name_every_node_type(tmp_path: Path) -> None:
    table = tmp_path / "mine.toml"
    lines = ('[instances."m6i.2xlarge"]', "on_demand = 0.3", "[instances.driver]", "on_demand = 1")
    lines += ('[instances."p4de.24xlarge"]', "on_demand = 20.0", '[instances."g6e.2xlarge"]', "on_demand = 2")
    table.write_text("\n".join(lines))
    prices = read_prices(str(table))
    kinds = read_launcher(LAUNCHER).kinds
    assert {kind.name: prices.of(kind) for kind in kinds} == {
        "head": 0.3, "driver": 1, "train_8xA100": 20.0, "attack_1xL40S": None,  # it is spot
    }  # fmt: skip
    with pytest.raises(UserError, match=r"no price for 1 node type: attack_1xL40S \(g6e.2xlarge, spot\); add") as told:
        check_prices(prices, kinds)
    assert "\n" not in str(told.value)
    check_prices(read_prices(), [NodeType("elsewhere", {}, 1)])  # the table that comes along need not know it


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[instances", "is no TOML"),
        ("source = 1", "no table of instances"),
        ("instances = 3", "no table of instances"),
        ("[instances]\na = 2", "is no table"),
        ('[instances.a]\non_demand = "2"', "give USD per hour"),
        ("[instances.a]\nspot = -1", "give USD per hour"),
    ],
)
def test_a_table_that_cannot_be_read_is_told_in_a_line(content: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(content)
    with pytest.raises(UserError, match=told) as error:
        read_prices(str(path))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="cannot be read"):
        read_prices(str(tmp_path / "none.toml"))


def test_nodes_of_a_running_cluster() -> None:
    nodes = [
        {"CPU": 8.0, "node:1": 1.0},
        {"CPU": 8.0, "node:2": 1.0},
        {"CPU": 4.0, "GPU": 1.0, "accelerator_type:L40S": 1.0},
    ]
    found = running_nodes(nodes, None)
    assert [(kind.most, kind.there, kind.gpu) for kind in found.kinds] == [(2, 2, None), (1, 1, gpus()["L40S"])]
    assert running_nodes(nodes, {"CPU": 32.0, "GPU": 4.0}).kinds[1].most == 4


def test_gpus_of_a_mixed_cluster_are_told_apart() -> None:
    nodes = [
        {"CPU": 8.0, "GPU": 1.0, "memory": 2e9, "accelerator_type:L40S": 1.0},
        {"CPU": 8.0, "GPU": 1.0, "memory": 2e9 - 4096, "accelerator_type:L40S": 1.0},
        {"CPU": 8.0, "GPU": 1.0, "memory": 2e9, "accelerator_type:A100-80G": 1.0},
        {"CPU": 8.0, "GPU": 1.0, "memory": 2e9, "accelerator_type:L4": 1.0},
    ]
    found = running_nodes(nodes, None).kinds
    names = [(kind.there, kind.gpu and kind.gpu.name, kind.memory) for kind in found]
    assert names == [(2, "L40S", 2e9 - 4096), (1, "A100-80GB", 2e9), (1, None, 2e9)]  # no GPU by half its name


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a: [", "is no YAML"),
        ("a: 1", "names no available_node_types"),
        ("available_node_types: {a: 3}", "is no file of Ray's cluster launcher"),
        ("max_workers: many\navailable_node_types: {a: {resources: {CPU: 1}}}", "is no file of Ray's"),
    ],
)
def test_a_launchers_file_that_is_none(content: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=told):
        read_launcher(path)
