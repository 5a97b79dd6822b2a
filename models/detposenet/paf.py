"""Part affinity fields: maps of limb directions, which group peaks of keypoint maps into poses (Cao et al.).

At every cell of a limb a field has the unit vector along the limb; channel 2 l is x and 2 l + 1 is y of limb l. Cell
(x, y) of a map of stride s is the point (x s, y s) pixels. Letters: B images, M people, K keypoints, L limbs,
C candidates of each keypoint, T points sampled on a limb.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from posefleet.models.parts.ops.heatmaps import local_peaks

_SHORTEST = 1e-6
"""Length, pixels, up to which a limb has no direction."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PafConfig:
    """How peaks and fields become poses, by OpenPose's rules."""

    peak_threshold: float = 0.1
    """Value of a keypoint map above which a peak counts, usually 0.05..0.3. Raised, fewer keypoints are found, and
    fewer of them are false."""
    max_peaks: int = 30
    """Largest number of peaks of each keypoint in an image, at least 1. More costs time."""
    samples: int = 10
    """Number of points on a limb at which the field is read, at least 2. More is more exact and slower."""
    threshold: float = 0.05
    """Component of the field along the limb that a point must exceed, usually 0.02..0.1. Raised, fewer limbs form."""
    share: float = 0.8
    """0..1, share of points of a limb that must exceed ``threshold``. Raised, fewer limbs form."""

    def __post_init__(self) -> None:
        if self.max_peaks < 1 or self.samples < 2:
            raise ValueError(f"max_peaks {self.max_peaks} must be at least 1 and samples {self.samples} at least 2")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must be 0..1, not {self.share}")


@dataclass(frozen=True, slots=True, eq=False)
class CoarsePoses:
    """Bottom-up poses of one image, on the host."""

    keypoints: Tensor
    """(N, K, 2) float32 xy, pixels; 0 where a keypoint is missing."""
    scores: Tensor
    """(N, K) values of the peaks; 0 where a keypoint is missing."""

    def __len__(self) -> int:
        return len(self.keypoints)

    @property
    def identified(self) -> Tensor:
        """(N, K) bool, True where a keypoint was found."""
        return self.scores > 0


# ---------------------------------------------------------------------------------------------------- targets


