"""Security of the HTTP interface: headers that restrict browsers, and the check of the token."""

import hmac

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from posefleet.serve.deployments.errors import ApiError
from posefleet.serve.deployments.settings import TOKEN, TOKEN_FILE, read_token

_NO_CONTENT = "default-src 'none'; frame-ancestors 'none'"
_PAGE = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_DOCS = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'"
)


class SecurityHeaders:
    """ASGI middleware that sets the security headers of every response.

    The page may load content from this server only; every other response may load nothing.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"].removeprefix(scope.get("root_path", ""))
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                headers["X-Frame-Options"] = "DENY"
                headers["Cross-Origin-Resource-Policy"] = "same-origin"
                headers["Content-Security-Policy"] = (
                    _PAGE if path == "/" or path.startswith("/page/") else _DOCS if path == "/docs" else _NO_CONTENT
                )
                if path == "/":
                    headers["Permissions-Policy"] = "camera=(self), microphone=(), geolocation=()"
                if path.startswith("/v1/"):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)


def check_token(request: Request) -> None:
    """Check that a request carries the server's token.

    Raises:
        ApiError: The token is missing or wrong, or this server has none, so that nobody may change anything.
    """
    if not read_token():
        raise ApiError("changes_disabled", f"this server has no token; set ${TOKEN} or ${TOKEN_FILE} before it starts")
    if not has_token(request):
        raise ApiError("no_token", "send the server's token: Authorization: Bearer TOKEN")


def has_token(request: Request) -> bool:
    """Whether a request carries the server's token; the comparison takes constant time. False if there is none."""
    expected = read_token()
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    same = hmac.compare_digest(given.strip().encode(), expected.encode())
    return bool(expected) and scheme.lower() == "bearer" and same
