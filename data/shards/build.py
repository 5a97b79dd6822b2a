"""Writes COCO annotations and images as shards, on the cluster; it can be killed and started again at any time.

The plan is a function of the source and the settings: images are shuffled by seed, so that shards are alike, and cut
into shards of about equal bytes. One task writes each shard, and gets only its own part of the plan. A shard that
exists, is whole and has the same plan is kept. So a second run has nothing to do, a run after a crash writes the
missing shards, and all runs end with the same bytes.
"""

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import fsspec
from rich.console import Console
from rich.progress import track

from posefleet.data.coco.image_files import OtherFiles, other_files, read_image
from posefleet.data.coco.records import Record, count_people
from posefleet.data.coco.source import Source
from posefleet.data.coco.split import read_coco
from posefleet.data.errors import DataError
from posefleet.data.io.cluster import from_row, open_ray_data, to_row
from posefleet.data.io.files import absolute
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.shards.layout import (
    VERSION,
    Manifest,
    ShardInfo,
    read_manifest,
    read_notes,
    remove_leftovers,
    remove_manifest,
    write_manifest,
    write_shard,
)
from posefleet.data.shards.plan import SHARD_MIB, Plan, ShardPlan, plan_shards, shard_name
from posefleet.data.shards.verify import check_shard
from posefleet.memory import collect_garbage_rarely

CPUS_PER_TASK = 1
"""A task decodes every image, so it uses a whole core; one free core in the cluster is enough for progress."""

