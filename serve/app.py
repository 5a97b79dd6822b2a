"""The HTTP face: ``serve run serve/config.yaml``. It takes requests in and hands images on; it never decodes one.

POST /v1/poses                       poses by the default model
POST /v1/models/{name}/poses         poses by that model
GET  /v1/models                      what is served
POST /v1/models/{name}/reload        look the model up again, swap without a failed request (token)
GET  /v1/models/{name}/shadow        how far champion and challenger agree on live images
GET  /healthz, /readyz               this replica lives; every model has a replica that serves
GET  /, /docs                        a page to try it on, and the API's description
"""

import asyncio
import json
import random
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from ray import serve
from ray.exceptions import RayActorError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, Response

from posefleet.data.keypoints import load_schema
from posefleet.data.loading.memory import collect_garbage_rarely
from posefleet.platform.runtime.placement import SERVING, STEADY
from posefleet.platform.runtime.redaction import redacted
from posefleet.serve.body import Upload, read_uploads
from posefleet.serve.deployments.errors import Refusal, Refused
from posefleet.serve.deployments.metrics import IngressMetrics
from posefleet.serve.deployments.replica import HEALTH, Ask, ModelReplica, Replica, Seen
from posefleet.serve.deployments.settings import (
    CHALLENGER,
    TOKEN,
    TOKEN_FILE,
    ServedModel,
    ServerSettings,
    may_be_zero,
    read_token,
)
from posefleet.serve.deployments.versions import Shadowed, Versions, Wanted
from posefleet.serve.problems import answer, problem
from posefleet.serve.schema import ModelList, Options, PoseQuery, PosesAnswer, Problem, Reloaded, ShadowSummary
from posefleet.serve.security import SecurityHeaders, check_token

PAGE = Path(__file__).with_name("page")

_INLINE = 64 * 1024
"""Smaller bodies travel inside the call; larger ones by reference, through shared memory."""

_TRIES = 3
"""How often an image is sent on when the replica that had it dies: predicting twice does no harm."""

_SHADOWS = 32
"""Most images that wait for a challenger; while it cannot keep up, more are not compared, and nothing piles up."""


def build(args: Mapping[str, Any]) -> serve.Application:
    """The application of a Serve config's ``args``, see ``settings.ServerSettings``.

    Raises:
        pydantic.ValidationError: They do not say what a server needs.
    """
    settings = ServerSettings.model_validate(dict(args))
    sources = {model.name: model.source for model in settings.models}
    sources |= {f"{model.name}{CHALLENGER}": model.shadow.source for model in settings.models if model.shadow}
    versions = Versions.bind(sources, settings.tracking)  # type: ignore[attr-defined]

    def replicas(
        key: str, model: ServedModel, options: Mapping[str, Any], deployment: Any = ModelReplica, *first: Any
    ) -> serve.Application:
        placed = {"ray_actor_options": {"label_selector": dict(SERVING), **options.get("ray_actor_options", {})}}
        bound: serve.Application = deployment.options(name=key, **{**options, **placed}).bind(
            *first, key, model, settings.limits.image_pixels, settings.tracking, versions
        )
        return bound

    far = settings.models[1:] if settings.direct else settings.models
    models = {model.name: replicas(model.name, model, model.deployment) for model in far}
    challengers = {
        model.name: replicas(f"{model.name}{CHALLENGER}", model, model.shadow.deployment)
        for model in settings.models
        if model.shadow
    }
    gateway = (settings, models, challengers, versions)
    if settings.direct:
        default = settings.models[0]
        return replicas(default.name, default, default.deployment, DirectReplica, *gateway)
    ingress: serve.Application = Ingress.options(**settings.ingress).bind(*gateway)  # type: ignore[attr-defined]
    return ingress


@serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0, "label_selector": dict(STEADY)})
@serve.ingress()
class Ingress:
    """A replica that speaks HTTP."""

    def __init__(
        self,
        settings: ServerSettings,
        models: Mapping[str, DeploymentHandle[Any]],
        challengers: Mapping[str, DeploymentHandle[Any]],
        versions: DeploymentHandle[Any],
    ) -> None:
        collect_garbage_rarely()
        self._gateway = Gateway(settings, models, challengers, versions)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(self._gateway)


