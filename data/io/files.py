"""Writes files of any fsspec path whole or not at all, and reads JSON with errors that name the file."""

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.asyn import AsyncFileSystem

from posefleet.data.errors import DataError

PIECE = 10 * 2**20
"""Bytes of one write."""

UNFINISHED = ".unfinished"
"""Suffix of a file that is being written; a killed writer leaves such files behind."""


@contextmanager
def create(path: str) -> Iterator[IO[bytes]]:
    """Open ``path`` for writing; the file appears, or replaces an older one, only if the block ends without error.

    Raises:
        OSError: It cannot be written; ``filename`` says which, also where the system does not (a full disk).
    """
    fs, path = fsspec.core.url_to_fs(path)
    try:
        # An object store shows an object once it is closed; a rename would copy it.
        written = _discarded_on_error if isinstance(fs, AsyncFileSystem) else _renamed_at_the_end
        with written(fs, path) as file:
            yield file
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = path
        raise


def cache_folder(name: str) -> Path:
    """Where files that can be made again are kept: ``posefleet/NAME`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "posefleet", name)


def write_file(path: str, data: bytes) -> None:
    """Write a file whole or not at all; a large one in pieces, which an object store uploads in parts."""
    with create(path) as file:
        for start in range(0, len(data), PIECE):
            file.write(data[start : start + PIECE])


@contextmanager
def _renamed_at_the_end(fs: Any, path: str) -> Iterator[IO[bytes]]:
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


@contextmanager
def _discarded_on_error(fs: Any, path: str) -> Iterator[IO[bytes]]:
    file = fs.open(path, "wb")
    try:
        yield file
        file.close()
    except BaseException:
        file.closed = True  # otherwise garbage collection would close it, and so store it
        with suppress(OSError):  # the storage may be what failed
            file.discard()
        raise


def read_json(path: str) -> Any:
    """The JSON value in a file of any fsspec path; None if there is no file.

    Raises:
        DataError: The file is damaged or not JSON.
    """
    fs, path_in_fs = fsspec.core.url_to_fs(path)
    try:
        return json.loads(fs.cat_file(path_in_fs))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged, or no JSON: {error}") from None


def as_pattern(path: str) -> str:
    """``path`` for the ``glob`` of a file system, with ``*``, ``?`` and ``[`` in it meaning themselves."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in path)


def absolute(path: str) -> str:
    """``path`` as an absolute fsspec path, which means the same in every process."""
    fs, path_in_fs = fsspec.core.url_to_fs(path)
    return path if "::" in path else str(fs.unstrip_protocol(path_in_fs))


def printable(name: str) -> str:
    """A file name as valid Unicode: bytes that are not UTF-8 (in Python: lone surrogates) become ``\\xdf``."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def path_inside(folder: str, name: str) -> str:
    """The path of the untrusted file name ``name`` in ``folder``.

    Raises:
        DataError: The name leads out of the folder, or is no file name.
    """
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise DataError(f"{name!r} is no file of the folder {folder}")
    return f"{folder.rstrip('/')}/{name}"
