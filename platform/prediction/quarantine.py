"""Pictures that kill the process which reads them: by a fault of a decoder, say, or by taking all memory.

Ray replaces a killed worker, and a command that is given again goes on with what is missing, so either would meet the
same picture for ever. Therefore a chunk of pictures has a note while it is worked at. Who is the third to begin with it
takes the pictures one by one, and notes which; one that ``DEATHS`` processes died of in this way is not tried again.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import fsspec

from posefleet.data.io.files import read_json, write_file

DEATHS = 2
"""A process may also die of something else, such as a node that goes: once is no proof."""

REASON = f"whoever reads it dies: {DEATHS} processes did"


class Quarantine:
    """The note of one chunk, in the file ``path``."""

    def __init__(self, path: str) -> None:
        """Begin with the chunk.

        Raises:
            DataError: The note is damaged.
        """
        self._path = path
        found = read_json(path) or {"begun": 0, "at": None, "deaths": {}}
        self._begun: int = found["begun"] + 1
        self._deaths: dict[str, int] = found["deaths"]
        if found["at"]:
            self._deaths[found["at"]] = self._deaths.get(found["at"], 0) + 1
        self._write(None)

    @property
    def careful(self) -> bool:
        """Others began and did not come back: take one picture at a time."""
        return self._begun > DEATHS

    def avoid(self, name: str) -> bool:
        """Whether nobody should try that picture again."""
        return self._deaths.get(name, 0) >= DEATHS

    @contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Within, that picture alone is worked at; any exception shows that it did not kill the process."""
        self._write(name)
        try:
            yield
        except (Exception, KeyboardInterrupt, SystemExit):
            with suppress(OSError):
                self._write(None)
            raise

    def done(self) -> None:
        """The chunk is through."""
        fs, path = fsspec.core.url_to_fs(self._path)
        fs.rm_file(path)

    def _write(self, at: str | None) -> None:
        write_file(self._path, json.dumps({"begun": self._begun, "at": at, "deaths": self._deaths}).encode())
