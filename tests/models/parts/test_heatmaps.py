"""Keypoint maps: which cell, which class."""

import torch

from posefleet.models.parts.heatmaps import cell_class_targets


def test_each_labelled_keypoint_marks_its_cell() -> None:
    keypoints = torch.tensor([[[[3.0, 3.0], [17.0, 9.0], [50.0, 1.0]]]])  # the last lies outside a 4 x 3 map
    labelled = torch.tensor([[[True, True, True]]])
    for kind in ("multihot", "one_class"):
        marks = cell_class_targets(keypoints, labelled, (3, 4), 8, kind)
        assert marks.nonzero().tolist() == [[0, 0, 0, 0], [0, 1, 1, 2], [0, 2, 0, 3]]
    assert cell_class_targets(keypoints, ~labelled, (3, 4), 8, "multihot").sum() == 0
    assert cell_class_targets(keypoints, ~labelled, (3, 4), 8, "one_class").sum() == 0


def test_keypoints_that_share_a_cell() -> None:
    keypoints = torch.tensor([[[[3.0, 3.0], [4.0, 2.0]], [[2.0, 5.0], [30.0, 3.0]]]])  # two people, two keypoints
    labelled = torch.ones(1, 2, 2, dtype=torch.bool)
    both = cell_class_targets(keypoints, labelled, (2, 4), 8, "multihot")
    assert both[0, :, 0, 0].tolist() == [1, 1]
    last = cell_class_targets(keypoints, labelled, (2, 4), 8, "one_class")
    assert last[0, :, 0, 0].tolist() == [1, 0]  # the second person's first keypoint was written last
    assert last.sum() == 2


def test_a_batch_without_people_marks_nothing() -> None:
    empty = cell_class_targets(torch.zeros(2, 1, 17, 2), torch.zeros(2, 1, 17, dtype=torch.bool), (2, 2), 8)
    assert empty.shape == (2, 17, 2, 2)
    assert empty.sum() == 0
