"""Networks that refine the pose of one person in a crop: stacked hourglasses with supervision at several scales, or
HRNet.

The hourglass gives keypoint maps after every step of its way up (multi-scale supervision) and, after the last stack,
regresses them once more from all scales together (multi-scale regression; Ke et al.). Letters: N crops, K keypoints,
W channels, S scales (``depth``), finest first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posefleet.models.detposenet.hourglass import Hourglass, Normalise, Stem, Trunk, conv_norm_relu, map_conv
from posefleet.models.parts.layers.backbones import Backbone, BackboneConfig
from posefleet.models.parts.layers.blocks import Norm


@dataclass(frozen=True, kw_only=True, slots=True)
class PrsConfig:
    """Pose refinement sub-net: crops, network and targets."""

    network: Literal["hourglass", "hrnet_w48"] = "hourglass"
    """Stacked hourglass, or HRNet with a single map per keypoint and the plain squared error."""
    size: int = 256
    """Side of a crop, pixels, a multiple of 4 * 2^depth."""
    padding: float = 1.25
    """Side of a crop in units of the longer side of the box, 1..2."""
    scale_jitter: tuple[float, float] = (1.0, 1.0)
    """Range of a random factor on the side of a crop in training."""
    crops_per_image: int = 4
    """People of a training batch that are refined, per image on average; more people are chosen at random. At
    least 1."""
    chunk: int = 256
    """Crops of one forward pass in prediction, at least 1; bounds memory."""
    stacks: int = 2
    """Hourglasses, 1..8."""
    width: int = 256
    """Channels, a multiple of 16."""
    depth: int = 4
    """Times an hourglass halves its maps, and the number of scales."""
    norm: Norm = "batch"
    """BatchNorm or GroupNorm (small batches)."""
    mss: bool = True
    """Multi-scale supervision: a loss on the maps of every scale instead of the finest alone."""
    msr: bool = True
    """Multi-scale regression from all scales after the last stack; its finest maps are the result."""
    sigma: float = 1.0
    """Deviation of the Gaussian targets, cells of the map it is for, 0.5..3."""
    coarser_targets: Literal["redraw", "avgpool", "maxpool"] = "redraw"
    """Targets of coarser scales: Gaussians of the same deviation in their own cells, or the finest ones pooled."""
    flip_average: bool = True
    """Average the maps of a crop and its mirror image in prediction."""
    backbone: BackboneConfig = field(
        default_factory=lambda: BackboneConfig(name="hrnet_w48", frozen_stages=0, norm="trained")
    )
    """Of ``hrnet_w48``; the hourglass starts from scratch."""

    def __post_init__(self) -> None:
        if self.size % (Stem.stride * 2**self.depth):
            raise ValueError(f"size {self.size} must be a multiple of 4 * 2^depth with depth {self.depth}")
        if self.width % 16 or self.depth < 1 or not 1 <= self.stacks <= 8:
            raise ValueError(
                f"width {self.width} must be a multiple of 16, depth {self.depth} at least 1, stacks {self.stacks} 1..8"
            )
        if not 1 <= self.padding <= 2:
            raise ValueError(f"padding must be 1..2, not {self.padding}")
        if not 0 < self.scale_jitter[0] <= self.scale_jitter[1]:
            raise ValueError(f"scale_jitter {self.scale_jitter} must be (low, high) with 0 < low <= high")
        if self.crops_per_image < 1 or self.chunk < 1:
            raise ValueError(f"crops_per_image {self.crops_per_image} and chunk {self.chunk} must be at least 1")
        if not 0.5 <= self.sigma <= 3:
            raise ValueError(f"sigma must be 0.5..3 cells, not {self.sigma}")
        if self.network == "hrnet_w48" and not self.backbone.name.startswith("hrnet"):
            raise ValueError(f"network is hrnet_w48, but backbone.name is {self.backbone.name!r}")


Scales = list[Tensor]
"""Keypoint maps (N, K, size / 4 / 2^i, size / 4 / 2^i) of scale i, finest first."""


class HourglassRefiner(nn.Module):
    """Stacked hourglass with MSS and MSR."""

    def __init__(self, config: PrsConfig, keypoints: int) -> None:
        super().__init__()
        width, norm, stacks = config.width, config.norm, config.stacks
        self.stem = Stem(width, norm)
        self.hourglasses = nn.ModuleList(Hourglass(width, config.depth, norm) for _ in range(stacks))
        self.trunks = nn.ModuleList(Trunk(width, norm) for _ in range(stacks))
        # Coarser maps only where something learns from them.
        scales = [config.depth if config.mss or (config.msr and stack == stacks - 1) else 1 for stack in range(stacks)]
        self.maps = nn.ModuleList(MapConvs(width, keypoints, count) for count in scales)
        self.from_features = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(stacks - 1))
        self.from_maps = nn.ModuleList(nn.Conv2d(keypoints, width, 1) for _ in range(stacks - 1))
        self.msr = MultiScaleRegression(width, keypoints, config.depth, norm) if config.msr else None

    def forward(self, crops: Tensor) -> tuple[list[Scales], Scales]:
        """Normalised crops (N, 3, size, size) -> the maps of every stack, and those of the regression (or none)."""
        x, stacks = self.stem(crops), []
        for index, (hourglass, trunk, maps) in enumerate(zip(self.hourglasses, self.trunks, self.maps, strict=True)):
            _, ups = hourglass(x)
            features = trunk(ups[0])
            stacks.append(maps([features, *ups[1:]]))
            if index < len(self.from_maps):
                x = x + self.from_features[index](features) + self.from_maps[index](stacks[-1][0])
        return stacks, self.msr(stacks[-1], features) if self.msr is not None else []


class MapConvs(nn.ModuleList):
    """A 1x1 convolution for each of some scales, finest first."""

    def __init__(self, width: int, keypoints: int, scales: int) -> None:
        super().__init__(map_conv(width, keypoints) for _ in range(scales))

    def forward(self, features: Sequence[Tensor]) -> Scales:
        """Features of at least that many scales -> their maps."""
        return [convolution(x) for convolution, x in zip(self, features, strict=False)]


class MultiScaleRegression(nn.Module):
    """All scales of the last stack, brought to the finest size, and its features -> maps of all scales again."""

    def __init__(self, width: int, keypoints: int, scales: int, norm: Norm) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_norm_relu(scales * keypoints + width, width, 1, norm),
            *(conv_norm_relu(width, width, 3, norm) for _ in range(3)),
        )
        self.maps = MapConvs(width, keypoints, scales)

    def forward(self, scales: Scales, features: Tensor) -> Scales:
        """Maps of all scales and features (N, W, h, w) of the finest -> maps of all scales."""
        size = features.shape[-2:]
        enlarged = [F.interpolate(m, size=size, mode="bilinear", align_corners=False) for m in scales[1:]]
        regressed = self.body(torch.cat([scales[0], *enlarged, features], dim=1))
        pooled = [F.avg_pool2d(regressed, 2**scale) for scale in range(1, len(scales))]
        result: Scales = self.maps([regressed, *pooled])
        return result


class HRNetRefiner(nn.Module):
    """HRNet's finest branch and one map per keypoint: a stack of one scale."""

    def __init__(self, config: PrsConfig, keypoints: int) -> None:
        super().__init__()
        self.backbone = Backbone(config.backbone, strides=(4,))
        self.normalise = Normalise()
        self.maps = map_conv(self.backbone.channels[0], keypoints)

    def forward(self, crops: Tensor) -> tuple[list[Scales], Scales]:
        """Normalised crops (N, 3, size, size) -> one stack of one scale, and no regression."""
        (features,) = self.backbone(self.normalise.undo(crops))
        return [[self.maps(features)]], []


