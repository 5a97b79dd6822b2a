"""The gateway, with replicas that are slow, busy, dying or of two versions."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import hostile_images
import pytest
import torch
from fastapi.testclient import TestClient
from ray.exceptions import ActorDiedError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from posefleet.data.structures import Poses
from posefleet.serve.deployments.replica import PredictOptions, PredictResult
from posefleet.serve.deployments.settings import ServerSettings
from posefleet.serve.deployments.versions import Fault, ServingStatus
from posefleet.serve.http.gateway import Gateway
from posefleet.serve.http.routes import create_api


class Response:
    """Stands in for a response of a Ray Serve handle."""

    def __init__(self, work: Awaitable[Any]) -> None:
        self._task = asyncio.ensure_future(work)
        self.cancelled = False

    def __await__(self) -> Any:
        return self._task.__await__()

    def cancel(self) -> None:
        self.cancelled = True
        self._task.cancel()


class Handle:
    """Stands in for a deployment's handle: call n is answered by step n, every later call by the last step."""

    def __init__(self, *steps: Callable[[PredictOptions], Awaitable[Any]]) -> None:
        self._steps = list(steps)
        self.responses: list[Response] = []

    @property
    def predict(self) -> "Handle":
        return self

    def remote(self, _: object, options: PredictOptions) -> Response:
        step = self._steps.pop(0) if len(self._steps) > 1 else self._steps[0]
        self.responses.append(Response(step(options)))
        return self.responses[-1]


async def answer_at_once(_: PredictOptions, version: str = "1") -> PredictResult:
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
    raise AssertionError("the deadline is shorter")


async def busy(_: PredictOptions) -> PredictResult:
    raise BackPressureError(num_queued_requests=9, max_queued_requests=9)


async def failed_to_deploy(_: PredictOptions) -> PredictResult:
    raise DeploymentUnavailableError(DeploymentID(name="pose", app_name="posefleet"))


class Versions:
    """Stands in for the version controller's handle."""

    def __init__(self, status: ServingStatus) -> None:
        self._status = status

    @property
    def models(self) -> "Versions":
        return self

    async def remote(self) -> dict[str, ServingStatus]:
        return {"pose": self._status}


async def dies(_: PredictOptions) -> PredictResult:
    raise ActorDiedError


def client_of(handle: Handle, versions: Versions | None = None, **limits: float) -> TestClient:
    settings = ServerSettings.model_validate(
        {"models": [{"name": "pose", "source": "runs/a"}], "limits": limits, "page": False}
    )
    gateway = Gateway(settings, {"pose": handle}, {}, versions)  # type: ignore[dict-item, arg-type]
    return TestClient(create_api(gateway), raise_server_exceptions=False)


def test_a_request_past_its_deadline_gets_504_and_its_work_is_cancelled() -> None:
    handle = Handle(slow)
    answer = client_of(handle, deadline_s=0.05).post("/v1/poses", content=b"x")
    assert (answer.status_code, answer.json()["reason"]) == (504, "deadline")
    assert [response.cancelled for response in handle.responses] == [True]


def test_a_full_queue_gets_503_with_retry_after() -> None:
    answer = client_of(Handle(busy)).post("/v1/poses", content=b"x")
    assert (answer.status_code, answer.json()["reason"]) == (503, "busy")
    assert int(answer.headers["retry-after"]) >= 1


FAULT = Fault("its checkpoint cannot be loaded", "/data/secret: no such file")


@pytest.mark.parametrize("step", [failed_to_deploy, slow])
def test_a_model_that_nobody_serves_gives_503_with_the_reason(step: Callable[..., Awaitable[Any]]) -> None:
    client = client_of(Handle(step), Versions(ServingStatus("/data/secret", None, 0, FAULT)), deadline_s=0.05)
    answer = client.post("/v1/poses", content=b"x")
    assert (answer.status_code, answer.json()["reason"]) == (503, "no_model")
    assert answer.json()["detail"] == "pose: its checkpoint cannot be loaded"
    unready = client.get("/readyz")
    assert unready.status_code == 503 and "cannot be loaded" in unready.json()["detail"]


