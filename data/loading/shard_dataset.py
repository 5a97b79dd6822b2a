"""Reads samples from shards by position, in a seeded, endless order over all samples; each rank reads its own part.

A position is one integer: the samples seen so far in the endless concatenation of epochs. Epoch e of a data set of N
samples covers positions [eN, (e + 1)N) and visits every sample exactly once. A step at position p that consists of M
batches of ``batch_size`` samples covers [p, p + M * batch_size), one batch after the other; of ``world_size`` ranks,
rank r takes the batches r, r + world_size, ... below M. So a step has the same samples in the same batches for any
number of shards and ranks, and a run resumes at any position with any other world size or batch size: no sample is
skipped or read twice, and nothing before the position is opened.

The sample at a position, and the random numbers of its augmentation, are pure functions of (seed, position); loader
processes and ranks only divide the work.
"""

import os
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem

from posefleet.data.coco.records import Record, decode_record
from posefleet.data.coco.source import parse_place
from posefleet.data.errors import DataError
from posefleet.data.images import decode_image
from posefleet.data.io.ranges import RETRY_PAUSES, RangeError, fetch_ranges
from posefleet.data.io.tars import BLOCK, member_name
from posefleet.data.loading.folder_reader import FolderMember, FolderReader
from posefleet.data.loading.order import Order
from posefleet.data.loading.source import SampleSource, Transform
from posefleet.data.schemas.names import difference
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.shards.layout import read_manifest, read_members, read_records
from posefleet.data.structures import Sample
from posefleet.data.transforms import IDENTITY

OPEN_SHARDS = 128
"""Shards whose indexes (and, for local files, descriptors) a process keeps open; this bounds its memory."""


# ---------------------------------------------------------------------------------------------------- samples


class ShardDataset(SampleSource):
    """The samples of a folder of shards by position; one call fetches and decodes those of a whole batch.

    Args:
        root: Folder of shards that ``jobs/shard_coco.py`` wrote, local or any fsspec URL; or ``FOLDER@SPLIT``, see
            :mod:`posefleet.data.shards.unsharded`.
        schema: The keypoints that the shards must have.
        transform: Turns a stored sample into an input; its random numbers depend on seed and position only.
        seed: Of order and augmentation. None: the stored order, for evaluation.
        window: Samples that are shuffled together, see :class:`Order`.
        labelled_only: Skip images without a keypoint person.

    Raises:
        DataError: There are no (labelled) samples, or their keypoints have other names or another order.
    """

    def __init__(
        self,
        root: str | Path,
        schema: KeypointSchema,
        transform: Transform,
        *,
        seed: int | None = 0,
        window: int = 8192,
        labelled_only: bool = False,
    ) -> None:
        manifest = read_manifest(str(root))
        stored = manifest.schema
        if text := difference(schema.keypoints, stored.keypoints, f"schema {schema.name}", f"shards of {stored.name}"):
            raise DataError(f"{root}: {text}\nTrain or evaluate with the schema of the shards, or choose other shards.")
        counts = [shard.labelled if labelled_only else shard.samples for shard in manifest.shards]
        if not sum(counts):
            what = "images with a labelled person" if labelled_only else "samples"
            raise DataError(
                f"{root}: no {what} among {manifest.samples} samples in {len(manifest.shards)} shards; "
                "check the annotations that were sharded"
            )
        self.schema = schema
        self.transform = transform
        self.notes = tuple(manifest.left_out_sentences())
        self.order = Order(counts, seed, window)
        self._reader: _ShardReader | FolderReader
        if place := parse_place(str(root)):
            self._reader = FolderReader(*place, labelled_only, RETRY_PAUSES)
        else:
            self._reader = _ShardReader(str(root), [shard.name for shard in manifest.shards], labelled_only)

    def __len__(self) -> int:
        return self.order.samples

    def stored(self, positions: Sequence[int]) -> Iterator[Sample]:
        found = self._reader.read(*self.order.locate(positions))
        return (self._sample(member, data) for member, data in found)

    def random_numbers(self, position: int) -> np.random.Generator:
        return self.order.augmentation_rng(position)

    def broken(self, position: int, error: DataError) -> DataError:
        ((member, _),) = self._reader.read(*self.order.locate([position]))
        return member.broken(error)

    def records(self, rank: int = 0, world_size: int = 1) -> Iterator[Record]:
        return self._reader.records(rank, world_size)

    def _sample(self, member: "_Member | FolderMember", data: bytes) -> Sample:
        try:
            image_id, original_size, people, outlines = decode_record(member.record(data), self.schema)
            image = decode_image(member.image(data))
            if image.shape[1::-1] != original_size:
                raise DataError(f"the image is {image.shape[1::-1]} (width, height), its record says {original_size}")
        except DataError as error:
            raise member.broken(error) from error
        return Sample(image, people, image_id, IDENTITY, original_size, outlines)


