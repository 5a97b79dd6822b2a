"""Estimates the sigmas of a keypoint schema from images that two annotators labelled.

COCO's definition: sigma_k^2 is the mean of d^2 / area over people whom two annotators labelled, where d is the distance
between their two points of keypoint k. If the differences are normal with equal deviation in x and y, d^2 / area has an
exponential distribution, whose mean is its median / ln 2. The median is used, so that people whose left and right
somebody swapped do not count for more than others.

People are paired by their boxes, so that the distances between keypoints do not decide who is compared.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from posefleet.data.boxes import overlaps
from posefleet.data.coco.annotations import area_of, is_keypoint_person
from posefleet.data.coco.split import CocoSplit
from posefleet.data.errors import DataError
from posefleet.data.schemas.schema import KeypointSchema

LEAST_OVERLAP = 0.5
"""Intersection over union from which two boxes can be one person."""
LEAST_PAIRS = 10
"""People whom both annotators labelled that a keypoint needs for an estimate."""

Person = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Deviations:
    """What two annotators' labels say about each of the K keypoints."""

    images: int
    """Images that both have."""
    pairs: int
    """People who are in both, by their boxes."""
    counts: np.ndarray
    """(K,) people in whom both labelled the keypoint."""
    sigmas: np.ndarray
    """(K,) estimated sigmas; NaN with fewer than ``LEAST_PAIRS`` people, or without any difference."""
    plain: np.ndarray
    """(K,) square root of the mean of d^2 / area, which outliers raise; NaN where ``sigmas`` is."""


def annotator_deviations(first: CocoSplit, second: CocoSplit, schema: KeypointSchema) -> Deviations:
    """Compare two annotations of the same images.

    Args:
        first: The labels of one annotator.
        second: Those of the other. Images are the same if their file names without folders are.
        schema: The keypoints of both.

    Raises:
        DataError: No image, or no person, is in both; or all labels are equal, as in copies of one file.
    """
    others = {_file_name(record): record["people"] for record in second.records()}
    found: list[np.ndarray] = []  # (K,) d^2 / area of each pair of people, NaN where not both labelled the keypoint
    images = 0
    for record in first.records():
        people = others.get(_file_name(record))
        if people is None:
            continue
        images += 1
        for a, b in pair_people(record["people"], people):
            found.append(_distances(a, b, len(schema)))
    if not images:
        raise DataError(f"no image is in both: they are compared by file name, such as {next(iter(others), 'none')!r}")
    if not found:
        raise DataError(f"nobody in the {images:,} images has boxes in both that overlap by {LEAST_OVERLAP:.0%}")
    values = np.array(found)
    if not np.nansum(values):
        raise DataError(f"all keypoints of {len(found):,} people are equal in both; these are copies of one annotation")
    counts = np.isfinite(values).sum(0)
    sigmas, plain = np.full((2, len(schema)), np.nan)
    for k in np.flatnonzero(counts >= LEAST_PAIRS):
        own = values[np.isfinite(values[:, k]), k]
        if median := float(np.median(own)):
            sigmas[k], plain[k] = math.sqrt(median / math.log(2)), math.sqrt(own.mean())
    return Deviations(images, len(found), counts, sigmas, plain)


def pair_people(first: Sequence[Person], second: Sequence[Person]) -> list[tuple[Person, Person]]:
    """The people of one image who are the same in two annotations: pairs of highest overlap first, each person once."""
    a, b = ([person for person in people if is_keypoint_person(person)] for people in (first, second))
    shares = overlaps(_boxes(a), _boxes(b))
    ranked = sorted((-float(shares[i, j]), i, j) for i in range(len(a)) for j in range(len(b)))
    pairs: list[tuple[Person, Person]] = []
    taken_a, taken_b = set[int](), set[int]()
    for overlap, i, j in ranked:
        if -overlap >= LEAST_OVERLAP and i not in taken_a and j not in taken_b:
            pairs.append((a[i], b[j]))
            taken_a.add(i)
            taken_b.add(j)
    return pairs


def _distances(a: Person, b: Person, count: int) -> np.ndarray:
    x, y = (np.array(person["keypoints"], float).reshape(count, 3) for person in (a, b))
    area = (area_of(a) + area_of(b)) / 2
    both = (x[:, 2] > 0) & (y[:, 2] > 0) & (area > 0)
    return np.where(both, ((x[:, :2] - y[:, :2]) ** 2).sum(1) / max(area, 1e-9), np.nan)


def _boxes(people: Sequence[Person]) -> np.ndarray:
    """(N, 4) xyxy."""
    boxes = np.array([person["bbox"] for person in people], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _file_name(record: Mapping[str, Any]) -> str:
    return str(record["file_name"]).replace("\\", "/").rpartition("/")[2]
