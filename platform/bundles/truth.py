"""Writes the annotated people of a data set in the least form that scoring needs, and reads and compares them."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from posefleet.data.coco.annotations import Annotation, are_numbers, is_integer
from posefleet.data.coco.results import PERSON
from posefleet.data.errors import DataError
from posefleet.data.evaluation.ground_truth import GroundTruth
from posefleet.data.io.json_stream import read_lists
from posefleet.data.schemas.schema import KeypointSchema

_PER_PERSON = ("keypoints", "visibility", "corners_and_sizes", "areas", "crowd", "num_keypoints")
_WORDS = {
    "visibility": "visibility of keypoints",
    "corners_and_sizes": "box",
    "areas": "area",
    "num_keypoints": "number of labelled keypoints",
}


def write_truth(path: Path, people: GroundTruth, schema: KeypointSchema) -> None:
    """Write COCO annotations with what scoring reads: ids and sizes of images, keypoints, boxes, areas and crowds."""
    images = [
        {"id": number, "width": width, "height": height, **({} if math.isnan(index) else {"crowdIndex": index})}
        for number, (width, height), index in zip(
            people.image_ids.tolist(), people.sizes.tolist(), people.crowd_index.tolist(), strict=True
        )
    ]
    labels = np.concatenate([people.keypoints, people.visibility[..., None]], 2).reshape(len(people.image), -1)
    annotations = [
        {
            "id": row + 1,
            "image_id": image_id,
            "category_id": PERSON,
            "keypoints": keypoints,
            "num_keypoints": count,
            "bbox": box,
            "area": area,
            "iscrowd": int(crowd),
        }
        for row, (image_id, keypoints, count, box, area, crowd) in enumerate(
            zip(
                people.image_ids[people.image].tolist(),
                labels.tolist(),
                people.num_keypoints.tolist(),
                people.corners_and_sizes.tolist(),
                people.areas.tolist(),
                people.crowd.tolist(),
                strict=True,
            )
        )
    ]
    category = {"id": PERSON, "name": "person", "keypoints": list(schema.keypoints), "skeleton": []}
    content = {"images": images, "annotations": annotations, "categories": [category]}
    path.write_text(json.dumps(content, allow_nan=False))


def read_truth(path: Path, schema: KeypointSchema, what: str) -> GroundTruth:
    """The annotated people that :func:`write_truth` wrote, from an untrusted file.

    Args:
        what: Name of the file in errors.

    Raises:
        DataError: The file is damaged, or has something else than such annotations.
    """
    sizes: dict[int, tuple[int, int]] = {}
    crowd_index: dict[int, float] = {}
    people: dict[int, list[Annotation]] = {}

    def take_image(image: Any) -> None:
        number = _integer(image, "id", what)
        size = _numbers([image.get("width"), image.get("height")], 2, f"{what}: image {number}: width and height")
        if number in sizes:
            raise DataError(f"{what}: image {number} comes twice")
        sizes[number] = (int(size[0]), int(size[1]))
        if "crowdIndex" in image:
            (crowd_index[number],) = _numbers([image["crowdIndex"]], 1, f"{what}: image {number}: crowdIndex")

    def take_person(person: Any) -> None:
        where = f"{what}: annotation {_integer(person, 'id', what)}"
        image = _integer(person, "image_id", where)
        checked = {
            "keypoints": _numbers(person.get("keypoints"), 3 * len(schema), f"{where}: keypoints", or_none=True),
            "bbox": _numbers(person.get("bbox"), 4, f"{where}: bbox"),
            "area": _numbers([person.get("area")], 1, f"{where}: area")[0],
            "iscrowd": _integer(person, "iscrowd", where),
            "num_keypoints": _integer(person, "num_keypoints", where),
        }
        people.setdefault(image, []).append(checked)

    found = read_lists(str(path), {"images": take_image, "annotations": take_person})
    if not {"images", "annotations"} <= found:
        raise DataError(f"{what}: no lists 'images' and 'annotations'")
    if lost := people.keys() - sizes.keys():
        raise DataError(f"{what}: people of image {min(lost)}, which is not among the images")
    records = ((number, size, people.get(number, [])) for number, size in sizes.items())
    return GroundTruth.from_records(records, crowd_index=crowd_index)


def compare_truth(ours: GroundTruth, theirs: GroundTruth, schema: KeypointSchema) -> list[str]:
    """What differs between the annotations of a bundle and those of a data set, one text for each image that does."""
    if not np.array_equal(ours.image_ids, theirs.image_ids):
        one, other = set(ours.image_ids.tolist()), set(theirs.image_ids.tolist())
        alone = {"the bundle": one - other, "the data": other - one}
        return [f"{len(ids)} images are in {where} alone, such as {min(ids)}" for where, ids in alone.items() if ids]
    return list(_differing_images(ours, theirs, schema))


def _differing_images(ours: GroundTruth, theirs: GroundTruth, schema: KeypointSchema) -> Iterator[str]:
    counts = [np.bincount(people.image, minlength=len(people.image_ids)) for people in (ours, theirs)]
    ends = np.cumsum(counts[0])
    for row, number in enumerate(ours.image_ids.tolist()):
        a, b = (ours.part(slice(row, row + 1)), theirs.part(slice(row, row + 1)))
        if counts[0][row] != counts[1][row]:
            yield f"image {number}: {counts[0][row]} people in the bundle, {counts[1][row]} in the data"
        elif not np.array_equal(a.sizes, b.sizes) or not np.array_equal(a.crowd_index, b.crowd_index, equal_nan=True):
            yield f"image {number}: size or crowdIndex"
        elif wrong := _differing_person(a, b, schema):
            person, text = wrong
            yield f"image {number}, annotation {ends[row] - counts[0][row] + person + 1}: {text}"


def _differing_person(ours: GroundTruth, theirs: GroundTruth, schema: KeypointSchema) -> tuple[int, str] | None:
    """The first person of an image who differs, by its place, and in what."""
    for name in _PER_PERSON:
        a, b = getattr(ours, name), getattr(theirs, name)
        if a.shape != b.shape:  # nobody has keypoints in one of them
            return 0, "keypoints"
        rows = np.argwhere(a != b)
        if len(rows):
            person, *place = rows[0].tolist()
            point = f" {schema.keypoints[place[0]]}" if name in ("keypoints", "visibility") else ""
            index = tuple(rows[0].tolist())
            return person, f"{_WORDS.get(name, name)}{point} {a[index]:g} in the bundle, {b[index]:g} in the data"
    return None


def _integer(record: Any, key: str, what: str) -> int:
    value = record.get(key) if isinstance(record, dict) else None
    if not is_integer(value):
        raise DataError(f"{what}: {key} is {repr(value)[:60]}, expected an integer")
    return value


def _numbers(values: Any, count: int, what: str, *, or_none: bool = False) -> list[float]:
    if or_none and values == []:
        return []
    if not are_numbers(values) or len(values) != count or not all(map(math.isfinite, values)):
        raise DataError(f"{what} {repr(values)[:60]}: expected {count} finite numbers")
    return values