def limb_cells(
    keypoints: Tensor,
    labelled: Tensor,
    edges: Sequence[tuple[int, int]],
    size: tuple[int, int],
    stride: int,
    width: float,
    overhang: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The cells of every limb whose ends are both labelled.

    Args:
        keypoints: (B, M, K, 2) xy, pixels.
        labelled: (B, M, K) bool.
        edges: The L limbs as pairs of keypoints.
        size: (height, width) of the map, cells.
        stride: Pixels per cell.
        width: Largest distance from the limb's line, pixels.
        overhang: Length by which cells extend beyond both ends, pixels; with 0 the ends themselves still count.

    Returns:
        (B, M, L, height, width) bool and the directions (B, M, L, 2).
    """
    first, second = _ends(edges, keypoints.device)
    start = keypoints[:, :, first]  # (B, M, L, 2)
    along = keypoints[:, :, second] - start
    length = along.square().sum(-1).sqrt()
    direction = along / length.clamp(min=_SHORTEST)[..., None]
    drawn = labelled[:, :, first] & labelled[:, :, second] & (length > _SHORTEST)

    # Both coordinates of a cell relative to the limb are sums of a column's and a row's part.
    x = torch.arange(size[1], device=keypoints.device) * stride - start[..., 0, None]  # (B, M, L, width)
    y = torch.arange(size[0], device=keypoints.device) * stride - start[..., 1, None]  # (B, M, L, height)
    ux, uy = direction[..., 0, None], direction[..., 1, None]
    position = (uy * y)[..., :, None] + (ux * x)[..., None, :]
    distance = ((ux * y)[..., :, None] - (uy * x)[..., None, :]).abs()
    between = (position >= -overhang) & (position <= length[..., None, None] + overhang)
    inside = between & (distance <= width)
    return inside & drawn[..., None, None], direction


def paf_targets(
    keypoints: Tensor,
    labelled: Tensor,
    edges: Sequence[tuple[int, int]],
    size: tuple[int, int],
    stride: int,
    width: float,
    overhang: float = 0.0,
) -> Tensor:
    """Fields (B, 2 L, height, width): the mean direction of the people whose limb covers a cell, else 0."""
    cells, direction = limb_cells(keypoints, labelled, edges, size, stride, width, overhang)
    covered = cells.float()
    total = torch.einsum("bmlhw,bmlc->blchw", covered, direction)
    return (total / covered.sum(1).clamp(min=1)[:, :, None]).flatten(1, 2)


def _ends(edges: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """The keypoints (L,) at both ends of the limbs."""
    first, second = torch.tensor(edges, dtype=torch.int64).view(-1, 2).to(device).unbind(1)
    return first, second


# ---------------------------------------------------------------------------------------------------- decode


@torch.no_grad()
def group_poses(
    heat: Tensor,
    paf: Tensor | None,
    edges: Sequence[tuple[int, int]],
    stride: int,
    image_height: int,
    config: PafConfig,
) -> list[CoarsePoses]:
    """Group peaks of keypoint maps into poses, for every image. Of a single keypoint every peak is a pose.

    Args:
        heat: (B, K, h, w) keypoint maps.
        paf: (B, 2 L, h, w) fields; None without limbs.
        edges: The L limbs; poses grow in this order.
        stride: Pixels per cell.
        image_height: Pixels; limbs of more than half of it lose score.
    """
    cells, values = local_peaks(heat.float(), config.peak_threshold, config.max_peaks)  # (B, K, C, 2), (B, K, C)
    scores = values.new_zeros(len(values), 0, 0, 0)
    if paf is not None:
        scores = limb_scores(cells, values.isfinite(), paf.float(), edges, stride, image_height, config)
    # Growing poses is sequential and small: here the host waits, once for the whole batch.
    keypoints, peaks, pairs = ((cells * stride).cpu().numpy(), values.cpu().numpy(), scores.cpu().numpy())
    poses = []
    for image in range(len(pairs)):
        members = assemble(pairs[image], edges, peaks.shape[1])  # (N, K)
        if paf is None:
            members = np.isfinite(peaks[image, 0]).nonzero()[0][:, None]
        found = members >= 0
        kind = np.arange(members.shape[1])
        at = np.where(found, members, 0)
        points = np.where(found[..., None], keypoints[image][kind, at], 0).astype(np.float32)
        height = np.where(found, peaks[image][kind, at], 0).clip(0, 1).astype(np.float32)
        poses.append(CoarsePoses(torch.from_numpy(points), torch.from_numpy(height)))
    return poses


def limb_scores(
    cells: Tensor,
    exists: Tensor,
    paf: Tensor,
    edges: Sequence[tuple[int, int]],
    stride: int,
    image_height: int,
    config: PafConfig,
) -> Tensor:
    """Score every pair of candidates of every limb by the field between them.

    Args:
        cells: (B, K, C, 2) xy, cells.
        exists: (B, K, C) bool.
        paf: (B, 2 L, h, w).

    Returns:
        (B, L, C, C): the mean of the field along the limb, less for long limbs; 0 for pairs that are no limb.
    """
    first, second = _ends(edges, cells.device)
    start, end = cells[:, first][:, :, :, None], cells[:, second][:, :, None]  # (B, L, C, 1, 2), (B, L, 1, C, 2)
    along = end - start
    length = along.square().sum(-1).sqrt()  # cells
    direction = along / length.clamp(min=_SHORTEST)[..., None]
    steps = torch.linspace(0, 1, config.samples, device=cells.device)
    points = (start[..., None, :] + along[..., None, :] * steps[:, None]).round().long()  # (B, L, C, C, T, 2)
    index = (points[..., 1] * paf.shape[-1] + points[..., 0]).flatten(2)  # on the map: its ends are
    field = paf.flatten(2).unflatten(1, (-1, 2))  # (B, L, 2, h * w)
    read = field.gather(3, index[:, :, None].expand(-1, -1, 2, -1)).unflatten(3, points.shape[2:5])
    support = (read * direction.movedim(-1, 2)[..., None]).sum(2)  # (B, L, C, C, T)
    penalty = (0.5 * image_height / (length * stride).clamp(min=_SHORTEST) - 1).clamp(max=0)
    score = support.mean(-1) + penalty
    enough = (support > config.threshold).sum(-1) >= config.share * config.samples - 1e-6
    both = exists[:, first][..., :, None] & exists[:, second][..., None, :]
    result: Tensor = score.where((score > 0) & enough & both, 0.0)
    return result


def assemble(scores: np.ndarray, edges: Sequence[tuple[int, int]], keypoints: int) -> np.ndarray:
    """Grow poses limb by limb.

    A limb extends the pose that contains one of its ends, or joins two poses that have no keypoint in common. A limb
    that touches no pose starts a new one. A limb that contradicts the poses that hold its ends is dropped, as in
    OpenPose's code: a pose of its own would take one person's keypoints apart.

    Args:
        scores: (L, C, C), 0 for pairs that are no limb.
        edges: The L limbs.
        keypoints: K.

    Returns:
        (N, K) int64, the candidate of each keypoint, -1 where there is none.
    """
    poses: list[np.ndarray] = []
    for (first, second), pairs in zip(edges, scores, strict=True):
        for a, b in _best_pairs(pairs):
            holders = [p for p in poses if p[first] == a or p[second] == b]
            if not holders:
                pose = np.full(keypoints, -1, dtype=np.int64)
                pose[first], pose[second] = a, b
                poses.append(pose)
            elif len(holders) == 1:
                pose = holders[0]
                if pose[first] in (-1, a) and pose[second] in (-1, b):
                    pose[first], pose[second] = a, b
            elif not ((holders[0] >= 0) & (holders[1] >= 0)).any():
                np.copyto(holders[0], holders[1], where=holders[1] >= 0)
                poses = [p for p in poses if p is not holders[1]]
    return np.stack(poses) if poses else np.zeros((0, keypoints), dtype=np.int64)


def _best_pairs(scores: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of candidates of a limb, best first; each candidate is in at most one pair."""
    rows, columns = scores.nonzero()
    order = np.argsort(-scores[rows, columns], kind="stable")
    taken_rows: set[int] = set()
    taken_columns: set[int] = set()
    pairs = []
    for a, b in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if a not in taken_rows and b not in taken_columns:
            taken_rows.add(a)
            taken_columns.add(b)
            pairs.append((a, b))
    return pairs


def best_points(maps: Tensor) -> tuple[Tensor, Tensor]:
    """The largest value of every map, moved a quarter of a cell towards the larger neighbour (Newell et al.).

    Args:
        maps: (..., h, w).

    Returns:
        (..., 2) xy in cells, and the values (...).
    """
    height, width = maps.shape[-2:]
    values, flat = maps.flatten(-2).max(-1)
    row, column = flat // width, flat % width

    def at(y: Tensor, x: Tensor) -> Tensor:
        index = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
        return maps.flatten(-2).gather(-1, index[..., None])[..., 0]

    # On the border one neighbour is missing, and nothing moves.
    x_shift = torch.sign(at(row, column + 1) - at(row, column - 1)).where((column > 0) & (column < width - 1), 0.0)
    y_shift = torch.sign(at(row + 1, column) - at(row - 1, column)).where((row > 0) & (row < height - 1), 0.0)
    return torch.stack([column + 0.25 * x_shift, row + 0.25 * y_shift], dim=-1), values
