"""The images of a request: its body, or the files of a multipart form. Nothing is decoded here."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from posefleet.serve.deployments.errors import ApiError
from posefleet.serve.deployments.settings import Limits

ANY = ("", "application/octet-stream", "application/x-www-form-urlencoded")
"""Content types that say nothing; the last one is what curl says of --data-binary."""


@dataclass(frozen=True, slots=True)
class Upload:
    """The bytes of what should be an image."""

    data: bytes
    name: str | None = None
    """Of the file in a multipart form."""


async def read_uploads(request: Request, limits: Limits) -> list[Upload]:
    """What a client sends, at least one.

    Raises:
        Refused: It is too much, too slow, or of a type that holds no image.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ANY and kind != "multipart/form-data" and not kind.startswith("image/"):
        raise ApiError(
            "wrong_content_type", f"content type {kind!r}; send an image as the body, or multipart/form-data with files"
        )
    try:
        async with asyncio.timeout(limits.upload_s):
            if kind == "multipart/form-data":
                return await _read_form(request, limits)
            return [Upload(b"".join([chunk async for chunk in _bounded(request, limits)]))]
    except TimeoutError:
        raise ApiError("slow_upload", f"the body was not here after {limits.upload_s:g} s") from None
    except ClientDisconnect:
        raise ApiError("slow_upload", "the client left before its body was here") from None


async def _bounded(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    """The body, as long as it is not too long."""
    announced = request.headers.get("content-length", "")
    size = int(announced) if announced.isdecimal() else 0
    if size <= limits.body_bytes:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > limits.body_bytes:
                break
            yield chunk
    if size > limits.body_bytes:
        raise ApiError("body_too_large", f"more than {limits.body_bytes:,} bytes; send smaller or fewer images")


async def _read_form(request: Request, limits: Limits) -> list[Upload]:
    parser = MultiPartParser(request.headers, _bounded(request, limits), max_files=limits.images, max_fields=16)
    parser.spool_max_size = limits.body_bytes  # never to disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        many = error.message.startswith("Too many")
        advice = f"; at most {limits.images} files and 16 other fields in a request" if many else ""
        raise ApiError("too_many_images" if many else "bad_request", f"{error.message}{advice}") from None
    except KeyError:
        raise ApiError(
            "bad_request", "multipart/form-data without a boundary; let the client make the header"
        ) from None
    files = [value for _, value in form.multi_items() if not isinstance(value, str)]
    if not files:
        raise ApiError("bad_request", "the form has no file; send images as files, such as curl -F image=@people.jpg")
    return [Upload(await file.read(), file.filename) for file in files]
