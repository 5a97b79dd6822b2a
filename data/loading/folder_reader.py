"""Reads samples of a data set in COCO's own files in the order of shards, see ``shards.unsharded``."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem

from posefleet.data.coco.records import Record
from posefleet.data.coco.source import image_path
from posefleet.data.errors import DataError
from posefleet.data.shards.unsharded import Unsharded, open_unsharded


@dataclass(frozen=True, slots=True)
class FolderMember:
    """Where one sample is: its image file, and its record."""

    path: str
    encoded: bytes
    """Its record, as a shard holds it."""

    def image(self, data: bytes) -> bytes:
        """The content of the image file, of what was read."""
        return data

    def record(self, data: bytes) -> bytes:
        """The record; it is not in the image file."""
        return self.encoded

    def broken(self, error: DataError) -> DataError:
        """The error about the content of this sample."""
        return DataError(f"{self.path}: {error}; did the file change? start the command again, which checks it")


class FolderReader:
    """Reads image files by shard and sample, as the reader of shards reads their members.

    Args:
        folder: Folder or annotation file.
        split: Its split.
        labelled_only: Leave out images without a keypoint person.
        pauses: Seconds to wait before each retry of a read from a remote store.
    """

    def __init__(self, folder: str, split: str, labelled_only: bool, pauses: tuple[float, ...]) -> None:
        found: Unsharded = open_unsharded(folder, split)
        self._source, self._split = found.source, found.split
        self._pauses = pauses
        self._rows = [
            rows[flags] if labelled_only else rows for rows, flags in zip(found.rows, found.labelled, strict=True)
        ]
        self._fs, _ = fsspec.core.url_to_fs(found.source.image_folder)

    def read(self, shards: np.ndarray, samples: np.ndarray) -> list[tuple[FolderMember, bytes]]:
        """The image file of each (shard, sample)."""
        rows = [int(self._rows[shard][sample]) for shard, sample in zip(shards.tolist(), samples.tolist(), strict=True)]
        records = [self._split.record(row) for row in rows]
        members = [
            FolderMember(image_path(self._source, record["file_name"]), self._split.encoded(row))
            for record, row in zip(records, rows, strict=True)
        ]
        if isinstance(self._fs, LocalFileSystem):
            return [(member, self._local(member)) for member in members]
        found = self._remote([member.path for member in members])
        return list(zip(members, found, strict=True))

    def records(self, rank: int, world_size: int) -> Iterator[Record]:
        """See :meth:`posefleet.data.loading.source.SampleSource.records`."""
        rows = np.concatenate(self._rows)
        return (self._split.record(int(row)) for row in rows[rank::world_size])

    def _local(self, member: FolderMember) -> bytes:
        try:
            with open(member.path.removeprefix("file://"), "rb", buffering=0) as file:
                return file.read()
        except OSError as error:
            raise member.broken(DataError(f"cannot read it: {error.strerror}")) from error

    def _remote(self, paths: list[str]) -> list[bytes]:
        """Remote files, in one request for all; tried again after each of the pauses."""
        for pause in (*self._pauses, None):
            answers: dict[str, Any] = self._fs.cat(sorted(set(paths)), on_error="return")
            by_path = {self._fs._strip_protocol(path): answer for path, answer in answers.items()}
            found = [by_path[self._fs._strip_protocol(path)] for path in paths]
            failed = [
                (path, answer) for path, answer in zip(paths, found, strict=True) if isinstance(answer, Exception)
            ]
            if not failed:
                return found
            path, error = failed[0]
            if pause is None or isinstance(error, FileNotFoundError | PermissionError):
                raise FolderMember(path, b"").broken(DataError(f"cannot read it: {error!r}")) from error
            time.sleep(pause)
        raise AssertionError
