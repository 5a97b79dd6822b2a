"""Converts a data set in YOLO's pose format to COCO's, one image after the other."""

import dataclasses
import json
import shutil
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import track

from posefleet.data.errors import DataError
from posefleet.data.images import verify_image
from posefleet.data.io.files import create, write_file
from posefleet.data.schemas.category import schema_of_categories
from posefleet.data.schemas.names import parts_of
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.yolo.data_file import DataFile, images_of, label_path
from posefleet.data.yolo.labels import Object, parse_labels
from posefleet.data.yolo.problems import Problems

READERS = 4
"""Threads that read and decode images."""


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written for a split."""

    split: str
    annotation_file: str
    images: int
    people: int
    without_label: int
    """Images without a label file, or with an empty one: nobody is in them."""


def to_coco(data: DataFile, out: str, problems: Problems) -> Iterator[Converted]:
    """Write ``OUT/annotations/person_keypoints_SPLIT.json`` for each split, and ``OUT/schema.yaml``.

    File names are relative to ``data.root``. Objects have no ``area``, as YOLO has none: readers take 0.53 of the box.

    Args:
        data: From :func:`posefleet.data.yolo.data_file.read_data_file`.
        out: Folder.
        problems: Gets a line for every line, label and image that is left out.

    Raises:
        DataError: No image of a split can be used.
        SchemaError: The names of the keypoints cannot be used.
    """
    categories = _categories(data)
    for name, schema in _schemas(categories, data).items():
        write_file(f"{out}/{name}.yaml", yaml.safe_dump(schema.as_dict(), sort_keys=False, width=110).encode())
    for split in data.splits:
        yield _write_split(data, split, categories, f"{out}/annotations/person_keypoints_{split}.json", problems)


def _write_split(
    data: DataFile, split: str, categories: list[dict[str, Any]], path: str, problems: Problems
) -> Converted:
    files = images_of(data, split, problems)
    images = people = empty = 0
    with create(path) as target, tempfile.TemporaryFile() as annotations:
        target.write(b'{"images": [')
        for file, size, objects in _read(data, files, split, problems):
            images += 1
            empty += not objects
            target.write(b", " * (images > 1) + json.dumps(_image(images, file, data.root, size)).encode())
            for thing in objects:
                people += 1
                annotations.write(b", " * (people > 1) + json.dumps(_annotation(people, images, thing)).encode())
        if not images:
            raise DataError(f"{data.path}: {split} has no image that can be used: {problems}")
        target.write(b'], "annotations": [')
        annotations.seek(0)
        shutil.copyfileobj(annotations, target)
        target.write(b'], "categories": ' + json.dumps(categories).encode() + b"}\n")
    return Converted(split, path, images, people, empty)


def _read(
    data: DataFile, files: list[Path], split: str, problems: Problems
) -> Iterator[tuple[Path, tuple[int, int], list[Object]]]:
    """Each usable image with its size and objects, in order; a few threads read ahead."""
    console = Console(stderr=True)
    shown: Iterable[Path] = track(files, split, console=console, disable=not console.is_terminal)
    with ThreadPoolExecutor(READERS) as pool:
        ahead: deque[tuple[Path, Future[tuple[int, int] | str]]] = deque()
        for file in shown:
            ahead.append((file, pool.submit(_size, file)))
            if len(ahead) > 4 * READERS:
                yield from _with_labels(data, *ahead.popleft(), problems)
        for one in ahead:
            yield from _with_labels(data, *one, problems)


def _with_labels(
    data: DataFile, file: Path, sizing: "Future[tuple[int, int] | str]", problems: Problems
) -> Iterator[tuple[Path, tuple[int, int], list[Object]]]:
    size = sizing.result()
    if isinstance(size, str):
        problems.add("damaged images", str(file), size)
        return
    label = label_path(file)
    try:
        text = label.read_text()
    except FileNotFoundError:
        text = ""
    except (OSError, UnicodeDecodeError) as error:
        problems.add("unreadable labels", str(label), str(error))
        return
    yield file, size, parse_labels(text, data.form, size, str(label), problems)


def _size(file: Path) -> tuple[int, int] | str:
    """(width, height) of an image as a viewer shows it, or why it cannot be read."""
    try:
        return verify_image(file.read_bytes(), file.name)
    except (OSError, DataError) as error:
        return str(error)


def _image(number: int, file: Path, root: Path, size: tuple[int, int]) -> dict[str, Any]:
    name = str(file.relative_to(root)) if file.is_relative_to(root) else str(file)
    return {"id": number, "file_name": name, "width": size[0], "height": size[1]}


def _annotation(number: int, image: int, thing: Object) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": thing.class_id + 1,
        "bbox": thing.box,
        "keypoints": thing.keypoints,
        "num_keypoints": sum(v > 0 for v in thing.keypoints[2::3]),
        "iscrowd": 0,
    }


def _categories(data: DataFile) -> list[dict[str, Any]]:
    """A category for each class; ids begin at 1, as in COCO."""
    found = []
    for number, (name, keypoints) in enumerate(zip(data.classes, data.keypoint_names, strict=True), 1):
        category: dict[str, Any] = {"id": number, "name": name, "keypoints": list(keypoints), "skeleton": []}
        if data.flip is not None and schema_of_categories([category], data.path.name).flip_index != list(data.flip):
            category["flip_pairs"] = _pairs(keypoints, data.flip)
        found.append(category)
    return found


def _pairs(names: tuple[str, ...], flip: tuple[int, ...]) -> list[list[str]]:
    """The pairs of ``flip_idx``, left first where the names tell; else the lower number first."""
    pairs = [[names[a], names[b]] for a, b in enumerate(flip) if a < b]
    return [pair[::-1] if parts_of(pair[0])[0][:1] == ("right",) else pair for pair in pairs]


def _schemas(categories: list[dict[str, Any]], data: DataFile) -> dict[str, KeypointSchema]:
    """The schema of all classes as ``schema``; one for each class if their keypoints differ."""
    if len({tuple(category["keypoints"]) for category in categories}) == 1:
        return {"schema": _schema(categories, data)}
    return {f"schema_{category['name']}": _schema([category], data) for category in categories}


def _schema(categories: list[dict[str, Any]], data: DataFile) -> KeypointSchema:
    schema = schema_of_categories(categories, data.path.name)
    if "flip_pairs" not in categories[0]:
        return schema
    pairs = tuple((left, right) for left, right in categories[0]["flip_pairs"])
    sources = {**schema.sources, "flip_pairs": f"given by flip_idx of {data.path.name}"}
    return dataclasses.replace(schema, sources=sources, flip_pairs=pairs)
