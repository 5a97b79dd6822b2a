"""Tracking over HTTP: what a request may send with a frame, and what the answer gives back."""

import json
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from posefleet.data.schemas.shipped import COCO17
from posefleet.data.structures import Poses
from posefleet.platform.inference.predictor import describe_poses
from posefleet.platform.prediction.tracker import MOST_TRACKS, PoseTracker
from posefleet.serve.deployments.replica import PredictOptions, PredictResult
from posefleet.serve.deployments.settings import ServerSettings
from posefleet.serve.http.gateway import Gateway
from posefleet.serve.http.routes import create_api
from posefleet.serve.http.schema import PosesAnswer
from posefleet.serve.http.uploads import MOST_TRACKING

TRACK = {"number": 0, "seen": 1.0, "poses": 2, "velocity": [1, -2], "keypoints": [0] * 34}
STATE = {"seconds": 1.0, "next": 1, "tracks": [TRACK]}


class Handle:
    """Stands in for a model's handle: a person who stands in every image, and whom the tracker follows."""

    def __init__(self) -> None:
        self.asked: list[PredictOptions] = []

    @property
    def predict(self) -> "Handle":
        return self

    async def remote(self, _: object, options: PredictOptions) -> PredictResult:
        self.asked.append(options)
        keypoints = torch.arange(34.0).view(1, 17, 2)
        poses = Poses(keypoints, torch.ones(1, 17), torch.tensor([0.5]))
        described = describe_poses(poses, COCO17)
        tracker = PoseTracker(COCO17.sigmas)
        if options.tracking:
            tracker.restore(options.tracking["state"])
            described[0]["track"] = int(tracker(poses, options.tracking["seconds"])[0])
        return PredictResult(
            image={"width": 4, "height": 3, "poses": described},
            model={"name": "pose", "method": "smpr", "version": "1"},
            timings={"decode": 1.0, "queue": 0.0, "predict": 2.0},
            share_ms=2.0,
            overlay=b"",
            checkpoint="1",
            poses=None,
            tracker_state=tracker.state(),
        )


@pytest.fixture
def handle() -> Handle:
    return Handle()


@pytest.fixture
def client(handle: Handle) -> TestClient:
    settings = ServerSettings.model_validate({"models": [{"name": "pose", "source": "runs/a"}], "page": False})
    return TestClient(create_api(Gateway(settings, {"pose": handle}, {}, None)))  # type: ignore[dict-item, arg-type]


def send(client: TestClient, tracking: Any, *, images: int = 1, query: str = "") -> Any:
    text = tracking if isinstance(tracking, str) else json.dumps(tracking)
    files = [("image", ("frame.jpg", b"x"))] * images
    return client.post(f"/v1/poses{query}", files=files, data={"tracking": text})


def test_the_state_goes_from_answer_to_request(client: TestClient, handle: Handle) -> None:
    state, tracks = None, []
    for frame in range(3):
        answer = send(client, {"seconds": frame / 10, "state": state})
        assert answer.status_code == 200
        PosesAnswer.model_validate(answer.json())
        state = answer.json()["tracking"]["state"]
        tracks.append(answer.json()["images"][0]["poses"][0]["track"])
    assert tracks == [0, 0, 0] and state["seconds"] == 0.2
    assert handle.asked[-1].tracking is not None and handle.asked[-1].tracking["state"]["seconds"] == 0.1
    assert send(client, {"seconds": 5}).json()["tracking"]["state"]["next"] == 1, "the state may be left out"
    as_file = client.post("/v1/poses", files={"image": b"x", "tracking": ("t.json", json.dumps({"seconds": 1}))})
    assert as_file.json()["tracking"]["state"]["seconds"] == 1


def test_without_tracking_the_answer_is_as_before(client: TestClient) -> None:
    for answer in (client.post("/v1/poses", content=b"x"), client.post("/v1/poses", files={"image": b"x"})):
        assert set(answer.json()) == {"model", "images", "timings"}
        assert set(answer.json()["images"][0]["poses"][0]) == {"score", "box", "keypoints"}


@pytest.mark.parametrize(
    ("tracking", "detail"),
    [
        ("{", "tracking: Invalid JSON"),
        ("[" * 100_000, "tracking: Invalid JSON"),
        ([], "tracking: Input should be an object"),
        ({}, "tracking.seconds: Field required"),
        ({"seconds": "1"}, "tracking.seconds: Input should be a valid number"),
        ('{"seconds": NaN}', "tracking.seconds: Input should be "),
        ('{"seconds": 1e999}', "tracking.seconds: Input should be "),
        ({"seconds": -1}, "tracking.seconds: Input should be greater than or equal to 0"),
        ({"seconds": 1, "more": 1}, "tracking.more: Extra inputs are not permitted"),
        ({"seconds": 0.9, "state": STATE}, "tracking: seconds 0.9 must not be before 1.0"),
        ({"seconds": 2, "state": {}}, "tracking.state.seconds: Field required (2 more)"),
        (
            {"seconds": 2, "state": STATE | {"tracks": [TRACK] * (MOST_TRACKS + 1)}},
            "tracking.state.tracks: List should",
        ),
        ({"seconds": 2, "state": STATE | {"next": 2**40}}, "tracking.state.next: Input should be less"),
        (
            {"seconds": 2, "state": STATE | {"tracks": [TRACK | {"keypoints": [0.5] * 34}]}},
            "tracking.state.tracks.0.keypoints.0: Input should be a valid integer",
        ),
        (
            {"seconds": 2, "state": STATE | {"tracks": [TRACK | {"velocity": [1, 10**9]}]}},
            "tracking.state.tracks.0.velocity.1: Input should be less",
        ),
        (" " * (MOST_TRACKING + 1), "Part exceeded maximum size of 1024KB."),
    ],
)
def test_a_bad_state_gets_422_with_the_field(client: TestClient, handle: Handle, tracking: Any, detail: str) -> None:
    answer = send(client, tracking)
    assert (answer.status_code, answer.json()["reason"]) == (422, "bad_request")
    assert answer.json()["detail"].startswith(detail)
    assert not handle.asked


def test_tracking_goes_with_one_frame_and_no_overlay(client: TestClient) -> None:
    answer = send(client, {"seconds": 1}, images=2)
    assert answer.status_code == 422 and "goes with one frame, but 2 images were sent" in answer.json()["detail"]
    answer = send(client, {"seconds": 1}, query="?overlay=1")
    assert answer.status_code == 422 and "holds no state of tracking" in answer.json()["detail"]
    twice = client.post("/v1/poses", files={"image": b"x"}, data={"tracking": ['{"seconds": 1}', '{"seconds": 2}']})
    assert twice.status_code == 422 and "2 fields tracking; send one" in twice.json()["detail"]
