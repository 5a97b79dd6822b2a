"""Plans the shards of a split: decides which images go into which shard, before anything is written."""

import hashlib
import json
import random
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from posefleet.data.coco.image_files import file_sizes
from posefleet.data.coco.source import Source
from posefleet.data.coco.split import CocoSplit

SHARD_MIB = 128.0
"""Usual size of a shard in MiB."""


def shard_name(number: int) -> str:
    """The name of shard ``number``: ``shard-000000``."""
    return f"shard-{number:06d}"


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """The plan of one shard: everything that the task which writes it needs."""

    name: str
    """``shard-000000``."""
    records: list[bytes]
    """Encoded records of the samples, in order."""
    sizes: list[int]
    """Bytes of each image file when the plan was made; -1 where it was missing."""

    @property
    def digest(self) -> str:
        """sha256 of records and sizes; a shard that was written from another plan is outdated."""
        sha256 = hashlib.sha256()
        for record, size in zip(self.records, self.sizes, strict=True):
            _add_to_digest(sha256, record, size)
        return sha256.hexdigest()

    def pack(self) -> bytes:
        """The plan as compressed bytes, small enough to send to a task."""
        head = json.dumps([self.name, self.sizes]).encode()
        return zlib.compress(b"\n".join([head, *self.records]), level=1)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The plan from the bytes of :meth:`pack`."""
        head, *records = zlib.decompress(data).split(b"\n")
        name, sizes = json.loads(head)
        return cls(name, records, sizes)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The plan of all shards of a split with I images."""

    split: CocoSplit
    sizes: np.ndarray
    """(I,) int64 bytes of each image file; -1 where there is none."""
    rows: list[np.ndarray]
    """For each shard, its images as rows of ``split``, in order."""
    fingerprint: str
    """sha256 over file names, sizes and annotations by image id; depends on neither seed nor shard size."""
    bad_segmentations: int
    """Crowds and people without keypoints whose segmentation cannot be used; shards hold them without it."""

    def __len__(self) -> int:
        return len(self.rows)

    def shards(self) -> Iterator[ShardPlan]:
        """The plan of each shard, made one by one: together they are as large as the annotations."""
        for number, rows in enumerate(self.rows):
            records = [self.split.encoded(row) for row in rows.tolist()]
            yield ShardPlan(shard_name(number), records, self.sizes[rows].tolist())


def plan_shards(source: Source, split: CocoSplit, *, shard_mib: float, seed: int = 0, limit: int | None = None) -> Plan:
    """Decide which images go into which shard; arguments as for :func:`posefleet.data.shards.build.shard_coco`.

    Raises:
        ValueError: ``shard_mib`` or ``limit`` is not larger than 0.
    """
    if shard_mib <= 0 or (limit is not None and limit <= 0):
        raise ValueError(f"shard_mib {shard_mib} and limit {limit} must be larger than 0")
    count = len(split) if limit is None else min(limit, len(split))
    size_of, sha256 = file_sizes(source), hashlib.sha256()
    sizes = np.empty(count, np.int64)
    for row in range(count):
        record = split.encoded(row)
        sizes[row] = size_of(json.loads(record)["file_name"])
        _add_to_digest(sha256, record, int(sizes[row]))
    order = array("q", range(count))
    random.Random(seed).shuffle(order)
    rows = _cut(np.array(order, np.int64), sizes, shard_mib)
    return Plan(split, sizes, rows, sha256.hexdigest(), int(split.bad_segmentations[:count].sum()))


def _cut(order: np.ndarray, sizes: np.ndarray, shard_mib: float) -> list[np.ndarray]:
    """``order`` cut into consecutive pieces of about equal bytes, without empty ones."""
    ends = np.cumsum(np.maximum(sizes[order], 0))
    total = int(ends[-1]) if len(ends) else 0
    count = max(1, round(total / (shard_mib * 2**20)))
    # Piece n starts with the first image that has at least n / count of all bytes before it; integers make it exact.
    bounds = [-(-number * total // count) for number in range(1, count)]
    cuts = np.searchsorted(ends - np.maximum(sizes[order], 0), bounds)
    return [rows for rows in np.split(order, cuts) if len(rows)]


def _add_to_digest(sha256: Any, record: bytes, size: int) -> None:
    sha256.update(b"%d %s\n" % (size, record))
