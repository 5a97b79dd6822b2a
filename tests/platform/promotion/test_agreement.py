"""Tests which poses of two models are paired as one person, and with which OKS."""

import math

import pytest
import torch

from posefleet.data.schemas.shipped import COCO17
from posefleet.data.structures import Poses
from posefleet.platform.promotion.agreement import SAME_PERSON, compare_poses

HEIGHT, WIDTH = 120.0, 60.0


def people(*corners: tuple[float, float]) -> Poses:
    """A person at each corner, whose keypoints fill a box of 60 x 120 px."""
    index = torch.arange(len(COCO17))
    shape = torch.stack([index % 5 * WIDTH / 4, index // 5 * HEIGHT / 3], dim=1)
    keypoints = torch.stack([shape + torch.tensor(corner) for corner in corners])
    count = len(corners)
    return Poses(keypoints, torch.ones(count, len(COCO17)), torch.linspace(0.9, 0.5, count))


def shifted(poses: Poses, x: float) -> Poses:
    return Poses(poses.keypoints + torch.tensor([x, 0.0]), poses.keypoint_scores, poses.scores)


def distance(poses: Poses, alike: float) -> float:
    """Smallest shift, pixels, that lowers the OKS below ``alike``."""
    variances = [0.53 * WIDTH * HEIGHT * 2 * (2 * sigma) ** 2 for sigma in COCO17.sigmas]
    steps = (step / 10 for step in range(1000))
    return next(d for d in steps if sum(math.exp(-(d**2) / v) for v in variances) / len(variances) < alike)


THREE = people((0, 0), (40, 10), (300, 0))  # the first two overlap
NOBODY = Poses.empty(len(COCO17))


def test_a_model_agrees_with_itself() -> None:
    found = compare_poses(THREE, THREE, COCO17)
    assert found.similarities == (1.0, 1.0, 1.0)
    assert (found.only_first, found.only_second) == (0, 0)


def test_the_order_of_people_does_not_matter() -> None:
    other = shifted(THREE, 3.0)
    straight = compare_poses(THREE, other, COCO17)
    for order in ([2, 0, 1], [1, 2, 0], [2, 1, 0]):
        assert compare_poses(THREE, other[order], COCO17) == straight
    assert len(straight.similarities) == 3


@pytest.mark.parametrize("pixels", [1.0, 4.0, 8.0])
def test_a_shift_lowers_oks_as_the_formula_says(pixels: float) -> None:
    one = people((10, 10))
    found = compare_poses(one, shifted(one, pixels), COCO17)
    area = 0.53 * WIDTH * HEIGHT  # of a mask in such a box
    expected = [math.exp(-(pixels**2) / (2 * area * (2 * sigma) ** 2)) for sigma in COCO17.sigmas]
    assert found.similarities == (pytest.approx(sum(expected) / len(expected), abs=1e-5),)


def test_poses_far_apart_are_of_different_people() -> None:
    found = compare_poses(people((0, 0), (200, 0)), people((0, 200)), COCO17)
    assert (found.similarities, found.only_first, found.only_second) == ((), 2, 1)


def test_nobody_is_compared_with_nobody() -> None:
    for first, second, alone in ((NOBODY, NOBODY, (0, 0)), (THREE, NOBODY, (3, 0)), (NOBODY, THREE, (0, 3))):
        found = compare_poses(first, second, COCO17)
        assert (found.similarities, found.only_first, found.only_second) == ((), *alone)


def test_a_person_found_twice_is_paired_once() -> None:
    one = people((0, 0))
    twice = Poses.cat([shifted(one, 4.0), one])
    found = compare_poses(one, twice, COCO17)
    assert (found.similarities, found.only_first, found.only_second) == ((1.0,), 0, 1), "with the better one"
    found = compare_poses(twice, one, COCO17)
    assert (found.similarities, found.only_first, found.only_second) == ((1.0,), 1, 0)


def test_pairs_below_the_bound_do_not_outweigh_a_real_one() -> None:
    """In a row Y A X B, the OKS of Y A and X B add up to more than that of A X, but each is below the bound."""
    one = people((0, 0))
    near, step = (distance(one, alike) for alike in (SAME_PERSON + 0.1, SAME_PERSON - 0.05))
    first = Poses.cat([one, shifted(one, near + step)])  # A, B
    second = Poses.cat([shifted(one, near), shifted(one, -step)])  # X, Y
    found = compare_poses(first, second, COCO17)
    assert found.similarities == (pytest.approx(SAME_PERSON + 0.1, abs=0.01),)
    assert (found.only_first, found.only_second) == (1, 1)


def test_poses_that_are_not_finite_match_nobody() -> None:
    broken = shifted(THREE, float("nan"))
    for pair in ((THREE, broken), (broken, THREE)):
        found = compare_poses(*pair, COCO17)
        assert (found.similarities, found.only_first, found.only_second) == ((), 3, 3)


def test_all_keypoints_at_one_point_are_a_person_too() -> None:
    point = Poses(torch.full((1, len(COCO17), 2), 5.0), torch.ones(1, len(COCO17)), torch.ones(1))
    assert compare_poses(point, point, COCO17).similarities == (1.0,)
    assert compare_poses(point, shifted(point, 1.0), COCO17).similarities == ()


def test_poses_on_an_edge_of_the_image_agree_in_spite_of_rounding() -> None:
    """Keypoints clipped to the image give a box without area. In another batch, convolutions round differently."""
    down = torch.linspace(10, 90, len(COCO17))
    edge = Poses(torch.stack([torch.full_like(down, 96.0), down], 1)[None], torch.ones(1, 17), torch.ones(1))
    rounded = Poses(edge.keypoints * torch.tensor([1.0, 1 + 1e-6]), edge.keypoint_scores, edge.scores)
    for pair in ((edge, rounded), (rounded, edge)):
        assert compare_poses(*pair, COCO17).similarities == (pytest.approx(1, abs=1e-4),)
    assert compare_poses(edge, shifted(edge, -2.0), COCO17).similarities == ()
