"""Building blocks of dense heads: convolutions, norms, towers, and alignment by deformable convolution.

All levels of a pyramid share one head.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from posefleet.models.parts.layers.deform_conv import DeformConv2d, Kernel, deform_levels, gathers

Norm = Literal["batch", "group"]


def conv(in_channels: int, out_channels: int, kernel: int, *, std: float = 0.01, bias: float | None = 0.0) -> nn.Conv2d:
    """Size-preserving convolution with N(0, ``std``) weights and biases of ``bias``; None: without biases."""
    layer = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias is not None)
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.constant_(layer.bias, bias or 0.0)
    return layer


def prior_bias(probability: float) -> float:
    """Bias of a logit whose sigmoid starts at ``probability``."""
    return -math.log((1 - probability) / probability)


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with 32 groups, or fewer in narrow heads, so that a group has at least 4 channels."""
    groups = min(32, channels // 4)
    if not groups or channels % groups:
        raise ValueError(f"{channels} channels do not divide into {max(groups, 1)} groups; use a multiple of 32")
    return nn.GroupNorm(groups, channels)


def norm_layer(channels: int, norm: Norm) -> nn.Module:
    """BatchNorm or :func:`group_norm`, both with an affine."""
    return nn.BatchNorm2d(channels) if norm == "batch" else group_norm(channels)


def tower(in_channels: int, channels: int, depth: int) -> nn.Sequential:
    """``depth`` times: 3x3 convolution without bias, GroupNorm, ReLU."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [
            conv(channels if i else in_channels, channels, 3, bias=None),
            group_norm(channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class AlignBlock(nn.Module):
    """Deformable 3x3 convolution, optional GroupNorm, ReLU: gathers features where a first pose points.

    Without the norm, the share of outputs above zero falls to 0 within a few steps of training. Layers that read the
    block then never get a gradient again.
    """

    def __init__(self, channels: int, offset_groups: int, norm: Literal["gn", "none"], kernel: Kernel) -> None:
        super().__init__()
        self.deform = DeformConv2d(channels, channels, offset_groups, kernel)
        nn.init.normal_(self.deform.weight, std=0.01)
        self.norm = group_norm(channels) if norm == "gn" else nn.Identity()

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        """(B, C, h, w) features, (B, G * 18, h, w) offsets in cells -> (B, C, h, w)."""
        return self.activate(self.deform(x, offset))

    def activate(self, x: Tensor) -> Tensor:
        """What follows the convolution."""
        return torch.relu(self.norm(x))


def align_levels(
    blocks: Sequence[AlignBlock], pyramids: Sequence[Sequence[Tensor]], offsets: Sequence[Tensor]
) -> list[list[Tensor]]:
    """Apply several blocks, each to all levels (B, C, h, w) of its own pyramid, with the same offsets.

    Returns:
        For each block the levels (B, C, h, w) of its output.
    """
    if all(
        gathers(pyramid[0], offsets[0], block.deform.kernel) for block, pyramid in zip(blocks, pyramids, strict=True)
    ):
        found = deform_levels(pyramids, offsets, [block.deform.weight for block in blocks])
        return [[block.activate(x) for x in levels] for block, levels in zip(blocks, found, strict=True)]
    return [
        [block(x, offset) for x, offset in zip(pyramid, offsets, strict=True)]
        for block, pyramid in zip(blocks, pyramids, strict=True)
    ]


def block_gradient(x: Tensor, open_to: Tensor | None) -> Tensor:
    """``x``, with a gradient only where ``open_to`` is True; it broadcasts to ``x``. None: everywhere."""
    return x if open_to is None else torch.where(open_to, x, x.detach())


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """``x``, with its gradient multiplied by ``factor``; 0 detaches it."""
    if factor == 1:
        return x
    return x.detach() if factor == 0 else factor * x + (1 - factor) * x.detach()
