"""Score labels: they cover neither heads nor each other, and stay inside the image. Colours of sides differ for all."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.schemas.shipped import COCO17
from posefleet.platform.visualization.drawing import LEFT, RIGHT
from posefleet.platform.visualization.labels import HEAD, MARGIN, SMALLEST_HEAD, head_box, place_labels, whole_box

PAGE = Path(__file__).resolve().parents[3] / "serve" / "page"


def person(x: float, y: float, height: float) -> tuple[np.ndarray, np.ndarray]:
    """(17, 2) keypoints of somebody who stands at ``x`` with the nose at ``y``, and their (4,) head."""
    keypoints = np.full((17, 2), np.nan)
    for name, right, down in (
        ("nose", 0.0, 0.0), ("left_eye", 0.02, -0.02), ("right_eye", -0.02, -0.02), ("left_ear", 0.05, 0.0),
        ("right_ear", -0.05, 0.0), ("left_shoulder", 0.12, 0.15), ("right_shoulder", -0.12, 0.15),
        ("left_ankle", 0.08, 0.9), ("right_ankle", -0.08, 0.9),
    ):  # fmt: skip
        keypoints[COCO17.keypoints.index(name)] = x + right * height, y + down * height
    head = head_box(keypoints, np.isfinite(keypoints).all(1), COCO17)
    assert head is not None
    return keypoints, head


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    return float(np.prod(np.clip(sides, 0, None)))


@pytest.mark.parametrize("xs", [(200.0,), (200.0, 260.0), (150.0, 190.0, 230.0, 270.0), (20.0, 60.0, 380.0)])
@pytest.mark.parametrize("y", [20.0, 60.0, 150.0])
def test_labels_leave_heads_and_each_other_free(xs: tuple[float, ...], y: float) -> None:
    people = [person(x, y, 200.0) for x in xs]
    boxes = [whole_box(keypoints[np.isfinite(keypoints).all(1)], head) for keypoints, head in people]
    heads, size = [head for _, head in people], (40.0, 14.0)
    corners = place_labels(boxes, [size] * len(boxes), heads, (400.0, 400.0))
    labels = [np.array([x, y, x + size[0], y + size[1]]) for x, y in corners]
    assert all(label[:2].min() >= 0 and label[2:].max() <= 400 for label in labels)
    assert sum(overlap(label, head) for label in labels for head in heads) == 0
    assert sum(overlap(*pair) for pair in itertools.combinations(labels, 2)) == 0


def test_a_head_is_larger_than_its_keypoints_and_known_from_one_eye() -> None:
    keypoints, head = person(100.0, 100.0, 200.0)
    assert head.tolist() == pytest.approx([80 - 0.4, 98 - 20.4, 120 + 0.4, 98 + 20.4], abs=1)
    one_eye = np.zeros(17, bool)
    one_eye[[COCO17.keypoints.index(name) for name in ("left_eye", "left_ankle")]] = True
    found = head_box(keypoints, one_eye, COCO17)
    assert found is not None and found[2] - found[0] > 20
    table = KeypointSchema(name="table", keypoints=("a", "b"), sigmas=(0.1, 0.1))
    assert head_box(keypoints[:2], np.ones(2, bool), table) is None


def test_the_page_places_labels_by_the_same_numbers() -> None:
    script = (PAGE / "labels.js").read_text()
    for name, value in (("MARGIN", MARGIN), ("HEAD", HEAD), ("SMALLEST_HEAD", SMALLEST_HEAD)):
        assert f"const {name} = {value:g};" in script


LINEAR_TO_LMS_LIKE = {
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
"""How linear RGB looks to people without one kind of cone (Machado, Oliveira and Fernandes, 2009, severity 1)."""


@pytest.mark.parametrize("kind", LINEAR_TO_LMS_LIKE)
def test_left_and_right_differ_for_people_who_do_not_see_all_colours(kind: str) -> None:
    def seen(colour: tuple[int, int, int]) -> np.ndarray:
        linear = (np.array(colour) / 255) ** 2.2
        shown = np.clip(np.array(LINEAR_TO_LMS_LIKE[kind]) @ linear, 0, 1) ** (1 / 2.2)
        return np.asarray(255 * shown)

    assert np.linalg.norm(seen(LEFT) - seen(RIGHT)) > 150
