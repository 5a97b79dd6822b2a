"""Tests drawings at pixels whose colour is known beforehand."""

import numpy as np
import pytest
import torch
from small_models import people, schema_of

from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.structures import People, Poses, TargetPoints
from posefleet.platform.inference.predictor import describe_poses
from posefleet.platform.visualization.drawing import (
    INK,
    LEFT,
    MARKERS,
    NOBODY,
    PAPER,
    PEOPLE_COLOURS,
    RIGHT,
    draw_people,
    draw_poses,
    draw_targets,
    grid,
    side_by_side,
)

BLACK = np.zeros((200, 240, 3), np.uint8)
NAMES = COCO17.keypoints


def arms(scale: float = 1.0) -> torch.Tensor:
    """(1, 17, 2) with a vertical left upper arm at x = 60, a right one at x = 120, and shoulders between them."""
    keypoints = torch.full((1, 17, 2), torch.nan)
    for name, x, y in (
        ("left_shoulder", 60, 50), ("left_elbow", 60, 110), ("right_shoulder", 120, 50), ("right_elbow", 120, 110),
    ):  # fmt: skip
        keypoints[0, NAMES.index(name)] = torch.tensor([x, y]) * scale
    return keypoints


def one_pose(score: float = 0.9, keypoint_score: float = 1.0, scale: float = 1.0) -> Poses:
    return Poses(arms(scale), torch.full((1, 17), keypoint_score), torch.tensor([score]))


def one_person(visibility: int = 2, crowd: bool = False) -> People:
    keypoints = arms()
    labelled = ~keypoints.isnan().any(-1)
    return People(
        keypoints.nan_to_num(),
        (labelled * visibility).to(torch.uint8),
        torch.tensor([[40.0, 30.0, 140.0, 130.0]]),
        torch.tensor([8000.0]),
        torch.tensor([crowd]),
    )


def assert_colour(drawn: np.ndarray, x: float, y: float, colour: tuple[int, int, int], tolerance: int = 30) -> None:
    pixel = drawn[int(y), int(x)].astype(int)
    assert np.abs(pixel - colour).max() <= tolerance, f"({x}, {y}) is {pixel}, expected about {colour}"


def test_left_is_orange_right_is_blue_and_the_middle_is_the_persons() -> None:
    drawn = draw_poses(BLACK, one_pose(), COCO17)
    assert_colour(drawn, 60, 80, LEFT)
    assert_colour(drawn, 120, 80, RIGHT)
    assert_colour(drawn, 90, 50, PEOPLE_COLOURS[0])
    assert drawn.shape == BLACK.shape
    assert drawn.dtype == np.uint8
    assert not BLACK.any()


def test_thresholds_leave_out_poses_and_keypoints() -> None:
    np.testing.assert_array_equal(draw_poses(BLACK, one_pose(score=0.2), COCO17, score_threshold=0.3), BLACK)
    np.testing.assert_array_equal(
        draw_poses(BLACK, one_pose(keypoint_score=0.2), COCO17, keypoint_threshold=0.3), BLACK
    )
    np.testing.assert_array_equal(draw_poses(BLACK, Poses.empty(17), COCO17), BLACK)


def test_the_best_pose_lies_on_top() -> None:
    keypoints = torch.cat([arms(), arms()])
    drawn = draw_poses(BLACK, Poses(keypoints, torch.ones(2, 17), torch.tensor([0.9, 0.4])), COCO17)
    assert_colour(drawn, 90, 50, PEOPLE_COLOURS[0])


def test_lines_grow_with_the_person() -> None:
    def width(scale: float) -> int:
        drawn = draw_poses(np.zeros((900, 900, 3), np.uint8), one_pose(scale=scale), COCO17)
        return int((drawn[int(80 * scale), : int(90 * scale), 0] > 150).sum())

    assert width(0.5) < width(3.0) < width(6.0)


def test_zoom_enlarges_image_and_people_alike() -> None:
    drawn = draw_poses(BLACK, one_pose(), COCO17, zoom=2.0)
    assert drawn.shape == (400, 480, 3)
    assert_colour(drawn, 120, 160, LEFT)


def test_keypoints_far_outside_are_drawn_without_an_error() -> None:
    pose = one_pose()
    pose.keypoints[0, 0] = torch.tensor([1e9, -1e9])
    assert draw_poses(BLACK, pose, COCO17).shape == BLACK.shape


def test_hidden_keypoints_are_hollow() -> None:
    assert_colour(draw_people(BLACK, one_person(visibility=2), COCO17), 60, 110, LEFT)
    assert_colour(draw_people(BLACK, one_person(visibility=1), COCO17), 60, 110, INK)


def test_boxes_of_crowds_and_unlabelled_people_are_grey_and_empty() -> None:
    unlabelled = draw_people(BLACK, one_person(visibility=0), COCO17)
    crowd = draw_people(BLACK, one_person(visibility=0, crowd=True), COCO17)
    for drawn in (unlabelled, crowd):
        assert drawn[80, 38:43].max() > 0.4 * NOBODY[0]  # the left side of the box
        assert not drawn[60:120, 50:130].any()
    assert (crowd[:30] > 0).any() and not (unlabelled[:29] > 0).any()  # only the crowd has a label
    person = draw_people(BLACK, one_person(), COCO17)
    side = person[125, 38:43].astype(int)
    assert side[:, 1].max() > side[:, 0].max()  # the person's green


