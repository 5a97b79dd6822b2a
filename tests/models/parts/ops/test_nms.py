"""Suppression: the published fixture, three rules, batches."""

import pytest
import torch

from posefleet.data.structures import Poses
from posefleet.models.parts.ops.nms import box_iou, pick_boxes, suppress_poses

BOXES = torch.tensor([[0.0, 0, 100, 100], [0, 0, 100, 80], [200, 200, 300, 300]])
SCORES = torch.tensor([0.9, 0.8, 0.7])


def poses(boxes: torch.Tensor, scores: torch.Tensor) -> Poses:
    keypoints = boxes.view(-1, 2, 2)
    return Poses(keypoints, scores[:, None].expand(-1, 2), scores)


def test_iou() -> None:
    assert box_iou(BOXES[0], BOXES[1]).item() == pytest.approx(0.8)
    assert box_iou(BOXES[0], BOXES[2]).item() == 0
    assert box_iou(torch.zeros(4), torch.zeros(4)).item() == 0


@pytest.mark.parametrize(
    ("rule", "order", "scores"),
    [
        ("linear", [0, 2, 1], [0.9, 0.7, 0.16]),
        ("gaussian", [0, 2, 1], [0.9, 0.7, 0.8 * 0.278037]),
        ("hard", [0, 2], [0.9, 0.7]),
        ("none", [0, 1, 2], [0.9, 0.8, 0.7]),
    ],
)
def test_rules(rule: str, order: list[int], scores: list[float]) -> None:
    index, kept = pick_boxes(BOXES[None], SCORES[None], rule=rule)
    found = int((kept > 0).sum())
    assert index[0, :found].tolist() == order
    torch.testing.assert_close(kept[0, :found], torch.tensor(scores))


def test_images_of_a_batch_do_not_touch_each_other() -> None:
    batch = [poses(BOXES, SCORES), poses(BOXES[:0], SCORES[:0]), poses(BOXES[1:], SCORES[1:])]
    kept = suppress_poses(batch)
    assert [p.scores.tolist() for p in kept] == [pytest.approx([0.9, 0.7, 0.16]), [], pytest.approx([0.8, 0.7])]
    torch.testing.assert_close(kept[0].keypoint_scores[:, 0], kept[0].scores)
    assert suppress_poses([poses(BOXES[:0], SCORES[:0])])[0].scores.tolist() == []


def test_limit_and_floor() -> None:
    assert len(suppress_poses([poses(BOXES, SCORES)], limit=2)[0]) == 2
    assert len(suppress_poses([poses(BOXES, SCORES)], min_score=0.2)[0]) == 2


def test_a_pose_score_decides_who_survives() -> None:
    """Boxes of IoU .9, classification (.9, .8), pose score (.4, .9): the second stays, the first decays to .036."""
    boxes = torch.tensor([[0.0, 0, 100, 100], [0, 0, 100, 90]])
    products = torch.tensor([0.9, 0.8]) * torch.tensor([0.4, 0.9])
    index, kept = pick_boxes(boxes[None], products[None])
    assert index[0].tolist() == [1, 0]
    torch.testing.assert_close(kept[0], torch.tensor([0.72, 0.036]))


def test_soft_suppression_equals_the_sequential_definition() -> None:
    random = torch.Generator().manual_seed(3)
    low = torch.rand(40, 2, generator=random) * 60
    boxes = torch.cat([low, low + 20 + torch.rand(40, 2, generator=random) * 40], 1)
    scores = torch.rand(40, generator=random)
    left, expected = scores.tolist(), []
    while left and max(left) >= 1e-3 and len(expected) < 20:
        best = left.index(max(left))
        expected.append((best, left[best]))
        overlap = box_iou(boxes, boxes[best]).tolist()
        left = [s * (1 - o) if o >= 0.3 else s for s, o in zip(left, overlap, strict=True)]
        left[best] = 0.0
    index, kept = pick_boxes(boxes[None], scores[None])
    assert index[0].tolist() == [i for i, _ in expected]
    torch.testing.assert_close(kept[0], torch.tensor([s for _, s in expected]))


def test_boxes_can_be_measured_by_the_pixels_that_they_touch() -> None:
    """Sides are 1 longer: boxes 9 wide that share 3 have an IoU of 4 / 16 instead of 3 / 15."""
    boxes = torch.tensor([[[0.0, 0, 9, 9], [6, 0, 15, 9], [0, 30, 9, 39]]])
    scores = torch.tensor([[0.9, 0.8, 5e-4]])
    shared = {False: 3 / 15, True: 4 * 10 / (200 - 40)}
    for pixels, iou in shared.items():
        _, kept = pick_boxes(boxes, scores, threshold=0.1, pixels=pixels)
        assert kept[0, 1].item() == pytest.approx(0.8 * (1 - iou))
        # A weak box is dropped before, or only where it overlaps a better one.
        assert (kept[0, 2] > 0) == pixels
    at_the_threshold = {False: 0.8 * 0.75, True: 0.8}
    for pixels, score in at_the_threshold.items():
        wide = boxes if pixels else boxes + torch.tensor([0.0, 0, 1, 1])
        assert pick_boxes(wide, scores, threshold=0.25, pixels=pixels)[1][0, 1].item() == pytest.approx(score)


def test_pixels_are_those_of_the_original_image() -> None:
    """At twice the size the same boxes have the same overlap, in pixels of the original image."""
    boxes, scores = torch.tensor([[0.0, 0, 9, 9], [6, 0, 15, 9]]), torch.tensor([0.9, 0.8])
    (own,) = suppress_poses([poses(boxes, scores)], threshold=0.1, pixels=True)
    twice = [poses(boxes * torch.tensor([2.0, 4.0, 2.0, 4.0]), scores)]
    (resized,) = suppress_poses(twice, threshold=0.1, pixels=True, ratios=torch.tensor([[2.0, 4.0]]))
    torch.testing.assert_close(resized.scores, own.scores)


def test_scores_of_keypoints_need_not_decay() -> None:
    (decayed,) = suppress_poses([poses(BOXES, SCORES)])
    (own,) = suppress_poses([poses(BOXES, SCORES)], decay_keypoints=False)
    assert decayed.keypoint_scores[2, 0].item() == pytest.approx(0.16)
    assert own.keypoint_scores[2, 0].item() == pytest.approx(0.8) and own.scores[2].item() == pytest.approx(0.16)
