"""OKS in torch: the fixtures of the measure, pycocotools, and the rank below float32."""

import math

import numpy as np
import pytest
import torch
from pycocotools.cocoeval import COCOeval, Params

from posefleet.data.schemas.shipped import COCO17
from posefleet.data.structures import People, Poses
from posefleet.models.parts.ops.oks import oks, oks_and_rank, score_by_ground_truth

SIGMAS = torch.tensor(COCO17.sigmas)
ALL = torch.ones(17, dtype=torch.bool)


def pose(spread: float = 60.0) -> torch.Tensor:
    return torch.rand(17, 2, generator=torch.Generator().manual_seed(1)) * spread


@pytest.mark.parametrize(
    ("shift", "expected"), [(0, 1.0), (5, 0.871155), (10, 0.646995), (20, 0.331114), (50, 0.012953)]
)
def test_oks_of_a_shifted_pose(shift: float, expected: float) -> None:
    moved = pose() + torch.tensor([float(shift), 0.0])
    assert oks(moved, pose(), ALL, torch.tensor(10_000.0), SIGMAS).item() == pytest.approx(expected, abs=2e-6)


def test_oks_when_only_the_nose_is_off() -> None:
    moved = pose()
    moved[0, 1] += 10
    assert oks(moved, pose(), ALL, torch.tensor(10_000.0), SIGMAS).item() == pytest.approx(0.950434, abs=2e-6)


def test_oks_counts_labelled_keypoints_only() -> None:
    moved = pose()
    moved[1:] += 500
    nose = torch.arange(17) == 0
    assert oks(moved, pose(), nose, torch.tensor(10_000.0), SIGMAS).item() == 1
    assert oks(moved, pose(), ~ALL, torch.tensor(10_000.0), SIGMAS).item() == 0


def test_oks_does_not_depend_on_scale_or_side() -> None:
    moved = pose() + torch.randn(17, 2, generator=torch.Generator().manual_seed(2)) * 5
    before = oks(moved, pose(), ALL, torch.tensor(5_000.0), SIGMAS)
    scaled = oks(3 * moved, 3 * pose(), ALL, torch.tensor(45_000.0), SIGMAS)
    mirror = torch.tensor([-1.0, 1.0])
    index = COCO17.flip_index
    flipped = oks((moved * mirror)[index], (pose() * mirror)[index], ALL, torch.tensor(5_000.0), SIGMAS)
    torch.testing.assert_close(before, scaled)
    torch.testing.assert_close(before, flipped)


def test_oks_equals_pycocotools() -> None:
    random = np.random.default_rng(0)
    truth, found = random.uniform(0, 200, (4, 17, 2)), random.uniform(0, 200, (3, 17, 2))
    found[0] = truth[0] + random.normal(0, 3, (17, 2))
    visible = random.random((4, 17)) < 0.7
    visible[:, 0] = True
    areas = random.uniform(1000, 30_000, 4)
    evaluator = COCOeval(iouType="keypoints")
    evaluator.params = Params(iouType="keypoints")
    evaluator._gts[0, 1] = [
        {"keypoints": np.c_[truth[i], visible[i]].ravel().tolist(), "bbox": [0, 0, 1, 1], "area": areas[i]}
        for i in range(4)
    ]
    evaluator._dts[0, 1] = [{"keypoints": np.c_[found[i], np.ones(17)].ravel().tolist(), "score": 1} for i in range(3)]
    expected = evaluator.computeOks(0, 1)
    ours = oks(torch.tensor(found)[:, None], torch.tensor(truth), torch.tensor(visible), torch.tensor(areas), SIGMAS)
    torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float32), atol=1e-6, rtol=1e-5)


def test_rank_orders_poses_whose_oks_underflows() -> None:
    far = torch.stack([pose() + 900, pose() + 500, pose() + 5])
    similarity, rank = oks_and_rank(far, pose(), ALL, torch.tensor(100.0), SIGMAS)
    assert similarity[:2].tolist() == [0, 0]
    assert similarity[2] > 0
    assert rank[0] < rank[1] < 0 < rank[2]
    assert math.isfinite(rank[0])


def test_oks_passes_gradients_to_the_poses() -> None:
    moved = (pose() + 3).requires_grad_()
    oks(moved, pose(), ALL, torch.tensor(1000.0), SIGMAS).backward()
    assert moved.grad is not None and (moved.grad < 0).all()


def people_at(*shifts: float, area: float = 10_000.0) -> People:
    """The pose of these tests, moved to the right."""
    count = len(shifts)
    keypoints = pose() + torch.tensor(shifts).view(-1, 1, 1) * torch.tensor([1.0, 0.0])
    boxes = torch.cat([keypoints.amin(1), keypoints.amax(1)], 1)
    visibility = torch.full((count, 17), 2, dtype=torch.uint8)
    return People(keypoints, visibility, boxes, torch.full((count,), area), torch.zeros(count, dtype=torch.bool))


def poses_at(*shifts: float) -> Poses:
    """Poses of falling scores."""
    scores = torch.linspace(0.9, 0.1, len(shifts))
    return Poses(people_at(*shifts).keypoints, scores[:, None].repeat(1, 17), scores)


def test_truth_ranks_poses_by_the_person_they_fit_best() -> None:
    found = score_by_ground_truth(poses_at(20, 510, 0), people_at(0, 500), SIGMAS)
    assert found.scores.tolist() == pytest.approx([1, 0.646995, 0.331114], abs=1e-5)
    torch.testing.assert_close(found.keypoints, people_at(0, 510, 20).keypoints)
    torch.testing.assert_close(found.keypoint_scores[:, 0], torch.tensor([0.1, 0.5, 0.9]))


def test_truth_knows_nobody_but_keypoint_people() -> None:
    crowd, ghost = people_at(0, 0), people_at(0)
    crowd.crowd[:] = True
    ghost.visibility[:] = 0
    for people in (crowd, ghost, People.empty(17)):
        assert score_by_ground_truth(poses_at(0, 5), people, SIGMAS).scores.tolist() == [0, 0]
    assert len(score_by_ground_truth(Poses.empty(17), people_at(0), SIGMAS)) == 0


def test_truth_counts_labelled_keypoints_only() -> None:
    one = people_at(0)
    one.visibility[0, 1:] = 0
    moved = poses_at(0)
    moved.keypoints[0, 1:] += 300
    assert score_by_ground_truth(moved, one, SIGMAS).scores.tolist() == [1]
