"""From keypoint maps to points. Cell i of a map of stride s is the point i * s pixels: Gaussians are drawn so."""

import torch
import torch.nn.functional as F
from torch import Tensor


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


def local_peaks(maps: Tensor, threshold: float, most: int) -> tuple[Tensor, Tensor]:
    """The highest cells that no cell of their 3x3 surroundings exceeds.

    Args:
        maps: (B, K, h, w).
        threshold: Peaks must be higher.
        most: Peaks of each map.

    Returns:
        (B, K, n, 2) xy in cells and values (B, K, n), highest first, -inf where there are fewer; n is ``most``, or
        h * w if that is less.
    """
    peak = (maps == F.max_pool2d(maps, 3, stride=1, padding=1)) & (maps > threshold)
    values, flat = maps.where(peak, -torch.inf).flatten(2).topk(min(most, maps.shape[-2] * maps.shape[-1]))
    width = maps.shape[-1]
    return torch.stack([flat % width, flat // width], dim=-1).float(), values