def test_targets_have_the_colour_of_their_person_and_a_legend() -> None:
    target = TargetPoints(
        "cells", torch.tensor([[50.5, 60.5], [150.5, 60.5]]), torch.tensor([1, -1]), torch.tensor([8.0, 8.0])
    )
    drawn = draw_targets(BLACK, [target], one_person(), COCO17)
    assert_colour(drawn, 50, 60, PEOPLE_COLOURS[1])
    assert_colour(drawn, 150, 60, NOBODY)
    assert drawn.shape[1] == BLACK.shape[1]
    assert drawn.shape[0] > BLACK.shape[0]
    assert (drawn[BLACK.shape[0] :] > 200).any()
    # A point at a pixel's centre is drawn evenly around it.
    around = draw_targets(BLACK, [target])[50:71, 40:61].astype(int)
    assert around.max() > 200
    for mirrored in (around[::-1], around[:, ::-1]):
        np.testing.assert_allclose(around, mirrored, atol=10)


def test_every_group_of_targets_has_its_own_mark() -> None:
    point = torch.tensor([[100.5, 100.5]])
    groups = [TargetPoints(f"group {i}", point, torch.tensor([0]), torch.tensor([32])) for i in range(len(MARKERS))]
    alone = []
    for index in range(len(groups)):
        silent = [TargetPoints(g.name, g.points[:0], g.person[:0], g.stride[:0]) for g in groups]
        silent[index] = groups[index]
        alone.append(draw_targets(BLACK, silent)[80:120, 80:120].tobytes())
    assert len(set(alone)) == len(MARKERS)


def test_a_long_legend_takes_several_lines() -> None:
    nothing = torch.zeros(0)
    groups = [TargetPoints(f"a rather long name {i}", nothing.view(0, 2), nothing.long(), nothing) for i in range(4)]
    assert draw_targets(BLACK, groups).shape[0] > draw_targets(BLACK, groups[:1]).shape[0] + 40


def test_a_grid_keeps_every_image_whole() -> None:
    tiles = [np.full((h, w, 3), 10 * (i + 5), np.uint8) for i, (h, w) in enumerate(((20, 30), (40, 10), (8, 30)))]
    sheet = grid(tiles, columns=2)
    assert sheet.shape == (20 + 20 + 8 + 3 * 6, 2 * 30 + 3 * 6, 3)
    for tile in tiles:
        assert (sheet == tile[0, 0]).all(-1).sum() == tile.shape[0] * tile.shape[1]
    assert tuple(sheet[0, 0]) == PAPER


def test_side_by_side_has_titles() -> None:
    sheet = side_by_side(BLACK, BLACK)
    assert sheet.shape == (200 + 24 + 12, 2 * 240 + 18, 3)
    assert (sheet[6:30] > 150).any()


@pytest.mark.parametrize("size", [(12, 9), (40, 60)])
def test_labels_fit_into_small_images(size: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    assert draw_poses(image, one_pose(), COCO17).shape == image.shape


def spread(count: int) -> Poses:
    """One pose whose keypoints are on a line, as far apart as there is room."""
    x = torch.linspace(20, 220, count) if count > 1 else torch.tensor([120.0])
    points = torch.stack([x, torch.full((count,), 100.0)], 1)[None]
    return Poses(points, torch.ones(1, count), torch.tensor([0.9]))


def test_sides_come_from_the_pairs_of_the_schema_whatever_the_names() -> None:
    schema = KeypointSchema(
        name="own", keypoints=("knee_l", "knee_r", "left_over"), sigmas=(0.1,) * 3, flip_pairs=(("knee_l", "knee_r"),)
    )
    drawn = draw_poses(BLACK, spread(3), schema)
    for x, colour in zip((20, 120, 220), (LEFT, RIGHT, PEOPLE_COLOURS[0]), strict=True):
        assert_colour(drawn, x, 100, colour)


def test_keypoints_without_pairs_have_colours_by_their_order() -> None:
    names = tuple("abcde")
    for skeleton in ((), (("a", "b"),)):
        drawn = draw_poses(
            BLACK, spread(5), KeypointSchema(name="own", keypoints=names, sigmas=(0.1,) * 5, skeleton=skeleton)
        )
        colours = drawn[100, [20, 70, 120, 170, 220]].astype(int)
        assert len({tuple(colour) for colour in colours.tolist()}) == 5
        assert colours[0].argmax() == 0 and colours[-1].argmin() == 1  # from red to violet
        assert drawn[100, 45].any() == bool(skeleton)
    only = KeypointSchema(name="own", keypoints=("tip",), sigmas=(0.1,), skeleton=())
    assert_colour(draw_poses(BLACK, spread(1), only), 120, 100, PEOPLE_COLOURS[0])


@pytest.mark.parametrize("count", [1, 4, 21, 133])
@pytest.mark.parametrize("skeleton", [True, False])
def test_any_schema_is_drawn_and_described(count: int, skeleton: bool) -> None:
    schema, poses = schema_of(count, skeleton=skeleton), spread(count)
    drawn = draw_poses(BLACK, poses, schema)
    everybody = people(2, size=(200, 240), keypoints=count)
    draw_people(BLACK, everybody, schema)
    draw_targets(BLACK, [], everybody, schema)
    (described,) = describe_poses(poses, schema)
    assert [keypoint["name"] for keypoint in described["keypoints"]] == list(schema.keypoints)
    assert described["box"][1::2] == [100, 100]
    rows = drawn[96:].any((1, 2)).sum()  # below the score
    assert 3 <= rows <= (6 if count == 133 else 10)  # dots of many keypoints are small
