"""Writes predicted poses as a COCO results file, and reads detected people from one."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import fsspec
import torch

from posefleet.data.coco.annotations import are_numbers, is_integer
from posefleet.data.errors import DataError
from posefleet.data.io.files import create
from posefleet.data.structures import Detections, Poses

PERSON = 1
"""COCO's category of people; results have no names of categories."""


def write_results(
    path: str, poses_by_image: Mapping[int, Poses] | Iterable[tuple[int, Poses]], *, exact: bool = False
) -> int:
    """Write predictions as COCO keypoint results, which pycocotools and the COCO server read.

    Args:
        path: Any fsspec path; ``*.json``.
        poses_by_image: Poses by image id, in pixels of the original images. Pairs are written one by one, so they may
            be more than fit into memory.
        exact: Write coordinates as they are, so that scores repeat to the last bit, instead of three decimals.

    Returns:
        How many poses were written.

    Raises:
        ValueError: A coordinate or score is not finite.
    """
    pairs = poses_by_image.items() if isinstance(poses_by_image, Mapping) else poses_by_image
    count = 0
    with create(path) as file:
        file.write(b"[")
        for image_id, poses in pairs:
            for result in _results(image_id, poses, exact):
                file.write((", " * (count > 0) + json.dumps(result)).encode())
                count += 1
        file.write(b"]")
    return count


def _results(image_id: int, poses: Poses, exact: bool) -> Iterator[dict[str, Any]]:
    rows: list[list[float]] = torch.cat([poses.keypoints, poses.keypoint_scores[..., None]], 2).flatten(1).tolist()
    for keypoints, score in zip(rows, poses.scores.tolist(), strict=True):
        if not all(map(math.isfinite, [*keypoints, score])):
            raise ValueError(f"image {image_id}: a predicted pose is not finite: score {score}, {keypoints}")
        keypoints = keypoints if exact else [round(value, 3) for value in keypoints]
        yield {"image_id": image_id, "category_id": 1, "keypoints": keypoints, "score": score}


def read_detections(path: str) -> dict[int, Detections]:
    """The detected people of COCO detection results, by image id, best first, in pixels of the original images.

    Args:
        path: Any fsspec path of a json list of objects with ``image_id``, ``bbox`` (left, top, width, height) and
            ``score``, and ``category_id`` where there are other things than people (category 1).

    Raises:
        DataError: There is no such file, it is no such list, or nobody is in it.
    """
    try:
        with fsspec.open(path, "rb") as file:
            content = json.loads(file.read())
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(f"{path}: no such file") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not json: {error}") from error
    if not isinstance(content, list):
        raise DataError(f"{path}: expected a list of detections, found a {type(content).__name__}")
    rows: dict[int, list[list[float]]] = {}
    for number, found in enumerate(content):
        _check_detection(found, f"{path}: detection {number}")
        if found.get("category_id", PERSON) == PERSON:
            left, top, width, height = found["bbox"]
            rows.setdefault(found["image_id"], []).append([left, top, left + width, top + height, found["score"]])
    if not rows:
        raise DataError(f"{path}: no people (category {PERSON}) among {len(content)} detections")
    tables = ((image_id, torch.tensor(values, dtype=torch.float32)) for image_id, values in rows.items())
    ordered = ((image_id, table[table[:, 4].argsort(descending=True, stable=True)]) for image_id, table in tables)
    return {image_id: Detections(table[:, :4], table[:, 4]) for image_id, table in ordered}


def _check_detection(found: Any, what: str) -> None:
    if not isinstance(found, dict) or not {"image_id", "bbox", "score"} <= found.keys():
        raise DataError(f"{what} is {str(found)[:80]}, expected an object with image_id, bbox and score")
    box, score = found["bbox"], found["score"]
    numbers = are_numbers(box) and len(box) == 4 and are_numbers([score])
    if not is_integer(found["image_id"]) or not numbers or not all(map(math.isfinite, [*box, score])):
        raise DataError(
            f"{what} has image_id {found['image_id']!r}, bbox {box!r} and score {score!r}, expected an integer, four "
            "finite numbers and a finite number"
        )
    if min(box[2:]) < 0 or not 0 <= score <= 1:
        raise DataError(f"{what} has bbox {box} and score {score}, expected a width and height from 0 on and 0..1")
