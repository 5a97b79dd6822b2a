"""From cells to poses."""

import pytest
import torch

from posefleet.models.parts.ops.cells import pyramid_cells
from posefleet.models.parts.ops.decode import DecodeConfig, best_cells, best_poses, pick_cells

CELLS = pyramid_cells([(2, 2), (1, 1)], (8, 16), torch.device("cpu"))
LIMITS = torch.tensor([[0.0, 0.0, 16.0, 16.0]])


def test_best_cells_become_poses_clipped_to_the_image() -> None:
    scores = torch.tensor([[0.1, 0.6, 0.0, 0.3, 0.5], [0.0, 0.0, 0.0, 0.0, 0.9]])
    offsets = torch.zeros(2, 5, 4)
    offsets[1, 4] = torch.tensor([0.25, -0.25, 9.0, -9.0])  # two keypoints, dx before dy, in cells of 16 pixels
    first, second = best_poses(scores, scores, offsets, CELLS, LIMITS, DecodeConfig(score_floor=0.2))
    torch.testing.assert_close(first.scores, torch.tensor([0.6, 0.5, 0.3]))
    assert first.keypoints[:, 0].tolist() == [[12, 4], [8, 8], [12, 12]]
    assert second.keypoints.tolist() == [[[12, 4], [16, 0]]]
    torch.testing.assert_close(second.keypoint_scores, torch.full((1, 2), 0.9))


def test_top_k_counts_for_each_level() -> None:
    scores = torch.tensor([[0.1, 0.6, 0.2, 0.3, 0.5]])
    (poses,) = best_poses(scores, scores, torch.zeros(1, 5, 2), CELLS, LIMITS, DecodeConfig(top_k=1))
    torch.testing.assert_close(poses.scores, torch.tensor([0.6, 0.5]))


def test_the_floor_is_on_the_classification_not_on_the_rank() -> None:
    scores, probabilities = torch.tensor([[0.9, 0.1, 0, 0, 0]]), torch.tensor([[0.01, 0.9, 0, 0, 0]])
    (poses,) = best_poses(scores, probabilities, torch.zeros(1, 5, 2), CELLS, LIMITS, DecodeConfig())
    torch.testing.assert_close(poses.scores, torch.tensor([0.1]))


def test_top_k_can_count_by_the_classification() -> None:
    scores, probabilities = torch.tensor([[0.1, 0.6, 0.2, 0.3, 0.5]]), torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5]])
    offsets, config = torch.zeros(1, 5, 2), DecodeConfig(top_k=1)
    (poses,) = best_poses(scores, probabilities, offsets, CELLS, LIMITS, config, rank=probabilities)
    torch.testing.assert_close(poses.scores, torch.tensor([0.5, 0.1]))


def test_nobody() -> None:
    (poses,) = best_poses(torch.zeros(1, 5), torch.zeros(1, 5), torch.zeros(1, 5, 6), CELLS, LIMITS, DecodeConfig())
    assert poses.keypoints.shape == (0, 3, 2)


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="nms_threshold must be"):
        DecodeConfig(nms_threshold=1.5)
    with pytest.raises(ValueError, match="top_k and max_poses"):
        DecodeConfig(max_poses=0)


def test_top_k_can_count_over_all_levels() -> None:
    scores = torch.tensor([[0.1, 0.6, 0.2, 0.3, 0.5]])
    found, chosen = best_cells(scores, scores, [5], DecodeConfig(top_k=3, score_floor=0.4))
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.5, 0.0]]))
    assert chosen[0, :2].tolist() == [1, 4]


def test_cells_can_be_suppressed_by_any_boxes() -> None:
    scores, chosen = torch.tensor([[0.9, 0.8, 0.7, 0.0]]), torch.tensor([[40, 30, 20, 10]])
    boxes = torch.tensor([[[0.0, 0, 100, 100], [0, 0, 100, 80], [200, 200, 300, 300], [0, 0, 9, 9]]])
    found, cells = pick_cells(scores, chosen, boxes, DecodeConfig(max_poses=4))
    torch.testing.assert_close(found, torch.tensor([[0.9, 0.7, 0.16, 0.0]]))
    assert cells[0, :3].tolist() == [40, 20, 30]
