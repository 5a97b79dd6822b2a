"""Small networks of 1x1 convolutions whose weights are predicted, one network for each instance; all run at once.

The inputs of an instance are the feature map of its image, and the coordinates of each cell relative to the instance
(Tian et al., CondInst). N networks are one grouped convolution with N groups; as a batched product it takes half the
time on a CPU. The product of weights and coordinates is a row plus a column, so it is added to the first layer's
output and coordinates are not stacked with the features. Always float32.

Letters: N instances, B images, C channels of the features, K outputs, h, w size of the map.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from posefleet.models.parts.layers.keypoint_channels import Channel


@dataclass(frozen=True, kw_only=True, slots=True)
class DynamicConfig:
    """The network of one instance."""

    depth: int = 3
    """Number of layers, 1..4, with ReLU between them. More layers have more predicted parameters and cost time."""
    width: int = 8
    """Channels of the hidden layers, at least 1. The number of predicted parameters grows with its square."""
    features: int = 8
    """Channels of the shared feature map, an even number."""
    rel_coords: bool = True
    """Add two input channels: the position of a cell relative to the instance. Without them instances of an image
    differ by their weights alone."""
    coordinate_scale: float = 8.0
    """Number of strides in one unit of these coordinates, above 0. Raised, coordinates are smaller numbers."""
    scale_by_level: bool = True
    """Use the stride of the instance's own level, so that large people have large units; else the stride of the map."""

    def __post_init__(self) -> None:
        if not 1 <= self.depth <= 4:
            raise ValueError(f"depth must be 1..4, not {self.depth}")
        if self.width < 1 or self.features < 2 or self.features % 2:
            raise ValueError(f"width must be at least 1 and features even, not {self.width} and {self.features}")
        if self.coordinate_scale <= 0:
            raise ValueError(f"coordinate_scale must be above 0, not {self.coordinate_scale}")

    def layers(self, outputs: int) -> list[tuple[int, int]]:
        """(output, input) channels of each layer."""
        inputs = [self.features + 2 * self.rel_coords, *[self.width] * (self.depth - 1)]
        return list(zip([*inputs[1:], outputs], inputs, strict=True))

    def sizes(self, outputs: int) -> list[int]:
        """Numbers of predicted parameters of one instance: weight and bias of each layer in turn."""
        return [size for out, into in self.layers(outputs) for size in (out * into, out)]

    def channels(self, keypoints: Sequence[str]) -> list[Channel]:
        """What each predicted parameter is of: those of the last layer's outputs belong to a keypoint each."""
        labels: list[Channel] = []
        for layer, (out, into) in enumerate(self.layers(len(keypoints))):
            last = layer == self.depth - 1
            for kind, width in (("weight", into), ("bias", 1)):
                for output in range(out):
                    owner, row = ((keypoints[output],), "") if last else ((), f" {output}")
                    labels += [Channel(f"layer {layer} {kind}{row} {index}", owner) for index in range(width)]
        return labels


class Directions(NamedTuple):
    """Positions of the cells of a map relative to each of N instances, in units of ``coordinate_scale`` strides."""

    across: Tensor
    """(N, w), positive to the right."""
    down: Tensor
    """(N, h), positive below."""


def directions(
    points: Tensor, strides: Tensor, size: tuple[int, int], stride: int, config: DynamicConfig
) -> Directions:
    """Relative coordinates of the cells of a map.

    Args:
        points: (N, 2) locations of the instances, pixels.
        strides: (N,) of their levels, pixels.
        size: (h, w) of the map, cells.
        stride: Of the map, pixels; its cell (x, y) sits at (x * stride + stride // 2, ...).
    """
    unit = config.coordinate_scale * (strides if config.scale_by_level else torch.full_like(strides, stride))
    ys, xs = (torch.arange(n, device=points.device) * stride + stride // 2 for n in size)
    return Directions((xs - points[:, :1]) / unit[:, None], (ys - points[:, 1:]) / unit[:, None])


def run_instances(
    theta: Tensor, features: Tensor, image: Tensor, where: Directions, config: DynamicConfig, outputs: int
) -> Tensor:
    """Run the networks of all instances.

    Args:
        theta: (N, sum of ``config.sizes(outputs)``) parameters; inputs of the first layer: features, x, y.
        features: (B, C, h, w).
        image: (N,) int64, the image of each instance.
        where: Positions of the cells relative to each instance.
        config: Depth and width of the networks.
        outputs: K.

    Returns:
        (N, K, h, w) float32; no ReLU after the last layer.
    """
    height, width = features.shape[-2:]
    parts = theta.float().split(config.sizes(outputs), dim=1)
    x = features.float().flatten(2).index_select(0, image)  # (N, C, h * w)
    for i, shape in enumerate(config.layers(outputs)):
        weight, bias = parts[2 * i].unflatten(1, shape), parts[2 * i + 1][..., None]
        if i:
            x = torch.baddbmm(bias, weight, x.relu_())
        elif config.rel_coords:
            weight, steer = weight.split([config.features, 2], dim=2)
            row = steer[..., :1] * where.across[:, None]  # (N, O, w)
            column = steer[..., 1:] * where.down[:, None]  # (N, O, h)
            x = torch.baddbmm(bias, weight, x).unflatten(2, (height, width))
            x = x.add_(row[:, :, None]).add_(column[..., None]).flatten(2)
        else:
            x = torch.baddbmm(bias, weight, x)
    return x.view(len(theta), outputs, height, width)
