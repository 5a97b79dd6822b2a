"""Refinement of the pose of one person in a crop: its networks (stacked hourglasses or HRNet), settings and loss.

The hourglass predicts keypoint maps after every step of its way up (multi-scale supervision). After the last stack it
regresses them once more from all scales together (multi-scale regression; Ke et al.). Letters: N crops, K keypoints,
W channels, S scales (``depth``), finest first.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posefleet.models.detposenet.hourglass import Hourglass, Normalise, Stem, Trunk, conv_norm_relu, map_conv
from posefleet.models.parts.layers.backbones import Backbone, BackboneConfig
from posefleet.models.parts.layers.blocks import Norm, block_gradient
from posefleet.models.parts.layers.keypoint_channels import KeypointChannels, Layout, one_each, others


@dataclass(frozen=True, kw_only=True, slots=True)
class PrsConfig:
    """Pose refinement sub-net: crops, network and targets."""

    network: Literal["hourglass", "hrnet_w48"] = "hourglass"
    """Stacked hourglass, or HRNet with a single map per keypoint and the plain squared error."""
    size: int = 256
    """Side of a crop, pixels, a multiple of 4 * 2^depth. Larger crops are more exact, slower, and need more memory."""
    padding: float = 1.25
    """Side of a crop in units of the longer side of the box, 1..2. Raised, crops show more context and people are
    smaller."""
    scale_jitter: tuple[float, float] = (1.0, 1.0)
    """Range (low, high) of a random factor on the side of a crop in training. Wider is stronger augmentation."""
    crops_per_image: int = 4
    """Number of people of a training batch that are refined, per image on average, at least 1. If a batch has more
    people, they are chosen at random. More costs memory and time in proportion."""
    chunk: int = 256
    """Largest number of crops of one forward pass in prediction, at least 1. Lower it if memory runs out."""
    stacks: int = 2
    """Number of hourglasses, 1..8. More is more accurate and slower."""
    width: int = 256
    """Channels, a multiple of 16. Fewer is faster and needs less memory."""
    depth: int = 4
    """Number of times an hourglass halves its maps, which is also the number of scales."""
    norm: Norm = "batch"
    """BatchNorm, or GroupNorm for small batches."""
    mss: bool = True
    """Multi-scale supervision: a loss on the maps of every scale, instead of the finest alone."""
    msr: bool = True
    """Multi-scale regression from all scales after the last stack; its finest maps are the result."""
    sigma: float = 1.0
    """Standard deviation of the Gaussian targets, cells of their own map, 0.5..3. Raised, maps are easier to learn and
    peaks less exact."""
    coarser_targets: Literal["redraw", "avgpool", "maxpool"] = "redraw"
    """Targets of coarser scales: Gaussians of the same deviation in their own cells, or the finest targets pooled."""
    flip_average: bool = True
    """Average the maps of a crop and its mirror image in prediction, which doubles the time of the refinement."""
    backbone: BackboneConfig = field(
        default_factory=lambda: BackboneConfig(name="hrnet_w48", frozen_stages=0, norm="trained")
    )
    """Backbone of the network ``hrnet_w48``; the hourglass has none and starts from random weights."""

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

    @property
    def unused(self) -> tuple[str, ...]:
        """Parts of these settings that have no effect."""
        return () if self.network == "hrnet_w48" else ("backbone",)


Scales = list[Tensor]
"""Keypoint maps (N, K, size / 4 / 2^i, size / 4 / 2^i) of scale i, finest first."""


class HourglassRefiner(nn.Module):
    """Stacked hourglass with multi-scale supervision and regression."""

    def __init__(self, config: PrsConfig, keypoints: int) -> None:
        super().__init__()
        width, norm, stacks = config.width, config.norm, config.stacks
        self.stem = Stem(width, norm)
        self.hourglasses = nn.ModuleList(Hourglass(width, config.depth, norm) for _ in range(stacks))
        self.trunks = nn.ModuleList(Trunk(width, norm) for _ in range(stacks))
        # Coarser maps exist only where a loss reads them: DDP needs a gradient for every parameter.
        self.width = width
        self.scales = [config.depth if config.mss or (config.msr and s == stacks - 1) else 1 for s in range(stacks)]
        self.maps = nn.ModuleList(MapConvs(width, keypoints, count) for count in self.scales)
        self.from_features = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(stacks - 1))
        self.from_maps = nn.ModuleList(nn.Conv2d(keypoints, width, 1) for _ in range(stacks - 1))
        self.msr = MultiScaleRegression(width, keypoints, config.depth, norm) if config.msr else None

    def keypoint_channels(self, keypoints: Sequence[str]) -> Layout:
        """Layers whose channels depend on the schema, see ``models.TransferableModel``."""
        of_maps = KeypointChannels(outputs=one_each(keypoints))
        layout = {
            f"maps.{stack}.{scale}": of_maps for stack, scales in enumerate(self.scales) for scale in range(scales)
        }
        layout |= {f"from_maps.{i}": KeypointChannels(inputs=of_maps.outputs) for i in range(len(self.from_maps))}
        if self.msr is not None:
            scales = len(self.msr.maps)
            read = [label for scale in range(scales) for label in one_each(keypoints, f"map {scale}")]
            layout["msr.body.0.0"] = KeypointChannels(inputs=[*read, *others(self.width)])
            layout |= {f"msr.maps.{scale}": of_maps for scale in range(scales)}
        return layout

    def forward(self, crops: Tensor, supervised: Tensor | None = None) -> tuple[list[Scales], Scales]:
        """Normalised crops (N, 3, size, size) -> the maps of every stack, and of the regression (empty without it).

        Args:
            supervised: (N, K) bool. Maps of other keypoints get no gradient from the layers that read maps. Default:
                all keypoints.
        """
        x, stacks = self.stem(crops), []
        mask = None if supervised is None else supervised[..., None, None]
        for index, (hourglass, trunk, maps) in enumerate(zip(self.hourglasses, self.trunks, self.maps, strict=True)):
            _, ups = hourglass(x)
            features = trunk(ups[0])
            stacks.append(maps([features, *ups[1:]]))
            if index < len(self.from_maps):
                x = x + self.from_features[index](features) + self.from_maps[index](block_gradient(stacks[-1][0], mask))
        last = [block_gradient(maps, mask) for maps in stacks[-1]]
        return stacks, self.msr(last, features) if self.msr is not None else []


class MapConvs(nn.ModuleList):
    """One 1x1 convolution for each scale, finest first."""

    def __init__(self, width: int, keypoints: int, scales: int) -> None:
        super().__init__(map_conv(width, keypoints) for _ in range(scales))

    def forward(self, features: Sequence[Tensor]) -> Scales:
        """Features of at least that many scales -> their maps."""
        return [convolution(x) for convolution, x in zip(self, features, strict=False)]


class MultiScaleRegression(nn.Module):
    """Regresses the maps of all scales again, from those of the last stack (resized to the finest) and its features."""

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

    def keypoint_channels(self, keypoints: Sequence[str]) -> Layout:
        """Layers whose channels depend on the schema, see ``models.TransferableModel``."""
        return {"maps": KeypointChannels(outputs=one_each(keypoints))}

    def forward(self, crops: Tensor, supervised: Tensor | None = None) -> tuple[list[Scales], Scales]:
        """Normalised crops (N, 3, size, size) -> one stack of one scale, and no regression."""
        (features,) = self.backbone(self.normalise.undo(crops))
        return [[self.maps(features)]], []


def build_refiner(config: PrsConfig, keypoints: int) -> HourglassRefiner | HRNetRefiner:
    """Build the network that ``config.network`` names."""
    return (HourglassRefiner if config.network == "hourglass" else HRNetRefiner)(config, keypoints)


def final_maps(stacks: list[Scales], regressed: Scales) -> Tensor:
    """The maps of the result: the finest of the regression, or of the last stack without regression."""
    return regressed[0] if regressed else stacks[-1][0]


LossNorm = Literal["squared", "plain"]


def structure_weights(edges: Sequence[tuple[int, int]], keypoints: int, neighbours: float) -> Tensor:
    """(K,) weights 1 + ``neighbours`` * degree of each keypoint in the graph ``edges``."""
    degrees = Counter(end for edge in edges for end in edge)
    return torch.tensor([1.0 + neighbours * degrees[keypoint] for keypoint in range(keypoints)])


def structure_aware_loss(
    maps: Tensor, targets: Tensor, labelled: Tensor, weights: Tensor, *, norm: LossNorm = "squared"
) -> Tensor:
    """Sum over crops of the mean over keypoints of weighted map errors (eq. 2).

    Args:
        maps: (N, K, h, w).
        targets: (N, K, h, w).
        labelled: (N, K) 0 or 1; maps of keypoints that are not labelled have no loss.
        weights: (K,) see :func:`structure_weights`.
        norm: ``squared``: the mean square over cells; ``plain``: the root of the sum of squares.
    """
    squares = (maps.float() - targets).square()
    errors = squares.mean((2, 3)) if norm == "squared" else (squares.sum((2, 3)) + 1e-12).sqrt()
    return (errors * labelled * weights).mean(1).sum()
