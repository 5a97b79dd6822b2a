"""Suppression of poses by their OKS. The similarity itself is tested with the coarse filter."""

import torch

from posefleet.data.schemas.shipped import COCO17
from posefleet.data.structures import Poses
from posefleet.models.detposenet.pose_nms import greedy_keep, suppress_by_oks

SIGMAS = torch.tensor(COCO17.sigmas)


def poses(*shifts: float) -> Poses:
    """The same pose moved to the right, in order of falling score."""
    pose = torch.rand(17, 2, generator=torch.Generator().manual_seed(0)) * 100
    keypoints = torch.stack([pose + torch.tensor([shift, 0.0]) for shift in shifts])
    scores = torch.linspace(0.9, 0.1, len(shifts))
    return Poses(keypoints, scores[:, None].expand(-1, 17), scores)


def test_a_row_is_kept_unless_a_kept_one_before_is_like_it() -> None:
    similarity = torch.eye(3)
    similarity[0, 1] = similarity[1, 0] = similarity[1, 2] = similarity[2, 1] = 0.8
    assert greedy_keep(similarity >= 0.7) == [0, 2]  # 1 goes, and what it would have suppressed stays
    assert greedy_keep(similarity >= 0.9) == [0, 1, 2]
    assert greedy_keep(torch.zeros(0, 0, dtype=torch.bool)) == []


def test_the_better_of_two_like_poses_stays_whatever_their_order() -> None:
    p = poses(0.0, 1.0, 300.0)
    for index in ([0, 1, 2], [2, 1, 0]):
        (found,) = suppress_by_oks([p[index]], SIGMAS, 0.7, 20)
        torch.testing.assert_close(found.scores, p.scores[[0, 2]])
    (everything,) = suppress_by_oks([p], SIGMAS, float("inf"), 20)
    assert len(everything) == 3
    (best,) = suppress_by_oks([p], SIGMAS, float("inf"), 1)
    torch.testing.assert_close(best.keypoints, p.keypoints[:1])


def test_images_without_poses_stay_empty() -> None:
    assert len(suppress_by_oks([Poses.empty(17)], SIGMAS, 0.7, 20)[0]) == 0