@serve.deployment(max_ongoing_requests=256, **HEALTH)  # uploads that are under way count, too
@serve.ingress()
class DirectReplica(Replica):
    """A replica of the default model that speaks HTTP itself: one way less for every image."""

    async def __init__(  # type: ignore[misc]  # as of Replica
        self,
        settings: ServerSettings,
        models: Mapping[str, DeploymentHandle[Any]],
        challengers: Mapping[str, DeploymentHandle[Any]],
        versions: DeploymentHandle[Any],
        *replica: Any,
    ) -> None:
        """
        Args:
            settings: Like the next three of the ``Gateway``.
            replica: Arguments of ``Replica``.
        """
        self._gateway = Gateway(settings, models, challengers, versions, here=self)
        await super().__init__(*replica)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(self._gateway)


class Gateway:
    """The way from a request to the replicas and back."""

    def __init__(
        self,
        settings: ServerSettings,
        models: Mapping[str, DeploymentHandle[Any]],
        challengers: Mapping[str, DeploymentHandle[Any]],
        versions: DeploymentHandle[Any],
        here: Replica | None = None,
    ) -> None:
        """
        Args:
            here: A replica of the default model in this process.
        """
        token = read_token()  # an unreadable file is told now
        if settings.access.token_for == "everything" and not token:
            raise ValueError(f"access.token_for is everything, but neither ${TOKEN} nor ${TOKEN_FILE} gives a token")
        self.settings, self.versions = settings, versions
        self.models = {model.name: model for model in settings.models}
        self.metrics = IngressMetrics()
        self._handles, self._challengers, self._here = models, challengers, here
        self._background: set[asyncio.Task[None]] = set()

    def model(self, name: str | None) -> ServedModel:
        """The model of that name, or the default one.

        Raises:
            Refused: There is none.
        """
        if name is None:
            return self.settings.models[0]
        if name not in self.models:
            raise Refused("unknown_model", f"no model {name!r}; there is {', '.join(self.models)}")
        return self.models[name]

    async def poses(self, model: ServedModel, uploads: list[Upload], query: PoseQuery, deadline: float) -> list[Seen]:
        """The poses of every image, all by the same version.

        Raises:
            Refused: One cannot be had; its name is in the detail.
        """
        for _ in range(_TRIES):
            seen = await asyncio.gather(*(self._one(model, upload, query, deadline) for upload in uploads))
            if len({image.checkpoint for image in seen}) == 1:  # else a swap came in between
                break
        return seen

    async def _one(self, model: ServedModel, upload: Upload, query: PoseQuery, deadline: float) -> Seen:
        data = upload.data if self._near(model) else _carried(upload.data)
        found = await self._ask(model, data, query, deadline)
        if isinstance(found, Refusal):
            raise Refused(found.reason, f"{upload.name}: {found.detail}" if upload.name else found.detail)
        if model.shadow and random.random() < model.shadow.share:
            self._compare(model.name, _carried(data), found)
        return found

    def _near(self, model: ServedModel) -> Replica | None:
        return self._here if model is self.settings.models[0] else None

    def _send(self, model: ServedModel, data: Any, ask: Ask) -> Any:
        """Ask a replica, this one if it can be: an awaitable of ``Seen | Refusal`` that can be cancelled."""
        if near := self._near(model):
            return asyncio.create_task(near.predict(data, ask))
        return self._handles[model.name].predict.remote(data, ask)

    async def _ask(self, model: ServedModel, data: Any, query: PoseQuery, deadline: float) -> Seen | Refusal:
        late = Refusal(
            "deadline", f"no answer within {self.settings.limits.deadline_s:g} s; try again, or fewer at once"
        )
        for tries_left in reversed(range(_TRIES)):
            ask = Ask(
                seconds=deadline - time.monotonic(),
                score_threshold=query.score_threshold,
                keypoint_threshold=query.keypoint_threshold,
                max_people=query.max_people,
                overlay=query.overlay,
            )
            response = self._send(model, data, ask)
            try:
                async with asyncio.timeout(max(0.0, ask.seconds)):
                    found: Seen | Refusal = await response
                    return found
            except (TimeoutError, TaskCancelledError):
                response.cancel()
                return late
            except asyncio.CancelledError:
                response.cancel()
                raise
            except BackPressureError:
                return Refusal("busy", f"{model.name} has too much to do; try again in a second")
            except DeploymentUnavailableError as error:
                return Refusal("no_model", f"{model.name}: {error}")
            except RayActorError:
                if not tries_left:
                    raise
        raise AssertionError("unreachable")

    def _compare(self, name: str, data: Any, champion: Seen) -> None:
        """Hand an image to the challenger, too, unless it has enough to do."""
        if len(self._background) >= _SHADOWS:
            self.metrics.refused.inc(1, {"model": f"{name}{CHALLENGER}", "reason": "busy"})
            return
        task = asyncio.create_task(self._shadow(name, data, champion))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _shadow(self, name: str, data: Any, champion: Seen) -> None:
        try:
            await self._challengers[name].shadow.remote(data, champion)
        except Exception:  # the challenger is busy, starting or broken: its metrics show that, clients must not
            self.metrics.refused.inc(1, {"model": f"{name}{CHALLENGER}", "reason": "shadow"})

    async def wanted(self) -> dict[str, tuple[str, Wanted | None, int]]:
        """What is served, see ``Versions.models``."""
        told: dict[str, tuple[str, Wanted | None, int]] = await self.versions.models.remote()
        return told

    async def unready(self) -> list[str]:
        """Models of which no replica serves what it should, and which may not scale to zero."""
        told = await self.wanted()
        return [model.name for model in self.settings.models if not told[model.name][2] and not may_be_zero(model)]


