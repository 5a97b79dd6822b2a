"""Hourglass networks (Newell et al.): a stem to stride 4, then down to coarse maps and up again, with skips.

A residual is a pre-activation bottleneck. The proportions are those of the published 256 channels: inside the stem,
layers have a quarter and then a half of ``width``. Letters: B images, W channels (``width``); level i of an hourglass
has 2^i times the stride of its input.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posefleet.models.parts.layers.blocks import Norm, norm_layer

MAP_STD = 1e-3
"""Standard deviation of the initial weights of layers that predict maps."""


def conv_norm_relu(in_channels: int, out_channels: int, kernel: int, norm: Norm, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, norm, ReLU."""
    return nn.Sequential(
        _conv(in_channels, out_channels, kernel, stride), norm_layer(out_channels, norm), nn.ReLU(inplace=True)
    )


def map_conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    """The 1x1 convolution that predicts maps; its outputs start near zero."""
    layer = nn.Conv2d(in_channels, out_channels, 1)
    nn.init.normal_(layer.weight, std=MAP_STD)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class Residual(nn.Module):
    """Norm, ReLU, 1x1; norm, ReLU, 3x3; norm, ReLU, 1x1; plus the input, through a 1x1 where widths differ."""

    def __init__(self, in_channels: int, out_channels: int, norm: Norm) -> None:
        super().__init__()
        middle = out_channels // 2
        self.body = nn.Sequential(
            norm_layer(in_channels, norm),
            nn.ReLU(inplace=True),
            _conv(in_channels, middle, 1),
            norm_layer(middle, norm),
            nn.ReLU(inplace=True),
            _conv(middle, middle, 3),
            norm_layer(middle, norm),
            nn.ReLU(inplace=True),
            _conv(middle, out_channels, 1),
        )
        self.skip = nn.Identity() if in_channels == out_channels else _conv(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) + self.skip(x)
        return out


class Stem(nn.Sequential):
    """Normalised images (B, 3, H, W) -> (B, W, H / 4, W / 4)."""

    stride = 4

    def __init__(self, width: int, norm: Norm) -> None:
        super().__init__(
            conv_norm_relu(3, width // 4, 7, norm, stride=2),
            Residual(width // 4, width // 2, norm),
            nn.MaxPool2d(2),
            Residual(width // 2, width // 2, norm),
            Residual(width // 2, width, norm),
        )


class Hourglass(nn.Module):
    """Down ``depth`` times by 2 and up again; sizes need not be divisible."""

    def __init__(self, width: int, depth: int, norm: Norm) -> None:
        super().__init__()
        self.skip, self.down, self.up = (
            nn.ModuleList(Residual(width, width, norm) for _ in range(depth)) for _ in range(3)
        )
        self.bottom = Residual(width, width, norm)

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """(B, W, h, w) -> the features of the way down and of the way up, each ``depth + 1`` maps, finest first.

        The first map of the way down is the input; the first map of the way up is the result.
        """
        downs = [x]
        for down in self.down:
            downs.append(down(F.max_pool2d(downs[-1], 2, ceil_mode=True)))
        ups = [self.bottom(downs[-1])]
        for level in reversed(range(len(self.down))):
            height, width = downs[level].shape[-2:]
            coarse = F.interpolate(self.up[level](ups[0]), scale_factor=2, mode="nearest")[..., :height, :width]
            ups.insert(0, self.skip[level](downs[level]) + coarse)
        return downs, ups


class Trunk(nn.Sequential):
    """Layers after an hourglass: residual, 1x1 convolution, norm, ReLU."""

    def __init__(self, width: int, norm: Norm) -> None:
        super().__init__(Residual(width, width, norm), conv_norm_relu(width, width, 1, norm))


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    layer = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layer


class Normalise(nn.Module):
    """RGB images in 0..255 to about zero mean and unit deviation (ImageNet's), and back."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) of any dtype -> float."""
        pixels = images.to(self.mean.dtype, memory_format=torch.channels_last)
        return (pixels - self.mean) / self.std

    def undo(self, pixels: Tensor) -> Tensor:
        """Normalised (B, 3, H, W) -> 0..255."""
        return pixels * self.std + self.mean