def test_a_deployment_that_failed_is_named_in_words() -> None:
    answer = client_of(Handle(failed_to_deploy), Versions(ServingStatus("a", None, 0))).post("/v1/poses", content=b"x")
    assert answer.json()["detail"] == "pose: no replica has started yet"


def test_paths_are_told_only_with_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(Handle(answer_at_once), Versions(ServingStatus("/data/secret", None, 0, FAULT)))
    monkeypatch.setenv("POSEFLEET_TOKEN", "secret")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
        (info,) = client.get("/v1/models", headers=headers).json()["models"]
        assert info["problem"] == FAULT.summary and info["source"] is None and "/data" not in str(info)
    (info,) = client.get("/v1/models", headers={"Authorization": "Bearer secret"}).json()["models"]
    assert info["source"] == "runs/a" and "no such file" in info["problem"]
    monkeypatch.delenv("POSEFLEET_TOKEN")
    (info,) = client.get("/v1/models", headers={"Authorization": "Bearer "}).json()["models"]
    assert info["source"] is None


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v1/models", "/openapi.json", "/docs"])
def test_head_answers_like_get_without_the_content(path: str) -> None:
    client = client_of(Handle(answer_at_once), Versions(ServingStatus("a", None, 1)))
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (get.status_code, b"") and head.status_code == 200
    assert head.headers == get.headers


def test_head_of_an_address_that_is_not_read_is_refused() -> None:
    client = client_of(Handle(answer_at_once))
    assert client.head("/v1/poses").status_code == 405 and client.head("/nowhere").status_code == 404


@pytest.mark.parametrize("charset", ["undefined", "unicode_escape", "utf-7", "idna", "punycode", "zlib", "x" * 999])
def test_a_form_in_a_strange_charset_gets_415(charset: str) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="\\u0041+AGE-\xff"; filename="a"\r\n\r\nx\r\n--b--\r\n'
    for written in (charset, f'"{charset}"', charset.upper()):
        kind = f"multipart/form-data; boundary=b; charset={written}"
        answer = client_of(Handle(answer_at_once)).post("/v1/poses", content=body, headers={"Content-Type": kind})
        assert (answer.status_code, answer.json()["reason"]) == (415, "wrong_content_type")


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", "us-ascii", "iso-8859-1"])
def test_a_form_in_a_usual_charset_is_read(charset: str) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="i"; filename="a"\r\n\r\nx\r\n--b--\r\n'
    headers = {"Content-Type": f"multipart/form-data; boundary=b; charset={charset}"}
    assert client_of(Handle(answer_at_once)).post("/v1/poses", content=body, headers=headers).status_code == 200


def png_of(width: int, height: int) -> bytes:
    return hostile_images.png(size=(width, height), pixels=b"none")


def test_images_that_are_too_many_pixels_together_get_413_before_a_replica_sees_them() -> None:
    handle = Handle(answer_at_once)
    client = client_of(handle, image_pixels=10_000, request_pixels=25_000)

    def send(*sizes: tuple[int, int]) -> Any:
        return client.post("/v1/poses", files=[("image", ("a.png", png_of(*size))) for size in sizes])

    assert send((100, 100), (100, 100), (50, 100)).status_code == 200
    answer = send((100, 100), (100, 100), (50, 101))
    assert (answer.status_code, answer.json()["reason"]) == (413, "too_many_pixels")
    assert "3 images of 25,050 pixels together are more than the 25,000 of a request" in answer.json()["detail"]
    assert len(handle.responses) == 3
    default = client_of(Handle(answer_at_once), image_pixels=10_000)
    files = [("image", ("a.jpg", hostile_images.encoded(kind, (90, 90)))) for kind in ("JPEG", "GIF", "WEBP", "BMP")]
    assert default.post("/v1/poses", files=files[:2]).status_code == 200
    assert default.post("/v1/poses", files=files[:3]).status_code == 413
    assert default.post("/v1/poses", files=files[1:]).status_code == 413


