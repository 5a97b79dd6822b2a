"""Losses: single-logit fixtures, sums, and counts over ranks."""

import math

import pytest
import torch

from posefleet.models.parts.layers.blocks import prior_bias
from posefleet.models.parts.ops.losses import (
    bce_loss,
    focal_loss,
    gaussian_focal_loss,
    l1_loss,
    l2_loss,
    mean_counts,
    smooth_l1_loss,
    varifocal_loss,
)


@pytest.mark.parametrize(
    ("probability", "positive", "negative"), [(0.01, 1.128382, 7.5378e-7), (0.5, 0.043322, 0.129965)]
)
def test_focal_loss_of_one_logit(probability: float, positive: float, negative: float) -> None:
    logit = torch.tensor([probability]).logit()
    assert focal_loss(logit, torch.ones(1)).item() == pytest.approx(positive, rel=1e-4)
    assert focal_loss(logit, torch.zeros(1)).item() == pytest.approx(negative, rel=1e-3)


def test_focal_loss_survives_extreme_logits() -> None:
    logits = torch.tensor([-200.0, 200.0], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([1.0, 0.0]))
    loss.backward()
    assert loss.item() == pytest.approx(0.25 * 200 + 0.75 * 200)
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


def test_focal_loss_weights_elements() -> None:
    logits, targets = torch.randn(4), torch.tensor([0.0, 1, 0, 1])
    first = focal_loss(logits[:2], targets[:2])
    torch.testing.assert_close(focal_loss(logits, targets, torch.tensor([1.0, 1, 0, 0])), first)


@pytest.mark.parametrize(
    ("probability", "target", "loss"),
    [
        (0.5, 1.0, 0.25 * math.log(2)),  # (1 - p)^2 * -log p
        (0.9, 1.0, 0.01 * -math.log(0.9)),
        (0.5, 0.0, 0.25 * math.log(2)),  # p^2 * -log(1 - p)
        (0.5, 0.5, 0.25 * math.log(2) / 16),  # ... * (1 - t)^4
        (0.9, 0.9, 0.81 * math.log(10) * 1e-4),
    ],
)
def test_gaussian_focal_loss_of_one_logit(probability: float, target: float, loss: float) -> None:
    found = gaussian_focal_loss(torch.tensor([probability]).logit(), torch.tensor([target]))
    assert found.item() == pytest.approx(loss, rel=1e-4)


def test_gaussian_focal_loss_of_a_map() -> None:
    target, logits = torch.zeros(5, 5), torch.full((5, 5), 1e-4).logit()
    target[2, 2], logits[2, 2] = 1, 0
    assert gaussian_focal_loss(logits, target).item() == pytest.approx(0.17329, abs=1e-5)
    assert gaussian_focal_loss(logits, target, target).item() == pytest.approx(0.17329, abs=1e-5)
    assert gaussian_focal_loss(logits, target, 1 - target).item() < 1e-9


def test_gaussian_focal_loss_survives_extreme_logits() -> None:
    logits = torch.tensor([-200.0, 200.0, 200.0], requires_grad=True)
    loss = gaussian_focal_loss(logits, torch.tensor([1.0, 0.0, 0.5]))
    loss.backward()
    assert loss.item() == pytest.approx(200 + 200 + 200 / 16)
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


def test_focal_loss_without_balance() -> None:
    logits, targets = torch.zeros(2), torch.tensor([0.0, 1.0])
    assert focal_loss(logits, targets, alpha=None).item() == pytest.approx(2 * math.log(2) / 4)
    assert focal_loss(logits, targets, alpha=None, gamma=0.0).item() == pytest.approx(2 * math.log(2))


def test_gaussian_focal_loss_of_a_right_map_is_small() -> None:
    target = torch.zeros(17, 20, 20)
    target[:, 7, 7] = 1
    logits = torch.where(target == 1, 1 - 1e-4, 1e-4).logit()
    assert gaussian_focal_loss(logits, target).item() / 17 < 1e-3


@pytest.mark.parametrize(
    ("probability", "quality", "loss"),
    [
        (0.5, 0.8, 0.8 * math.log(2)),  # the cross-entropy with a soft target, times the target
        (0.2, 0.8, 0.8 * (-0.8 * math.log(0.2) - 0.2 * math.log(0.8))),
        (0.2, 0.0, 0.75 * 0.04 * -math.log(0.8)),  # a negative counts by alpha p^2
    ],
)
def test_varifocal_loss_of_one_logit(probability: float, quality: float, loss: float) -> None:
    logit, target = torch.tensor([probability]).logit(), torch.tensor([quality])
    assert varifocal_loss(logit, target).item() == pytest.approx(loss, rel=1e-4)
    assert varifocal_loss(logit, target, torch.tensor([2.0])).item() == pytest.approx(2 * loss, rel=1e-4)


@pytest.mark.parametrize(
    ("error", "beta", "loss"),
    [(0.05, 1 / 9, 0.01125), (1 / 9, 1 / 9, 0.055556), (1.0, 1 / 9, 0.944444), (-0.5, 1.0, 0.125), (2.0, 1.0, 1.5)],
)
def test_smooth_l1(error: float, beta: float, loss: float) -> None:
    found = smooth_l1_loss(torch.tensor([error]), torch.zeros(1), torch.ones(1), beta=beta)
    assert found.item() == pytest.approx(loss, rel=1e-4)


def test_losses_are_weighted_sums() -> None:
    assert l2_loss(torch.tensor([[1.0, -2.0]]), torch.zeros(1, 2), torch.tensor([[1.0, 0.5]])).item() == 3
    assert l1_loss(torch.tensor([[1.0, -2.0]]), torch.zeros(1, 2), torch.tensor([[1.0, 0.5]])).item() == 2
    assert bce_loss(torch.zeros(3), torch.full((3,), 0.5), torch.tensor([1.0, 1, 0])).item() == pytest.approx(1.386294)


def test_counts_alone_are_only_clamped() -> None:
    assert mean_counts(torch.tensor([0, 7])).tolist() == [1, 7]
    assert mean_counts(torch.tensor([0.0, 0.0]), torch.tensor([1e-6, 0.0])).tolist() == pytest.approx([1e-6, 0])


def test_prior_bias() -> None:
    assert prior_bias(0.01) == pytest.approx(-4.595120, abs=1e-6)
    assert prior_bias(0.1) == pytest.approx(-2.197225, abs=1e-6)
