"""Fuzzing: requests generated from the OpenAPI description, and random bytes as bodies. Needs no Ray."""

import asyncio
import functools
import io
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import numpy as np
import pytest
import schemathesis
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import positive_data_acceptance
from starlette.requests import Request

from posefleet.data.errors import DataError
from posefleet.data.images import decode_untrusted
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.structures import Poses
from posefleet.platform.inference.predictor import describe_poses
from posefleet.serve.deployments.errors import ApiError, ErrorDetail
from posefleet.serve.deployments.replica import PredictOptions, PredictResult
from posefleet.serve.deployments.settings import Limits, ServerSettings
from posefleet.serve.deployments.versions import ServedVersion, ServingStatus, ShadowStats
from posefleet.serve.http.gateway import Gateway
from posefleet.serve.http.problems import REASONS
from posefleet.serve.http.routes import create_api
from posefleet.serve.http.schema import Problem
from posefleet.serve.http.uploads import read_uploads

EXCLUDED_CHECKS = [not_a_server_error, positive_data_acceptance]
"""A busy server answers 503, which the test checks itself; the description cannot say which bytes are images."""

TOKEN = "a token of tests"
LIMITS = {"body_bytes": 20_000, "image_pixels": 10_000, "images": 3, "upload_s": 5.0, "deadline_s": 5.0}
BOUNDED = settings(
    max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


# ---------------------------------------------------------------------------------------------------- a server


class Answering:
    """Stands in for one method of a deployment's handle."""

    def __init__(self, answer: Callable[..., Awaitable[Any]]) -> None:
        self._answer = answer

    def remote(self, *arguments: Any) -> "Response":
        return Response(self._answer(*arguments))


class Response:
    def __init__(self, answer: Awaitable[Any]) -> None:
        self._answer = answer

    def __await__(self) -> Any:
        return self._answer.__await__()

    def cancel(self) -> None:
        """Nothing runs in the background."""


VERSION = ServedVersion(
    checkpoint="models:/pose/1", name="pose", version="1", data="d" * 64, ap=0.5, run_id=None, step=6, method="smpr",
    schema=COCO17,
)  # fmt: skip


class Models:
    """Stands in for a model's handle: decodes like a replica, then fails sometimes, else finds one person."""

    def __init__(self, name: str) -> None:
        self.name, self.predict, self.shadow = name, Answering(self._predict), Answering(self._shadow)

    async def _predict(self, data: bytes, options: PredictOptions) -> PredictResult | ErrorDetail:
        try:
            image = decode_untrusted(data, most_pixels=LIMITS["image_pixels"])
        except DataError as error:
            return ErrorDetail("not_an_image", str(error))
        if reason := {0: "busy", 1: "no_model", 2: "deadline"}.get(len(data) % 16):
            return ErrorDetail(reason, "chosen by the test")
        poses = Poses(torch.full((1, 17, 2), 3.0), torch.ones(1, 17), torch.tensor([0.5]))
        described = describe_poses(poses, COCO17, keypoint_threshold=options.keypoint_threshold)
        return PredictResult(
            image={"width": image.shape[1], "height": image.shape[0], "poses": described},
            model={"name": self.name, "method": "smpr", "version": "1"},
            timings={"decode": 1.0, "queue": 1.0, "predict": 1.0},
            overlay=data if options.overlay else None,
            share_ms=1.0,
            checkpoint=VERSION.checkpoint,
            poses=poses,
        )

    async def _shadow(self, *_: Any) -> None:
        raise RuntimeError("broken")


class Controller:
    """Stands in for the version controller's handle; every other reload fails."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names, self._reloads = tuple(names), 0
        self.models, self.reload, self.shadow_stats = map(Answering, (self._models, self._reload, self._shadow_stats))

    async def _models(self) -> dict[str, ServingStatus]:
        return {
            name: ServingStatus("models:/pose@champion", VERSION if index else None, 1)
            for index, name in enumerate(self._names)
        }

    async def _reload(self, name: str, _: float) -> dict[str, Any] | ErrorDetail:
        self._reloads += 1
        if self._reloads % 2:
            return ErrorDetail("reload_failed", "its weights are damaged")
        return {"model": name, "before": None, "version": "1", "replicas": 2}

    async def _shadow_stats(self, _: str) -> ShadowStats:
        return ShadowStats(
            champion="models:/pose/1", challenger="models:/pose/2", images=1, champion_ms=1, challenger_ms=2
        )


@functools.cache
def api() -> Any:
    shadow = {"source": "models:/pose@challenger", "share": 0.5}
    models = [
        {"name": "pose", "source": "models:/pose@champion", "shadow": shadow},
        {"name": "other", "source": "models:/pose@champion"},
    ]
    server_settings = ServerSettings.model_validate({"models": models, "limits": LIMITS, "page": False})
    replicas: Any = {model.name: Models(model.name) for model in server_settings.models}
    controller: Any = Controller(replicas)
    return create_api(Gateway(server_settings, replicas, {"pose": replicas["pose"]}, controller))


def image_file(seed: int = 0, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (9, 7 + seed, 3), np.uint8)).save(file, kind)
    return file.getvalue()


IMAGE_FILES = [image_file(seed, kind) for seed in range(4) for kind in ("PNG", "JPEG")]
for media in ("image/jpeg", "image/png", "image/webp", "application/octet-stream"):
    schemathesis.openapi.media_type(media, st.sampled_from(IMAGE_FILES) | st.binary(max_size=200))


@pytest.fixture
def description(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("POSEFLEET_TOKEN", TOKEN)
    return schemathesis.openapi.from_asgi("/openapi.json", api())


# ---------------------------------------------------------------------------------------------------- requests

OPERATIONS = {
    "GET /healthz": 3, "GET /readyz": 3, "GET /v1/models": 3, "GET /v1/models/{name}/shadow": 20,
    "POST /v1/models/{name}/poses": 100, "POST /v1/models/{name}/reload": 20, "POST /v1/poses": 100,
}  # fmt: skip
"""Number of requests generated for each operation."""

VALID, INVALID = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
REQUESTS = [(label, VALID) for label in OPERATIONS] + [(label, INVALID) for label in OPERATIONS if "poses" in label]
"""Invalid requests only where there is a query or a body; the other operations have little that can be invalid."""


def test_every_operation_is_tested(description: Any) -> None:
    assert {found.ok().label for found in description.get_all_operations()} == set(OPERATIONS)


@pytest.mark.parametrize(("label", "mode"), REQUESTS)
def test_answers_match_the_description(description: Any, label: str, mode: GenerationMode) -> None:
    method, path = label.split()
    statuses = set()

    @settings(BOUNDED, max_examples=OPERATIONS[label])
    @given(description[path][method].as_strategy(generation_mode=mode), st.sampled_from(["pose", "other", None]))
    def ask(case: Any, name: str | None) -> None:
        if name and case.path_parameters:  # else hardly any request would get beyond the name
            case.path_parameters["name"] = name
        response = case.call(headers={"Authorization": f"Bearer {TOKEN}"})
        case.validate_response(response, excluded_checks=EXCLUDED_CHECKS)
        statuses.add(response.status_code)
        if response.status_code >= 400:
            assert response.headers["content-type"] == ["application/problem+json"]
            failure = Problem.model_validate(response.json())
            assert failure.status == response.status_code and failure.reason != "internal" and failure.detail
            assert response.status_code < 500 or response.status_code == REASONS[failure.reason]

    ask()
    assert (200 if mode is VALID else 422) in statuses


# ---------------------------------------------------------------------------------------------------- bodies


def read(body: list[bytes], *headers: tuple[str, str], limits: Limits) -> list[bytes] | ErrorDetail:
    """The uploads in a body that arrives in these chunks, or the error."""
    chunks = iter([*body, None])

    async def receive() -> dict[str, Any]:
        chunk = next(chunks)
        return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}

    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    request = Request({"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": raw}, receive)
    try:
        uploads = asyncio.run(read_uploads(request, limits))
    except ApiError as error:
        return ErrorDetail(error.reason, error.detail)
    assert uploads.files
    return [upload.data for upload in uploads.files]


SMALL = Limits(body_bytes=2_000, images=3)
FRAGMENTS = [
    b"--b",
    b"--b--",
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b":",
    b"\x00",
    b"Content-Disposition: form-data; name=",
    b'"image"',
    b'; filename="a.jpg"',
    b"; filename*=UTF-8''%ff%00",
    b"Content-Type: image/jpeg",
    b"Content-Length: -1",
    b"Content-Transfer-Encoding: base64",
    b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nabc\r\n',
]
FORMS = st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=20), max_size=25)
KINDS = st.sampled_from(
    [
        "multipart/form-data; boundary=b",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary="',
        "multipart/form-data; boundary=b; charset=utf-99",
        "multipart/form-data; charset=rot13; boundary=b",
        "multipart/form-data; charset=undefined; boundary=b",
        "multipart/form-data; charset=idna; boundary=b",
        "multipart/form-data; boundary=\xff",
        "multipart/form-data; boundary=" + 300 * "b",
        "image/png",
        "",
    ]
)


@settings(BOUNDED, max_examples=300)
@given(FORMS, KINDS, st.none() | st.just("9" * 5000) | st.text(st.characters(max_codepoint=255), max_size=5))
def test_broken_forms_are_read_or_refused_with_a_reason(body: list[bytes], kind: str, length: str | None) -> None:
    headers = [("content-type", kind), *([("content-length", length)] if length is not None else [])]
    found = read(body, *headers, limits=SMALL)
    assert isinstance(found, list) or found.reason in REASONS


@settings(BOUNDED, max_examples=100)
@given(st.lists(st.binary(max_size=900), min_size=1, max_size=4), st.data())
def test_a_form_reads_the_same_in_any_chunks(files: list[bytes], data: st.DataObject) -> None:
    boundary = b"a-line-that-no-file-has"
    head = b'Content-Disposition: form-data; name="image"; filename="a.jpg"'
    parts = b"".join(b"--%s\r\n%s\r\n\r\n%s\r\n" % (boundary, head, file) for file in files)
    whole = parts + b"--%s--\r\n" % boundary
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    chunks = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    found = read(chunks, ("content-type", f"multipart/form-data; boundary={boundary.decode()}"), limits=SMALL)
    if len(whole) > SMALL.body_bytes or len(files) > SMALL.images:
        assert isinstance(found, ErrorDetail) and found.reason in ("body_too_large", "too_many_images")
    else:
        assert found == files
