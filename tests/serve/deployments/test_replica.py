"""A replica that predicts, without Ray: batches, deadlines, images that break the network."""

import asyncio
import dataclasses
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small_settings import small_settings, untrained_checkpoint

from posefleet.data.errors import DataError
from posefleet.data.images import encode_image
from posefleet.data.schemas.shipped import COCO17
from posefleet.platform.checkpoints.format import CheckpointError
from posefleet.platform.inference.predictor import Predictor
from posefleet.serve.deployments import decoding
from posefleet.serve.deployments import replica as module
from posefleet.serve.deployments.errors import ErrorDetail
from posefleet.serve.deployments.replica import PredictOptions, PredictResult, Replica
from posefleet.serve.deployments.settings import Limits, ServedModel
from posefleet.serve.deployments.versions import ReplicaStatus, ServedVersion


class Controller:
    """Stands in for the handle of the version controller: replicas should serve ``version``."""

    def __init__(self, version: ServedVersion | None) -> None:
        self.version = version
        self.reports: list[ReplicaStatus] = []

    @property
    def report(self) -> "Controller":
        return self

    async def remote(self, status: ReplicaStatus, hold_s: float = 0.0) -> ServedVersion | None:
        self.reports.append(status)
        return self.version


@pytest.fixture(scope="module")
def version(people_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> ServedVersion:
    folder = tmp_path_factory.mktemp("checkpoint")
    checkpoint = untrained_checkpoint(small_settings(people_shards, folder), folder)
    return ServedVersion(
        checkpoint=checkpoint, name="", version=None, data=None, ap=None, run_id=None, step=6, method="smpr",
        schema=COCO17,
    )  # fmt: skip


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[int, int]]]:
    """Shapes of the images of every batch that reaches the network."""
    shapes: list[list[tuple[int, int]]] = []
    predict = Predictor.predict_prepared

    def recording(self: Predictor, prepared: Any) -> Any:
        shapes.append([views[0].image.shape[:2] for views in prepared])
        return predict(self, prepared)

    monkeypatch.setattr(Predictor, "predict_prepared", recording)
    context = SimpleNamespace(
        replica_id=SimpleNamespace(unique_id="r"), _deployment_config=SimpleNamespace(max_ongoing_requests=64)
    )
    monkeypatch.setattr("ray.serve.get_replica_context", lambda: context)
    return shapes


async def start_replica(version: ServedVersion | None, limits: Limits | None = None, **settings: Any) -> Any:
    served = ServedModel(name="pose", source="runs/a", score_threshold=0.0, warm_up=(), **settings)
    replica = object.__new__(Replica)
    await replica.__init__("pose", served, limits or Limits(image_pixels=1_000_000), "", Controller(version))
    return replica


async def predict_all(replica: Any, photographs: list[bytes], options: PredictOptions) -> list[Any]:
    return await asyncio.gather(*(replica.predict(data, options) for data in photographs), return_exceptions=True)


def test_images_of_one_padded_shape_share_batches(
    version: ServedVersion, batches: list[list[tuple[int, int]]], photographs: list[bytes]
) -> None:
    strip = encode_image(np.zeros((30, 120, 3), np.uint8), ".png")

    async def run() -> list[Any]:
        replica = await start_replica(version, batching={"size": 4, "wait_ms": 1000})  # all are decoded by then
        return await predict_all(replica, 6 * [photographs[0], strip], PredictOptions(60.0))

    results = asyncio.run(run())
    assert all(isinstance(result, PredictResult) for result in results)
    assert sorted(len(batch) for batch in batches) == [2, 2, 4, 4] and all(len(set(batch)) == 1 for batch in batches)


