"""cluster.yaml is what ``ray up`` accepts, and says what docs/cluster.md promises."""

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return config


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
        "train": 4,
    }


def test_ray_refuses_a_misspelt_key_so_the_check_means_something(cluster: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validated(cluster | {"idle_timeout": 3})


def test_the_head_takes_no_tasks_and_training_runs_on_spot_gpus(cluster: dict[str, Any]) -> None:
    kinds = cluster["available_node_types"]
    assert kinds[cluster["head_node_type"]]["resources"] == {"CPU": 0}
    assert "GPU" not in kinds["data"]["resources"] and kinds["data"]["min_workers"] == 0
    assert kinds["train"]["resources"]["GPU"] >= 1 and kinds["train"]["min_workers"] == 0
    assert kinds["train"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in kinds["head"]["node_config"]


def test_the_dashboard_is_not_open_to_the_network_and_every_node_asks_for_the_token(cluster: dict[str, Any]) -> None:
    head, worker = cluster["head_start_ray_commands"][-1], cluster["worker_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in head and "RAY_JOB_STOP_SIGNAL=SIGINT" in head
    assert "RAY_AUTH_MODE=token ray start" in worker and "RAY_AUTH_MODE=token" in head


def test_the_image_has_the_ray_of_the_constraints(cluster: dict[str, Any]) -> None:
    constraints = ROOT / "constraints.txt"
    if not constraints.exists():
        pytest.skip("no constraints.txt")
    pinned = re.search(r"^ray(?:\[.*\])?==(\S+)", constraints.read_text(), re.MULTILINE)
    assert pinned and cluster["docker"]["image"].partition(":")[2].startswith(f"{pinned[1]}-py311")
