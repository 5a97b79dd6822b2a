"""What clients notice of new versions under load, of challengers, and of replicas that die."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from server import Load, Server, misses, wait_for
from small_settings import small_release, small_settings, untrained_checkpoint

from posefleet.jobs import promote
from posefleet.platform.inference.predictor import Predictor
from posefleet.platform.tracking.registry import CHALLENGER, CHAMPION, find_model
from posefleet.platform.tracking.registry import promote as register

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def expected(registry: str, photographs: list[bytes]) -> dict[str, list[np.ndarray]]:
    """Keypoints of every image, by version."""
    found = {}
    for version in ("1", "2"):
        predictor = Predictor.from_registry(f"models:/pose/{version}", tracking=registry, device="cpu")
        found[version] = [predictor(data).poses.keypoints.numpy() for data in photographs]
    return found


@pytest.fixture(autouse=True)
def first_is_champion(server: Server, registry: str) -> Iterator[None]:
    """Every test begins and ends with version 1."""
    yield
    set_champion(registry, 1)
    assert server.reload("pose").json["version"] == "1"


def set_champion(registry: str, version: int) -> None:
    MlflowClient(registry, registry).set_registered_model_alias("pose", CHAMPION, str(version))


def check(load: Load, expected: dict[str, list[np.ndarray]]) -> list[str]:
    """Check that every answer is that of its version; return the versions in the order of the requests."""
    for _, which, answer in load.answers:
        assert misses(answer, expected[answer["model"]["version"]][which]) < 1e-3
    return [answer["model"]["version"] for _, _, answer in sorted(load.answers, key=lambda item: item[0])]


def test_no_request_fails_during_a_reload(
    server: Server, registry: str, photographs: list[bytes], expected: dict[str, list[np.ndarray]]
) -> None:
    before = {process.pid for process in server.replicas("pose")}
    with Load(server, "/v1/poses", photographs, clients=4) as load:
        wait_for(lambda: len(load.answers) > 10)
        set_champion(registry, 2)
        time.sleep(1.5)  # a moved alias alone changes nothing
        assert {answer["model"]["version"] for _, _, answer in load.answers} == {"1"}
        answer = server.reload("pose")
        assert answer.json == {"model": "pose", "before": "1", "version": "2", "replicas": 2}
        done = time.monotonic()
        seen = len(load.answers)
        wait_for(lambda: len(load.answers) > seen + 10)
    assert not load.errors and set(load.statuses) == {200}
    versions = check(load, expected)
    assert {"1", "2"} == set(versions)
    assert {answer["model"]["version"] for begun, _, answer in load.answers if begun > done} == {"2"}
    assert {process.pid for process in server.replicas("pose")} == before, "swapped in place"
    assert server.get("/v1/models").json["models"][0]["version"] == "2"


def test_no_request_fails_during_a_deployment(
    server: Server, registry: str, photographs: list[bytes], expected: dict[str, list[np.ndarray]]
) -> None:
    set_champion(registry, 2)
    with Load(server, "/v1/poses", photographs, clients=4) as load:
        wait_for(lambda: len(load.answers) > 10)
        server.config["applications"][0]["deployments"][0]["user_config"]["release"] += 1
        server.deploy()
        wait_for(lambda: load.answers[-1][2]["model"]["version"] == "2", 180)
    assert not load.errors and set(load.statuses) == {200}
    check(load, expected)


@pytest.mark.slow
def test_no_request_fails_during_a_rolling_restart(
    server: Server, photographs: list[bytes], expected: dict[str, list[np.ndarray]]
) -> None:
    before = {process.pid for process in server.replicas("pose")}
    with Load(server, "/v1/poses", photographs, clients=4) as load:
        wait_for(lambda: len(load.answers) > 10)
        server.config["applications"][0]["args"]["models"][0]["batching"] = {"size": 4}
        server.deploy()
        wait_for(lambda: len(now := {p.pid for p in server.replicas("pose")}) == 2 and not now & before, 120)
        server.wait_until_ready()
        seen = len(load.answers)
        wait_for(lambda: len(load.answers) > seen + 10)
    assert not load.errors and set(load.statuses) == {200}
    check(load, expected)


def test_a_version_that_cannot_be_loaded_is_rejected_and_the_old_one_stays(
    server: Server, registry: str, photographs: list[bytes]
) -> None:
    weights = Path(find_model("models:/pose/2", registry), "model.safetensors")
    shutil.copy(weights, weights.with_suffix(".whole"))
    set_champion(registry, 2)
    try:
        weights.write_bytes(weights.read_bytes()[:-100])
        with Load(server, "/v1/poses", photographs, clients=2) as load:
            answer = server.reload("pose")
        assert (answer.status, answer.json["reason"]) == (502, "reload_failed")
        assert "damaged" in answer.json["detail"] and "still serving models:/pose/1" in answer.json["detail"]
        assert not load.errors and {answer["model"]["version"] for _, _, answer in load.answers} == {"1"}
    finally:
        shutil.move(weights.with_suffix(".whole"), weights)
    assert server.reload("pose").json["version"] == "2", "after the repair"


def test_a_challenger_is_compared_on_live_images(
    server: Server, photographs: list[bytes], expected: dict[str, list[np.ndarray]]
) -> None:
    before = server.get("/v1/models/pose/shadow").json["images"]
    for data in photographs:
        assert server.post("/v1/poses", data).json["model"]["version"] == "1"
    wait_for(lambda: server.get("/v1/models/pose/shadow").json["images"] >= before + len(photographs))
    summary: dict[str, Any] = server.get("/v1/models/pose/shadow").json
    assert (summary["champion"], summary["challenger"]) == ("models:/pose/1", "models:/pose/2")
    assert summary["people"] >= summary["only_champion"] >= 0
    assert summary["champion_ms"] > 0 and summary["challenger_ms"] > 0


def test_a_challenger_is_promoted_once_it_agrees_on_live_images(
    server: Server, registry: str, photographs: list[bytes], people_shards: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    command = ["--from-shadow", f"{server.address}/v1/models/pose", "--model", "pose", "--tracking", registry]
    few = ["--gate.shadow_images", "6", "--gate.shadow_people", "6", "--gate.shadow_slower", "0"]
    few += ["--gate.latency_people", "1"]

    def compared() -> bool:  # a reload does not wait for challengers: the first images may go to the old one
        for data in photographs:
            assert server.post("/v1/poses", data).json["model"]["version"] == "1"
        return bool(server.get("/v1/models/pose/shadow").json["images"] >= len(photographs))

    wait_for(compared)
    assert promote.main([*command, *few]) == 1
    assert "not promoted: agreement, missed failed" in capsys.readouterr().err, "versions 1 and 2 differ in everything"
    settings = small_settings(people_shards, tmp_path)
    twin = small_release(settings, untrained_checkpoint(settings, tmp_path / "run", sure=True), tmp_path / "release")
    assert register(registry, "pose", twin, CHALLENGER).number == "3"
    try:
        server.reload("pose")
        wait_for(compared)
        assert server.get("/v1/models/pose/shadow").json["mean_oks"] == pytest.approx(1)
        assert promote.main([*command, *few]) == 0, capsys.readouterr()
        assert server.post("/v1/poses", photographs[0]).json["model"]["version"] == "1", "before the reload"
        assert server.reload("pose").json["version"] == "3"
        assert server.post("/v1/poses", photographs[0]).json["model"]["version"] == "3"
        assert server.get("/v1/models/pose/shadow").json["images"] == 0, "there is no challenger any more"
    finally:
        MlflowClient(registry, registry).set_registered_model_alias("pose", CHALLENGER, "2")


def test_a_killed_replica_fails_only_requests_that_it_handles_itself(
    server: Server, handles_http: str, photographs: list[bytes], expected: dict[str, list[np.ndarray]]
) -> None:
    victim = server.replicas("pose")[0]
    with Load(server, "/v1/poses", photographs, clients=4) as load:
        wait_for(lambda: len(load.answers) > 10)
        os.kill(victim.pid, signal.SIGKILL)
        seen = len(load.answers)
        wait_for(lambda: len(load.answers) > seen + 20)
    assert len(load.errors) <= (load.clients if handles_http == "direct" else 0), load.errors
    check(load, expected)
    wait_for(lambda: len(server.replicas("pose")) == 2, 180)
