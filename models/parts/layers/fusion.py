"""Fusion of a backbone's levels into one map: they are upsampled to the finest, concatenated and convolved (1x1)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posefleet.models.parts.layers.blocks import Norm, norm_layer


class ConcatConv(nn.Module):
    """1x1 convolution of levels that are upsampled (bilinear, corners not aligned) and concatenated.

    Each level is convolved at its own size, then upsampled and added. The result is the same, because a 1x1
    convolution and an interpolation commute; the wide concatenated map is never built.

    Args:
        in_channels: Channels of each level, finest first.
        out_channels: Channels of the result.
        bias: Whether the convolution has biases.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, *, bias: bool = False) -> None:
        super().__init__()
        self.in_channels = list(in_channels)
        self.conv = nn.Conv2d(sum(in_channels), out_channels, 1, bias=bias)

    def forward(self, levels: Sequence[Tensor], outputs: slice = slice(None)) -> Tensor:
        """Levels (B, C[i], h[i], w[i]), finest first -> (B, out_channels, h[0], w[0]), or a slice of its channels."""
        weights = self.conv.weight[outputs].split(self.in_channels, dim=1)
        fused = F.conv2d(levels[0], weights[0], self._bias(outputs))
        for level, weight in zip(levels[1:], weights[1:], strict=True):
            coarse = F.conv2d(level, weight)
            fused += F.interpolate(coarse, size=fused.shape[-2:], mode="bilinear", align_corners=False)
        return fused

    def at(self, levels: Sequence[Tensor], cells: Tensor, outputs: slice = slice(None)) -> Tensor:
        """The result of :meth:`forward` at cells (B, T, 2), int64 xy of the finest level: (B, out_channels, T, 1)."""
        height, width = levels[0].shape[-2:]
        x, y = (2 * cells + 1).unbind(-1)
        grid = torch.stack([x / width - 1, y / height - 1], dim=-1)[:, :, None]  # (B, T, 1, 2)
        read = [F.grid_sample(m.float(), grid, padding_mode="border", align_corners=False) for m in levels]
        return F.conv2d(torch.cat(read, dim=1), self.conv.weight[outputs], self._bias(outputs))

    def _bias(self, outputs: slice) -> Tensor | None:
        return None if self.conv.bias is None else self.conv.bias[outputs]


def mixing(in_channels: Sequence[int], channels: int, depth: int, norm: Norm) -> nn.Sequential:
    """A network from levels, finest first, to one map (B, channels, h, w): fusion, then ``depth`` 3x3 convolutions.

    For backbones whose finest map has no information from coarser ones; HRNet's has.
    """
    layers: list[nn.Module] = [ConcatConv(in_channels, channels), norm_layer(channels, norm), nn.ReLU(inplace=True)]
    for _ in range(depth):
        convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        layers += [convolution, norm_layer(channels, norm), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
