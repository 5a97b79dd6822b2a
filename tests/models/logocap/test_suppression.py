"""Duplicates by near keypoints: the limit, the order, batches."""

import pytest
import torch

from posefleet.data.structures import Poses
from posefleet.models.logocap.suppression import suppress_near

K = 17
FIRST = torch.rand(K, 2, generator=torch.Generator().manual_seed(0)) * 100


def image(*poses: torch.Tensor, scores: list[float]) -> Poses:
    keypoints = torch.stack(poses)
    return Poses(keypoints, torch.ones(len(poses), K), torch.tensor(scores))


def moved(count: int) -> torch.Tensor:
    """The pose with ``count`` keypoints moved far away."""
    pose = FIRST.clone()
    pose[:count] += 60
    return pose


def suppress(*images: Poses, limit: int = 30) -> list[Poses]:
    return suppress_near(images, distance=0.05, keypoints=8, limit=limit)


def test_nine_near_keypoints_make_a_duplicate_and_eight_do_not() -> None:
    (merged,) = suppress(image(FIRST, moved(8), scores=[0.9, 0.8]))
    assert merged.scores.tolist() == torch.tensor([0.9]).tolist()
    (both,) = suppress(image(FIRST, moved(9), scores=[0.9, 0.8]))
    assert len(both) == 2


def test_near_means_a_share_of_the_first_diagonal() -> None:
    diagonal = (FIRST.amax(0) - FIRST.amin(0)).norm()
    step = torch.tensor([1.0, 0.0]) * diagonal
    assert len(suppress(image(FIRST, FIRST + 0.049 * step, scores=[0.9, 0.8]))[0]) == 1
    assert len(suppress(image(FIRST, FIRST + 0.051 * step, scores=[0.9, 0.8]))[0]) == 2


def test_the_best_survives_whatever_the_order_and_the_rest_is_sorted() -> None:
    (kept,) = suppress(image(moved(17), FIRST, FIRST + 0.1, scores=[0.3, 0.5, 0.7]))
    torch.testing.assert_close(kept.keypoints, torch.stack([FIRST + 0.1, moved(17)]))
    assert (kept.scores.diff() <= 0).all()


def test_poses_can_be_visited_in_their_order() -> None:
    """A chain whose ends are not near each other: its middle, visited first, makes both ends duplicates."""
    chain = [moved(0), moved(6), moved(12)]
    best_end = image(chain[1], chain[0], chain[2], scores=[0.5, 0.9, 0.7])
    by_score, by_order = (
        suppress_near([best_end], distance=0.05, keypoints=8, limit=30, best_first=first)[0] for first in (True, False)
    )
    assert by_score.scores.tolist() == pytest.approx([0.9, 0.7])
    assert by_order.scores.tolist() == pytest.approx([0.9])


def test_a_pose_that_survived_makes_no_more_duplicates() -> None:
    """As in DEKR's code. In a chain of four the second survives; the third is near it, but best when the last comes."""
    chain = image(moved(0), moved(6), moved(12), moved(17), scores=[0.5, 0.9, 0.7, 0.6])
    (kept,) = suppress_near([chain], distance=0.05, keypoints=8, limit=30, best_first=False)
    assert kept.scores.tolist() == pytest.approx([0.9, 0.7])


def test_images_do_not_mix_and_the_limit_holds() -> None:
    far = [FIRST + 200 * i for i in range(4)]
    empty = Poses.empty(K)
    found = suppress(image(*far, scores=[0.1, 0.4, 0.3, 0.2]), empty, image(FIRST, FIRST, scores=[0.5, 0.5]), limit=3)
    assert [len(p) for p in found] == [3, 0, 1]
    torch.testing.assert_close(found[0].scores, torch.tensor([0.4, 0.3, 0.2]))
    assert [len(p) for p in suppress(empty)] == [0]
