"""Annotations of a bundle: they are read as they were written, and each difference is named."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from posefleet.data.evaluation.ground_truth import GroundTruth
from posefleet.data.schemas.shipped import COCO17
from posefleet.platform.bundles.truth import compare_truth, read_truth, write_truth


def people() -> GroundTruth:
    """Two images with two people and one, one of them a crowd, and one image without any."""
    labels = {"keypoints": [1.1, 2.3, 2] * 17, "num_keypoints": 17, "bbox": [0, 0, 9.1, 9], "area": 40.25, "iscrowd": 0}
    crowd = {"keypoints": [], "num_keypoints": 0, "bbox": [1, 1, 5, 5], "area": 25.0, "iscrowd": 1}
    records = [(9, (20, 30), [labels, crowd]), (4, (32, 32), [labels]), (5, (8, 8), [])]
    return GroundTruth.from_records(records, crowd_index={9: 0.3})


def test_annotations_are_read_as_they_were_written(tmp_path: Path) -> None:
    truth = people()
    write_truth(tmp_path / "t.json", truth, COCO17)
    found = read_truth(tmp_path / "t.json", COCO17, "t.json")
    for field in dataclasses.fields(truth):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(truth, field.name))
    assert compare_truth(found, truth, COCO17) == []


def change(name: str, index: tuple[int, ...], value: float) -> Callable[[GroundTruth], GroundTruth]:
    def changed(truth: GroundTruth) -> GroundTruth:
        array = getattr(truth, name).copy()
        array[index] = value
        return dataclasses.replace(truth, **{name: array})

    return changed


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            change("keypoints", (1, 9, 0), 7.0),
            "image 9, annotation 2: keypoints left_wrist 1.1 in the bundle, 7 in",
        ),
        (change("visibility", (0, 0), 1), "image 4, annotation 1: visibility of keypoints nose 2 in the bundle, 1"),
        (change("corners_and_sizes", (2, 3), 6), "image 9, annotation 3: box 5 in the bundle, 6 in the data"),
        (change("areas", (2,), 6), "image 9, annotation 3: area 25 in the bundle, 6 in the data"),
        (change("crowd", (2,), False), "image 9, annotation 3: crowd 1 in the bundle, 0 in the data"),
        (change("num_keypoints", (0,), 1), "image 4, annotation 1: number of labelled keypoints 17 in the bundle, 1"),
        (change("sizes", (1, 0), 9), "image 5: size or crowdIndex"),
        (change("crowd_index", (2,), 0.9), "image 9: size or crowdIndex"),
        (lambda truth: truth.select([4, 5]), "1 images are in the bundle alone, such as 9"),
        (lambda truth: dataclasses.replace(truth, image=np.array([0, 0, 2])), "image 4: 1 people in the bundle, 2 in"),
    ],
)
def test_a_difference_is_named(change: Callable[[GroundTruth], GroundTruth], text: str) -> None:
    wrong = compare_truth(people(), change(people()), COCO17)
    assert wrong and wrong[0].startswith(text), wrong
