"""Reads and writes a shard folder: plain tars that any WebDataset reader reads, with indexes that make them seekable.

    ROOT/manifest.json        lists the shards; written last, so a folder with a manifest is whole
    ROOT/shard-000000.tar     for each sample {key}.jpg, the unchanged image file, then {key}.json, its record
    ROOT/shard-000000.json    the shard's index: checksum, counts, and the offset of each member in the tar

``ROOT`` is any fsspec path: a folder, ``s3://bucket/prefix``, ``memory://name``. A shard exists when both its files
do: each is written under another name and renamed (an object store shows only whole objects anyway), the
index after the tar. Equal samples give equal bytes.
"""

import copy
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import IO, Any

import fsspec
import numpy as np

from posefleet.data.coco.annotations import is_keypoint_person
from posefleet.data.coco.reader import left_out_sentences
from posefleet.data.coco.records import Record, encode_record
from posefleet.data.coco.source import parse_place
from posefleet.data.errors import DataError
from posefleet.data.io.files import UNFINISHED, create, read_json
from posefleet.data.io.tars import BLOCK, MAX_MEMBER_BYTES, member_name, whole_blocks
from posefleet.data.schemas.schema import KeypointSchema, SchemaError
from posefleet.data.schemas.shipped import load_schema
from posefleet.data.shards.unsharded import open_unsharded

