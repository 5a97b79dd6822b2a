"""The way from a request to the replicas, with replicas that are slow, busy, dying or of two versions."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError

from posefleet.data.structures import Poses
from posefleet.serve.deployments.replica import PredictOptions, PredictResult
from posefleet.serve.deployments.settings import ServerSettings
from posefleet.serve.http.gateway import Gateway
from posefleet.serve.http.routes import create_api


class Response:
    """Like Ray Serve's."""

    def __init__(self, work: Awaitable[Any]) -> None:
        self._task = asyncio.ensure_future(work)
        self.cancelled = False

    def __await__(self) -> Any:
        return self._task.__await__()

    def cancel(self) -> None:
        self.cancelled = True
        self._task.cancel()


class Handle:
    """Answers one call after another with what ``steps`` do, the last one again and again."""

    def __init__(self, *steps: Callable[[PredictOptions], Awaitable[Any]]) -> None:
        self._steps = list(steps)
        self.responses: list[Response] = []

    @property
    def predict(self) -> "Handle":
        return self

    def remote(self, _: object, ask: PredictOptions) -> Response:
        step = self._steps.pop(0) if len(self._steps) > 1 else self._steps[0]
        self.responses.append(Response(step(ask)))
        return self.responses[-1]


async def found(_: PredictOptions, version: str = "1") -> PredictResult:
    return PredictResult(
        image={"width": 4, "height": 3, "poses": []},
        model={"name": "pose", "method": "smpr", "version": version},
        timings={"decode": 1.0, "queue": 0.0, "predict": 2.0},
        share_ms=2.0,
        overlay=None,
        checkpoint=version,
        poses=Poses(torch.zeros(0, 17, 2), torch.zeros(0, 17), torch.zeros(0)),
    )


async def slow(_: PredictOptions) -> PredictResult:
    await asyncio.sleep(60)
    raise AssertionError("nobody waits so long")


async def busy(_: PredictOptions) -> PredictResult:
    raise BackPressureError(num_queued_requests=9, max_queued_requests=9)


async def dies(_: PredictOptions) -> PredictResult:
    raise ActorDiedError


def client_of(handle: Handle, **limits: float) -> TestClient:
    settings = ServerSettings.model_validate(
        {"models": [{"name": "pose", "source": "runs/a"}], "limits": limits, "page": False}
    )
    gateway = Gateway(settings, {"pose": handle}, {}, None)  # type: ignore[dict-item, arg-type]
    return TestClient(create_api(gateway), raise_server_exceptions=False)


def test_a_late_answer_is_given_up_and_its_work_dropped() -> None:
    handle = Handle(slow)
    answer = client_of(handle, deadline_s=0.05).post("/v1/poses", content=b"x")
    assert (answer.status_code, answer.json()["reason"]) == (504, "deadline")
    assert [response.cancelled for response in handle.responses] == [True]


def test_a_full_queue_says_when_to_come_back() -> None:
    answer = client_of(Handle(busy)).post("/v1/poses", content=b"x")
    assert (answer.status_code, answer.json()["reason"]) == (503, "busy")
    assert int(answer.headers["retry-after"]) >= 1


def test_an_image_whose_replica_dies_is_sent_to_another() -> None:
    handle = Handle(dies, dies, found)
    assert client_of(handle).post("/v1/poses", content=b"x").status_code == 200
    assert len(handle.responses) == 3


def test_replicas_that_all_die_are_a_problem_without_a_trace() -> None:
    answer = client_of(Handle(dies)).post("/v1/poses", content=b"x")
    assert (answer.status_code, answer.json()["reason"]) == (500, "internal")
    assert "Traceback" not in answer.text and ".py" not in answer.text


def test_images_of_a_request_are_answered_by_one_version() -> None:
    async def newer(ask: PredictOptions) -> PredictResult:
        return await found(ask, "2")

    handle = Handle(found, newer, newer)
    files = [("image", ("a.jpg", b"x")), ("image", ("b.jpg", b"y"))]
    answer = client_of(handle).post("/v1/poses", files=files).json()
    assert answer["model"]["version"] == "2" and len(answer["images"]) == 2
    assert len(handle.responses) == 4, "asked again, both"


def test_the_rest_of_the_deadline_travels_along() -> None:
    left: list[float] = []

    async def note(ask: PredictOptions) -> PredictResult:
        left.append(ask.seconds)
        return await found(ask)

    client_of(Handle(note), deadline_s=100).post("/v1/poses", content=b"x")
    assert 80 < left[0] <= 100


def test_the_token_may_be_asked_for_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"models": [{"name": "pose", "source": "a"}], "access": {"token_for": "everything"}}
    monkeypatch.delenv("POSEFLEET_TOKEN", raising=False)
    with pytest.raises(ValueError, match="POSEFLEET_TOKEN"):
        Gateway(ServerSettings.model_validate(settings), {}, {}, None)  # type: ignore[arg-type]
    monkeypatch.setenv("POSEFLEET_TOKEN", "secret")
    gateway = Gateway(ServerSettings.model_validate(settings), {"pose": Handle(found)}, {}, None)  # type: ignore
    client = TestClient(create_api(gateway))
    assert client.post("/v1/poses", content=b"x").status_code == 401
    assert client.post("/v1/poses", content=b"x", headers={"Authorization": "Bearer secret"}).status_code == 200
    assert client.get("/healthz").status_code == 200


def test_only_named_origins_may_call_from_their_pages() -> None:
    settings = {"models": [{"name": "pose", "source": "a"}], "access": {"origins": ["https://good.example"]}}
    gateway = Gateway(ServerSettings.model_validate(settings), {"pose": Handle(found)}, {}, None)  # type: ignore
    client = TestClient(create_api(gateway))
    good = client.post("/v1/poses", content=b"x", headers={"Origin": "https://good.example"})
    assert good.headers["access-control-allow-origin"] == "https://good.example"
    bad = client.post("/v1/poses", content=b"x", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in bad.headers


def test_a_direct_replica_answers_for_its_model_and_asks_others_for_theirs() -> None:
    class Near:
        async def predict(self, data: object, ask: PredictOptions) -> PredictResult:
            return await found(ask, "near") if data == b"x" else await slow(ask)

    far = Handle(found)
    models = [{"name": "pose", "source": "a"}, {"name": "other", "source": "b"}]

    def client_within(seconds: float) -> TestClient:
        told = {"models": models, "direct": True, "limits": {"deadline_s": seconds}}
        settings = ServerSettings.model_validate(told)
        return TestClient(create_api(Gateway(settings, {"other": far}, {}, None, here=Near())))  # type: ignore

    client = client_within(60)
    assert client.post("/v1/poses", content=b"x").json()["model"]["version"] == "near"
    assert client.post("/v1/models/pose/poses", content=b"x").json()["model"]["version"] == "near"
    assert client_within(0.2).post("/v1/poses", content=b"y").status_code == 504
    assert not far.responses
    assert client.post("/v1/models/other/poses", content=b"x").json()["model"]["version"] == "1"
