"""The network of bottom-up coarse poses: an hourglass that predicts keypoint maps and part affinity fields (Cao et
al.)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from posefleet.models.detposenet.hourglass import Hourglass, Stem, Trunk, conv_norm_relu, map_conv
from posefleet.models.parts.layers.blocks import Norm
from posefleet.models.parts.layers.keypoint_channels import KeypointChannels, Layout, fields, one_each


@dataclass(frozen=True, kw_only=True, slots=True)
class CoarseConfig:
    """Network and targets of coarse poses."""

    width: int = 256
    """Channels of the hourglass, a multiple of 16. Tails have half of them, then twice as many. Fewer is faster and
    needs less memory."""
    depth: int = 4
    """Number of times the hourglass halves its maps, at least 1; the coarsest stride is 4 * 2^depth pixels. More sees
    more context."""
    norm: Norm = "batch"
    """BatchNorm, whose statistics come from one worker's batch, or GroupNorm, for small batches."""
    sigma: float = 7.0
    """Standard deviation of the Gaussians around keypoints, pixels of the input, above 0. Raised, the maps are easier
    to learn and peaks less exact."""
    limb_width: float = 8.0
    """Distance from a limb up to which a cell belongs to it, pixels of the input, above 0. Raised, limbs are thicker
    and those of close people overlap."""
    limb_overhang: float = 0.0
    """Length by which a limb's cells extend beyond its ends, pixels of the input: 0 as in the formula; OpenPose's code
    has ``limb_width``. Peaks lie on cells, so limbs of a few cells are found only with at least half a cell of it."""

    def __post_init__(self) -> None:
        if self.width % 16 or self.depth < 1:
            raise ValueError(f"width {self.width} must be a multiple of 16 and depth {self.depth} at least 1")
        if self.sigma <= 0 or self.limb_width <= 0:
            raise ValueError(f"sigma {self.sigma} and limb_width {self.limb_width} must be above 0 pixels")
        if self.limb_overhang < 0:
            raise ValueError(f"limb_overhang must not be negative, but is {self.limb_overhang}")


class CoarseMaps(NamedTuple):
    """Outputs of the network for B images."""

    heat: Tensor
    """(B, K, H / 4, W / 4), about 1 at keypoints."""
    paf: Tensor | None
    """(B, 2 L, H / 4, W / 4), the direction x, y of each of the L limbs; None without limbs."""
    downs: list[Tensor]
    """Features of the way down, finest first (stride 4); a shared detector reads them."""
    ups: list[Tensor]
    """Features of the way up, finest first (stride 4); a shared detector reads them."""


class CoarseNet(nn.Module):
    """Stem, hourglass, trunk and two tails: one for keypoint maps, one for affinity fields if there are limbs."""

    stride = Stem.stride

    def __init__(self, config: CoarseConfig, keypoints: int, limbs: int) -> None:
        super().__init__()
        width, norm = config.width, config.norm
        self.strides = [self.stride * 2**level for level in range(config.depth + 1)]
        self.stem = Stem(width, norm)
        self.hourglass = Hourglass(width, config.depth, norm)
        self.trunk = Trunk(width, norm)
        self.heat = _tail(width, keypoints, norm)
        self.paf = _tail(width, 2 * limbs, norm) if limbs else None

    def keypoint_channels(self, keypoints: Sequence[str], limbs: Sequence[tuple[int, int]]) -> Layout:
        """Layers whose channels depend on the schema, see ``models.TransferableModel``."""
        last = len(self.heat) - 1
        layout = {f"heat.{last}": KeypointChannels(outputs=one_each(keypoints))}
        if self.paf is not None:
            layout[f"paf.{last}"] = KeypointChannels(outputs=fields(keypoints, limbs))
        return layout

    def forward(self, pixels: Tensor) -> CoarseMaps:
        """Normalised images (B, 3, H, W) -> keypoint maps, affinity fields and features."""
        downs, ups = self.hourglass(self.stem(pixels))
        features = self.trunk(ups[0])
        return CoarseMaps(self.heat(features), self.paf(features) if self.paf is not None else None, downs, ups)


def _tail(width: int, maps: int, norm: Norm) -> nn.Sequential:
    """Layers like OpenPose's first stage, with 3x3 convolutions: features -> ``maps`` channels."""
    half = width // 2
    return nn.Sequential(
        conv_norm_relu(width, half, 3, norm),
        conv_norm_relu(half, half, 3, norm),
        conv_norm_relu(half, half, 3, norm),
        conv_norm_relu(half, 2 * width, 1, norm),
        map_conv(2 * width, maps),
    )