def test_frames_of_a_film_get_the_numbers_of_the_tracker_whatever_is_left_out(
    version: ServedVersion,
    people_shards: Path,
    tmp_path: Path,
    batches: list[list[tuple[int, int]]],
    photographs: list[bytes],
) -> None:
    checkpoint = untrained_checkpoint(small_settings(people_shards, tmp_path), tmp_path, sure=True)
    sure = dataclasses.replace(version, checkpoint=checkpoint)

    async def run() -> tuple[Any, list[Any]]:
        replica = await start_replica(sure)
        plain = await replica.predict(photographs[0], PredictOptions(60.0))
        found, state = [], None
        for frame in range(3):
            tracking = {"seconds": frame / 10, "state": state}
            options = PredictOptions(60.0, max_people=1 if frame == 1 else None, tracking=tracking)
            found.append(await replica.predict(photographs[0], options))
            state = json.loads(json.dumps(found[-1].tracker_state))
        found.append(
            await replica.predict(photographs[0], PredictOptions(60.0, tracking={"seconds": 1, "state": state}))
        )
        state["tracks"][0]["keypoints"].pop()
        found.append(
            await replica.predict(photographs[0], PredictOptions(60.0, tracking={"seconds": 1, "state": state}))
        )
        return plain, found

    plain, (first, second, third, last, refused) = asyncio.run(run())
    assert plain.tracker_state is None and "track" not in plain.image["poses"][0]
    tracks = [[pose["track"] for pose in result.image["poses"]] for result in (first, second, third, last)]
    numbered = [track for track in tracks[0] if track is not None]
    assert numbered and tracks == [tracks[0], tracks[0][:1], tracks[0], tracks[0]]
    assert refused.reason == "bad_request" and refused.detail.startswith(
        "tracking.state.tracks.0.keypoints: 33 numbers"
    )


def test_an_image_whose_client_left_is_not_predicted(
    version: ServedVersion, batches: list[list[tuple[int, int]]], photographs: list[bytes]
) -> None:
    async def run() -> list[Any]:
        replica = await start_replica(version, batching={"size": 8, "wait_ms": 100})
        async with replica._network_lock:  # the network is busy
            expired = asyncio.create_task(replica.predict(photographs[0], PredictOptions(0.2)))
            cancelled = asyncio.create_task(replica.predict(photographs[0], PredictOptions(60.0)))
            kept = asyncio.create_task(replica.predict(photographs[0], PredictOptions(60.0)))
            await asyncio.sleep(0.05)
            cancelled.cancel()
            await asyncio.sleep(0.3)
        return await asyncio.gather(expired, cancelled, kept, return_exceptions=True)

    expired, cancelled, kept = asyncio.run(run())
    assert isinstance(expired, ErrorDetail) and expired.reason == "deadline"
    assert isinstance(cancelled, asyncio.CancelledError) and isinstance(kept, PredictResult)
    assert [len(batch) for batch in batches] == [1]


