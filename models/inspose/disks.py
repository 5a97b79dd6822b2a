"""Offsets in a small disk around every keypoint, which restore the precision that coarse maps lose (Shi et al.,
InsPose).

A cell p (whole column and row) in the disk of a keypoint at P (in cells) learns P - p. Keypoints of one type share two
channels, for all people; a cell in several disks learns the nearest keypoint.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from posefleet.models.inspose.keypoint_maps import own_cells
from posefleet.models.parts.ops.heatmaps import gaussian_radius

Radius = Literal["auto", 0, 1, 2, 3, 4]
Shape = Literal["disk", "square"]


class Disks(NamedTuple):
    """Targets of the offsets of B images, K keypoints."""

    offsets: Tensor
    """(B, 2K, h, w) cells, dx before dy; meaningless outside the disks."""
    owner: Tensor
    """(B, K, h, w) int64, the person of the keypoint; -1 outside the disks."""


def disk_radii(
    boxes: Tensor, stride: int, radius: Radius = "auto", *, overlap: float = 0.9, max_radius: int = 3
) -> Tensor:
    """Radius (...), whole cells, of the disks of people with boxes (..., 4), pixels; ``auto`` depends on the size."""
    if radius != "auto":
        return torch.full_like(boxes[..., 0], radius)
    width, height = ((boxes[..., 2:] - boxes[..., :2]) / stride).unbind(-1)
    return gaussian_radius(height, width, overlap).floor().clamp(0, max_radius)


def disk_targets(
    keypoints: Tensor,
    labelled: Tensor,
    radii: Tensor,
    size: tuple[int, int],
    stride: int,
    *,
    shape: Shape = "disk",
    max_radius: int = 4,
) -> Disks:
    """Targets of a map of offsets.

    Args:
        keypoints: (B, M, K, 2) xy, pixels.
        labelled: (B, M, K) bool.
        radii: (B, M) whole cells; the keypoint's own cell floor(P) always belongs to its disk.
        size: (height, width) of the map, cells. A keypoint on the right or lower border belongs to the last cell.
        stride: Pixels per cell.
        shape: ``disk``: cells p with |p - P| <= radius; ``square``: cells at most ``radius`` from floor(P) per axis.
        max_radius: No radius is larger; known on the host, so that nothing waits for the device.
    """
    batch, people, count, _ = keypoints.shape
    height, width = size
    position = keypoints / stride  # P
    own = own_cells(position, size)
    steps = torch.arange(-max_radius, max_radius + 1, device=keypoints.device)
    window = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1).flatten(0, 1)  # (n, 2)

    cells = own[..., None, :] + window  # (B, M, K, n, 2)
    distance = (cells - position[..., None, :]).square().sum(-1)
    reach = radii[:, :, None, None]
    near = window.abs().amax(-1) <= reach if shape == "square" else distance <= reach.square()
    inside = (own_cells(cells, size) == cells).all(-1)
    claims = (near | (window == 0).all(-1)) & inside & labelled[..., None]

    # The nearest keypoint wins, then the first person among equals. Two minima make this independent of write order.
    channel = torch.arange(count, device=keypoints.device)[:, None]
    column, row = own_cells(cells, size).long().unbind(-1)
    slot = ((channel * height + row) * width + column).flatten(1)  # (B, M * K * n)
    claimed = distance.where(claims, torch.inf).flatten(1)
    nearest = claimed.new_full((batch, count * height * width), torch.inf).scatter_reduce(1, slot, claimed, "amin")
    wins = (claimed == nearest.gather(1, slot)) & claims.flatten(1)
    person = torch.arange(people, device=keypoints.device).view(1, -1, 1, 1).expand(claims.shape).flatten(1)
    owner = torch.full_like(nearest, people, dtype=torch.int64)
    owner = owner.scatter_reduce(1, slot, person.where(wins, people), "amin").view(batch, count, -1)
    owner = owner.where(owner < people, -1)  # (B, K, h * w)

    index = owner.clamp(min=0)[..., None].expand(-1, -1, -1, 2)
    target = position.transpose(1, 2).gather(2, index)  # (B, K, h * w, 2)
    ys, xs = torch.meshgrid(*(torch.arange(n, device=keypoints.device) for n in size), indexing="ij")
    offsets = target - torch.stack([xs, ys], dim=-1).flatten(0, 1)
    return Disks(offsets.transpose(2, 3).reshape(batch, 2 * count, height, width), owner.view(batch, count, *size))


def read_disks(offsets: Tensor, image: Tensor, column: Tensor, row: Tensor) -> Tensor:
    """Read the offset of each keypoint at one cell.

    Args:
        offsets: (B, 2K, h, w) cells, dx before dy.
        image: (N,) int64 in [0, B).
        column: (N, K) int64.
        row: (N, K) int64.

    Returns:
        (N, K, 2) xy, cells.
    """
    channel = 2 * torch.arange(column.shape[1], device=offsets.device)[:, None] + torch.arange(2, device=offsets.device)
    return offsets[image[:, None, None], channel, row[..., None], column[..., None]].float()
