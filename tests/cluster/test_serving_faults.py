"""A replica, an ingress, a proxy and a node of the server that die under load."""

import itertools
import json
import time
import urllib.request
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nodes import Cluster, running_cluster
from processes import free_port, wait_for
from psutil import Process
from server import Load, Server, misses
from small_settings import small_settings, untrained_checkpoint

from posefleet.data.images import encode_jpeg
from posefleet.data.synthetic.scenes import SceneConfig, render_scene
from posefleet.platform.inference.predictor import Predictor

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200), pytest.mark.filterwarnings("ignore")]

ON_EVERY_NODE = {"num_replicas": 2, "max_replicas_per_node": 1, "ray_actor_options": {"num_cpus": 1}}
TITLES = {
    "one of two replicas of the model": "ServeReplica:posefleet:pose",
    "one of two ingress replicas": "ServeReplica:posefleet:Ingress",
    "one of three proxies": "ProxyActor",
}
"""Of the processes that every serving node has."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that only directs, and two nodes that serve."""
    with running_cluster() as cluster:
        cluster.add(cpus=0)
        for _ in range(2):
            cluster.add(cpus=2)
        yield cluster


@pytest.fixture(scope="module")
def checkpoint(people_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("served")
    return untrained_checkpoint(small_settings(people_shards, folder), folder / "run", sure=True)


@pytest.fixture(scope="module")
def server(cluster: Cluster, checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Proxies of all nodes at one port: the kernel spreads connections over them."""
    model = {"name": "pose", "source": checkpoint, "warm_up": [[96, 128]], "score_threshold": 0.0}
    application = {
        "name": "posefleet",
        "route_prefix": "/",
        "import_path": "posefleet.serve.app:build",
        "args": {"models": [{**model, "deployment": ON_EVERY_NODE}], "ingress": ON_EVERY_NODE},
    }
    port = free_port()
    config: dict[str, Any] = {
        "proxy_location": "EveryNode",
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [application],
    }
    server = Server(port, cluster.dashboard, config, tmp_path_factory.mktemp("server"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        server.deploy()
        wait_for(lambda: whole(cluster), 120, lambda: str(status_of_serve(cluster)))
        server.wait_until_ready()
        yield server


def status_of_serve(cluster: Cluster) -> dict[str, Any]:
    """What Serve knows of its proxies and replicas."""
    with urllib.request.urlopen(f"{cluster.dashboard}/api/serve/applications/", timeout=10) as answer:
        return json.load(answer)


def whole(cluster: Cluster, gone: Set[Process] = frozenset()) -> bool:
    """Whether two nodes serve, and the last of them without the processes that are gone."""
    status = status_of_serve(cluster)
    deployments = status["applications"].get("posefleet", {"deployments": {}})["deployments"]
    running = [
        sum(replica["state"] == "RUNNING" for replica in deployments[name]["replicas"])
        for name in ("pose", "Ingress")
        if name in deployments
    ]
    proxies = {proxy["status"] for proxy in status["proxies"].values()}
    living = [set(cluster.nodes[-1].processes(title)) - gone for title in TITLES.values()]
    return running == [2, 2] and proxies == {"HEALTHY"} and all(living)


@dataclass
class Clients:
    """Four clients that know the right answers."""

    cluster: Cluster
    server: Server
    bodies: list[bytes]
    expected: list[np.ndarray]

    def during(self, fault: Callable[[], set[Process]]) -> tuple[str, float]:
        """What was lost, and the seconds from the fault until two nodes serve again.

        Args:
            fault: Ends processes of the last node, and says which.
        """
        with Load(self.server, "/v1/poses", self.bodies, clients=4) as load:
            time.sleep(3)
            before = len(load.answers)
            start = time.monotonic()
            gone = fault()
            wait_for(lambda: whole(self.cluster, gone), 180, lambda: str(status_of_serve(self.cluster)))
            seconds = time.monotonic() - start
            after = len(load.answers)
        with Load(self.server, "/v1/poses", self.bodies, clients=4) as calm:
            time.sleep(3)
        assert 0 < before < after and calm.answers
        assert calm.errors == []
        assert all(misses(answer, self.expected[which]) < 1e-3 for _, which, answer in load.answers + calm.answers)
        ends = sorted(end for _, end in load.waits)
        silence = max(b - a for a, b in itertools.pairwise(ends))
        asked = len(load.answers) + len(load.errors)
        lost = f"{len(load.errors)} of {asked} requests failed, none was wrong; {silence:.1f} s without an answer"
        return lost, seconds


@pytest.fixture(scope="module")
def clients(cluster: Cluster, server: Server, checkpoint: str) -> Clients:
    pictures = [render_scene(SceneConfig(width=(128, 128), height=(96, 96)), seed)[0] for seed in range(4)]
    bodies = [encode_jpeg(picture) for picture in pictures]
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
    return Clients(cluster, server, bodies, [predictor(body).poses.keypoints.numpy() for body in bodies])


@pytest.mark.parametrize("kind", TITLES, ids=("replica", "ingress", "proxy"))
def test_a_killed_process_costs_at_most_the_requests_that_it_held(
    kind: str, cluster: Cluster, clients: Clients, tell: Callable[..., None]
) -> None:
    def kill() -> set[Process]:
        (victim,) = cluster.nodes[-1].processes(TITLES[kind])
        victim.kill()
        return {victim}

    tell(f"kill -9 of {kind}, 4 clients", "nothing", "", *clients.during(kill))


def test_a_killed_node_costs_the_requests_that_it_held(
    cluster: Cluster, clients: Clients, tell: Callable[..., None]
) -> None:
    def power_cut() -> set[Process]:
        lost = cluster.nodes[-1]
        gone = set(lost.processes())
        lost.kill()
        cluster.add(cpus=2)
        return gone

    tell("power cut of one of two serving nodes, 4 clients", "another node", "", *clients.during(power_cut))