def _carried(data: Any) -> Any:
    """Bytes as they go to another process: large ones as a reference; what is one stays one."""
    return ray.put(data) if isinstance(data, bytes) and len(data) > _INLINE else data


def create_api(gateway: Gateway) -> FastAPI:
    """The routes."""
    settings, limits = gateway.settings, gateway.settings.limits

    api = FastAPIOffline(
        title="posefleet",
        description="Multi-person poses: image bytes in, named keypoints out.",
        version="1",
        redoc_url=None,
        responses={status: _PROBLEM for status in ("4XX", "5XX")},
    )
    body = {"requestBody": {"required": True, "content": _bodies()}}
    answers: dict[int | str, dict[str, Any]] = {
        200: {"model": PosesAnswer, "content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}}
    }

    def everybody(request: Request) -> None:
        if settings.access.token_for == "everything":
            check_token(request)

    async def poses(request: Request, query: PoseQuery, name: str | None) -> Response:
        start = time.monotonic()
        everybody(request)
        model = gateway.model(name)
        request.state.model = model.name
        uploads = await read_uploads(request, limits)
        if query.overlay and len(uploads) > 1:
            raise Refused("bad_request", f"overlay=1 answers with one picture; {len(uploads)} were sent")
        seen = await gateway.poses(model, uploads, query, start + limits.deadline_s)
        total = 1e3 * (time.monotonic() - start)
        gateway.metrics.answered.observe(total, {"model": model.name})
        if query.overlay:
            return Response(seen[0].overlay, media_type="image/jpeg")
        content = {
            "model": seen[0].model,
            "images": [{"name": up.name, **image.image} for up, image in zip(uploads, seen, strict=True)],
            "timings": {key: max(image.timings[key] for image in seen) for key in seen[0].timings}
            | {"total": round(total, 3)},
        }
        return Response(json.dumps(content, separators=(",", ":")), media_type="application/json")

    @api.post("/v1/poses", responses=answers, openapi_extra=body, summary="Poses by the default model")
    async def default_poses(request: Request, query: Options) -> Response:
        return await poses(request, query, None)

    @api.post("/v1/models/{name}/poses", responses=answers, openapi_extra=body, summary="Poses by one model")
    async def model_poses(request: Request, name: str, query: Options) -> Response:
        return await poses(request, query, name)

    @api.get("/v1/models", response_model=ModelList, summary="What is served")
    async def models(request: Request) -> Any:
        everybody(request)
        told = await gateway.wanted()
        return {"models": [_model_info(model, *told[model.name][:2], settings) for model in settings.models]}

    @api.post("/v1/models/{name}/reload", response_model=Reloaded, summary="Serve what the alias means now")
    async def reload(request: Request, name: str) -> Any:
        check_token(request)
        model = gateway.model(name)
        done = await gateway.versions.reload.remote(model.name, limits.reload_s)
        if isinstance(done, Refusal):
            raise Refused(done.reason, done.detail)
        return done

    @api.get("/v1/models/{name}/shadow", response_model=ShadowSummary, summary="Champion and challenger on live images")
    async def shadow(request: Request, name: str) -> Any:
        everybody(request)
        model = gateway.model(name)
        if model.shadow is None:
            raise Refused("unknown_model", f"{name} has no challenger; give it a `shadow` in the configuration")
        found: Shadowed | None = await gateway.versions.shadowed.remote(model.name)
        return _summary(found)

    @api.get("/healthz", summary="This replica lives")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @api.get("/readyz", summary="Every model has a replica that serves")
    async def readyz() -> dict[str, str]:
        if unready := await gateway.unready():
            raise Refused("no_model", f"not ready: {', '.join(unready)}")
        return {"status": "ready"}

    if settings.page:

        @api.get("/", include_in_schema=False)
        async def page() -> FileResponse:
            return FileResponse(PAGE / "index.html")

        api.mount("/page", StaticFiles(directory=PAGE))

    _add_problems(api, gateway)
    if settings.access.origins:
        api.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.access.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    api.add_middleware(SecurityHeaders)
    return api


def _add_problems(api: FastAPI, gateway: Gateway) -> None:
    """All errors are problem details, and all are counted."""

    def count(request: Request, reason: str) -> None:
        gateway.metrics.refused.inc(1, {"model": getattr(request.state, "model", ""), "reason": reason})

    @api.exception_handler(Refused)
    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, Refused)
        count(request, error.refusal.reason)
        return answer(error.refusal)

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        count(request, "bad_request")
        told = "; ".join(f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors())
        return problem(422, "bad_request", told)

    @api.exception_handler(HTTPException)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        nowhere = error.status_code == 404
        reason = "unknown_address" if nowhere else "bad_request"
        count(request, reason)
        detail = "no such address; see /docs" if nowhere else str(error.detail)
        return problem(error.status_code, reason, detail, error.headers)

    @api.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        count(request, "internal")
        return problem(500, "internal", f"{type(error).__name__}; the server's log says more")


