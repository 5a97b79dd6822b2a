"""Centres of people in a map, and keypoints as offsets from the centres (DEKR, LOGO-CAP).

Cell j of a map of stride s is at pixel s * j, and an offset is cell - keypoint, in cells. Letters: B images,
M people of an image (padded), T centres of an image, K keypoints, (h, w) cells.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Centres(NamedTuple):
    """The T best centres of every image, best first."""

    scores: Tensor
    """(B, T), values of the centre map; 0 where the map has fewer maxima."""
    cells: Tensor
    """(B, T, 2) int64 xy, the cell whose offsets give the pose."""
    points: Tensor
    """(B, T, 2) float32 xy, pixels."""


class OffsetTargets(NamedTuple):
    """Targets of the offsets of every cell."""

    person: Tensor
    """(B, K, h, w) int64, the person whose keypoint this cell's offset learns; -1 for none."""
    offsets: Tensor
    """(B, 2K, h, w) cells, x before y; 0 where no person is learned."""


def top_centres(centre_map: Tensor, count: int, stride: int, *, pool: int, half_pixel_fix: bool) -> Centres:
    """The best maxima of a centre map that is upsampled to pixels.

    Args:
        centre_map: (B, 1, h, w).
        count: T.
        stride: Pixels per cell.
        pool: Side of the square in which a maximum is the largest value, pixels, odd.
        half_pixel_fix: Upsampling puts cell j at index s * j + (s - 1) / 2. Without the fix the point is the index of
            the maximum, read as a pixel; with it the point is the pixel s * j of the centre's cell.
    """
    up = F.interpolate(centre_map, scale_factor=float(stride), mode="bilinear", align_corners=False).clamp(min=0)
    maxima = up.where(up == F.max_pool2d(up, pool, stride=1, padding=pool // 2), 0.0)
    scores, index = maxima.flatten(1).topk(count, dim=1)
    pixels = torch.stack([index % up.shape[-1], index // up.shape[-1]], dim=-1)
    cells = pixels // stride
    return Centres(scores, cells, (cells * stride if half_pixel_fix else pixels).float())


def rough_poses(offsets: Tensor, centres: Centres, stride: int) -> Tensor:
    """Poses (B, T, K, 2), pixels, that the offsets (B, T, 2K) of the centres' cells give."""
    poses: Tensor = centres.points[:, :, None] - stride * offsets.unflatten(-1, (-1, 2))
    return poses


def offset_targets(
    centres: Tensor,
    drawn: Tensor,
    keypoints: Tensor,
    labelled: Tensor,
    areas: Tensor,
    size: tuple[int, int],
    radius: int,
) -> OffsetTargets:
    """Targets of the offsets in the cells around every centre. Where regions overlap, the smaller person gets the cell.

    Args:
        centres: (B, M, 2) xy, cells.
        drawn: (B, M) bool, True for people who have a centre; it must also lie on the map.
        keypoints: (B, M, K, 2) xy, cells.
        labelled: (B, M, K) bool; keypoints off the map do not count.
        areas: (B, M), any unit; of equal ones the later person wins.
        size: (h, w).
        radius: Cells [c - radius, c + radius) of each axis, c the centre's cell.
    """
    batch, people, count, _ = keypoints.shape
    height, width = size
    limit = torch.tensor([width, height], device=keypoints.device)
    drawn = drawn & ((centres >= 0) & (centres < limit)).all(-1)
    owns = labelled & ((keypoints >= 0) & (keypoints < limit)).all(-1) & drawn[..., None]  # (B, M, K)

    last_first = areas.flip(1).sort(dim=1, stable=True).indices
    order = people - 1 - last_first  # (B, M): smallest person first
    rank = order.argsort(1)
    steps = torch.arange(-radius, radius, device=keypoints.device)
    columns, rows = (centres[..., None].long() + steps).unbind(-2)  # (B, M, 2 radius) each
    on_map = ((rows >= 0) & (rows < height))[..., :, None] & ((columns >= 0) & (columns < width))[..., None, :]
    cell = rows.clamp(0, height - 1)[..., :, None] * width + columns.clamp(0, width - 1)[..., None, :]
    channel = torch.arange(count, device=keypoints.device)[:, None, None] * (height * width)
    slot = channel + cell[:, :, None]  # (B, M, K, 2 radius, 2 radius)
    bids = rank[..., None, None, None].where(owns[..., None, None] & on_map[:, :, None], people)
    best = torch.full((batch, count * height * width), people, device=keypoints.device)
    best = best.scatter_reduce(1, slot.flatten(1), bids.flatten(1), "amin")
    person = F.pad(order, (0, 1), value=-1).gather(1, best).view(batch, count, -1)  # (B, K, h * w)

    y, x = torch.meshgrid(
        torch.arange(height, device=keypoints.device), torch.arange(width, device=keypoints.device), indexing="ij"
    )
    grid = torch.stack([x, y], dim=-1).view(-1, 2)
    owner = person.clamp(min=0)[..., None].expand(-1, -1, -1, 2)
    offsets = (grid - keypoints.transpose(1, 2).gather(2, owner)).where(person[..., None] >= 0, 0.0)
    return OffsetTargets(person.view(batch, count, *size), offsets.transpose(2, 3).reshape(batch, 2 * count, *size))
