"""The HTTP routes: what each path of the API does."""

import json
import string
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, Response

from posefleet.data.schemas.category import category_name
from posefleet.platform.promotion.shadow import Shadowing
from posefleet.platform.runtime.paths import MODELS
from posefleet.platform.runtime.redaction import redact
from posefleet.serve.deployments.errors import ApiError, ErrorDetail
from posefleet.serve.deployments.settings import ServedModel
from posefleet.serve.deployments.versions import ServingStatus, ShadowStats
from posefleet.serve.http.gateway import Gateway
from posefleet.serve.http.head import HeadRequests
from posefleet.serve.http.problems import problem
from posefleet.serve.http.schema import (
    ModelList,
    PoseQuery,
    PoseQueryParameters,
    PosesAnswer,
    Problem,
    Reloaded,
    Tracking,
)
from posefleet.serve.http.security import SecurityHeaders, check_token, has_token
from posefleet.serve.http.uploads import TRACKING, read_uploads

PAGE = Path(__file__).parents[1] / "page"


def create_api(gateway: Gateway) -> FastAPI:
    """Create the ASGI application whose routes answer through ``gateway``."""
    api = FastAPIOffline(
        title="posefleet",
        description="Multi-person poses: image bytes in, named keypoints out.",
        version="1",
        redoc_url=None,
        responses={status: _PROBLEM for status in ("4XX", "5XX")},
    )
    _add_poses(api, gateway)
    _add_models(api, gateway)
    _add_health(api, gateway)
    _add_error_handlers(api, gateway)
    if gateway.settings.page:

        @api.get("/", include_in_schema=False)
        async def page() -> FileResponse:
            return FileResponse(PAGE / "index.html")

        api.mount("/page", StaticFiles(directory=PAGE))
    if origins := gateway.settings.access.origins:
        api.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    api.add_middleware(SecurityHeaders)
    api.add_middleware(HeadRequests)
    return api


