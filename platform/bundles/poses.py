"""Writes and reads the predictions of a bundle, which are untrusted when they are read."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from posefleet.data.coco.annotations import are_numbers, is_integer
from posefleet.data.coco.results import PERSON
from posefleet.data.errors import DataError
from posefleet.data.io.json_stream import read_list
from posefleet.data.structures import Detections, Poses


def write_boxes(path: Path, boxes: Mapping[int, Detections]) -> None:
    """Write boxes as COCO detection results, exactly."""
    rows = []
    for image_id, found in sorted(boxes.items()):
        for (left, top, right, bottom), score in zip(found.boxes.tolist(), found.scores.tolist(), strict=True):
            box = [left, top, right - left, bottom - top]
            rows.append({"image_id": image_id, "category_id": PERSON, "bbox": box, "score": score})
    path.write_text(json.dumps(rows, allow_nan=False))


def read_poses(path: Path, num_keypoints: int, what: str) -> dict[int, Poses]:
    """The poses of COCO keypoint results by image id, in file order; images without poses are not there.

    Args:
        what: Name of the file in errors.

    Raises:
        DataError: The file is damaged, or a result has something else than finite numbers.
    """
    rows = _read_rows(path, "keypoints", 3 * num_keypoints, what)
    found = {}
    for image_id, values in rows.items():
        table = torch.stack(values)  # (N, 3 K + 1)
        triples = table[:, :-1].reshape(len(table), num_keypoints, 3)
        found[image_id] = Poses(triples[..., :2], triples[..., 2], table[:, -1])
    return found


def read_boxes(path: Path, what: str) -> dict[int, Detections]:
    """The boxes of COCO detection results by image id, in file order.

    Raises:
        DataError: As :func:`read_poses`.
    """

    def corners(row: list[float]) -> list[float]:
        left, top, width, height, score = row
        return [left, top, left + width, top + height, score]  # rounded to float32, these are the numbers written

    rows = _read_rows(path, "bbox", 4, what, corners)
    tables = {image_id: torch.stack(values) for image_id, values in rows.items()}
    return {image_id: Detections(table[:, :4], table[:, 4]) for image_id, table in tables.items()}


def _read_rows(
    path: Path, key: str, count: int, what: str, change: Callable[[list[float]], list[float]] = list
) -> dict[int, list[torch.Tensor]]:
    """By image id (count + 1) float32 of each result: its numbers ``key`` after ``change``, and its score."""
    rows: dict[int, list[torch.Tensor]] = {}
    number = 0

    def take(result: Any) -> None:
        nonlocal number
        number += 1
        where = f"{what}: result {number}"
        if not isinstance(result, dict) or not {"image_id", key, "score"} <= result.keys():
            raise DataError(f"{where} is {repr(result)[:60]}, expected an object with image_id, {key} and score")
        values = result[key]
        if not is_integer(result["image_id"]) or not are_numbers(values) or len(values) != count:
            raise DataError(f"{where}: expected an integer image_id and {count} numbers in {key}")
        row = [*values, result["score"]]
        if not are_numbers(row) or not all(map(math.isfinite, row)):
            raise DataError(f"{where}: a number or the score is not finite, or is no number")
        rows.setdefault(result["image_id"], []).append(torch.tensor(change(row), dtype=torch.float32))

    read_list(str(path), take)
    return rows