# ---------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True)
class _Member:
    """Where one sample is in its shard; image and record are adjacent, so one byte range has both with their headers.

    Offsets and sizes are bytes of the tar.
    """

    path: str
    image_offset: int
    image_size: int
    record_offset: int
    record_size: int

    @property
    def start(self) -> int:
        return self.image_offset - BLOCK

    @property
    def end(self) -> int:
        return self.record_offset + self.record_size

    def image(self, data: bytes) -> bytes:
        """The image's part of the bytes from ``start`` to ``end``."""
        return self._content(data, self.image_offset, self.image_size)

    def record(self, data: bytes) -> bytes:
        """The record's part of the bytes from ``start`` to ``end``."""
        return self._content(data, self.record_offset, self.record_size)

    def broken(self, error: DataError) -> DataError:
        """The error about the content of this sample."""
        return _broken(self.path, f"the sample at byte {self.image_offset}: {error}")

    def _content(self, data: bytes, offset: int, size: int) -> bytes:
        offset -= self.start
        member_name(data[offset - BLOCK : offset], size)  # raises unless the member is a plain file
        return data[offset : offset + size]


@dataclass(frozen=True, slots=True)
class _Shard:
    """An open shard."""

    path: str
    members: np.ndarray
    """(samples, 5) int64, see :func:`posefleet.data.shards.layout.read_members`; only the samples in use."""
    file: BinaryIO | None
    """The open tar, where the store is local."""


class _ShardReader:
    """Reads byte ranges of shards, and keeps the last ``OPEN_SHARDS`` open. It pickles as its arguments."""

    def __init__(self, root: str, names: list[str], labelled_only: bool) -> None:
        self.root = root
        self.names = names
        self.labelled_only = labelled_only
        self._fs, self._path = fsspec.core.url_to_fs(root)
        self._local = isinstance(self._fs, LocalFileSystem)
        self._shards: OrderedDict[int, _Shard] = OrderedDict()

    def __reduce__(self) -> tuple[type[Self], tuple[str, list[str], bool]]:
        return type(self), (self.root, self.names, self.labelled_only)

    def read(self, shards: np.ndarray, samples: np.ndarray) -> list[tuple[_Member, bytes]]:
        """The bytes of each (shard, sample): a read of an open file for each, or one remote request for all."""
        members: list[_Member] = []
        found: list[bytes] = []
        for index, sample in zip(shards.tolist(), samples.tolist(), strict=True):
            shard = self._shard(index)
            if sample >= len(shard.members):
                raise _broken(shard.path, f"its index has {len(shard.members)} such samples, the manifest more")
            member = _Member(shard.path, *shard.members[sample, :4].tolist())
            members.append(member)
            if shard.file is not None:
                found.append(os.pread(shard.file.fileno(), member.end - member.start, member.start))
        if not self._local:
            found = self._fetch(members)
        for member, data in zip(members, found, strict=True):
            if len(data) < member.end - member.start:
                raise _broken(member.path, f"truncated: it ends before byte {member.end}, where a sample does")
        return list(zip(members, found, strict=True))

    def records(self, rank: int, world_size: int) -> Iterator[Record]:
        """See :meth:`SampleSource.records`; images are not read."""
        next_one = rank  # counted from the first sample of the shard
        for index in range(len(self.names)):
            shard = self._shard(index)
            mine = shard.members[next_one::world_size]
            next_one += len(mine) * world_size - len(shard.members)
            yield from read_records(self._fs, shard.path, mine)

    def _shard(self, index: int) -> _Shard:
        if index not in self._shards:
            self._shards[index] = self._open(self.names[index])
            if len(self._shards) > OPEN_SHARDS:
                _, oldest = self._shards.popitem(last=False)
                if oldest.file is not None:
                    oldest.file.close()
        self._shards.move_to_end(index)
        return self._shards[index]

    def _open(self, name: str) -> _Shard:
        path = f"{self._path.rstrip('/')}/{name}.tar"
        members = self._members(name)
        if self.labelled_only:
            members = members[members[:, 4] > 0]
        try:
            file = open(path, "rb", buffering=0) if self._local else None  # noqa: SIM115 (closed when it leaves the cache)
        except OSError as error:
            raise _broken(path, f"cannot open it: {error}") from error
        return _Shard(path, members, file)

    def _members(self, name: str) -> np.ndarray:
        for pause in () if self._local else RETRY_PAUSES:
            try:
                return read_members(self.root, name)
            except OSError:
                time.sleep(pause)
        return read_members(self.root, name)

    def _fetch(self, members: list[_Member]) -> list[bytes]:
        """Byte ranges of remote files, in one request for all."""
        try:
            return fetch_ranges(self._fs, [(m.path, m.start, m.end) for m in members], RETRY_PAUSES)
        except RangeError as error:
            raise _broken(error.path, str(error)) from error.__cause__


def _broken(path: str, why: str) -> DataError:
    return DataError(f"{path}: {why}; run posefleet shard again: it keeps whole shards and repairs broken ones")
