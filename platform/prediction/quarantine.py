"""Finds and skips images that kill the process that reads them, such as by a decoder's fault or by filling the memory.

Ray replaces a killed worker, and a command that is run again predicts what is missing; either would read the same image
again and again. A worker therefore marks a chunk with a file before it starts. If ``DEATHS`` workers have died on a
chunk, the next one predicts its images one at a time and writes the name of each into that file first. An image that
``DEATHS`` processes died on in this way is not read again.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import fsspec

from posefleet.data.io.files import read_json, write_file

DEATHS = 2
"""Deaths that prove a fault of the image: one may have another cause, such as a node that was lost."""

REASON = f"not read again: {DEATHS} processes died while they read it"


class Quarantine:
    """The deaths on one chunk, kept in the file ``path`` while the chunk is not finished."""

    def __init__(self, path: str) -> None:
        """Mark the chunk as started once more.

        Raises:
            DataError: The file is damaged.
        """
        self._path = path
        record = read_json(path) or {"begun": 0, "at": None, "deaths": {}}
        self._begun: int = record["begun"] + 1
        self._deaths: dict[str, int] = record["deaths"]
        if record["at"]:
            self._deaths[record["at"]] = self._deaths.get(record["at"], 0) + 1
        self._write(None)

    @property
    def careful(self) -> bool:
        """Whether ``DEATHS`` processes started this chunk and did not finish it, so that images go one at a time."""
        return self._begun > DEATHS

    def refuses(self, name: str) -> bool:
        """Whether ``DEATHS`` processes died on this image alone."""
        return self._deaths.get(name, 0) >= DEATHS

    @contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Record, for the block, that this image alone is being read; an exception is not counted as a death."""
        self._write(name)
        try:
            yield
        except (Exception, KeyboardInterrupt, SystemExit):
            with suppress(OSError):
                self._write(None)
            raise

    def finish(self) -> None:
        """Delete the file: the chunk is finished."""
        fs, path = fsspec.core.url_to_fs(self._path)
        fs.rm_file(path)

    def _write(self, at: str | None) -> None:
        write_file(self._path, json.dumps({"begun": self._begun, "at": at, "deaths": self._deaths}).encode())