def build_refiner(config: PrsConfig, keypoints: int) -> HourglassRefiner | HRNetRefiner:
    """The network that the settings name."""
    return (HourglassRefiner if config.network == "hourglass" else HRNetRefiner)(config, keypoints)


def final_maps(stacks: list[Scales], regressed: Scales) -> Tensor:
    """The maps that count: the finest of the regression, or of the last stack where there is none."""
    return regressed[0] if regressed else stacks[-1][0]


LossNorm = Literal["squared", "plain"]


def structure_weights(edges: Sequence[tuple[int, int]], keypoints: int, neighbours: float) -> Tensor:
    """(K,) weights 1 + ``neighbours`` * degree of each keypoint in the graph ``edges``."""
    degrees = torch.bincount(torch.tensor(edges, dtype=torch.int64).flatten(), minlength=keypoints)
    return 1 + neighbours * degrees.float()


def structure_aware_loss(
    maps: Tensor, targets: Tensor, labelled: Tensor, weights: Tensor, *, norm: LossNorm = "squared"
) -> Tensor:
    """Sum over samples.

    Args:
        maps: (N, K, h, w).
        targets: (N, K, h, w).
        labelled: (N, K) 0 or 1; other maps teach nothing.
        weights: (K,) see :func:`structure_weights`.
        norm: ``squared``: the mean square over cells; ``plain``: the root of the sum of squares.
    """
    squares = (maps.float() - targets).square()
    errors = squares.mean((2, 3)) if norm == "squared" else (squares.sum((2, 3)) + 1e-12).sqrt()
    return (errors * labelled * weights).mean(1).sum()
