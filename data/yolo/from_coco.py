"""Converts data sets in COCO's format to YOLO's pose format, one image after the other."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import yaml
from fsspec.implementations.local import LocalFileSystem
from rich.console import Console
from rich.progress import track

from posefleet.data.coco.file_schema import read_categories
from posefleet.data.coco.image_files import read_image
from posefleet.data.coco.reader import left_out_sentences
from posefleet.data.coco.records import Record
from posefleet.data.coco.source import Source, image_path
from posefleet.data.coco.split import CocoSplit, read_coco
from posefleet.data.errors import DataError
from posefleet.data.io.files import write_file
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.yolo.labels import Object, format_object
from posefleet.data.yolo.problems import Problems

KEYS = {"train": "train", "trainval": "train", "val": "val", "valid": "val", "test": "test"}
"""Split without its year -> key of data.yaml."""


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written for a split."""

    split: str
    key: str
    """Its key in data.yaml."""
    images: int
    counts: Counter[str] = field(default_factory=Counter)
    """Objects that were written, and what YOLO cannot hold."""
    notes: tuple[str, ...] = ()
    """Which categories were read, and which records were left out."""


def from_coco(
    sources: Sequence[Source],
    schema: KeypointSchema,
    out: str,
    problems: Problems,
    *,
    category: Sequence[str] = (),
    allow_errors: bool = False,
    copy: bool = False,
) -> list[Converted]:
    """Write ``OUT/data.yaml``, ``OUT/images/SPLIT`` and ``OUT/labels/SPLIT``, with one class.

    Crowds are left out, as YOLO has no such thing. Boxes, areas and coordinates outside the image are cut off at its
    border; keypoints outside it become unlabelled. All of it is counted.

    Args:
        sources: A source for each split.
        schema: Keypoints of the annotations.
        out: Folder on this machine.
        problems: Gets a line for every image that is left out.
        category: Names of the categories that are read; empty: the only one that can be meant.
        allow_errors: Leave out records of the annotations that have errors, instead of refusing the file.
        copy: Copy the images; else they are linked, which takes no space. Images of a remote store are always copied.

    Raises:
        DataError: The annotations cannot be used, two splits would have the same name, or no image can be used.
    """
    keys = [_key(source.split, len(sources)) for source in sources]
    if len(set(keys)) < len(keys):
        raise DataError(
            f"splits {', '.join(source.split for source in sources)}: two of them would be {keys}; name one"
        )
    done = []
    for source, key in zip(sources, keys, strict=True):
        split = read_coco(source.annotation_file, schema, category=category, allow_errors=allow_errors)
        done.append(_write_split(source, split, len(schema), Path(out), key, problems, copy=copy))
    content: dict[str, Any] = {
        "path": str(Path(out).absolute()),
        **{one.key: f"images/{one.key}" for one in done},
        "names": {0: class_name(sources[0], schema, category)},
        "nc": 1,
        "kpt_shape": [len(schema), 3],
        "flip_idx": schema.flip_index,
        "kpt_names": {0: list(schema.keypoints)},
    }
    write_file(f"{out}/data.yaml", yaml.safe_dump(content, sort_keys=False, width=110).encode())
    return done


def class_name(source: Source, schema: KeypointSchema, category: Sequence[str] = ()) -> str:
    """The name of the category that is read; that of the schema where several are."""
    names = {str(chosen.get("name")) for chosen in read_categories(source.annotation_file, category).chosen}
    return names.pop() if len(names) == 1 else schema.name


def _write_split(
    source: Source, split: CocoSplit, keypoints: int, out: Path, key: str, problems: Problems, *, copy: bool
) -> Converted:
    console = Console(stderr=True)
    fs, _ = fsspec.core.url_to_fs(source.image_folder)
    counts = Counter[str]()
    images = 0
    rows: Iterable[Record] = track(
        split.records(), source.split, total=len(split), console=console, disable=not console.is_terminal
    )
    for record in rows:
        data, fault = read_image(fs, source, record)
        if fault:
            problems.add(f"images with {fault[0]}", source.annotation_file, fault[1])
            continue
        images += 1
        name = source.names(record["file_name"])
        _place(fs, image_path(source, record["file_name"]), data, out / "images" / key / name, copy)
        things = _objects(record, keypoints, counts)
        text = "".join(f"{format_object(thing, (record['width'], record['height']))}\n" for thing in things)
        write_file(str((out / "labels" / key / name).with_suffix(".txt")), text.encode())
    if not images:
        raise DataError(f"{source.annotation_file}: no image can be used: {problems}")
    return Converted(
        source.split, key, images, counts, (split.categories, *left_out_sentences(split.left_out.as_dict()))
    )


def _place(fs: Any, path: str, data: bytes, target: Path, copy: bool) -> None:
    """Put an image where YOLO looks for it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if copy or not isinstance(fs, LocalFileSystem):
        write_file(str(target), data)
        return
    original = os.path.abspath(path.removeprefix("file://"))
    if target.is_symlink() and os.readlink(target) == original:
        return
    target.unlink(missing_ok=True)
    target.symlink_to(original)


def _objects(record: Record, keypoint_count: int, counts: Counter[str]) -> list[Object]:
    """The people of an image as far as YOLO can hold them; ``counts`` says how many, and what it cannot hold."""
    width, height = record["width"], record["height"]
    found = []
    for person in record["people"]:
        if person["iscrowd"]:
            counts["crowds left out"] += 1
            continue
        x, y, w, h = person["bbox"]
        box = [x, y, w, h]
        if not (0 <= x + w / 2 <= width and 0 <= y + h / 2 <= height and 0 < w <= width and 0 < h <= height):
            left, top = max(0, x), max(0, y)
            box = [left, top, min(width, x + w) - left, min(height, y + h) - top]
            if min(box[2:]) <= 0:
                counts["people whose box is outside the image left out"] += 1
                continue
            counts["boxes cut at the border"] += 1
        keypoints = list(person["keypoints"]) or [0] * (3 * keypoint_count)
        for at in range(0, len(keypoints), 3):
            if keypoints[at + 2] > 0 and not (0 <= keypoints[at] <= width and 0 <= keypoints[at + 1] <= height):
                keypoints[at : at + 3] = 0, 0, 0
                counts["keypoints outside the image made unlabelled"] += 1
        counts["objects"] += 1
        found.append(Object(0, box, keypoints))
    return found


def _key(split: str, count: int) -> str:
    """The key of a split in data.yaml: train, val or test by its name; a split of its own is train."""
    plain = split.rstrip("0123456789")
    return KEYS.get(plain) or ("train" if count == 1 else split)