PLANS_AT_ONCE, PLANS_PER_CPU = 256, 4
"""Plans that are submitted at once: a minimum, and a number for each CPU of the cluster. This bounds the driver's
memory."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ShardingResult:
    """Result of :func:`shard_coco`."""

    manifest: Manifest
    """The manifest as written."""
    categories: str
    """Which categories of the file were read, and why; a phrase."""
    shards_written: int
    """Shards that this run wrote; the others existed already."""
    samples_written: int
    """Samples in ``shards_written``."""
    seconds: float
    """Duration of the run."""
    other_files: dict[str, OtherFiles] = field(default_factory=dict)
    """Files of the image folder that the annotations do not list, by code of ``findings.CHECKS``."""


def shard_coco(
    source: Source,
    root: str,
    schema: KeypointSchema,
    *,
    shard_mib: float = SHARD_MIB,
    seed: int = 0,
    limit: int | None = None,
    parallel: bool = True,
    category: Sequence[str] = (),
    allow_errors: bool = False,
    take: Callable[[str], bool] | None = None,
) -> ShardingResult:
    """Shard ``source`` into the folder ``root``; only missing, broken and outdated shards are written.

    Images that are missing, damaged or not of the size in the annotations are skipped, and listed in
    ``manifest.skipped`` of the result.

    Args:
        source: Annotation file and image folder, under paths that every node of the cluster can read.
        root: The shard folder of this split: any fsspec path that every node can write to.
        schema: Keypoints of the annotations.
        shard_mib: Approximate size of a shard in MiB.
        seed: Of the order of the images.
        limit: Take only this many images, the first by id; None: all.
        parallel: Write on the Ray cluster; otherwise in this process, one shard after the other.
        category: Names of the categories that are read; empty: the only one that can be meant.
        allow_errors: Leave out the records of the annotation file that have errors; ``manifest.left_out`` of the result
            lists them.
        take: Takes the images whose file name it wants; None: all.

    Raises:
        DataError: The annotations cannot be used, have errors that are not allowed, or none of the images can be used.
        ValueError: ``shard_mib`` or ``limit`` is not larger than 0.
        OSError: A file cannot be read or written. The same call goes on from there.
    """
    start = time.perf_counter()
    split = read_coco(source.annotation_file, schema, category=category, allow_errors=allow_errors)
    other = other_files(source, (record["file_name"] for record in split.records()))
    if take is not None:
        split = split.part(take)
        if not len(split):
            raise DataError(f"{source.annotation_file}: none of its images is in this part")
    plan = plan_shards(source, split, shard_mib=shard_mib, seed=seed, limit=limit)
    root = absolute(root)  # tasks have other working directories
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
    seconds = time.perf_counter() - start
    return ShardingResult(manifest, split.categories, len(written), sum(written), seconds, other)


# ------------------------------------------------------------------------------------------------------- the tasks


@dataclass(frozen=True, slots=True)
class _Shard:
    """A whole shard, with the notes of its writer."""

    info: ShardInfo
    written: bool
    """Whether this run wrote it."""
    counts: dict[str, int] = field(default_factory=dict)
    """Images and people in it, as in ``Manifest.counts``."""
    skipped: list[dict[str, Any]] = field(default_factory=list)
    """Images of its plan that are not in it, as in ``Manifest.skipped``."""


@dataclass(frozen=True, slots=True)
class _EnsureShard:
    """The task: keep a shard that is whole and of this plan, otherwise write it."""

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
        notes = {
            "plan": plan.digest,
            "counts": counts,
            "skipped": skipped,
        }  # the index is written last, when both are filled
        info = write_shard(self.root, plan.name, self._samples(plan, counts, skipped), notes)
        return _Shard(info, True, dict(counts), skipped)

    def _samples(
        self, plan: ShardPlan, counts: Counter[str], skipped: list[dict[str, Any]]
    ) -> Iterator[tuple[str, bytes, Record]]:
        fs, _ = fsspec.core.url_to_fs(self.source.image_folder)
        for record in map(json.loads, plan.records):
            data, fault = read_image(fs, self.source, record)
            if fault:
                image = {"image_id": record["image_id"], "file_name": record["file_name"]}
                skipped.append({**image, "reason": fault[0], "detail": fault[1]})
            else:
                counts.update(count_people(record))
                yield f"{record['image_id']:012d}", data, record


def _over_the_cluster(task: Callable[[ShardPlan], _Shard], plans: Iterator[ShardPlan]) -> Iterator[_Shard]:
    """Run ``task`` on the plans with Ray Data, one block and so one task for each; yields shards as they are finished.

    Ray is started if it was not. The plans run in several pipelines, one after the other.
    """
    ray = open_ray_data()

    def run(row: dict[str, Any]) -> dict[str, Any]:
        collect_garbage_rarely()
        return to_row(lambda: asdict(task(ShardPlan.unpack(row["plan"]))))

    at_once = max(PLANS_AT_ONCE, PLANS_PER_CPU * int(ray.cluster_resources().get("CPU", 0)))
    while some := list(itertools.islice(plans, at_once)):
        rows = [{"plan": plan.pack()} for plan in some]
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(run, num_cpus=CPUS_PER_TASK)
        for row in dataset.iter_rows():
            shard = from_row(row)
            yield _Shard(ShardInfo(**shard.pop("info")), **shard)


def _with_progress(shards: Iterable[T], total: int) -> Iterable[T]:
    console = Console(stderr=True)
    return track(shards, "shards", total=total, console=console, disable=not console.is_terminal)


# ------------------------------------------------------------------------------------------------------- the end


def _manifest(source: Source, schema: KeypointSchema, plan: Plan, shards: list[_Shard]) -> Manifest:
    kinds = ("images", "people", "keypoint_people", "crowd", "unlabelled", "segmentations")
    counts = Counter(dict.fromkeys(kinds, 0))
    for shard in shards:
        counts.update(shard.counts)
    skipped = sorted((image for shard in shards for image in shard.skipped), key=lambda image: image["image_id"])
    return Manifest(
        version=VERSION,
        split=source.split,
        schema=schema,
        fingerprint=plan.fingerprint,
        shards=tuple(shard.info for shard in shards if shard.info.samples),
        counts={
            **counts,
            "skipped": len(skipped),
            "dropped_people": sum(map(len, plan.split.left_out.annotations.values())),
            "bad_segmentations": plan.bad_segmentations,
        },
        skipped=tuple(skipped),
        left_out=plan.split.left_out.as_dict(),
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
