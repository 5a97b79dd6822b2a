"""Cells of a feature pyramid, their positions in the image, and offsets from them.

Cell (x, y) of a map of stride s is at pixel (x * s + s // 2, y * s + s // 2). Offsets are in cells (pixels / s):
``keypoint = point + s * offset``. Flat order: levels from fine to coarse, rows from top to bottom, cells from left
to right; letters: P cells of all levels together, B images, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """The P cells of a pyramid, in flat order."""

    points: Tensor
    """(P, 2) float32 xy, pixels."""
    strides: Tensor
    """(P,) float32 pixels per cell."""
    levels: Tensor
    """(P,) int64 index of the level, 0 for the finest."""
    sizes: tuple[tuple[int, int], ...]
    """(height, width) of each level, cells."""

    def __len__(self) -> int:
        return len(self.points)


def pyramid_cells(sizes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device) -> Cells:
    """The cells of a pyramid. They are cached per shape and device, except while a graph is captured.

    Args:
        sizes: (height, width) of each level in cells.
        strides: Pixels per cell of each level.
    """
    build = _build if torch.compiler.is_compiling() else _cached
    return build(tuple(sizes), tuple(strides), device)


def map_points(size: tuple[int, int], stride: int, device: torch.device) -> Tensor:
    """(P, 2) float32 xy, pixels, of the cells of a map of ``size`` (height, width) whose cell j is at pixel stride * j.

    The methods that draw Gaussians on maps of stride 4 place cells so, unlike those with a pyramid.
    """
    y, x = torch.meshgrid(*(torch.arange(n, device=device) * stride for n in size), indexing="ij")
    return torch.stack([x, y], dim=-1).view(-1, 2).float()


def level_sizes(height: int, width: int, strides: Sequence[int]) -> list[tuple[int, int]]:
    """(height, width), in cells, of each level of an image of ``height`` x ``width`` pixels (multiples of 32)."""
    return [(-(-height // stride), -(-width // stride)) for stride in strides]


def map_sizes(maps: Sequence[Tensor]) -> list[tuple[int, int]]:
    """(height, width), in cells, of each map (B, C, h, w)."""
    return [(level.shape[-2], level.shape[-1]) for level in maps]


def flatten_levels(maps: Sequence[Tensor]) -> Tensor:
    """Maps (B, C, h, w) of all levels -> (B, P, C) float32 in flat order."""
    flat: Tensor = torch.cat([level.permute(0, 2, 3, 1).flatten(1, 2) for level in maps], dim=1).float()
    return flat


def decode_offsets(points: Tensor, strides: Tensor, offsets: Tensor) -> Tensor:
    """Poses from offsets: ``keypoint = point + stride * offset``.

    Args:
        points: (..., 2) xy of cells, pixels.
        strides: (...) pixels per cell.
        offsets: (..., 2K) cells, x before y.

    Returns:
        (..., K, 2) pixels.
    """
    poses: Tensor = points.unsqueeze(-2) + strides[..., None, None] * offsets.unflatten(-1, (-1, 2))
    return poses


def encode_offsets(points: Tensor, strides: Tensor, keypoints: Tensor) -> Tensor:
    """Inverse of :func:`decode_offsets`: (..., K, 2) pixels -> (..., 2K) cells."""
    return ((keypoints - points.unsqueeze(-2)) / strides[..., None, None]).flatten(-2)


def _build(sizes: tuple[tuple[int, int], ...], strides: tuple[int, ...], device: torch.device) -> Cells:
    points, steps, levels = [], [], []
    for level, ((height, width), stride) in enumerate(zip(sizes, strides, strict=True)):
        ys = torch.arange(height, device=device) * stride + stride // 2
        xs = torch.arange(width, device=device) * stride + stride // 2
        y, x = torch.meshgrid(ys, xs, indexing="ij")
        points.append(torch.stack([x, y], dim=-1).view(-1, 2))
        steps.append(torch.full((height * width,), float(stride), device=device))
        levels.append(torch.full((height * width,), level, device=device))
    return Cells(torch.cat(points).float(), torch.cat(steps), torch.cat(levels), sizes)


@lru_cache(maxsize=64)
def _cached(sizes: tuple[tuple[int, int], ...], strides: tuple[int, ...], device: torch.device) -> Cells:
    with torch.inference_mode(False):  # training may reuse cells that a prediction made first
        return _build(sizes, strides, device)


def read_cells(maps: Tensor, cells: Tensor) -> Tensor:
    """Values (B, T, C) of maps (B, C, h, w) at cells (B, T, 2), whole xy (int64)."""
    index = cells[..., 1] * maps.shape[-1] + cells[..., 0]  # (B, T)
    return maps.flatten(2).gather(2, index[:, None].expand(-1, maps.shape[1], -1)).transpose(1, 2)
