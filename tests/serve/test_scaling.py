"""Scaling to zero, and the ways in which a replica can run its network."""

from collections.abc import Iterator

import numpy as np
import pytest
from server import Server, misses, running_server, wait_for

from posefleet.platform.inference.predictor import Predictor

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def server(registry: str) -> Iterator[Server]:
    small = {"source": "models:/pose@champion", "warm_up": [[96, 128]], "score_threshold": 0.0}
    scaling = {"min_replicas": 0, "max_replicas": 1, "downscale_delay_s": 2, "downscale_to_zero_delay_s": 2}
    models = [
        {"name": "idle", **small, "deployment": {"autoscaling_config": scaling}},
        {"name": "compiled", **small, "compile": True, "channels_last": True},
        {"name": "half", **small, "precision": "bfloat16", "channels_last": True},
        {"name": "exported", **small, "backend": "onnxruntime"},
    ]
    with running_server({"models": models, "tracking": registry}) as running:
        yield running


@pytest.fixture(scope="module")
def expected(registry: str, photographs: list[bytes]) -> list[np.ndarray]:
    predictor = Predictor.from_registry("models:/pose@champion", tracking=registry, device="cpu")
    return [predictor(data).poses.keypoints.numpy() for data in photographs]


def test_a_model_scales_to_zero_until_a_request_comes(
    server: Server, photographs: list[bytes], expected: list[np.ndarray]
) -> None:
    """Ready without a replica; the first request waits for one and is answered."""
    wait_for(lambda: server.running("idle") == 0, 60)
    assert server.get("/readyz").status == 200
    answer = server.post("/v1/models/idle/poses", photographs[0], Content_Type="image/jpeg")
    assert answer.status == 200, answer.body
    assert misses(answer.json, expected[0]) < 1e-3
    assert server.running("idle") == 1
    wait_for(lambda: server.running("idle") == 0, 120)
    assert server.get("/readyz").status == 200


@pytest.mark.parametrize("name", ["compiled", "exported"])
def test_compiled_and_exported_networks_find_the_same_poses(
    server: Server, photographs: list[bytes], expected: list[np.ndarray], name: str
) -> None:
    for data, keypoints in zip(photographs, expected, strict=True):
        answer = server.post(f"/v1/models/{name}/poses", data, Content_Type="image/jpeg")
        assert answer.status == 200, answer.body
        assert misses(answer.json, keypoints) < 1e-2


def test_half_precision_answers(server: Server, photographs: list[bytes], expected: list[np.ndarray]) -> None:
    """Rounding changes the poses of random weights too much to compare them, so only their number is checked."""
    for data, keypoints in zip(photographs, expected, strict=True):
        answer = server.post("/v1/models/half/poses", data, Content_Type="image/jpeg")
        assert answer.status == 200, answer.body
        assert len(answer.json["images"][0]["poses"]) == len(keypoints)
