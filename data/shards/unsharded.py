"""A data set in COCO's own files, read as if it had been sharded: ``FOLDER@SPLIT`` in place of a folder of shards.

It has the samples that ``posefleet shard`` with its default settings would write, in the same order, and leaves out the
same images. So training takes the same steps as on shards. Every image is decoded once to find those that are left out;
the result is kept in a cache until an image or the annotations change. For data sets that fit one machine.
"""

import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem
from rich.console import Console
from rich.progress import track

from posefleet.data.coco.annotations import is_keypoint_person
from posefleet.data.coco.file_schema import read_file_schema
from posefleet.data.coco.image_files import read_image
from posefleet.data.coco.records import count_people
from posefleet.data.coco.source import Source, find_source, image_path
from posefleet.data.coco.split import CocoSplit, read_coco
from posefleet.data.errors import DataError
from posefleet.data.io.files import cache_folder, read_json, write_file
from posefleet.data.shards.plan import SHARD_MIB, Plan, plan_shards, shard_name


@dataclass(frozen=True, slots=True, eq=False)
class Unsharded:
    """The samples of a split, divided as shards would be."""

    source: Source
    split: CocoSplit
    rows: tuple[np.ndarray, ...]
    """For each shard, its samples as rows of ``split``, in order."""
    labelled: tuple[np.ndarray, ...]
    """For each shard, whether each sample has a keypoint person."""
    content: dict[str, Any]
    """The content of the manifest that the shards would have, without its version."""


def open_unsharded(folder: str, split: str) -> Unsharded:
    """The samples of a split; see :func:`posefleet.data.coco.source.find_source` for ``folder`` and ``split``.

    Raises:
        DataError: The annotations cannot be used, or none of the images can.
    """
    source = find_source(folder, split)
    fs, path = fsspec.core.url_to_fs(source.annotation_file)
    info = fs.info(path)
    return _open(source, str([info.get(key) for key in ("size", "mtime", "ETag", "LastModified", "created")]))


@lru_cache(maxsize=4)
def _open(source: Source, stamp: str) -> Unsharded:
    """``stamp`` changes with the annotation file."""
    schema = read_file_schema(source.annotation_file)
    split = read_coco(source.annotation_file, schema)
    plan = plan_shards(source, split, shard_mib=SHARD_MIB)
    skipped = _skipped(source, plan)
    gone = np.searchsorted(split.image_ids, np.array([image["image_id"] for image in skipped], np.int64))
    kept = [rows[~np.isin(rows, gone)] for rows in plan.rows]
    if not any(map(len, kept)):
        reasons = ", ".join(sorted({image["reason"] for image in skipped}))
        raise DataError(f"{source.image_folder}: none of the {len(skipped)} images can be used: {reasons}")
    counts = Counter[str]()
    rows, labelled, shards = [], [], []
    for number, some in enumerate(kept):
        flags = np.zeros(len(some), bool)
        for place, row in enumerate(some.tolist()):
            record = split.record(row)
            counts.update(count_people(record))
            flags[place] = any(map(is_keypoint_person, record["people"]))
        if len(some):
            rows.append(some)
            labelled.append(flags)
            size = int(plan.sizes[some].sum())
            entry = {"samples": len(some), "labelled": int(flags.sum()), "bytes": size, "sha256": ""}
            shards.append({"name": shard_name(number), **entry})
    counts.update({"skipped": len(skipped), "dropped_people": 0, "bad_segmentations": plan.bad_segmentations})
    content = {
        "split": source.split,
        "schema": schema.as_dict(),
        "fingerprint": plan.fingerprint,
        "shards": shards,
        "counts": dict(counts),
        "skipped": skipped,
    }
    return Unsharded(source, split, tuple(rows), tuple(labelled), content)


def _skipped(source: Source, plan: Plan) -> list[dict[str, Any]]:
    """The images that cannot be used, as ``Manifest.skipped`` lists them; found once, then read from the cache.

    Processes of this machine that need it at the same time wait for the one that finds it.
    """
    cache = _cache_file(source, plan)
    with ExitStack() as stack:
        with suppress(OSError):
            cache.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context(cache.with_suffix(".lock").open("w")), fcntl.LOCK_EX)
        with suppress(DataError, OSError):
            known: list[dict[str, Any]] | None = read_json(str(cache))
            if known is not None:
                return known
        found = sorted(_faulty(source, plan), key=lambda image: image["image_id"])
        with suppress(OSError):  # a home that cannot be written: the images are decoded again next time
            write_file(str(cache), json.dumps(found).encode())
    return found


def _cache_file(source: Source, plan: Plan) -> Path:
    """Where the faulty images of these very files are listed."""
    sha256 = hashlib.sha256(f"{plan.fingerprint} {source.image_folder} {source.names}\n".encode())
    fs, _ = fsspec.core.url_to_fs(source.image_folder)
    for record in plan.split.records() if isinstance(fs, LocalFileSystem) else ():
        with suppress(OSError, DataError):
            path = image_path(source, record["file_name"]).removeprefix("file://")
            sha256.update(b"%d\n" % os.stat(path).st_mtime_ns)
    return cache_folder("unsharded") / f"{sha256.hexdigest()}.json"


def _faulty(source: Source, plan: Plan) -> Iterator[dict[str, Any]]:
    """Decode every image, and list those that sharding would skip."""
    fs, _ = fsspec.core.url_to_fs(source.image_folder)

    def check(row: int) -> dict[str, Any] | None:
        record = plan.split.record(row)
        _, fault = read_image(fs, source, record)
        image = {"image_id": record["image_id"], "file_name": record["file_name"]}
        return {**image, "reason": fault[0], "detail": fault[1]} if fault else None

    console = Console(stderr=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(check, range(len(plan.split)))
        rows = track(found, "checking", total=len(plan.split), console=console, disable=not console.is_terminal)
        yield from (image for image in rows if image)
