"""COCO annotations and images to shards, over the cluster; safe to kill and start again.

The plan is a function of the source and the settings: images in an order shuffled by seed, so that shards are alike,
cut into shards of about equal bytes. Each shard is written by one task that knows only its own part of the plan. A
shard that is there, whole and of the same plan is kept; so a second run has nothing to do, a run after a crash does
what is missing, and all of them end with the same bytes.
"""

import hashlib
import itertools
import json
import os
import random
import stat
import time
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Self, TypeVar

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem
from rich.console import Console
from rich.progress import track

from posefleet.data.coco.annotations import is_keypoint_person
from posefleet.data.coco.records import Record
from posefleet.data.coco.source import Source, image_path
from posefleet.data.coco.split import CocoSplit, read_coco
from posefleet.data.doctor import image_fault
from posefleet.data.errors import DataError
from posefleet.data.io.cluster import open_ray_data
from posefleet.data.io.files import absolute, path_inside
from posefleet.data.keypoints import KeypointSchema
from posefleet.data.memory import collect_garbage_rarely
from posefleet.data.shards import (
    VERSION,
    Manifest,
    ShardInfo,
    check_shard,
    read_manifest,
    read_notes,
    remove_leftovers,
    remove_manifest,
    shard_name,
    write_manifest,
    write_shard,
)

CPUS_PER_TASK = 1
"""A task decodes every image, so it keeps a core busy; one free core in the whole cluster is enough to go on."""

