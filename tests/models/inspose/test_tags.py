"""Associative embedding."""

import math

import pytest
import torch

from posefleet.models.inspose.keypoint_maps import tag_losses


def test_two_people_are_pulled_together_and_pushed_apart() -> None:
    """Tags 1 and 3 of the first (mean 2, spread 1), 3 of the second: pull (1 + 0) / 2; push 2 exp(-1) / (2 * 2)."""
    tags = torch.zeros(1, 2, 1, 4)
    tags[0, 0, 0, :2], tags[0, 1, 0, :2] = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 3.0])
    cells = torch.tensor([[[0, 1], [1, 3]]])
    labelled = torch.tensor([[[True, True], [True, False]]])
    pull, push = tag_losses(tags, cells, labelled)
    assert pull.item() == pytest.approx(0.5)
    assert push.item() == pytest.approx(math.exp(-1) / 2)


def test_one_person_pushes_nobody_and_nobody_costs_nothing() -> None:
    tags = torch.ones(2, 2, 1, 4, requires_grad=True)
    labelled = torch.tensor([[[True, True]], [[False, False]]])
    pull, push = tag_losses(tags, torch.zeros(2, 1, 2, dtype=torch.int64), labelled)
    assert pull == 0 and push == 0
    (pull + push).backward()
    assert torch.isfinite(tags.grad).all()
