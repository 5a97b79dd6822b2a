"""What a server measures of a challenger that predicts live images beside the champion, and how it is read."""

import http.client
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, ValidationError

from posefleet.platform.runtime.errors import PlatformError
from posefleet.platform.tracking.client import first_line

_SECONDS, _BYTES = 10.0, 2**20
"""Timeout of the request, and the largest answer that is read."""


class ShadowError(PlatformError):
    """The server gave no valid answer; the message has the reason and what to do."""


class Shadowing(BaseModel, frozen=True, use_attribute_docstrings=True):
    """How far the present champion and challenger agree on the live images that both predicted.

    It is the server's answer. Before the first image all fields but ``images`` are None.
    """

    images: int = Field(ge=0)
    champion: str | None = None
    """``models:/NAME/VERSION``, or the path of a checkpoint."""
    challenger: str | None = None
    people: int | None = Field(None, ge=0)
    """People whom the champion found."""
    mean_oks: float | None = Field(None, ge=0, le=1.001)
    """Mean OKS between the two poses of the people whom both found; None if there are none."""
    only_champion: int | None = Field(None, ge=0)
    """People whom only the champion found."""
    only_challenger: int | None = Field(None, ge=0)
    """People whom only the challenger found."""
    champion_ms: float | None = Field(None, ge=0)
    """Mean milliseconds of an image: the time of its batch in the network divided by the images in the batch."""
    challenger_ms: float | None = Field(None, ge=0)

    @property
    def missed(self) -> float:
        """Share of the champion's people whom the challenger did not find."""
        return (self.only_champion or 0) / self.people if self.people else 0.0

    @property
    def slower(self) -> float:
        """Milliseconds of the challenger divided by those of the champion."""
        return (self.challenger_ms or 0.0) / self.champion_ms if self.champion_ms else float("inf")


class _SameAddress(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Refuse redirects: the token must reach no other server."""


def read_shadowing(address: str, token: str = "") -> Shadowing:
    """The answer to ``GET address/shadow``.

    Args:
        address: ``http://HOST:8000/v1/models/NAME``.
        token: The server's token, if it requires one.

    Raises:
        ValueError: ``address`` is not an http or https URL.
        ShadowError: The server does not answer, is not a posefleet server, or refuses the request.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{address!r} is no address of a served model, such as http://HOST:8000/v1/models/NAME")
    url = f"{address.rstrip('/').removesuffix('/shadow')}/shadow"
    try:
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
        with urllib.request.build_opener(_SameAddress).open(request, timeout=_SECONDS) as response:
            return Shadowing.model_validate_json(response.read(_BYTES))
    except urllib.error.HTTPError as error:
        raise ShadowError(f"{url}: status {error.code}; {_advice(error.code)}") from None
    except ValidationError as error:
        raise ShadowError(f"{url}: this is no posefleet server: {first_line(error)}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ShadowError(
            f"{url}: no answer: {first_line(error)}; is the server up, and reachable from here?"
        ) from None


def _advice(status: int) -> str:
    match status:
        case 401 | 403:
            return "the server requires its token: set POSEFLEET_TOKEN here"
        case 404:
            return "it has no such model, or the model has no `shadow` in the server's configuration"
        case _ if 300 <= status < 400:
            return "it redirects; give the address of the server itself"
        case _:
            return "see the server's log"
