"""Reads the images of a request: its body, or the files of a multipart form. No image is decoded here."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from pydantic import ValidationError
from python_multipart.multipart import parse_options_header
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from posefleet.data.errors import TooCostly
from posefleet.data.image_limits import read_size
from posefleet.serve.deployments.errors import ApiError
from posefleet.serve.deployments.settings import Limits
from posefleet.serve.http.schema import Tracking

_UNSPECIFIC = ("", "application/octet-stream", "application/x-www-form-urlencoded")
"""Content types that clients send for any bytes; curl sends the last one for --data-binary."""

_CHARSETS = ("utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin-1")
"""Charsets of a form's names. RFC 7578 knows no other than UTF-8, and Python's codecs can do more than decode text."""

TRACKING = "tracking"
"""Name of the form's field with the time of a frame and the state of the tracker."""

MOST_TRACKING = 2**20
"""Maximum length of that field, characters; 200 people of 133 keypoints take a third of it."""

_MAX_LENGTH_DIGITS = 18
"""Digits of a Content-Length that are converted; Python refuses to convert thousands of them."""


@dataclass(frozen=True, slots=True)
class Upload:
    """The bytes of one uploaded file; whether they are an image is not known yet."""

    data: bytes
    name: str | None = None
    """File name in a multipart form; None for a body."""


@dataclass(frozen=True, slots=True)
class Uploads:
    """What a request carries."""

    files: list[Upload]
    """The images, at least one; exactly one if ``tracking`` was sent."""
    tracking: Tracking | None = None
    """Time and state that were sent with a frame of a film."""


async def read_uploads(request: Request, limits: Limits) -> Uploads:
    """Read the uploaded files of a request, at least one, and what was sent with the frame of a film.

    Raises:
        ApiError: The upload is too large or too slow, its content type cannot hold an image, or
            ``tracking`` is invalid.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in _UNSPECIFIC and kind != "multipart/form-data" and not kind.startswith("image/"):
        raise ApiError(
            "wrong_content_type", f"content type {kind!r}; send an image as the body, or multipart/form-data with files"
        )
    try:
        async with asyncio.timeout(limits.upload_s):
            if kind == "multipart/form-data":
                uploads = await _read_form(request, limits)
            else:
                uploads = Uploads([Upload(b"".join([chunk async for chunk in _read_body(request, limits)]))])
    except TimeoutError:
        raise ApiError("slow_upload", f"the body did not arrive within {limits.upload_s:g} s") from None
    except ClientDisconnect:
        raise ApiError("slow_upload", "the client disconnected before its body had arrived") from None
    _check_pixels(uploads.files, limits)
    return uploads


def _check_pixels(uploads: Sequence[Upload], limits: Limits) -> None:
    """Refuse images that have too many pixels together, by their headers; each one alone is the replica's to refuse."""
    most = limits.request_pixels or 2 * limits.image_pixels
    try:
        pixels = sum(read_size(upload.data) for upload in uploads) if len(uploads) > 1 else 0
    except TooCostly:
        return  # the replica says which image, and why
    if pixels > most:
        raise ApiError(
            "too_many_pixels",
            f"{len(uploads)} images of {pixels:,} pixels together are more than the {most:,} of a request; send fewer",
        )


async def _read_body(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    """Yield the chunks of the body; stop as soon as it is known to be too large."""
    announced = request.headers.get("content-length", "")
    size = int(announced[:_MAX_LENGTH_DIGITS]) if announced.isdecimal() else 0
    if size <= limits.body_bytes:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > limits.body_bytes:
                break
            yield chunk
    if size > limits.body_bytes:
        raise ApiError("body_too_large", f"more than {limits.body_bytes:,} bytes; send smaller or fewer images")


async def _read_form(request: Request, limits: Limits) -> Uploads:
    charset = parse_options_header(request.headers["content-type"])[1].get(b"charset", b"utf-8").decode("latin-1")
    if charset.strip().lower() not in _CHARSETS:
        raise ApiError("wrong_content_type", f"charset {charset[:40]!r} of the form; send its names in UTF-8")
    parser = MultiPartParser(request.headers, _read_body(request, limits), max_files=limits.images, max_fields=16)
    parser.spool_max_size = limits.body_bytes  # uploads are never written to disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        many = error.message.startswith("Too many")
        advice = f"; at most {limits.images} files and 16 other fields in a request" if many else ""
        raise ApiError("too_many_images" if many else "bad_request", f"{error.message}{advice}") from None
    except KeyError:
        raise ApiError(
            "bad_request", "multipart/form-data without a boundary; let the HTTP client set this header"
        ) from None
    files = [value for name, value in form.multi_items() if not isinstance(value, str) and name != TRACKING]
    if not files:
        raise ApiError("bad_request", "the form has no file; send images as files, such as curl -F image=@people.jpg")
    tracking = [value if isinstance(value, str) else await value.read() for value in form.getlist(TRACKING)]
    if len(tracking) > 1:
        raise ApiError("bad_request", f"the form has {len(tracking)} fields {TRACKING}; send one")
    if tracking and len(files) > 1:
        raise ApiError(
            "bad_request", f"{TRACKING} goes with one frame, but {len(files)} images were sent; send one in a request"
        )
    uploads = [Upload(await file.read(), file.filename) for file in files]
    return Uploads(uploads, parse_tracking(tracking[0]) if tracking else None)


def parse_tracking(text: str | bytes) -> Tracking:
    """Read the field ``tracking`` of a form.

    Raises:
        ApiError: It is too long, no JSON, or has a wrong value; the detail begins with the field.
    """
    if len(text) > MOST_TRACKING:
        raise ApiError("bad_request", f"{TRACKING}: {len(text):,} characters are more than {MOST_TRACKING:,}")
    try:
        return Tracking.model_validate_json(text)
    except ValidationError as error:
        first, *others = error.errors(include_url=False, include_input=False)
        where = ".".join([TRACKING, *map(str, first["loc"])])
        more = f" ({len(others)} more)" if others else ""
        raise ApiError("bad_request", f"{where}: {first['msg'].removeprefix('Value error, ')}{more}") from None