_PROBLEM: dict[str, Any] = {
    "description": "Refused; `reason` says why.",
    "content": {"application/problem+json": {"schema": Problem.model_json_schema()}},
}
"""Of the description. (FastAPI would say application/json of a model.)"""


def _bodies() -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    images = {"type": "array", "items": binary["schema"], "minItems": 1}
    files = {"type": "object", "properties": {"image": images}, "required": ["image"]}
    return {kind: binary for kind in ("image/jpeg", "image/png", "image/webp", "application/octet-stream")} | {
        "multipart/form-data": {"schema": files}
    }


def _model_info(model: ServedModel, source: str, wanted: Wanted | None, settings: ServerSettings) -> dict[str, Any]:
    info: dict[str, Any] = {
        "name": model.name,
        "default": model is settings.models[0],
        "source": redacted(source),
        "score_threshold": model.score_threshold,
    }
    if wanted is None:
        return info
    schema = load_schema(wanted.schema)
    keypoint_set = {"name": schema.name, "keypoints": schema.keypoints, "skeleton": schema.skeleton}
    checkpoint = redacted(wanted.checkpoint)
    return info | asdict(wanted) | {"name": model.name, "checkpoint": checkpoint, "keypoint_set": keypoint_set}


def _summary(seen: Shadowed | None) -> dict[str, Any]:
    if seen is None:
        return {"images": 0}
    return {
        "images": seen.images,
        "champion": redacted(seen.champion),
        "challenger": redacted(seen.challenger),
        "people": seen.pairs + seen.only_champion,
        "mean_oks": seen.oks / seen.pairs if seen.pairs else None,
        "only_champion": seen.only_champion,
        "only_challenger": seen.only_challenger,
        "champion_ms": seen.champion_ms / seen.images,
        "challenger_ms": seen.challenger_ms / seen.images,
    }
