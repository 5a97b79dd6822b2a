"""Maps of one keypoint of one person, in which only the keypoint's cell should be high: floor(x / stride) per axis."""

import torch
import torch.nn.functional as F
from torch import Tensor


def keypoint_cells(keypoints: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """The cell of each keypoint.

    Args:
        keypoints: (..., 2) xy, pixels.
        size: (height, width) of the map, cells; keypoints outside have the nearest cell.
        stride: Pixels per cell.

    Returns:
        (...) int64, row * width + column.
    """
    column, row = own_cells(keypoints / stride, size).long().unbind(-1)
    return row * size[1] + column


def own_cells(positions: Tensor, size: tuple[int, int]) -> Tensor:
    """Column and row (..., 2), whole numbers, of the cell that contains each position (..., 2), in cells."""
    column, row = positions.floor().unbind(-1)
    return torch.stack([column.clamp(0, size[1] - 1), row.clamp(0, size[0] - 1)], dim=-1)


def cell_cross_entropy(maps: Tensor, cells: Tensor) -> Tensor:
    """Cross-entropy (...) of the softmax over all cells of maps (..., h, w), whose right cells are ``cells`` (...)."""
    flat = maps.float().flatten(-2)
    return flat.logsumexp(-1) - flat.gather(-1, cells[..., None])[..., 0]


def peaks(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The largest cell of each map (..., h, w).

    Returns:
        column, row, both (...) int64, and the softmax over all cells there, (...) in [0, 1].
    """
    maps = maps.float()
    # Two searches along one axis each: one search over the whole map, with its index, takes several times as long.
    value, row = maps.amax(-1).max(-1)
    column = maps.gather(-2, row[..., None, None].expand(*row.shape, 1, maps.shape[-1]))[..., 0, :].argmax(-1)
    return column, row, 1 / (maps - value[..., None, None]).exp_().sum((-2, -1))


def rescale(maps: Tensor, factor: float, mode: str = "bilinear") -> Tensor:
    """Resize (N, C, h, w) to ``factor`` times as many cells per side, corners not aligned."""
    if factor == 1:
        return maps
    resized: Tensor = F.interpolate(maps.float(), scale_factor=factor, mode=mode, align_corners=False)
    return resized


def tag_losses(tags: Tensor, cells: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of the associative embedding: pull the tags of a person together, push those of two people apart.

    Args:
        tags: (B, K, h, w), one number for each cell and keypoint.
        cells: (B, M, K) int64, row * w + column of each person's keypoints.
        labelled: (B, M, K) bool.

    Returns:
        Two sums over images. Pull: the mean over people of the mean squared distance of their tags from their own mean.
        Push: half the mean over ordered pairs of people of exp(-d^2), where d is the distance of their means.
    """
    at = tags.float().flatten(2).gather(2, cells.transpose(1, 2)).transpose(1, 2)  # (B, M, K)
    number = labelled.sum(-1).clamp(min=1)
    mean = at.where(labelled, 0.0).sum(-1) / number  # (B, M)
    spread = (at - mean[..., None]).square().where(labelled, 0.0).sum(-1) / number
    present = labelled.any(-1)
    people = present.sum(1)
    pull = (spread.where(present, 0.0).sum(1) / people.clamp(min=1)).sum()
    pairs = present[:, :, None] & present[:, None] & ~torch.eye(present.shape[1], dtype=torch.bool, device=tags.device)
    closeness = torch.exp(-(mean[:, :, None] - mean[:, None]).square()).where(pairs, 0.0)
    push = (closeness.sum((1, 2)) / (2 * people * (people - 1)).clamp(min=1)).sum()
    return pull, push
