"""Building blocks of heads."""

from typing import Literal
from unittest.mock import patch

import pytest
import torch

from posefleet.models.parts.layers.blocks import AlignBlock, align_levels, group_norm, scale_gradient, tower


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (128, 32), (64, 16), (16, 4)])
def test_narrow_norms_have_fewer_groups(channels: int, groups: int) -> None:
    assert group_norm(channels).num_groups == groups


def test_channels_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="use a multiple of 32"):
        group_norm(144)


def test_a_tower_of_four_has_the_published_parameters() -> None:
    assert sum(p.numel() for p in tower(256, 256, 4).parameters()) == 2_361_344


@pytest.mark.parametrize("factor", [0.1, 1.0])
def test_scaled_gradients(factor: float) -> None:
    x = torch.tensor([2.0], requires_grad=True)
    y = scale_gradient(x, factor)
    y.square().backward()
    assert y.item() == pytest.approx(2)
    assert x.grad is not None and x.grad.item() == pytest.approx(4 * factor)
    assert not scale_gradient(x, 0).requires_grad


def test_align_block_without_offsets_is_a_convolution_with_norm() -> None:
    block = AlignBlock(16, 4, "none", "auto")
    x = torch.randn(1, 16, 4, 4)
    expected = torch.nn.functional.conv2d(x, block.deform.weight, padding=1).relu()
    torch.testing.assert_close(block(x, torch.zeros(1, 72, 4, 4)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", ["gn", "none"])
def test_blocks_that_share_offsets_predict_what_each_would_alone(norm: Literal["gn", "none"]) -> None:
    blocks = [AlignBlock(32, 2, norm, "auto") for _ in range(2)]
    sizes = [(5, 6), (2, 3)]
    pyramids = [[torch.randn(2, 32, *size) for size in sizes] for _ in blocks]
    offsets = [torch.randn(2, 36, *size) for size in sizes]
    expected = align_levels(blocks, pyramids, offsets)
    with torch.no_grad(), patch.object(AlignBlock, "forward") as alone:
        found = align_levels(blocks, pyramids, offsets)
    assert not alone.called
    for ours, theirs in zip(found, expected, strict=True):
        for level, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(level, other.detach(), atol=1e-4, rtol=1e-4)
