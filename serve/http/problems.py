"""Error responses: the reasons that requests fail for, with their HTTP status, and the response body (RFC 9457)."""

from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import JSONResponse

REASONS: dict[str, int] = {
    "no_token": 401,
    "changes_disabled": 403,
    "unknown_model": 404,
    "unknown_address": 404,
    "slow_upload": 408,
    "body_too_large": 413,
    "too_many_pixels": 413,
    "too_many_images": 413,
    "not_an_image": 415,
    "wrong_content_type": 415,
    "damaged_image": 422,
    "too_costly": 422,
    "bad_request": 422,
    "internal": 500,
    "reload_failed": 502,
    "busy": 503,
    "no_model": 503,
    "deadline": 504,
}
"""The reasons that requests fail for, and their HTTP status. Metrics count failed requests under these names."""

_HEADERS = {
    "busy": {"Retry-After": "1"},
    "no_model": {"Retry-After": "5"},
    "no_token": {"WWW-Authenticate": "Bearer"},
}


def problem(
    reason: str, detail: str, status: int | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The response to a failed request.

    Args:
        reason: A key of ``REASONS``.
        detail: For the client: the value, what was expected, what to do.
        status: HTTP status, where it is not the reason's own.
        headers: Response headers, where they are not the reason's own.
    """
    status = status or REASONS[reason]
    content = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "reason": reason,
    }
    return JSONResponse(content, status, headers or _HEADERS.get(reason), media_type="application/problem+json")
