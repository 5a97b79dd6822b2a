"""Reads byte ranges of many files at once, from any store of fsspec, and tries those again that fail."""

import time
from collections.abc import Sequence
from typing import Any

RETRY_PAUSES = (0.5, 2.0, 8.0)
"""Seconds to wait before each retry of a read from a remote store."""

Range = tuple[str, int, int]
"""Path of a file, and its bytes from the first number to before the second."""


class RangeError(OSError):
    """A range cannot be read; the message says why, without the file."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(why)
        self.path = path


def fetch_ranges(fs: Any, ranges: Sequence[Range], pauses: Sequence[float] = RETRY_PAUSES) -> list[bytes]:
    """The bytes of every range, in one request for all; a range that ends behind its file is cut short.

    Args:
        fs: fsspec file system of the files.
        ranges: What to read; equal ranges are read once.
        pauses: Seconds to wait before each retry of what failed.

    Raises:
        RangeError: A range cannot be read, not even in the last try, or its file does not exist or may not be read.
    """
    found: dict[Range, bytes] = {}
    for pause in (*pauses, None):
        missing = [part for part in dict.fromkeys(ranges) if part not in found]
        columns = ([part[column] for part in missing] for column in range(3))
        answers = fs.cat_ranges(*columns, on_error="return")
        failed = {p: answer for p, answer in zip(missing, answers, strict=True) if isinstance(answer, Exception)}
        found |= {p: answer for p, answer in zip(missing, answers, strict=True) if p not in failed}
        if not failed:
            break
        (path, *_), error = failed.popitem()
        if pause is None or isinstance(error, FileNotFoundError | PermissionError):
            raise RangeError(path, f"cannot read it: {error!r}") from error
        time.sleep(pause)
    return [found[part] for part in ranges]
