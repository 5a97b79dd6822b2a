"""Files of any fsspec path that appear whole or not at all."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import fsspec

UNFINISHED = ".unfinished"
"""How the names of files end that a killed writer leaves."""


@contextmanager
def create(path: str) -> Iterator[IO[bytes]]:
    """Open ``path`` for writing; the file appears, or replaces an older one, only when the block ends well."""
    fs, path = fsspec.core.url_to_fs(path)
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
