"""Where Ray puts what: on a cluster with labelled nodes, and on one without labels."""

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from posefleet.platform.config.experiment import ScalingConfig
from posefleet.platform.runtime.placement import MARKET, ROLE, SERVING, STEADY, TRAINING
from posefleet.platform.tuning.ray_tuner import trial_resources
from posefleet.serve.app import build
from posefleet.serve.deployments.settings import ServedModel

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

SPOT = {MARKET: "spot", ROLE: "train"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs, and a node of two whose labels come as the autoscaler gives them."""
    import ray
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ.pop("RAY_ADDRESS", None)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    os.environ["RAY_OVERRIDE_LABELS"] = json.dumps(SPOT)
    cluster.add_node(num_cpus=2)
    del os.environ["RAY_OVERRIDE_LABELS"]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    os.environ.clear()
    os.environ |= before


def places(group: Any) -> list[dict[str, str]]:
    """Labels of the nodes that the bundles of a placement group are on."""
    import ray
    from ray.util.placement_group import placement_group_table

    labels = {node["NodeID"]: node["Labels"] for node in ray.nodes()}
    return [labels[node] for node in placement_group_table(group)["bundles_to_node_id"].values()]


def test_drivers_of_trials_stay_off_spot_nodes_and_trials_that_train_may_use_them(cluster: Any) -> None:
    from ray.util.placement_group import remove_placement_group

    drivers = [trial_resources(ScalingConfig(num_workers=2)).to_placement_group() for _ in range(4)]
    assert all(group.wait(30) for group in drivers)
    assert all(MARKET not in labels for group in drivers for labels in places(group))

    alone = trial_resources(ScalingConfig(num_workers=0)).to_placement_group()
    assert alone.wait(30)
    assert [labels[MARKET] for labels in places(alone)] == ["spot"]
    for group in (*drivers, alone):
        remove_placement_group(group)


@pytest.mark.slow
def test_what_is_served_waits_for_a_node_that_does_not_train_and_one_without_labels_will_do(cluster: Any) -> None:
    import ray

    @ray.remote(num_cpus=1)
    class Replica:
        def place(self) -> dict[str, str]:
            found: dict[str, str] = ray.get_runtime_context().get_node_labels()
            return found

    served = Replica.options(label_selector=dict(SERVING)).remote()
    answer = served.place.remote()
    assert ray.wait([answer], timeout=3)[0] == [], "the CPUs that are free are those of the node that trains"
    cluster.add_node(num_cpus=1)
    labels = ray.get(answer, timeout=30)
    assert MARKET not in labels and ROLE not in labels
    ray.kill(served)


@pytest.mark.slow
def test_training_leaves_nodes_alone_that_serve(cluster: Any) -> None:
    from ray.util.placement_group import placement_group, remove_placement_group

    cluster.add_node(num_cpus=8, labels={ROLE: "serve"})
    group = placement_group([{"CPU": 2}], bundle_label_selector=[dict(TRAINING)])
    assert group.wait(30)
    assert [labels[ROLE] for labels in places(group)] == ["train"]
    second = placement_group([{"CPU": 2}], bundle_label_selector=[dict(TRAINING)])
    assert not second.wait(3)
    remove_placement_group(group)
    remove_placement_group(second)


def test_the_server_says_where_it_wants_to_be_unless_its_configuration_does() -> None:
    def model(name: str, **options: Any) -> dict[str, Any]:
        return ServedModel(name=name, source="models:/smpr@champion", deployment=options).model_dump()

    own = {MARKET: "on-demand"}
    ingress = build(
        {
            "models": [
                model("plain"),
                model("gpu", ray_actor_options={"num_gpus": 1}),
                model("own", ray_actor_options={"label_selector": own}),
            ]
        }
    )._bound_deployment
    assert ingress.ray_actor_options["label_selector"] == STEADY
    models, versions = (ingress.init_kwargs[name] for name in ("models", "versions"))
    options = {name: application._bound_deployment.ray_actor_options for name, application in models.items()}
    assert options["plain"]["label_selector"] == SERVING
    assert options["gpu"]["label_selector"] == SERVING and options["gpu"]["num_gpus"] == 1
    assert options["own"]["label_selector"] == own
    assert versions._bound_deployment.ray_actor_options["label_selector"] == STEADY
