"""Keypoint masking (Ke et al.): an augmentation that copies pixels of a crop, to hide a keypoint or to double it.

``background`` pastes a patch without keypoints over a keypoint, which then appears occluded. ``duplication`` pastes the
surroundings of a keypoint elsewhere, as a decoy. Labels do not change. One gather processes all crops at once.
Letters: N crops, K keypoints, R patches of a crop, T tries, S side of a crop.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskingConfig:
    """Which patches are pasted. Masking is meant for fine-tuning, so it is off by default."""

    kind: Literal["off", "background", "duplication", "both"] = "off"
    """Hide keypoints, double them, or do one of the two at random in each crop (``both``)."""
    probability: float = 0.5
    """0..1, share of crops that are changed. Raised, training is harder and teaches more about occlusion."""
    most: int = 3
    """Largest number of keypoints of a crop that are hidden or doubled, at least 1; the number is random from 1."""
    patch: tuple[float, float] = (0.08, 0.16)
    """Range (low, high) of a patch's side, in sides of the crop. Larger patches hide more."""
    background_clearance: float = 1.5
    """Smallest distance of a background patch's centre from all labelled keypoints, in sides of the patch."""
    decoy_distance: tuple[float, float] = (1.5, 4.0)
    """Range (low, high) of a decoy's distance from its keypoint, in sides of the patch."""
    decoy_clearance: float = 1.0
    """Smallest distance of a decoy from all labelled keypoints, in sides of the patch."""
    tries: int = 20
    """Number of random places tried for each patch, at least 1; if none is clear, nothing is pasted. More costs time
    and pastes more often."""

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must be 0..1, not {self.probability}")
        if not 0 < self.patch[0] <= self.patch[1] < 1:
            raise ValueError(f"patch {self.patch} must be (low, high) with 0 < low <= high < 1")
        if not 0 < self.decoy_distance[0] <= self.decoy_distance[1]:
            raise ValueError(f"decoy_distance {self.decoy_distance} must be (low, high) with 0 < low <= high")
        if self.most < 1 or self.tries < 1:
            raise ValueError(f"most {self.most} and tries {self.tries} must be at least 1")


@torch.no_grad()
def mask_keypoints(crops: Tensor, keypoints: Tensor, labelled: Tensor, config: MaskingConfig) -> Tensor:
    """Paste patches into crops, at random places (torch's generator).

    Args:
        crops: (N, 3, S, S).
        keypoints: (N, K, 2) xy, pixels of the crop.
        labelled: (N, K) bool.
        config: Which patches to paste.

    Returns:
        (N, 3, S, S).
    """
    if config.kind == "off" or config.probability == 0:
        return crops
    patches = _draw_patches(keypoints, labelled, crops.shape[-1], config)
    return _paste(crops, *patches)


def _draw_patches(
    keypoints: Tensor, labelled: Tensor, size: int, config: MaskingConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centres of sources and of destinations (N, R, 2) and sides (N, R), all whole pixels; and (N, R) bool, used."""
    count, rows = keypoints.shape[:2]
    device = keypoints.device
    patches = min(config.most, rows)

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(*shape, device=device)

    # Which crops, how many patches, round which keypoints.
    changed = uniform(count, 1) < config.probability
    number = uniform(count, 1, low=1, high=config.most + 1).floor()
    lot, chosen = uniform(count, rows).where(labelled, -1.0).topk(patches)
    used = changed & (lot >= 0) & (torch.arange(patches, device=device) < number)
    points = keypoints.gather(1, chosen[..., None].expand(-1, -1, 2)).floor()  # (N, R, 2)
    sides = (uniform(count, patches, low=config.patch[0], high=config.patch[1]) * size).round().clamp(min=1)

    # Where patches come from (background) or go to (decoys).
    decoy = uniform(count, 1, 1) < {"background": 0.0, "duplication": 1.0}.get(config.kind, 0.5)  # (N, 1, 1)
    angle = uniform(count, patches, config.tries, high=2 * math.pi)
    reach = uniform(count, patches, config.tries, low=config.decoy_distance[0], high=config.decoy_distance[1])
    around = points[:, :, None] + (reach * sides[..., None])[..., None] * torch.stack([angle.cos(), angle.sin()], -1)
    anywhere = uniform(count, patches, config.tries, 2, high=size)
    places = torch.where(decoy[..., None], around, anywhere).floor()  # (N, R, T, 2)
    distance = (places[:, :, :, None] - keypoints[:, None, None]).square().sum(-1).sqrt()  # (N, R, T, K)
    nearest = distance.where(labelled[:, None, None], torch.inf).amin(-1)
    clearance = torch.where(decoy, config.decoy_clearance, config.background_clearance) * sides[..., None]
    clear = (nearest >= clearance) & ((places >= 0) & (places < size)).all(-1)
    first = clear.int().argmax(-1)
    place = places.gather(2, first[..., None, None].expand(-1, -1, 1, 2))[:, :, 0]
    used &= clear.any(-1)
    return torch.where(decoy, points, place), torch.where(decoy, place, points), sides, used


def _paste(crops: Tensor, sources: Tensor, destinations: Tensor, sides: Tensor, used: Tensor) -> Tensor:
    """Copy squares of pixels; pixels whose source lies outside the crop stay."""
    size = crops.shape[-1]
    steps = torch.arange(size, device=crops.device, dtype=destinations.dtype)
    index = torch.arange(size * size, device=crops.device).view(1, size, size).expand(len(crops), -1, -1)
    low = (destinations - (sides[..., None] / 2).floor())[..., None]  # (N, R, 2, 1)
    covered = (steps >= low) & (steps < low + sides[..., None, None])  # (N, R, 2, S): columns, rows
    read = steps + (sources - destinations)[..., None]
    covered &= (read >= 0) & (read < size) & used[..., None, None]
    read = read.long()
    for patch in range(sides.shape[1]):
        inside = covered[:, patch, 1, :, None] & covered[:, patch, 0, None, :]
        index = (read[:, patch, 1, :, None] * size + read[:, patch, 0, None, :]).where(inside, index)
    return crops.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, crops.shape[1], -1)).view_as(crops)
