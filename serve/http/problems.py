"""Why requests fail: one table of reasons, their statuses, and how an answer says it (RFC 9457)."""

from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import JSONResponse

from posefleet.serve.deployments.errors import ErrorDetail

REASONS: dict[str, int] = {
    "no_token": 401,
    "changes_disabled": 403,
    "unknown_model": 404,
    "slow_upload": 408,
    "body_too_large": 413,
    "too_many_pixels": 413,
    "too_many_images": 413,
    "not_an_image": 415,
    "wrong_content_type": 415,
    "damaged_image": 422,
    "bad_request": 422,
    "reload_failed": 502,
    "busy": 503,
    "no_model": 503,
    "deadline": 504,
}
"""The words that metrics count refused requests under, and their HTTP status."""


def problem(status: int, reason: str, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer of a failed request."""
    content = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "reason": reason,
    }
    return JSONResponse(content, status, headers, media_type="application/problem+json")


def answer(refusal: ErrorDetail) -> JSONResponse:
    """The answer of a request that was refused."""
    extra = {"busy": {"Retry-After": "1"}, "no_model": {"Retry-After": "5"}, "no_token": {"WWW-Authenticate": "Bearer"}}
    return problem(REASONS[refusal.reason], refusal.reason, refusal.detail, extra.get(refusal.reason))
