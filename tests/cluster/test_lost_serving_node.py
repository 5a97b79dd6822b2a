"""A node that dies under load, with a replica, an ingress and a proxy of the server on it."""

import itertools
import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nodes import Cluster, running_cluster
from processes import free_port, wait_for
from server import Load, Server, misses
from small_settings import small_settings, untrained_checkpoint

from posefleet.data.images import encode_jpeg
from posefleet.data.synthetic import SceneConfig, render_scene
from posefleet.platform.inference import Predictor

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200), pytest.mark.filterwarnings("ignore")]

ON_EVERY_NODE = {"num_replicas": 2, "max_replicas_per_node": 1, "ray_actor_options": {"num_cpus": 1}}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that only directs, and two nodes that serve."""
    with running_cluster() as cluster:
        cluster.add(cpus=0)
        for _ in range(2):
            cluster.add(cpus=2)
        yield cluster


@pytest.fixture
def checkpoint(people_shards: Path, tmp_path: Path) -> str:
    return untrained_checkpoint(small_settings(people_shards, tmp_path), tmp_path / "run", sure=True)


@pytest.fixture
def server(cluster: Cluster, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Proxies of all nodes at one port: the kernel spreads connections over them."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
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
    server = Server(port, cluster.dashboard, config, tmp_path)
    server.deploy()
    wait_for(lambda: running(cluster) == {"pose": 2, "Ingress": 2}, 120, lambda: str(running(cluster)))
    server.wait_until_ready()
    return server


def running(cluster: Cluster) -> dict[str, int]:
    """Replicas that Serve says run, of the two deployments that are on every node."""
    with urllib.request.urlopen(f"{cluster.dashboard}/api/serve/applications/", timeout=10) as answer:
        application = json.load(answer)["applications"].get("posefleet", {"deployments": {}})
    found = {name: deployment["replicas"] for name, deployment in application["deployments"].items()}
    return {
        name: sum(replica["state"] == "RUNNING" for replica in found[name])
        for name in ("pose", "Ingress")
        if name in found
    }


def test_a_killed_node_costs_the_requests_that_it_held(
    cluster: Cluster, server: Server, checkpoint: str, tell: Callable[..., None]
) -> None:
    pictures = [render_scene(SceneConfig(width=(128, 128), height=(96, 96)), seed)[0] for seed in range(4)]
    bodies = [encode_jpeg(picture) for picture in pictures]
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
    expected = [predictor(body).poses.keypoints.numpy() for body in bodies]
    with Load(server, "/v1/poses", bodies, clients=4) as load:
        time.sleep(3)
        before = len(load.answers)
        cluster.nodes[2].kill()
        killed = time.monotonic()
        cluster.add(cpus=2)
        wait_for(lambda: running(cluster) == {"pose": 2, "Ingress": 2}, 180, lambda: str(running(cluster)))
        whole = time.monotonic() - killed
        after = len(load.answers)
    with Load(server, "/v1/poses", bodies, clients=4) as calm:
        time.sleep(3)
    assert 0 < before < after and calm.answers
    assert calm.errors == []
    assert all(misses(answer, expected[which]) < 1e-3 for _, which, answer in load.answers + calm.answers)
    ends = sorted(end for _, end in load.waits)
    silence = max(b - a for a, b in itertools.pairwise(ends))
    tell(
        "power cut of one of two serving nodes, 4 clients",
        "another node",
        "",
        f"{len(load.errors)} of {len(load.answers) + len(load.errors)} requests failed, none was wrong; "
        f"{silence:.1f} s without an answer",
        whole,
    )
