"""Attentive Norm against the plain norm below it, and its attention by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from posefleet.models.logocap.adaptation import AttentiveNorm
from posefleet.models.parts.layers.blocks import norm_layer


def test_hard_sigmoid_of_the_attention() -> None:
    found = F.hardsigmoid(torch.tensor([-3.0, 0, 1, 3]))
    torch.testing.assert_close(found, torch.tensor([0, 0.5, 2 / 3, 1]))


@pytest.mark.parametrize(("kind", "plain"), [("batch", nn.BatchNorm2d(8, affine=False)), ("group", nn.GroupNorm(2, 8))])
def test_a_mixture_that_sums_to_the_identity_is_the_plain_norm(kind: str, plain: nn.Module) -> None:
    """Scales 1, shifts 0, and 20 weights of 0.05: hardsigmoid(-2.7) each."""
    norm = AttentiveNorm(8, 20, kind)
    norm.scales.data.fill_(1.0)
    norm.shifts.data.fill_(0.0)
    x = torch.randn(6, 8, 5, 5, generator=torch.Generator().manual_seed(0))
    statistic = x.mean((2, 3)) / (x.var((2, 3)) + 1e-3).sqrt()  # (6, 8)
    norm.attention.weight.data = torch.linalg.lstsq(statistic[:1], torch.full((1, 20), -2.7)).solution.T
    torch.testing.assert_close(norm(x)[0], plain(x)[0], atol=1e-5, rtol=1e-4)


def test_instances_choose_their_own_affine() -> None:
    norm = AttentiveNorm(8, 3)
    assert sum(p.numel() for p in norm.parameters()) == 3 * 3 * 8
    assert sum(p.numel() for p in AttentiveNorm(256, 20).parameters()) == 15_360
    x = torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(0))
    statistic = x.mean((2, 3)) / (x.var((2, 3)) + 1e-3).sqrt()
    weights = F.hardsigmoid(statistic @ norm.attention.weight.T)
    scale, shift = (weights @ norm.scales)[..., None, None], (weights @ norm.shifts)[..., None, None]
    expected = nn.BatchNorm2d(8, affine=False)(x) * scale + shift
    torch.testing.assert_close(norm(x), expected, atol=1e-5, rtol=1e-4)


def test_kinds_of_norm() -> None:
    assert isinstance(norm_layer(8, "batch"), nn.BatchNorm2d)
    assert isinstance(norm_layer(8, "group"), nn.GroupNorm)
