"""Painted people: where their keypoints are and which of them are visible."""

from dataclasses import replace

import numpy as np
import pytest

from posefleet.data.schemas.shipped import COCO17
from posefleet.data.synthetic.bodies import Figure, make_figure, random_look
from posefleet.data.synthetic.canvas import Canvas, fixed_point
from posefleet.data.synthetic.figures import PARTS_PER_PERSON, Painted, Part, paint_figure
from posefleet.data.synthetic.postures import Build, Limb, Posture
from posefleet.data.synthetic.scenes import annotate_person

AT_EASE = Posture((Limb(0, 14, 0, 8), Limb(0, 14, 0, 8)), (Limb(0, 6), Limb(0, 6)))
"""Upright, arms and legs slightly apart."""

NAMES = {name: i for i, name in enumerate(COCO17.keypoints)}


def standing(yaw: float = 0.0) -> Figure:
    """A person of 200 pixels in short hair, the hips at (150, 130)."""
    look = replace(random_look(np.random.default_rng(0)), haircut="short", legwear="trousers")
    return replace(make_figure(AT_EASE, Build(), look, 200.0, yaw), origin=(150.0, 130.0))


def empty_canvas(width: int = 300, height: int = 260) -> Canvas:
    return Canvas.over(np.zeros((height, width, 3), np.uint8))


def visibility_of(canvas: Canvas, painted: Painted, person: int = 1) -> dict[str, int]:
    annotation = annotate_person(canvas.owner, person, painted, labelled=True)
    assert annotation is not None
    return dict(zip(COCO17.keypoints, annotation["keypoints"][2::3], strict=True))


def test_a_person_who_faces_the_viewer_has_the_left_side_at_the_right() -> None:
    x = paint_figure(empty_canvas(), standing(yaw=0), person=1).keypoints[:, 0]
    for left, right in COCO17.flip_pairs:
        assert x[NAMES[left]] > x[NAMES[right]], left


def test_a_person_seen_from_behind_has_the_left_side_at_the_left() -> None:
    x = paint_figure(empty_canvas(), standing(yaw=180), person=1).keypoints[:, 0]
    for left, right in COCO17.flip_pairs:
        assert x[NAMES[left]] < x[NAMES[right]], left


def test_everything_of_a_lone_person_seen_from_the_front_is_visible() -> None:
    canvas = empty_canvas()
    assert set(visibility_of(canvas, paint_figure(canvas, standing(), person=1)).values()) == {2}


def test_a_face_seen_from_behind_is_not_labelled_but_the_ears_are() -> None:
    canvas = empty_canvas()
    seen = visibility_of(canvas, paint_figure(canvas, standing(yaw=180), person=1))
    assert [seen[name] for name in ("nose", "left_eye", "right_eye")] == [0, 0, 0]
    assert [seen[name] for name in ("left_ear", "right_ear", "left_shoulder")] == [2, 2, 2]


def test_the_far_side_of_a_person_in_profile_is_hidden() -> None:
    canvas = empty_canvas()
    seen = visibility_of(canvas, paint_figure(canvas, standing(yaw=90), person=1))  # looks right: shows the right side
    assert [seen[name] for name in ("nose", "right_eye", "right_ear", "right_shoulder", "right_elbow")] == [2] * 5
    assert seen["left_ear"] == 0
    assert [seen[name] for name in ("left_shoulder", "left_hip", "left_elbow", "left_wrist")] == [1] * 4


def test_what_another_person_covers_is_hidden() -> None:
    canvas = empty_canvas()
    behind = paint_figure(canvas, standing(), person=1)
    paint_figure(canvas, replace(standing(), origin=(175.0, 130.0)), person=2)
    seen = visibility_of(canvas, behind)
    assert seen["left_hip"] == 1 and seen["left_shoulder"] == 1
    assert seen["right_shoulder"] == 2 and seen["right_wrist"] == 2


def test_what_a_thing_covers_is_hidden_and_does_not_count_as_area() -> None:
    canvas = empty_canvas()
    painted = paint_figure(canvas, standing(), person=1)
    whole = int((canvas.owner > 0).sum())
    canvas.fill(fixed_point(np.array([[0.0, 180], [300, 180], [300, 260], [0, 260]])), (9, 9, 9))  # below the knees
    annotation = annotate_person(canvas.owner, 1, painted, labelled=True)
    assert annotation is not None
    assert visibility_of(canvas, painted)["left_ankle"] == 1
    assert annotation["area"] == (canvas.owner > 0).sum() < whole
    assert annotation["num_keypoints"] == 17


def test_what_is_outside_the_image_is_not_labelled() -> None:
    canvas = empty_canvas()
    painted = paint_figure(canvas, replace(standing(), origin=(150.0, 240.0)), person=1)  # knees would be at 289
    annotation = annotate_person(canvas.owner, 1, painted, labelled=True)
    assert annotation is not None
    for name in ("left_knee", "right_knee", "left_ankle", "right_ankle"):
        assert annotation["keypoints"][3 * NAMES[name] :][:3] == [0, 0, 0]
    assert annotation["num_keypoints"] == 13


def test_keypoints_lie_in_the_middle_of_what_they_name() -> None:
    canvas = empty_canvas()
    painted = paint_figure(canvas, standing(), person=1)
    _, columns = np.nonzero(canvas.owner == PARTS_PER_PERSON + Part.NECK)
    shoulders = painted.keypoints[[NAMES["left_shoulder"], NAMES["right_shoulder"]], 0]
    assert columns.mean() + 0.5 == pytest.approx(150.0, abs=0.3)  # pixel i is centred at i + 0.5
    assert shoulders.mean() == pytest.approx(150.0)