PLANS_AT_ONCE, PLANS_PER_CPU = 256, 4
"""Plans that are on the way to tasks, at least and for each CPU of the cluster; this bounds the driver's memory."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """All that the task which writes one shard needs to know."""

    name: str
    records: list[bytes]
    """The records of the samples, in order, encoded."""
    sizes: list[int]
    """Bytes of each image file when the plan was made; -1 where it was missing."""

    @property
    def digest(self) -> str:
        """sha256 of the plan; a shard that was written from another plan is stale."""
        sha256 = hashlib.sha256()
        for record, size in zip(self.records, self.sizes, strict=True):
            _add_to_digest(sha256, record, size)
        return sha256.hexdigest()

    def pack(self) -> bytes:
        """Small enough to send."""
        head = json.dumps([self.name, self.sizes]).encode()
        return zlib.compress(b"\n".join([head, *self.records]), level=1)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The plan that was packed."""
        head, *records = zlib.decompress(data).split(b"\n")
        name, sizes = json.loads(head)
        return cls(name, records, sizes)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What goes into which shard."""

    split: CocoSplit
    sizes: np.ndarray
    """(I,) int64 bytes of each image file; -1 where there is none."""
    rows: list[np.ndarray]
    """Of each shard, the rows of ``split`` in it, in order."""
    fingerprint: str
    """sha256 over file names, sizes and annotations by image id; depends on neither seed nor shard size."""
    dropped_people: int
    """Annotations with a coordinate that is not finite; no shard holds them."""

    def __len__(self) -> int:
        return len(self.rows)

    def shards(self) -> Iterator[ShardPlan]:
        """The plan of each shard, made as it is asked for: together they are as large as the annotations."""
        for number, rows in enumerate(self.rows):
            records = [self.split.encoded(row) for row in rows.tolist()]
            yield ShardPlan(shard_name(number), records, self.sizes[rows].tolist())


@dataclass(frozen=True, slots=True)
class ShardingResult:
    """What one run did."""

    manifest: Manifest
    shards_written: int
    """By this run; the other shards were there already."""
    samples_written: int
    seconds: float


def shard_coco(
    source: Source,
    root: str,
    schema: KeypointSchema,
    *,
    shard_mib: float = 128.0,
    seed: int = 0,
    limit: int | None = None,
    parallel: bool = True,
) -> ShardingResult:
    """Make ``root`` a whole shard folder of ``source``, by as little work as it takes.

    Args:
        source: Annotation file and image folder, as every node of the cluster sees them.
        root: The shard folder of this split: any fsspec path that every node can write to.
        schema: Keypoints of the annotations.
        shard_mib: Size of a shard, about, in MiB.
        seed: Of the order of the images.
        limit: Take only so many images, the first by id.
        parallel: Over the Ray cluster; otherwise in this process, one shard after the other.

    Returns:
        The manifest as written, and what was done. Images that are missing, damaged or not of the size in the
        annotations are left out and named in ``manifest.skipped``.

    Raises:
        DataError: The annotations cannot be used, or no image can.
        ValueError: ``shard_mib`` or ``limit`` is not larger than 0.
    """
    start = time.perf_counter()
    split = read_coco(source.annotation_file, schema)
    plan = plan_shards(source, split, shard_mib=shard_mib, seed=seed, limit=limit)
    root = absolute(root)  # the tasks run in other folders
    ensure = _EnsureShard(source, root)
    run = _over_the_cluster if parallel else map
    done = {shard.info.name: shard for shard in _with_progress(run(ensure, plan.shards()), len(plan))}
    shards = [done[shard_name(number)] for number in range(len(plan))]
    manifest = _manifest(source, schema, plan, shards)
    if not manifest.samples:
        reasons = ", ".join(sorted({skipped["reason"] for skipped in manifest.skipped}))
        raise DataError(f"{source.image_folder}: none of the {len(manifest.skipped)} images can be used: {reasons}")
    _publish(root, manifest, keep=[shard.info.name for shard in shards])
    written = [shard.info.samples for shard in shards if shard.written]
    return ShardingResult(manifest, len(written), sum(written), time.perf_counter() - start)


# ------------------------------------------------------------------------------------------------------- the plan


def plan_shards(source: Source, split: CocoSplit, *, shard_mib: float, seed: int = 0, limit: int | None = None) -> Plan:
    """Decide what goes into which shard; see :func:`shard_coco` for the arguments."""
    if shard_mib <= 0 or (limit is not None and limit <= 0):
        raise ValueError(f"shard_mib {shard_mib} and limit {limit} must be larger than 0")
    count = len(split) if limit is None else min(limit, len(split))
    size_of, sha256 = _file_sizes(source), hashlib.sha256()
    sizes = np.empty(count, np.int64)
    for row in range(count):
        record = split.encoded(row)
        sizes[row] = size_of(json.loads(record)["file_name"])
        _add_to_digest(sha256, record, int(sizes[row]))
    order = array("q", range(count))
    random.Random(seed).shuffle(order)
    rows = _cut(np.array(order, np.int64), sizes, shard_mib)
    return Plan(split, sizes, rows, sha256.hexdigest(), int(split.dropped[:count].sum()))


def _cut(order: np.ndarray, sizes: np.ndarray, shard_mib: float) -> list[np.ndarray]:
    """The rows in ``order`` in runs of about equal bytes, none of them empty."""
    ends = np.cumsum(np.maximum(sizes[order], 0))
    total = int(ends[-1]) if len(ends) else 0
    count = max(1, round(total / (shard_mib * 2**20)))
    # An image is in the n-th run if the bytes before it are so many count-ths of all; in whole numbers, so exactly.
    bounds = [-(-number * total // count) for number in range(1, count)]
    cuts = np.searchsorted(ends - np.maximum(sizes[order], 0), bounds)
    return [rows for rows in np.split(order, cuts) if len(rows)]


def _file_sizes(source: Source) -> Callable[[str], int]:
    """What gives the bytes of an image file by its name, -1 where there is no such file."""
    fs, folder = fsspec.core.url_to_fs(source.image_folder)
    if isinstance(fs, LocalFileSystem):
        return partial(_local_size, folder)
    folder = folder.rstrip("/")
    fs.invalidate_cache(folder)
    files = fs.find(folder, detail=True)  # one listing: a request for each image would take hours
    listed = {path.removeprefix(folder + "/"): int(entry["size"]) for path, entry in files.items()}
    return lambda name: listed.get(name, -1)


def _local_size(folder: str, name: str) -> int:
    try:
        found = os.stat(path_inside(folder, name))
    except (OSError, DataError):
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1


def _add_to_digest(sha256: Any, record: bytes, size: int) -> None:
    sha256.update(b"%d %s\n" % (size, record))


# ------------------------------------------------------------------------------------------------------- the tasks


@dataclass(frozen=True, slots=True)
class _Shard:
    """A shard that is there, and what was noted when it was written."""

    info: ShardInfo
    written: bool
    """Whether this run wrote it."""
    counts: dict[str, int] = field(default_factory=dict)
    skipped: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _EnsureShard:
    """The task: leave a whole shard as it is, write one that is missing, broken or of another plan."""

    source: Source
    root: str

    def __call__(self, plan: ShardPlan) -> _Shard:
        info = check_shard(self.root, plan.name)
        if info:
            notes = read_notes(self.root, plan.name)
            if notes.get("plan") == plan.digest:
                return _Shard(info, False, notes["counts"], notes["skipped"])
        remove_manifest(self.root)
        counts: Counter[str] = Counter()
        skipped: list[dict[str, Any]] = []
        notes = {"plan": plan.digest, "counts": counts, "skipped": skipped}  # stored after the samples, which fill it
        info = write_shard(self.root, plan.name, self._samples(plan, counts, skipped), notes)
        return _Shard(info, True, dict(counts), skipped)

    def _samples(
        self, plan: ShardPlan, counts: Counter[str], skipped: list[dict[str, Any]]
    ) -> Iterator[tuple[str, bytes, Record]]:
        fs, _ = fsspec.core.url_to_fs(self.source.image_folder)
        for record in map(json.loads, plan.records):
            data, fault = _read_image(fs, self.source, record)
            if fault:
                image = {"image_id": record["image_id"], "file_name": record["file_name"]}
                skipped.append({**image, "reason": fault[0], "detail": fault[1]})
            else:
                counts.update(_count(record))
                yield f"{record['image_id']:012d}", data, record


def _read_image(fs: Any, source: Source, record: Record) -> tuple[bytes, tuple[str, str] | None]:
    try:
        data: bytes = fs.cat_file(image_path(source, record["file_name"]))
    except (FileNotFoundError, IsADirectoryError, DataError) as error:
        reason = str(error) if isinstance(error, DataError) else f"{record['file_name']}: no such file"
        return b"", ("missing_image", reason)
    return data, image_fault(data, record)


def _count(record: Record) -> dict[str, int]:
    people = record["people"]
    keypoint_people = sum(map(is_keypoint_person, people))
    crowd = sum(bool(person["iscrowd"]) for person in people)
    return {
        "images": 1,
        "people": len(people),
        "keypoint_people": keypoint_people,
        "crowd": crowd,
        "unlabelled": len(people) - keypoint_people - crowd,
    }


def _over_the_cluster(task: Callable[[ShardPlan], _Shard], plans: Iterator[ShardPlan]) -> Iterator[_Shard]:
    """Pipelines of Ray Data, one after the other, with a block, and so a task, for each plan; starts Ray if need be.

    Shards come as they are finished.
    """
    ray = open_ray_data()

    def run(row: dict[str, Any]) -> dict[str, Any]:
        collect_garbage_rarely()
        shard = task(ShardPlan.unpack(row["plan"]))
        return {"shard": json.dumps(asdict(shard))}

    at_once = max(PLANS_AT_ONCE, PLANS_PER_CPU * int(ray.cluster_resources().get("CPU", 0)))
    while some := list(itertools.islice(plans, at_once)):
        rows = [{"plan": plan.pack()} for plan in some]
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(run, num_cpus=CPUS_PER_TASK)
        for row in dataset.iter_rows():
            shard = json.loads(row["shard"])
            yield _Shard(ShardInfo(**shard.pop("info")), **shard)


def _with_progress(shards: Iterable[T], total: int) -> Iterable[T]:
    console = Console(stderr=True)
    return track(shards, "shards", total=total, console=console, disable=not console.is_terminal)


# ------------------------------------------------------------------------------------------------------- the end


def _manifest(source: Source, schema: KeypointSchema, plan: Plan, shards: list[_Shard]) -> Manifest:
    counts = Counter(dict.fromkeys(("images", "people", "keypoint_people", "crowd", "unlabelled"), 0))
    for shard in shards:
        counts.update(shard.counts)
    skipped = sorted((image for shard in shards for image in shard.skipped), key=lambda image: image["image_id"])
    return Manifest(
        version=VERSION,
        split=source.split,
        schema=schema.name,
        fingerprint=plan.fingerprint,
        shards=tuple(shard.info for shard in shards if shard.info.samples),
        counts={**counts, "skipped": len(skipped), "dropped_people": plan.dropped_people},
        skipped=tuple(skipped),
    )


def _publish(root: str, manifest: Manifest, keep: list[str]) -> None:
    try:
        same = read_manifest(root) == manifest
    except DataError:
        same = False
    if not same:
        remove_manifest(root)
    remove_leftovers(root, keep)
    if not same:
        write_manifest(root, manifest)
