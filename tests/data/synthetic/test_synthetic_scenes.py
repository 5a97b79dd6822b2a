"""Rendered scenes: reproducible images, exact annotations."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from posefleet.data.synthetic.figures import PARTS_PER_PERSON, Painted, Part
from posefleet.data.synthetic.scenes import CROWDED_SCENES, SceneConfig, annotate_person, render_scene

SMALL = SceneConfig(width=(96, 128), height=(96, 128), crowd_rate=0.3, unlabelled_rate=0.2)


def test_a_scene_is_the_same_for_the_same_seed_only() -> None:
    image, annotations = render_scene(SMALL, 5)
    again, annotations_again = render_scene(SMALL, 5)
    other, _ = render_scene(SMALL, 6)
    assert np.array_equal(image, again) and annotations == annotations_again
    assert image.shape != other.shape or not np.array_equal(image, other)


def test_a_scene_without_people_has_no_annotations() -> None:
    image, annotations = render_scene(SceneConfig(people=(0, 0), crowd_rate=0), 1)
    assert image.shape == (256, 256, 3) and image.dtype == np.uint8 and annotations == []


@pytest.mark.parametrize("rate", [0.0, 0.4, 1.0])
def test_crowds_appear_at_their_rate(rate: float) -> None:
    config = SceneConfig(
        width=(96, 96), height=(96, 96), people=(1, 1), scale=(0.3, 0.4), things=(0, 0), crowd_rate=rate
    )
    scenes = [render_scene(config, seed)[1] for seed in range(100)]
    crowds = sum(any(annotation["iscrowd"] for annotation in annotations) for annotations in scenes)
    assert crowds / 100 == pytest.approx(rate, abs=0.15 if 0 < rate < 1 else 0.02)


@pytest.mark.parametrize("rate", [0.0, 0.4, 1.0])
def test_people_are_left_unlabelled_at_the_rate(rate: float) -> None:
    alone = SceneConfig(width=(96, 96), height=(96, 96), people=(1, 1), occluder_rate=0, crowd_rate=0)
    config = replace(alone, scale=(0.7, 0.8), unlabelled_rate=rate)
    people = [annotation for seed in range(100) for annotation in render_scene(config, seed)[1]]
    assert len(people) == 100
    bare = sum(person["num_keypoints"] == 0 for person in people)
    assert bare / 100 == pytest.approx(rate, abs=0.15 if 0 < rate < 1 else 0.02)


def test_people_of_crowded_scenes_overlap_and_many_are_labelled() -> None:
    overlapping, labelled, people = 0, 0, 0
    for seed in range(20):
        _, annotations = render_scene(CROWDED_SCENES, seed)
        boxes = np.array([a["bbox"] for a in annotations])
        low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
        sides = np.minimum(high[:, None], high[None]) - np.maximum(low[:, None], low[None])
        inside, area = sides.clip(0).prod(2), boxes[:, 2:].prod(1)
        iou = inside / (area[:, None] + area[None] - inside) - np.eye(len(boxes))
        overlapping += int((iou.max(1) > 0.5).sum())
        labelled += sum(a["num_keypoints"] > 0 for a in annotations)
        people += len(annotations)
    assert people >= 4 * 20
    assert overlapping > 0.5 * people and labelled > 0.75 * people


@pytest.mark.parametrize(
    "wrong", [{"people": (3, 1)}, {"scale": (0.0, 1.0)}, {"crowd_rate": 1.5}, {"width": (8, 64)}, {"jpeg_quality": 101}]
)
def test_a_wrong_setting_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SceneConfig(**wrong)


def test_a_rectangle_has_the_box_area_and_outline_of_its_pixels() -> None:
    owner = np.zeros((100, 100), np.uint16)
    owner[20:60, 10:40] = PARTS_PER_PERSON + Part.TRUNK
    painted = Painted(np.full((17, 2), 25.0), np.full(17, 2, np.uint8))
    annotation = annotate_person(owner, 1, painted, labelled=True)
    assert annotation is not None
    assert annotation["bbox"] == [10, 20, 30, 40] and annotation["area"] == 1200
    corners = {tuple(corner) for corner in np.reshape(annotation["segmentation"][0], (-1, 2)).tolist()}
    assert corners == {(10, 20), (40, 20), (40, 60), (10, 60)}


def test_a_person_of_whom_hardly_a_pixel_shows_is_not_annotated() -> None:
    painted = Painted(np.full((17, 2), 25.0), np.full(17, 2, np.uint8))
    owner = np.zeros((100, 100), np.uint16)
    owner[0, :5] = PARTS_PER_PERSON + Part.TRUNK
    assert annotate_person(owner, 1, painted, labelled=True) is None