def _add_poses(api: FastAPI, gateway: Gateway) -> None:
    """Add the routes that predict."""
    limits = gateway.settings.limits
    answers: dict[int | str, dict[str, Any]] = {
        200: {"model": PosesAnswer, "content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}}
    }
    described: dict[str, Any] = {
        "responses": answers,
        "openapi_extra": {"requestBody": {"required": True, "content": _request_bodies()}},
    }

    async def poses(request: Request, query: PoseQuery, name: str | None) -> Response:
        start = time.monotonic()
        _check_access(request, gateway)
        model = gateway.model(name)
        request.state.model = model.name
        uploads = await read_uploads(request, limits)
        files, tracking = uploads.files, uploads.tracking
        if query.overlay and len(files) > 1:
            raise ApiError("bad_request", f"overlay=1 answers with one image, but {len(files)} were sent; send one")
        if query.overlay and tracking:
            raise ApiError("bad_request", "overlay=1 answers with an image, which holds no state of tracking; omit one")
        results = await gateway.poses(model, files, query, start + limits.deadline_s, tracking)
        total = 1e3 * (time.monotonic() - start)
        gateway.metrics.answered.observe(total, {"model": model.name})
        if query.overlay:
            note = results[0].model.get("note", "")  # a replica of an earlier version gives none
            return Response(results[0].overlay, media_type="image/jpeg", headers=_note_header(note))
        timings = {key: max(result.timings[key] for result in results) for key in results[0].timings}
        content = {
            "model": results[0].model,
            "images": [{"name": file.name, **result.image} for file, result in zip(files, results, strict=True)],
            "timings": timings | {"total": round(total, 3)},
        }
        if tracking:
            content["tracking"] = {"state": results[0].tracker_state}
        return Response(json.dumps(content, separators=(",", ":")), media_type="application/json")

    @api.post("/v1/poses", summary="Poses by the default model", **described)
    async def default_poses(request: Request, query: PoseQueryParameters) -> Response:
        return await poses(request, query, None)

    @api.post("/v1/models/{name}/poses", summary="Poses by one model", **described)
    async def model_poses(request: Request, name: str, query: PoseQueryParameters) -> Response:
        return await poses(request, query, name)


def _add_models(api: FastAPI, gateway: Gateway) -> None:
    """Add the routes that tell and change which versions are served."""
    settings = gateway.settings

    @api.get("/v1/models", response_model=ModelList, summary="The served models and their versions")
    async def models(request: Request) -> Any:
        _check_access(request, gateway)
        served, trusted = await gateway.served(), has_token(request)
        return {
            "models": [
                describe_model(model, served[model.name], trusted=trusted) | {"default": model is settings.models[0]}
                for model in settings.models
            ]
        }

    @api.post(
        "/v1/models/{name}/reload", response_model=Reloaded, summary="Serve the version that the source names now"
    )
    async def reload(request: Request, name: str) -> Any:
        check_token(request)
        model = gateway.model(name)
        outcome = await gateway.versions.reload.remote(model.name, settings.limits.reload_s)
        if isinstance(outcome, ErrorDetail):
            raise ApiError(outcome.reason, outcome.detail)
        return outcome

    @api.get("/v1/models/{name}/shadow", summary="Champion and challenger on live images")
    async def shadow(request: Request, name: str) -> Shadowing:
        _check_access(request, gateway)
        model = gateway.model(name)
        if model.shadow is None:
            raise ApiError("unknown_model", f"{name} has no challenger; set `shadow` in the configuration")
        return _summarize(await gateway.versions.shadow_stats.remote(model.name), trusted=has_token(request))


def _add_health(api: FastAPI, gateway: Gateway) -> None:
    @api.get("/healthz", summary="This replica is alive")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @api.get("/readyz", summary="Every model has a replica that serves")
    async def readyz() -> dict[str, str]:
        if unready := await gateway.unready():
            raise ApiError("no_model", f"not ready: {'; '.join(unready)}")
        return {"status": "ready"}


def _check_access(request: Request, gateway: Gateway) -> None:
    if gateway.settings.access.token_for == "everything":
        check_token(request)


def _add_error_handlers(api: FastAPI, gateway: Gateway) -> None:
    """Answer every error with problem details, and count it."""

    def count(request: Request, reason: str) -> None:
        gateway.metrics.refused.inc(1, {"model": getattr(request.state, "model", ""), "reason": reason})

    @api.exception_handler(ApiError)
    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        count(request, error.reason)
        return problem(error.reason, error.detail)

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        count(request, "bad_request")
        return problem(
            "bad_request", "; ".join(f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors())
        )

    @api.exception_handler(HTTPException)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        missing = error.status_code == 404
        reason = "unknown_address" if missing else "bad_request"
        count(request, reason)
        detail = "no such address; see /docs" if missing else str(error.detail)
        return problem(reason, detail, error.status_code, error.headers)

    @api.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        count(request, "internal")
        return problem("internal", f"{type(error).__name__}; the server's log has the traceback")


def _note_header(note: str) -> dict[str, str]:
    """A header with the note of the model, for answers that are pictures; other letters than ASCII are percent-encoded,
    as a header cannot hold them."""
    return {"X-Model-Note": quote(note, safe=string.punctuation.replace("%", "") + " ")} if note else {}


_PROBLEM: dict[str, Any] = {
    "description": "The request failed; `reason` says why.",
    "content": {"application/problem+json": {"schema": Problem.model_json_schema()}},
}
"""OpenAPI description of failed requests, written by hand because FastAPI would describe them as application/json."""


def _request_bodies() -> dict[str, Any]:
    """OpenAPI description of the request bodies, by content type."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    images = {"type": "array", "items": binary["schema"], "minItems": 1}
    tracking = {
        "type": "string",
        "description": "JSON, with one image only: the poses get the numbers of people in a film. `seconds` is the "
        "time of the frame, `state` that of the answer to the frame before, null or absent for the first frame.",
        "contentMediaType": "application/json",
        "contentSchema": Tracking.model_json_schema(),
    }
    files = {"type": "object", "properties": {"image": images, TRACKING: tracking}, "required": ["image"]}
    return {kind: binary for kind in ("image/jpeg", "image/png", "image/webp", "application/octet-stream")} | {
        "multipart/form-data": {"schema": files}
    }


def describe_model(model: ServedModel, served: ServingStatus, *, trusted: bool) -> dict[str, Any]:
    """The fields of ``schema.ModelInfo`` but ``default``.

    Args:
        model: The model in the configuration.
        served: How it is served.
        trusted: Whether the request carries the token. Others get no paths, addresses and runs; passwords are removed
            from the addresses of all.
    """
    version, fault = served.version, served.fault
    info = {"name": model.name, "score_threshold": model.score_threshold}
    if fault:
        info["problem"] = f"{fault.summary}: {fault.detail}" if trusted else fault.summary
    if trusted:
        info["source"] = redact(model.source)
    if version is None:
        return info
    info |= {"version": version.version, "method": version.method, "ap": version.ap, "note": version.note}
    if trusted:
        info |= {"checkpoint": redact(version.checkpoint), "data": version.data}
        info |= {"run_id": version.run_id, "step": version.step}
    return info | {"category": category_name(version.schema), "keypoint_set": version.schema.as_dict()}


def _summarize(stats: ShadowStats | None, *, trusted: bool) -> Shadowing:
    if stats is None:
        return Shadowing(images=0)

    def shown(checkpoint: str) -> str | None:
        return redact(checkpoint) if trusted or checkpoint.startswith(MODELS) else None

    return Shadowing(
        images=stats.images,
        champion=shown(stats.champion),
        challenger=shown(stats.challenger),
        people=stats.pairs + stats.only_champion,
        mean_oks=stats.oks / stats.pairs if stats.pairs else None,
        only_champion=stats.only_champion,
        only_challenger=stats.only_challenger,
        champion_ms=stats.champion_ms / stats.images,
        challenger_ms=stats.challenger_ms / stats.images,
    )
