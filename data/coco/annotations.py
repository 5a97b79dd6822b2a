"""Checks the types of the fields of COCO's records, and turns annotations into ``People``.

OCHuman and CrowdPose use the same json with other file names; CrowdPose has 14 keypoints, a ``crowdIndex`` for each
image and no ``area``. In COCO-WholeBody the keypoints of a person are in five lists, with a flag for each part but the
body (github.com/jin-s13/COCO-WholeBody, data_format.md); here they become one list, as the schema ``coco_wholebody133``
has it.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
import torch

from posefleet.data.errors import DataError
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.schemas.shipped import load_schema
from posefleet.data.structures import People

AREA_OF_BOX = 0.53
"""Area of a person whose mask is unknown, as a fraction of the box: what CrowdPose's evaluation assumes."""

Annotation = Mapping[str, Any]


# ------------------------------------------------------------------------------------------------------- records


def require_lists(annotation_file: str, found: set[str], *needed: str) -> None:
    """Raise ``DataError`` unless the keys ``needed`` are among the lists ``found`` in an annotation file."""
    for key in needed:
        if key not in found:
            raise DataError(f"{annotation_file}: no list {key!r}; this is not a COCO annotation file")


def is_integer(value: Any) -> TypeGuard[int]:
    """Whether a json value is an integer that fits into 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63


def are_numbers(values: Any) -> TypeGuard[list[float]]:
    """Whether a json value is a list of numbers, NaN and infinity included."""
    return isinstance(values, list) and all(isinstance(v, float) or is_integer(v) for v in values)


def _is_positive(value: Any) -> bool:
    return is_integer(value) and value > 0


def _is_number(value: Any) -> bool:
    return type(value) in _NUMBERS


def _is_list_of_numbers(values: Any) -> bool:
    return type(values) is list and _NUMBERS.issuperset(map(type, values))


_NUMBERS = frozenset({int, float})
_Field = tuple[str, bool, Callable[[Any], bool], str]

_IMAGE: tuple[_Field, ...] = (
    ("id", True, is_integer, "an integer"),
    ("file_name", True, lambda value: isinstance(value, str) and value != "" and "\0" not in value, "a text"),
    ("width", True, _is_positive, "an integer above 0"),
    ("height", True, _is_positive, "an integer above 0"),
    ("crowdIndex", False, lambda value: _is_number(value) and math.isfinite(value), "a number"),
)
_ANNOTATION: tuple[_Field, ...] = (
    ("id", True, is_integer, "an integer"),
    ("image_id", True, is_integer, "an integer"),
    ("category_id", False, is_integer, "an integer"),
    ("bbox", True, lambda box: _is_list_of_numbers(box) and len(box) == 4, "four numbers: x, y, width, height"),
    ("area", False, _is_number, "a number"),
    ("iscrowd", False, lambda value: value in (0, 1) and isinstance(value, int), "0 or 1"),
    ("keypoints", False, _is_list_of_numbers, "numbers: x, y, v of every keypoint"),
    ("num_keypoints", False, lambda value: is_integer(value) and value >= 0, "an integer from 0 on"),
)
"""Fields of a record: name, whether it must be there, what its values are, and that in words. The value null means that
a field is not there."""


def image_record_fault(record: Any) -> str:
    """What is wrong with the fields of a record of ``images``, in words that name image, field and value; or empty."""
    return _fault(record, _IMAGE, "image")


def annotation_record_fault(record: Any) -> str:
    """What is wrong with the fields of a record of ``annotations``, in words that name annotation, field and value;
    empty if nothing is. NaN and infinity are numbers here."""
    return _fault(record, _ANNOTATION, "annotation")


def _fault(record: Any, fields: Sequence[_Field], kind: str) -> str:
    if not isinstance(record, dict):
        return f"{kind} {_brief(record)}: expected an object with {', '.join(name for name, *_ in fields)}"
    faults = []
    for name, needed, fits, expected in fields:
        value = record.get(name)
        if value is None:
            if needed:
                faults.append(f"no {name}, expected {expected}")
        elif not fits(value):
            faults.append(f"{name} {_brief(value)}, expected {expected}")
    if not faults:
        return ""
    what = f"{kind} {record['id']}" if is_integer(record.get("id")) else f"{kind} {_brief(record)}"
    what += f" of image {record['image_id']}" if is_integer(record.get("image_id")) else ""
    return f"{what}: {'; '.join(faults)}"


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


# ------------------------------------------------------------------------------------------------------- whole bodies


_BODY_LISTS = {"keypoints": 17, "foot_kpts": 6, "face_kpts": 68, "lefthand_kpts": 21, "righthand_kpts": 21}
"""The lists in the order of the schema, and how many keypoints each has."""
_BODY_FLAGS = {part: part.replace("_kpts", "_valid") for part in _BODY_LISTS if part != "keypoints"}
"""The flag that says whether a part could be labelled."""

COUNT = sum(_BODY_LISTS.values())
"""Keypoints of a whole body."""
BODY = _BODY_LISTS["keypoints"]
"""Keypoints of the body, which come first: the only ones that the category of such a file names."""


def is_whole_body_schema(schema: KeypointSchema) -> bool:
    """Whether a schema has the keypoints of ``coco_wholebody133``."""
    return len(schema) == COUNT and schema.keypoints == load_schema("coco_wholebody133").keypoints


def is_whole_body(annotation: Annotation) -> bool:
    """Whether an annotation has the keypoints of a whole body in several lists."""
    return any(part in annotation for part in _BODY_FLAGS)


def join_parts(annotation: Annotation) -> Mapping[str, Any]:
    """The annotation with all keypoints in the list ``keypoints``, and their number in ``num_keypoints``.

    A part that is missing or whose flag is false has no labelled keypoints. Labels of feet, faces and hands are
    confidences in some files: a keypoint counts as labelled if its number is above 0.

    Raises:
        DataError: A list is no list of numbers or has another length, or a flag is neither true nor false.
    """
    keypoints: list[float] = []
    for part, count in _BODY_LISTS.items():
        values = annotation.get(part) or [0] * (3 * count)
        if not are_numbers(values) or len(values) != 3 * count:
            what = f"{len(values)} values" if isinstance(values, list) else repr(values)
            raise DataError(f"annotation {annotation.get('id')}: {part} has {what}, expected {count} times x, y, v")
        flag = _BODY_FLAGS.get(part, "")
        valid = True if annotation.get(flag) is None else annotation[flag]
        if not (valid in (0, 1) and isinstance(valid, int)):
            raise DataError(f"annotation {annotation.get('id')}: {flag} {valid!r}, expected true or false")
        if not valid:
            values = [0] * (3 * count)
        keypoints += values
    for place in range(2, len(keypoints), 3):
        if 0 < keypoints[place] < 1:
            keypoints[place] = 1
    counted = sum(v > 0 for v in keypoints[2::3])
    rest = {key: value for key, value in annotation.items() if key not in _BODY_FLAGS}
    return rest | {"keypoints": keypoints, "num_keypoints": counted}


def _brief(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