def test_an_image_whose_replica_dies_is_sent_again() -> None:
    handle = Handle(dies, dies, answer_at_once)
    assert client_of(handle).post("/v1/poses", content=b"x").status_code == 200
    assert len(handle.responses) == 3


def test_replicas_that_keep_dying_give_500_without_a_traceback() -> None:
    answer = client_of(Handle(dies)).post("/v1/poses", content=b"x")
    assert (answer.status_code, answer.json()["reason"]) == (500, "internal")
    assert "Traceback" not in answer.text and ".py" not in answer.text


def test_all_images_of_a_request_are_predicted_by_one_version() -> None:
    async def newer(options: PredictOptions) -> PredictResult:
        return await answer_at_once(options, "2")

    handle = Handle(answer_at_once, newer, newer)
    files = [("image", ("a.jpg", b"x")), ("image", ("b.jpg", b"y"))]
    answer = client_of(handle).post("/v1/poses", files=files).json()
    assert answer["model"]["version"] == "2" and len(answer["images"]) == 2
    assert len(handle.responses) == 4, "both images were sent again"


def test_a_replica_gets_the_remaining_time_of_the_request() -> None:
    left: list[float] = []

    async def record(options: PredictOptions) -> PredictResult:
        left.append(options.timeout_s)
        return await answer_at_once(options)

    client_of(Handle(record), deadline_s=100).post("/v1/poses", content=b"x")
    assert 80 < left[0] <= 100


def test_the_token_may_be_required_for_the_whole_api(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"models": [{"name": "pose", "source": "a"}], "access": {"token_for": "everything"}}
    monkeypatch.delenv("POSEFLEET_TOKEN", raising=False)
    with pytest.raises(ValueError, match="POSEFLEET_TOKEN"):
        Gateway(ServerSettings.model_validate(settings), {}, {}, None)  # type: ignore[arg-type]
    monkeypatch.setenv("POSEFLEET_TOKEN", "secret")
    gateway = Gateway(ServerSettings.model_validate(settings), {"pose": Handle(answer_at_once)}, {}, None)  # type: ignore
    client = TestClient(create_api(gateway))
    assert client.post("/v1/poses", content=b"x").status_code == 401
    assert client.post("/v1/poses", content=b"x", headers={"Authorization": "Bearer secret"}).status_code == 200
    assert client.get("/healthz").status_code == 200


def test_only_listed_origins_may_call_the_api() -> None:
    settings = {"models": [{"name": "pose", "source": "a"}], "access": {"origins": ["https://good.example"]}}
    gateway = Gateway(ServerSettings.model_validate(settings), {"pose": Handle(answer_at_once)}, {}, None)  # type: ignore
    client = TestClient(create_api(gateway))
    good = client.post("/v1/poses", content=b"x", headers={"Origin": "https://good.example"})
    assert good.headers["access-control-allow-origin"] == "https://good.example"
    bad = client.post("/v1/poses", content=b"x", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in bad.headers


def test_a_direct_replica_predicts_with_its_own_model_and_sends_other_images_on() -> None:
    class Local:
        async def predict(self, data: object, options: PredictOptions) -> PredictResult:
            return await answer_at_once(options, "local") if data == b"x" else await slow(options)

    remote = Handle(answer_at_once)
    models = [{"name": "pose", "source": "a"}, {"name": "other", "source": "b"}]

    def client_within(seconds: float) -> TestClient:
        args = {"models": models, "direct": True, "limits": {"deadline_s": seconds}}
        settings = ServerSettings.model_validate(args)
        return TestClient(create_api(Gateway(settings, {"other": remote}, {}, None, local=Local())))  # type: ignore

    client = client_within(60)
    assert client.post("/v1/poses", content=b"x").json()["model"]["version"] == "local"
    assert client.post("/v1/models/pose/poses", content=b"x").json()["model"]["version"] == "local"
    assert client_within(0.2).post("/v1/poses", content=b"y").status_code == 504
    assert not remote.responses
    assert client.post("/v1/models/other/poses", content=b"x").json()["model"]["version"] == "1"
