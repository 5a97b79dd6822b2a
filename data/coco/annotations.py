"""Reads and checks COCO keypoint annotations, and turns them into ``People``.

OCHuman and CrowdPose use the same json with other file names; CrowdPose has 14 keypoints, a ``crowdIndex`` for each
image and no ``area``.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import fsspec
import numpy as np
import torch

from posefleet.data.errors import DataError
from posefleet.data.io.json_stream import read_lists
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.schemas.shipped import load_schema, shipped_names
from posefleet.data.structures import People

AREA_OF_BOX = 0.53
"""Area of a person whose mask is unknown, as a fraction of the box: what CrowdPose's evaluation assumes."""

Annotation = Mapping[str, Any]


# ------------------------------------------------------------------------------------------------------- reading


def load_json(path: str) -> dict[str, Any]:
    """Read the json object in a file of any fsspec path.

    Raises:
        DataError: The file is missing, empty or not a json object; the message has line and column.
    """
    try:
        with fsspec.open(path, "rb") as file:
            text = file.read()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(f"{path}: no such file") from error
    if not text.strip():
        raise DataError(f"{path}: the file is empty")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not json: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not json: byte {error.start} is not UTF-8") from error
    except RecursionError as error:
        raise DataError(f"{path}: nested too deeply for an annotation file") from error
    except ValueError as error:  # a number of thousands of digits
        raise DataError(f"{path}: not json: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a json object with images and annotations, found a {type(value).__name__}")
    return value


def read_file_names(annotation_file: str) -> dict[int, str]:
    """The file names of the images by id; the file needs no annotations (COCO's test images have none).

    Raises:
        DataError: The file cannot be read, or an image record lacks what is needed.
    """
    names: dict[int, str] = {}

    def add(image: Any) -> None:
        check_image(image, annotation_file)
        names[image["id"]] = image["file_name"]

    require_lists(annotation_file, read_lists(annotation_file, {"images": add}), "images")
    return names


def require_lists(annotation_file: str, found: set[str], *needed: str) -> None:
    """Raise ``DataError`` unless the keys ``needed`` are among the lists ``found`` in an annotation file."""
    for key in needed:
        if key not in found:
            raise DataError(f"{annotation_file}: no list {key!r}; this is not a COCO annotation file")


def check_image(record: Any, annotation_file: str) -> None:
    """Raise ``DataError`` unless a record of ``images`` has id, file name, width and height."""
    _require(record, ("id", "file_name", "width", "height"), f"{annotation_file}: an image")


def check_annotation(record: Any, annotation_file: str) -> None:
    """Raise ``DataError`` unless a record of ``annotations`` has id, image id and box."""
    _require(record, ("id", "image_id", "bbox"), f"{annotation_file}: an annotation")


def is_integer(value: Any) -> TypeGuard[int]:
    """Whether a json value is an integer that fits into 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63


def are_numbers(values: Any) -> TypeGuard[list[float]]:
    """Whether a json value is a list of numbers, NaN and infinity included."""
    return isinstance(values, list) and all(isinstance(v, float) or is_integer(v) for v in values)


def has_numbers(annotation: Annotation) -> bool:
    """Whether box, area and keypoints are numbers, NaN and infinity included; area and keypoints may be missing."""
    box, area, keypoints = annotation.get("bbox"), annotation.get("area"), annotation.get("keypoints") or []
    return are_numbers(box) and len(box) == 4 and are_numbers([0 if area is None else area]) and are_numbers(keypoints)


def is_category(record: Any) -> bool:
    """Whether a record of ``categories`` has an integer id."""
    return isinstance(record, dict) and is_integer(record.get("id"))


def person_category_ids(categories: Sequence[Mapping[str, Any]]) -> set[int]:
    """Ids of the categories that are people: those with the name person, else those with keypoints, else 1."""
    named = {c["id"] for c in categories if c.get("name") == "person"}
    return named or {c["id"] for c in categories if c.get("keypoints")} or {1}


def is_keypoint_person(annotation: Annotation) -> bool:
    """Whether an annotation is no crowd and has at least one labelled keypoint."""
    return not annotation.get("iscrowd", 0) and any(v > 0 for v in (annotation.get("keypoints") or ())[2::3])


def area_of(annotation: Annotation) -> float:
    """The person's area in square pixels; ``AREA_OF_BOX`` of the box where the annotation has none."""
    area = annotation.get("area")
    _, _, width, height = annotation["bbox"]
    return float(AREA_OF_BOX * width * height if area is None else area)


def people_of(annotations: Sequence[Annotation], schema: KeypointSchema) -> People:
    """The people of one image, in its pixels; crowds and people without keypoints included.

    Raises:
        DataError: An annotation has another number of keypoints than ``schema``.
    """
    if not annotations:
        return People.empty(len(schema))
    nothing = [0] * (3 * len(schema))
    try:
        keypoints = np.array([a.get("keypoints") or nothing for a in annotations], np.float32)
        keypoints = keypoints.reshape(len(annotations), len(schema), 3)
        boxes = np.array([a["bbox"] for a in annotations], np.float32).reshape(-1, 4)
    except ValueError as error:
        ids = [a.get("id") for a in annotations]
        raise DataError(f"annotations {ids}: not {len(schema)} keypoints (x, y, v) and a box (x, y, w, h)") from error
    visibility = keypoints[..., 2].clip(0, 2).astype(np.uint8)
    points = keypoints[..., :2] * (visibility > 0)[..., None]
    boxes[:, 2:] += boxes[:, :2]
    return People(
        torch.from_numpy(points),
        torch.from_numpy(visibility),
        torch.from_numpy(boxes),
        torch.tensor([area_of(a) for a in annotations], dtype=torch.float32),
        torch.tensor([bool(a.get("iscrowd", 0)) for a in annotations]),
    )


def _require(record: Any, keys: tuple[str, ...], what: str) -> None:
    if not isinstance(record, dict):
        raise DataError(f"{what} is a {type(record).__name__}, expected an object with {', '.join(keys)}")
    for key in keys:
        if key not in record:
            raise DataError(f"{what} has no {key!r}: {_brief(record)}")
        if key in ("id", "image_id", "width", "height") and not is_integer(record[key]):
            raise DataError(f"{what} has {key} {record[key]!r}, expected an integer")
        if key == "file_name" and not isinstance(record[key], str):
            raise DataError(f"{what} has file_name {record[key]!r}, expected a text")


def check_person(record: Annotation, schema: KeypointSchema, annotation_file: str) -> None:
    """Raise ``DataError`` unless the annotation of a person can become a row of ``People``."""
    what = f"{annotation_file}: annotation {record['id']}"
    keypoints = record.get("keypoints") or []
    if not has_numbers(record):
        raise DataError(
            f"{what}: expected numbers, four for the box: "
            f"bbox {record['bbox']}, area {record.get('area')}, keypoints {keypoints}"
        )
    if not keypoints or len(keypoints) == 3 * len(schema):
        return
    count = len(keypoints) / 3
    fitting = [name for name in shipped_names() if len(load_schema(name)) == count]
    advice = f"schema {' or '.join(fitting)} would fit" if fitting else "no shipped schema has as many"
    raise DataError(f"{what} has {count:g} keypoints, {schema.name} has {len(schema)}; {advice}")


def _brief(record: Mapping[str, Any]) -> str:
    text = json.dumps(record, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
