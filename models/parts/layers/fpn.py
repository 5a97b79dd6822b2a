"""Feature pyramids P3..P7 from C3..C5: FPN (Lin et al.) and PAFPN, which adds a path from fine to coarse (Liu et al.).

Neither has norms or activations. P6 is computed from P5, and P7 from ReLU(P6), by convolutions of stride 2.
torchvision's FPN gives the same numbers; this one keeps the parameter names of checkpoints, and gives PAFPN its base.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class FPN(nn.Module):
    """Top-down pyramid.

    Args:
        in_channels: Channels of C3, C4, C5.
        channels: Channels of every output.
    """

    strides = (8, 16, 32, 64, 128)

    def __init__(self, in_channels: Sequence[int], channels: int = 256) -> None:
        super().__init__()
        self.channels = channels
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        self.coarser = nn.ModuleList(nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(2))
        _init(self)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """C3, C4, C5 -> P3..P7, each (B, channels, h, w)."""
        sums = [lateral(c) for lateral, c in zip(self.lateral, features, strict=True)]
        for i in reversed(range(len(sums) - 1)):
            sums[i] = sums[i] + F.interpolate(sums[i + 1], size=sums[i].shape[-2:], mode="nearest")
        levels = self._finish([output(x) for output, x in zip(self.output, sums, strict=True)])
        p6 = self.coarser[0](levels[-1])
        return [*levels, p6, self.coarser[1](F.relu(p6))]

    def _finish(self, levels: list[Tensor]) -> list[Tensor]:
        """P3..P5 after the output convolutions -> P3..P5 of the neck. A subclass adds its path here."""
        return levels


class PAFPN(FPN):
    """FPN followed by a bottom-up path: the next level is P(i+1) plus a stride-2 convolution of the sum at level i."""

    def __init__(self, in_channels: Sequence[int], channels: int = 256) -> None:
        super().__init__(in_channels, channels)
        steps = len(in_channels) - 1
        self.down = nn.ModuleList(nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(steps))
        self.up_output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(steps))
        _init(self)

    def _finish(self, levels: list[Tensor]) -> list[Tensor]:
        sums = [levels[0]]
        for down, level in zip(self.down, levels[1:], strict=True):
            sums.append(level + down(sums[-1]))
        return [sums[0], *(output(x) for output, x in zip(self.up_output, sums[1:], strict=True))]


def _init(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
