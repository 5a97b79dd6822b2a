"""Feature pyramids P3..P7: FPN (Lin et al.), PAFPN, which adds a path from fine to coarse (Liu et al.), and HRFPN (Sun
et al.), which pools one fused map.

None has norms; activations are an option, because some released weights were trained with a ReLU behind every
convolution. In FPN and PAFPN, P6 is computed from P5, and P7 from ReLU(P6), by convolutions of stride 2.
torchvision's FPN gives the same numbers; this one keeps the parameter names of checkpoints, and gives PAFPN its base.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posefleet.models.parts.layers.fusion import ConcatConv

Activation = Literal["none", "relu"]
"""What follows every convolution of a pyramid."""


def _activation(name: Activation) -> nn.Module:
    return nn.ReLU() if name == "relu" else nn.Identity()


class FPN(nn.Module):
    """Top-down pyramid.

    Args:
        in_channels: Channels of C3, C4, C5.
        channels: Channels of every output.
        activation: What follows every convolution.
    """

    reads = (8, 16, 32)
    """Strides of the inputs."""
    strides = (8, 16, 32, 64, 128)
    """Strides of the outputs."""

    def __init__(self, in_channels: Sequence[int], channels: int = 256, activation: Activation = "none") -> None:
        super().__init__()
        self.channels = channels
        self.act = _activation(activation)
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        self.coarser = nn.ModuleList(nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(2))
        _init(self)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """C3, C4, C5 -> P3..P7, each (B, channels, h, w)."""
        sums = [self.act(lateral(c)) for lateral, c in zip(self.lateral, features, strict=True)]
        for i in reversed(range(len(sums) - 1)):
            sums[i] = sums[i] + F.interpolate(sums[i + 1], size=sums[i].shape[-2:], mode="nearest")
        levels = self._finish([self.act(output(x)) for output, x in zip(self.output, sums, strict=True)])
        p6 = self.act(self.coarser[0](levels[-1]))
        return [*levels, p6, self.act(self.coarser[1](F.relu(p6)))]

    def _finish(self, levels: list[Tensor]) -> list[Tensor]:
        """P3..P5 after the output convolutions -> P3..P5 of the neck. A subclass adds its path here."""
        return levels


class PAFPN(FPN):
    """FPN followed by a bottom-up path: the next level is P(i+1) plus a stride-2 convolution of the sum at level i."""

    def __init__(self, in_channels: Sequence[int], channels: int = 256, activation: Activation = "none") -> None:
        super().__init__(in_channels, channels, activation)
        steps = len(in_channels) - 1
        self.down = nn.ModuleList(nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(steps))
        self.up_output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(steps))
        _init(self)

    def _finish(self, levels: list[Tensor]) -> list[Tensor]:
        sums = [levels[0]]
        for down, level in zip(self.down, levels[1:], strict=True):
            sums.append(level + self.act(down(sums[-1])))
        return [sums[0], *(self.act(output(x)) for output, x in zip(self.up_output, sums[1:], strict=True))]


class HRFPN(nn.Module):
    """Pyramid of HRNet: its branches are fused at stride 4, then averaged over 1, 2, 4, 8, 16 cells; every level gets a
    3x3 convolution of stride 2.

    Averages read whole windows only, so for sizes that are no multiples of 128 px P6 and P7 may have one row or column
    less than those of :class:`FPN`. A map smaller than a window is first continued by its border.

    Args:
        in_channels: Channels of the branches of strides 4, 8, 16, 32.
        channels: Channels of every output.
        activation: What follows every convolution.
    """

    reads = (4, 8, 16, 32)
    """Strides of the inputs."""
    strides = FPN.strides
    """Strides of the outputs."""

    def __init__(self, in_channels: Sequence[int], channels: int = 256, activation: Activation = "none") -> None:
        super().__init__()
        self.channels = channels
        self.act = _activation(activation)
        self.reduce = ConcatConv(in_channels, channels, bias=True)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in self.strides)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_uniform_(layer.weight, a=1)  # uniform within sqrt(3 / fan-in)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Branches of strides 4, 8, 16, 32 -> P3..P7, each (B, channels, h, w)."""
        fused = self.act(self.reduce(features))
        pooled = [fused, *(_averages(fused, 2**level) for level in range(1, len(self.strides)))]
        return [self.act(output(x)) for output, x in zip(self.output, pooled, strict=True)]


def _averages(x: Tensor, side: int) -> Tensor:
    """Means over windows of ``side`` x ``side`` cells, at least one window in each direction."""
    height, width = x.shape[-2:]
    bottom, right = torch.sym_max(side - height, 0), torch.sym_max(side - width, 0)
    if torch.compiler.is_compiling() or bottom or right:
        x = F.pad(x, (0, right, 0, bottom), mode="replicate")  # type: ignore[arg-type]  # symbolic while exporting
    return F.avg_pool2d(x, side, side)


def _init(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