def test_an_image_that_breaks_the_network_fails_alone(
    version: ServedVersion,
    batches: list[list[tuple[int, int]]],
    photographs: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predict = Predictor.predict_prepared

    def fragile(self: Predictor, prepared: Any) -> Any:
        if any((views[0].image == 0).all() for views in prepared):
            raise RuntimeError("out of memory")
        return predict(self, prepared)

    monkeypatch.setattr(Predictor, "predict_prepared", fragile)
    black = encode_image(np.zeros((96, 128, 3), np.uint8), ".png")

    async def run() -> list[Any]:
        replica = await start_replica(version, batching={"size": 8, "wait_ms": 1000})
        return await predict_all(replica, [photographs[0], black, photographs[2]], PredictOptions(60.0))

    first, broken, third = asyncio.run(run())
    assert isinstance(first, PredictResult) and isinstance(third, PredictResult) and isinstance(broken, RuntimeError)


def test_a_challengers_replica_without_a_version_waits_for_one(
    version: ServedVersion,
    batches: list[list[tuple[int, int]]],
    photographs: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "REPORT_S", 0.02)

    async def run() -> tuple[Any, Any]:
        replica = await start_replica(None)
        before = await replica.predict(photographs[0], PredictOptions(60.0))
        replica._versions.version = version
        for _ in range(5000):
            await asyncio.sleep(0.02)
            if replica._versions.reports[-1].serving == version:
                break
        return before, await replica.predict(photographs[0], PredictOptions(60.0))

    before, after = asyncio.run(run())
    assert isinstance(before, ErrorDetail) and before.reason == "no_model"
    assert isinstance(after, PredictResult)


def test_a_version_that_cannot_be_loaded_at_the_start_is_reported(
    version: ServedVersion, batches: list[list[tuple[int, int]]]
) -> None:
    broken = dataclasses.replace(version, checkpoint="/nowhere/step-1")
    replica, controller = object.__new__(Replica), Controller(broken)
    served = ServedModel(name="pose", source="runs/a", warm_up=())
    with pytest.raises(CheckpointError, match="/nowhere/step-1"):
        asyncio.run(replica.__init__("pose", served, Limits(), "", controller))  # type: ignore[misc]
    failed = controller.reports[-1].failed
    assert failed is not None and failed[0] == broken and "/nowhere/step-1" in failed[1]


def test_a_network_that_hangs_is_unhealthy(
    version: ServedVersion,
    batches: list[list[tuple[int, int]]],
    photographs: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hangs, release = threading.Event(), threading.Event()
    monkeypatch.setattr(module, "STUCK_S", 0.1)

    def stuck(self: Predictor, prepared: Any) -> Any:
        hangs.set()
        release.wait(120)
        return []

    async def run() -> None:
        replica = await start_replica(version)
        await replica.check_health()
        monkeypatch.setattr(Predictor, "predict_prepared", stuck)
        request = asyncio.create_task(replica.predict(photographs[0], PredictOptions(60.0)))
        await asyncio.to_thread(hangs.wait, 120)
        await asyncio.sleep(0.2)
        with pytest.raises(RuntimeError, match="batch has been running"):
            await replica.check_health()
        release.set()
        request.cancel()

    asyncio.run(run())


def test_the_pixels_of_an_image_are_in_use_until_it_is_answered(
    version: ServedVersion, batches: list[list[tuple[int, int]]], photographs: list[bytes]
) -> None:
    area = 96 * 128
    limits = Limits(image_pixels=area, replica_pixels=2 * area)

    async def run() -> tuple[list[Any], list[int]]:
        replica = await start_replica(version, limits, batching={"size": 8, "wait_ms": 0})
        budget, used = replica._decoder.budget, []
        async with replica._network_lock:  # the network is busy
            tasks = [asyncio.create_task(replica.predict(data, PredictOptions(60.0))) for data in photographs[:4]]
            for _ in range(6_000):
                if sum(task.done() for task in tasks) == 2:
                    break
                await asyncio.sleep(0.01)
            used.append(budget.used)
            waiting = next(task for task in tasks if not task.done())
            waiting.cancel()  # its client has left
            await asyncio.wait([waiting])
            used.append(budget.used)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        used.append(budget.used)
        return results, used

    results, used = asyncio.run(run())
    kinds = [getattr(result, "reason", type(result).__name__) for result in results]
    assert sorted(kinds) == ["CancelledError", "PredictResult", "busy", "busy"]
    assert used == [2 * area, area, 0]


def test_a_decoder_that_hangs_is_unhealthy(
    version: ServedVersion,
    batches: list[list[tuple[int, int]]],
    photographs: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hangs, release = threading.Event(), threading.Event()
    monkeypatch.setattr(decoding, "STUCK_S", 0.1)

    def stuck(data: bytes, **_: Any) -> Any:
        hangs.set()
        release.wait(120)
        raise DataError("released")

    monkeypatch.setattr(decoding, "decode_untrusted", stuck)

    async def run() -> Any:
        replica = await start_replica(version)
        await replica.check_health()
        request = asyncio.create_task(replica.predict(photographs[0], PredictOptions(60.0)))
        await asyncio.to_thread(hangs.wait, 120)
        await asyncio.sleep(0.2)
        with pytest.raises(RuntimeError, match="image has been decoding"):
            await replica.check_health()
        release.set()
        result = await request
        await replica.check_health()
        return result

    assert asyncio.run(run()) == ErrorDetail("damaged_image", "released")
