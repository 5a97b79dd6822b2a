"""Regression losses of poses."""

import math

import pytest
import torch

from posefleet.models.parts.regression.pose_loss import pose_loss
from posefleet.models.parts.regression.positives import CellTargets

SIGMAS = torch.tensor([0.05, 0.05])
TARGETS = CellTargets(
    keypoints=torch.tensor([[[20.0, 12.0], [0.0, 0.0]], [[32.0, 32.0], [48.0, 32.0]]]),
    labelled=torch.tensor([[True, False], [True, True]]),
    areas=torch.tensor([10_000.0, 10_000.0]),
    boxes=torch.zeros(2, 4),
    points=torch.tensor([[4.0, 4.0], [32.0, 32.0]]),
    strides=torch.tensor([8.0, 16.0]),
)
PERFECT = torch.tensor([[2.0, 1.0, 99.0, 99.0], [0.0, 0.0, 1.0, 0.0]])
"""Offsets in cells; the unlabelled keypoint is anywhere."""


@pytest.mark.parametrize("form", ["l1", "smooth_l1", "oks"])
def test_perfect_offsets_cost_nothing(form: str) -> None:
    assert pose_loss(PERFECT, TARGETS, torch.ones(2), SIGMAS, form=form).item() == 0


def test_errors_are_in_cells_and_weighted_by_row() -> None:
    error = torch.tensor([[2.0, 0.0, 5.0, 5.0], [0.0, 0.5, 0.0, 0.0]])
    weights = torch.tensor([1.0, 3.0])
    assert pose_loss(PERFECT + error, TARGETS, weights, SIGMAS).item() == pytest.approx(2 + 3 * 0.5)
    smooth = pose_loss(PERFECT + error, TARGETS, weights, SIGMAS, form="smooth_l1", beta=1.0)
    assert smooth.item() == pytest.approx(1.5 + 3 * 0.125)


def test_the_oks_loss_is_one_minus_oks() -> None:
    """10 px at k = 0.1 and an area of 10,000 px^2 is one deviation."""
    error = torch.tensor([[10 / 8, 0, 0, 0], [0, 0, 10 / 16, 0]])
    expected = (1 - math.exp(-0.5)) * (1 + 1 / 2)
    assert pose_loss(PERFECT + error, TARGETS, torch.ones(2), SIGMAS, form="oks").item() == pytest.approx(expected)
