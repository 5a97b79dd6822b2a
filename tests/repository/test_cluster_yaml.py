"""cluster.yaml and docs/cluster/on-premises.yaml are what ``ray up`` accepts, and say what docs/cluster.md promises."""

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from autoscaling import Demand, started
from ray._private.label_utils import validate_node_label_syntax
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import CloudResourceMonitor
from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent

from posefleet.platform.runtime.placement import MARKET, ROLE, SERVING, STEADY, TRAINING

ROOT = Path(__file__).resolve().parents[2]
FILES = ["cluster.yaml", "docs/cluster/on-premises.yaml"]

TRAINING_WORKER: Demand = ({"CPU": 8, "GPU": 1}, TRAINING)


def read(path: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / path).read_text())
    return config


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return read("cluster.yaml")


@pytest.fixture(params=FILES)
def any_cluster(request: pytest.FixtureRequest) -> dict[str, Any]:
    return read(request.param)


def validated(config: dict[str, Any]) -> dict[str, Any]:
    prepared: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_ray_accepts_the_cluster(cluster: dict[str, Any]) -> None:
    prepared = validated(cluster)
    assert prepared["setup_commands"] == cluster["setup_commands"]
    assert {name: kind["max_workers"] for name, kind in prepared["available_node_types"].items()} == {
        "head": 0,
        "data": 8,
        "train-spot": 4,
        "train-on-demand": 2,
        "serve": 4,
    }


def test_ray_accepts_the_cluster_of_ones_own_machines() -> None:
    config = read("docs/cluster/on-premises.yaml")
    (kind,) = validated(config)["available_node_types"].values()
    machines = len(config["provider"]["worker_ips"])
    assert kind["min_workers"] == kind["max_workers"] == machines
    assert config["min_workers"] == config["max_workers"] == machines


def test_ray_refuses_a_misspelt_key_so_the_check_means_something(any_cluster: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validated(any_cluster | {"idle_timeout": 3})


def test_ray_refuses_a_misspelt_key_of_a_node_type(cluster: dict[str, Any]) -> None:
    changed = copy.deepcopy(cluster)
    changed["available_node_types"]["serve"]["label"] = {"a": "b"}
    with pytest.raises(jsonschema.ValidationError):
        validated(changed)


def test_only_training_is_on_spot_and_labels_say_so(cluster: dict[str, Any]) -> None:
    kinds = cluster["available_node_types"]
    assert kinds[cluster["head_node_type"]]["resources"] == {"CPU": 0}
    for name, kind in kinds.items():
        spot = kind["node_config"].get("InstanceMarketOptions") == {"MarketType": "spot"}
        assert kind["labels"] == {ROLE: name.partition("-")[0], MARKET: "spot" if spot else "on-demand"}
        assert spot == (name == "train-spot")
        assert name == "head" or kind["min_workers"] == 0
        validate_node_label_syntax(kind["labels"])
    spot, on_demand = kinds["train-spot"], kinds["train-on-demand"]
    assert spot["resources"] == on_demand["resources"], "Ray weighs priority only among types that fit equally well"
    assert spot["priority"] > on_demand.get("priority", 0)


@pytest.mark.parametrize(
    ("demands", "nodes"),
    [
        ([({"CPU": 1}, {})] * 32, {"data": 2}),
        ([TRAINING_WORKER] * 4, {"train-spot": 1}),
        ([TRAINING_WORKER] * 20, {"train-spot": 4, "train-on-demand": 1}),
        ([({"CPU": 1}, SERVING)], {"data": 1}),
        ([({"CPU": 1, "GPU": 1}, SERVING)] * 2, {"serve": 2}),
        ([({"CPU": 1, "GPU": 1}, SERVING), TRAINING_WORKER], {"serve": 1, "train-spot": 1}),
        ([({"CPU": 1}, STEADY)], {"data": 1}),
    ],
    ids=["sharding", "one node of training", "more than spot may have", "serving", "with GPU", "both", "driver"],
)
def test_what_the_autoscaler_starts(cluster: dict[str, Any], demands: list[Demand], nodes: dict[str, int]) -> None:
    assert started(cluster, demands) == nodes


def test_what_ray_makes_of_spot_that_is_not_to_be_had(cluster: dict[str, Any]) -> None:
    """Only nodes that did not come up in time make it turn to the next type: a refusal of AWS does not count."""
    monitor = CloudResourceMonitor()

    def tell(status: int) -> dict[str, int]:
        monitor.notify([InstanceUpdateEvent(instance_type="train-spot", new_instance_status=status)])
        return started(cluster, [TRAINING_WORKER] * 4, available=monitor.get_recoverable_resource_availabilities())

    assert tell(Instance.ALLOCATION_FAILED) == {"train-spot": 1}
    assert tell(Instance.ALLOCATION_TIMEOUT) == {"train-on-demand": 1}
    without_spot = copy.deepcopy(cluster)
    without_spot["available_node_types"]["train-spot"]["max_workers"] = 0
    assert started(without_spot, [TRAINING_WORKER] * 4) == {"train-on-demand": 1}


def test_the_dashboard_is_not_open_to_the_network_and_every_node_asks_for_the_token(
    any_cluster: dict[str, Any],
) -> None:
    head, worker = any_cluster["head_start_ray_commands"][-1], any_cluster["worker_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in head and "RAY_JOB_STOP_SIGNAL=SIGINT" in head
    assert worker.startswith("RAY_AUTH_MODE=token ") and head.startswith("RAY_AUTH_MODE=token ")
    assert any_cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_the_image_has_the_ray_of_the_constraints_and_nodes_install_by_them(any_cluster: dict[str, Any]) -> None:
    pinned = re.search(r"^ray==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned and any_cluster["docker"]["image"] == f"rayproject/ray:{pinned[1]}-py311-gpu"
    assert "--constraint ~/posefleet/constraints.txt" in any_cluster["setup_commands"][0]
