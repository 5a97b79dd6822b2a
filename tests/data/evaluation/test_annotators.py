"""Tests sigmas that are estimated from two annotations of the same images."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posefleet.data.coco.split import CocoSplit, read_coco
from posefleet.data.errors import DataError
from posefleet.data.evaluation.annotators import LEAST_PAIRS, annotator_deviations, pair_people
from posefleet.data.schemas.schema import KeypointSchema

DOG = KeypointSchema.from_dict({"name": "dog", "keypoints": ["nose", "left_ear", "right_ear"]})
AREA = 900.0


def person(number: int, image: int, points: np.ndarray, labelled: Any = 2) -> dict[str, Any]:
    points = points + np.array([100.0 * (number % 2), 0])  # two people of an image, far apart
    keypoints = np.concatenate([points, np.full((len(points), 1), labelled)], 1).ravel().tolist()
    box = {"bbox": [100.0 * (number % 2), 10, 60, 60], "area": AREA, "iscrowd": 0}
    return {"id": number, "image_id": image, "category_id": 1, "keypoints": keypoints, **box}


def split(folder: Path, name: str, people: list[dict[str, Any]], *, offset: int = 0) -> CocoSplit:
    """An annotation file; its image ids are moved by ``offset``, as another tool numbers them."""
    images = [
        {"id": i + offset, "file_name": f"{name}/{i}.jpg", "width": 200, "height": 100}
        for i in {p["image_id"] for p in people}
    ]
    moved = [{**p, "image_id": p["image_id"] + offset} for p in people]
    categories = [{"id": 1, "name": "dog", "keypoints": list(DOG.keypoints)}]
    (folder / f"{name}.json").write_text(json.dumps({"images": images, "annotations": moved, "categories": categories}))
    return read_coco(str(folder / f"{name}.json"), DOG)


def test_the_estimate_is_the_deviation_that_made_the_labels(tmp_path: Path) -> None:
    """2,000 people, whose second labels are moved by a normal distribution; a tenth has left and right swapped."""
    rng = np.random.default_rng(0)
    true = np.array([0.02, 0.05, 0.05])
    first, second = [], []
    for number in range(2000):
        points = rng.uniform(20, 60, (3, 2))
        moved = (
            points + rng.normal(0, 1, (3, 2)) * (true * math.sqrt(AREA / 2))[:, None]
        )  # so that E[d^2] = sigma^2 area
        first.append(person(number, number // 2, points))
        second.append(person(number, number // 2, moved[[0, 2, 1]] if number % 10 == 0 else moved))
    found = annotator_deviations(split(tmp_path, "a", first), split(tmp_path, "b", second, offset=5000), DOG)
    assert (found.images, found.pairs, found.counts.tolist()) == (1000, 2000, [2000] * 3)
    assert found.sigmas[0] == pytest.approx(true[0], rel=0.05) and found.sigmas[1:] == pytest.approx(true[1:], rel=0.15)
    assert found.plain[0] == pytest.approx(true[0], rel=0.05) and (found.plain[1:] > 2 * true[1:]).all()


def test_a_keypoint_with_few_people_has_no_estimate(tmp_path: Path) -> None:
    points = np.array([[20.0, 20], [30, 30], [40, 40]])
    labels = [np.array([[2], [2], [0 if i < 5 else 2]]) for i in range(LEAST_PAIRS)]
    first = [person(2 * i, i, points, labels[i]) for i in range(LEAST_PAIRS)]
    second = [person(2 * i, i, points + np.array([3, 0]), 2) for i in range(LEAST_PAIRS)]
    found = annotator_deviations(split(tmp_path, "a", first), split(tmp_path, "b", second), DOG)
    assert found.counts.tolist() == [10, 10, 5] and np.isnan(found.sigmas).tolist() == [False, False, True]
    assert found.sigmas[0] == pytest.approx(math.sqrt(9 / AREA / math.log(2)))
    assert found.plain[0] == pytest.approx(3 / 30)


def test_people_are_paired_by_their_boxes_once() -> None:
    points = np.array([[20.0, 20], [30, 30], [40, 40]])
    a, b = person(0, 1, points), person(1, 1, points)
    near = {**person(2, 1, points), "bbox": [5, 10, 60, 60]}
    assert [(p["id"], q["id"]) for p, q in pair_people([a, b], [near, b, a])] == [(0, 0), (1, 1)]
    assert [(p["id"], q["id"]) for p, q in pair_people([near, a], [a])] == [(0, 0)]
    assert pair_people([a], [b]) == pair_people([], [a]) == []


def test_annotations_that_cannot_be_compared_are_an_error(tmp_path: Path) -> None:
    points = np.array([[20.0, 20], [30, 30], [40, 40]])
    one = split(tmp_path, "a", [person(0, 1, points)])
    with pytest.raises(DataError, match="copies of one annotation"):
        annotator_deviations(one, one, DOG)
    with pytest.raises(DataError, match=r"no image is in both: .*'9\.jpg'"):
        annotator_deviations(one, split(tmp_path, "b", [person(0, 9, points)]), DOG)
    with pytest.raises(DataError, match="nobody in the 1 images"):
        annotator_deviations(one, split(tmp_path, "c", [person(1, 1, points)]), DOG)