VERSION = 1
MANIFEST = "manifest.json"
MEMBER_COLUMNS = ("image_offset", "image_size", "record_offset", "record_size", "labelled_people")
_SHARD_NAME = re.compile(r"shard-\d{6,}")


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """Entry of one shard in the manifest."""

    name: str
    """Name without suffix: ``shard-000000``."""
    samples: int
    labelled: int
    """Samples with at least one keypoint person."""
    bytes: int
    """Size of the tar."""
    sha256: str
    """sha256 of the tar, in hexadecimal."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """Content of a shard folder."""

    version: int
    """``VERSION`` of the layout."""
    split: str
    """Name of the split, such as ``train2017``."""
    schema: KeypointSchema
    """The keypoints of the people."""
    fingerprint: str
    """sha256 of the source's file names, file sizes and annotations; independent of seed and shard size."""
    shards: tuple[ShardInfo, ...]
    counts: dict[str, int]
    """Images and people in the shards, by kind; how many crowds and people without keypoints have a segmentation (none
    in shards of earlier versions); and what was skipped, dropped or damaged."""
    skipped: tuple[dict[str, Any], ...]
    """Images that are not in the shards: image_id, file_name, reason, detail."""
    left_out: dict[str, dict[str, list[int | None]]] = field(default_factory=dict)
    """Ids of the ``images`` and of the ``annotations`` of the source that are not in the shards because their records
    have errors, by code of ``data.findings.CHECKS``; None where a record has no usable id."""

    @property
    def samples(self) -> int:
        """Samples in all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def labelled(self) -> int:
        """Samples with at least one keypoint person."""
        return sum(shard.labelled for shard in self.shards)

    def left_out_sentences(self) -> list[str]:
        """What of the source is not in the shards, in a sentence for each kind of reason."""
        reasons = Counter(str(image.get("reason")) for image in self.skipped)
        images = [f"{count:,} {'image' if count == 1 else 'images'} skipped, {why}" for why, count in reasons.items()]
        return [*images, *left_out_sentences(self.left_out)]


# ------------------------------------------------------------------------------------------------------- manifest


def write_manifest(root: str, manifest: Manifest) -> None:
    """Write the manifest of a shard folder; equal manifests give equal bytes."""
    content = {**asdict(manifest), "schema": manifest.schema.as_dict()}
    if not manifest.left_out:  # so that earlier versions read it
        del content["left_out"]
    _write_json(root, MANIFEST, content)


def read_manifest(root: str) -> Manifest:
    """The manifest of a shard folder, or the one that the shards of ``FOLDER@SPLIT`` would have.

    Raises:
        DataError: The folder has no manifest (it has no shards, or sharding did not finish), or a damaged one.
    """
    if place := parse_place(root):
        content: dict[str, Any] | None = {"version": VERSION, **copy.deepcopy(open_unsharded(*place).content)}
    else:
        content = read_index_json(root, MANIFEST)
    if content is None:
        raise DataError(
            f"{root}: no {MANIFEST}; not a shard folder, or sharding did not finish: run posefleet shard again. A data "
            "set in COCO's format is read without shards as FOLDER@SPLIT"
        )
    if content.get("version") != VERSION:
        raise DataError(f"{root}/{MANIFEST}: version {content.get('version')!r}, this code reads {VERSION}")
    try:
        shards = tuple(parse_shard_info(root, shard) for shard in content.pop("shards"))
        schema = _schema(content.pop("schema"))
        return Manifest(shards=shards, skipped=tuple(content.pop("skipped")), schema=schema, **content)
    except SchemaError as error:
        raise DataError(f"{root}/{MANIFEST}: {error}") from None
    except (KeyError, TypeError) as error:
        raise DataError(f"{root}/{MANIFEST}: damaged: {error}; run posefleet shard again") from error


def _schema(value: Any) -> KeypointSchema:
    """The schema of a manifest; those of earlier versions have only its name."""
    return load_schema(value) if isinstance(value, str) else KeypointSchema.from_dict(value)


def parse_shard_info(root: str, content: Mapping[str, Any]) -> ShardInfo:
    """The entry of a shard from its json object; ``root`` is for errors.

    Raises:
        DataError: The name is not that of a shard, or a count is impossible.
        TypeError: A key is missing or unknown, or has a value of another type.
    """
    info = ShardInfo(**content)
    if not _SHARD_NAME.fullmatch(info.name):
        raise DataError(f"{root}: {info.name!r} is not the name of a shard")
    if min(info.samples, info.labelled, info.bytes) < 0 or info.labelled > info.samples:
        raise DataError(f"{root}: impossible counts: {info}")
    return info


# ------------------------------------------------------------------------------------------------------- shards


def write_shard(
    root: str,
    name: str,
    samples: Iterable[tuple[str, bytes, Record]],
    notes: Mapping[str, Any] | None = None,
) -> ShardInfo:
    """Write one shard: the tar, then its index.

    Args:
        root: The shard folder.
        name: ``shard-000000``, see :func:`~posefleet.data.shards.plan.shard_name`.
        samples: (key, image file, record) of each sample; keys are unique and have no dot.
        notes: Stored in the index, for :func:`read_notes`.

    Returns:
        The shard's entry for the manifest.
    """
    from webdataset import TarWriter  # slow to import (torch.utils.data), and readers do not need it

    members: list[list[int]] = []
    with create(f"{root}/{name}.tar") as file:
        hashing = HashingFile(file)
        with TarWriter(hashing, encoder=False, mtime=0, user="", group="") as tar:
            for key, image, record in samples:
                encoded = encode_record(record)
                image_offset = tar.tarstream.offset + BLOCK
                record_offset = image_offset + whole_blocks(len(image)) + BLOCK
                labelled = sum(is_keypoint_person(person) for person in record["people"])
                members.append([image_offset, len(image), record_offset, len(encoded), labelled])
                tar.write({"__key__": key, "jpg": image, "json": encoded})
    info = ShardInfo(
        name=name,
        samples=len(members),
        labelled=sum(row[-1] > 0 for row in members),
        bytes=hashing.size,
        sha256=hashing.sha256.hexdigest(),
    )
    index = {"version": VERSION, **asdict(info), "notes": dict(notes or {}), "columns": MEMBER_COLUMNS}
    _write_json(root, f"{name}.json", {**index, "members": members})
    return info


def read_members(root: str, name: str) -> np.ndarray:
    """Offsets and sizes of the samples of a shard, from its index.

    Returns:
        (samples, 5) int64: image_offset, image_size, record_offset, record_size in bytes of the tar, and the
        sample's number of keypoint people.

    Raises:
        DataError: There is no index, or it is damaged.
    """
    index = read_index_json(root, f"{name}.json")
    if index is None:
        raise DataError(f"{root}/{name}.json: no such index; run posefleet shard again to repair the folder")
    return index_members(root, index)


def read_records(fs: Any, tar: str, members: np.ndarray) -> Iterator[Record]:
    """The records of samples of a shard; images are not read.

    Args:
        fs: fsspec file system of the shard.
        tar: Path of the tar in ``fs``.
        members: (samples, 5) int64, rows from :func:`read_members`.

    Raises:
        DataError: A record is damaged, or no plain file of the tar.
    """
    starts, ends = members[:, 2] - BLOCK, members[:, 2] + members[:, 3]
    for data in fs.cat_ranges([tar] * len(members), starts.tolist(), ends.tolist()):
        if isinstance(data, Exception):
            raise data
        try:
            member_name(data[:BLOCK], len(data) - BLOCK)
            yield json.loads(data[BLOCK:])
        except (ValueError, RecursionError) as error:
            raise DataError(f"{tar}: {error}; run posefleet shard again to repair the folder") from None


def read_notes(root: str, name: str) -> dict[str, Any]:
    """The ``notes`` that :func:`write_shard` stored in the index; empty if there is no index."""
    index = read_index_json(root, f"{name}.json") or {}
    notes = index.get("notes")
    return notes if isinstance(notes, dict) else {}


def remove_leftovers(root: str, keep: Iterable[str]) -> None:
    """Delete unfinished files of killed writers, and all shards but those with a name in ``keep``."""
    fs, path = open_root(root)
    kept = set(keep)
    fs.invalidate_cache(path)
    for file in fs.ls(path, detail=False) if fs.isdir(path) else ():
        base = file.rsplit("/", 1)[-1]
        name, _, suffix = base.partition(".")
        ours = _SHARD_NAME.fullmatch(name) or base.startswith(MANIFEST)
        if ours and (base.endswith(UNFINISHED) or (suffix in ("tar", "json") and name not in kept | {"manifest"})):
            fs.rm_file(file)


def remove_manifest(root: str) -> None:
    """Delete the manifest, which marks the folder as unfinished; call it before shards change."""
    fs, path = open_root(root)
    with suppress(FileNotFoundError):  # several writers may do this at once
        fs.rm_file(f"{path}/{MANIFEST}")


def index_members(root: str, index: Mapping[str, Any]) -> np.ndarray:
    """(samples, 5) int64, see :func:`read_members`, from an index that is read already.

    Raises:
        DataError: The index is damaged, or names bytes outside the tar.
    """
    try:
        members = np.array(index["members"], np.int64).reshape(-1, len(MEMBER_COLUMNS))
        total = int(index["bytes"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{root}/{index.get('name')}.json: damaged index: {error}") from error
    sizes = members[:, [1, 3]]
    ends = members[:, [0, 2]] + sizes
    sane = (members >= 0).all() and (sizes <= MAX_MEMBER_BYTES).all() and (ends >= 0).all() and (ends <= total).all()
    if not sane:
        raise DataError(
            f"{root}/{index.get('name')}.json: damaged index: it names bytes outside the {total} of the tar"
        )
    taken = whole_blocks(sizes.flatten()) + BLOCK  # images and records follow each other, each after its header
    if (members[:, [0, 2]].flatten() != np.cumsum(taken) - taken + BLOCK).any():
        raise DataError(f"{root}/{index.get('name')}.json: damaged index: its members do not fill the tar")
    return members


# ------------------------------------------------------------------------------------------------------- files


class HashingFile:
    """A file that computes the size and sha256 of the bytes that are written to it or read from it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.size = 0

    def read(self, size: int) -> bytes:
        """Read and hash up to ``size`` bytes."""
        return self._add(self._file.read(size))

    def write(self, data: bytes) -> int:
        """Write and hash ``data``."""
        self._file.write(data)
        return len(self._add(data))

    def _add(self, data: bytes) -> bytes:
        self.sha256.update(data)
        self.size += len(data)
        return data


def open_root(root: str) -> tuple[Any, str]:
    """The fsspec file system of a shard folder, and its path there."""
    fs, path = fsspec.core.url_to_fs(root)
    return fs, path.rstrip("/")


def _write_json(root: str, name: str, content: Mapping[str, Any]) -> None:
    with create(f"{root}/{name}") as file:
        file.write(json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode() + b"\n")


def read_index_json(root: str, name: str) -> dict[str, Any] | None:
    """The json object in a file of a shard folder; None if there is no file.

    Raises:
        DataError: The file is damaged, or no json object.
    """
    try:
        content = read_json(f"{root}/{name}")
    except DataError as error:
        raise DataError(f"{error}; run posefleet shard again to repair the folder") from None
    if content is not None and not isinstance(content, dict):
        raise DataError(f"{root}/{name}: expected a json object, found a {type(content).__name__}")
    return content
