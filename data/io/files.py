"""Files of any fsspec path: written whole or not at all, and JSON read with errors that name it."""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

import fsspec
from fsspec.asyn import AsyncFileSystem

from posefleet.data.errors import DataError

PIECE = 10 * 2**20
"""Bytes that are handed to a file system at once."""

UNFINISHED = ".unfinished"
"""How the names of files end that a killed writer leaves."""


@contextmanager
def create(path: str) -> Iterator[IO[bytes]]:
    """Open ``path`` for writing; the file appears, or replaces an older one, only when the block ends well."""
    fs, path = fsspec.core.url_to_fs(path)
    if isinstance(fs, AsyncFileSystem):  # object stores show an object when it is closed, and copy it to rename it
        with _kept_when_whole(fs.open(path, "wb")) as file:
            yield file
        return
    fs.makedirs(path.rpartition("/")[0], exist_ok=True)
    unfinished = f"{path}.{uuid.uuid4().hex[:8]}{UNFINISHED}"
    try:
        with fs.open(unfinished, "wb") as file:
            yield file
        fs.mv(unfinished, path)
    except BaseException:
        if fs.exists(unfinished):
            fs.rm_file(unfinished)
        raise


def write_file(path: str, data: bytes) -> None:
    """Write a file whole or not at all; a large one piece by piece, of which object stores make an upload in parts."""
    with create(path) as file:
        for start in range(0, len(data), PIECE):
            file.write(data[start : start + PIECE])


@contextmanager
def _kept_when_whole(file: Any) -> Iterator[IO[bytes]]:
    try:
        yield file
        file.close()
    except BaseException:
        file.closed = True  # else it would be closed, and so kept, when it is collected
        with suppress(OSError):  # the storage may be what failed
            file.discard()
        raise


def read_json(path: str) -> Any:
    """The JSON value in a file of any fsspec path; None where there is no file.

    Raises:
        DataError: It is damaged, or something else than JSON.
    """
    fs, path_in_fs = fsspec.core.url_to_fs(path)
    try:
        return json.loads(fs.cat_file(path_in_fs))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged, or no JSON: {error}") from None


def absolute(path: str) -> str:
    """The same fsspec path for every process, wherever it runs."""
    fs, path_in_fs = fsspec.core.url_to_fs(path)
    return path if "::" in path else str(fs.unstrip_protocol(path_in_fs))


def path_inside(folder: str, name: str) -> str:
    """The path of ``name``, which comes from strangers, in ``folder``.

    Raises:
        DataError: The name leads out of the folder, or is no file name.
    """
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise DataError(f"{name!r} is no file of the folder {folder}")
    return f"{folder.rstrip('/')}/{name}"
