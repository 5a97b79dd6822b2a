"""The HTTP routes: what each path of the API does."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, Response

from posefleet.data.keypoints import load_schema
from posefleet.platform.runtime.redaction import redacted
from posefleet.serve.deployments.errors import ApiError, ErrorDetail
from posefleet.serve.deployments.settings import (
    ServedModel,
    ServerSettings,
)
from posefleet.serve.deployments.versions import ServedVersion, ShadowStats
from posefleet.serve.http.gateway import Gateway
from posefleet.serve.http.problems import answer, problem
from posefleet.serve.http.schema import ModelList, Options, PoseQuery, PosesAnswer, Problem, Reloaded, ShadowSummary
from posefleet.serve.http.security import SecurityHeaders, check_token
from posefleet.serve.http.uploads import read_uploads

PAGE = Path(__file__).parents[1] / "page"


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
            raise ApiError("bad_request", f"overlay=1 answers with one picture; {len(uploads)} were sent")
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
        if isinstance(done, ErrorDetail):
            raise ApiError(done.reason, done.detail)
        return done

    @api.get("/v1/models/{name}/shadow", response_model=ShadowSummary, summary="Champion and challenger on live images")
    async def shadow(request: Request, name: str) -> Any:
        everybody(request)
        model = gateway.model(name)
        if model.shadow is None:
            raise ApiError("unknown_model", f"{name} has no challenger; give it a `shadow` in the configuration")
        found: ShadowStats | None = await gateway.versions.shadowed.remote(model.name)
        return _summary(found)

    @api.get("/healthz", summary="This replica lives")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @api.get("/readyz", summary="Every model has a replica that serves")
    async def readyz() -> dict[str, str]:
        if unready := await gateway.unready():
            raise ApiError("no_model", f"not ready: {', '.join(unready)}")
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

    @api.exception_handler(ApiError)
    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
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


def _model_info(
    model: ServedModel, source: str, wanted: ServedVersion | None, settings: ServerSettings
) -> dict[str, Any]:
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


def _summary(seen: ShadowStats | None) -> dict[str, Any]:
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
