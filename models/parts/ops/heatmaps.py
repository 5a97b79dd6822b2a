"""Keypoint maps: their targets, as classes of cells or as Gaussians, and the peaks of predicted ones."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

CellTarget = Literal["multihot", "index", "one_class"]


def cell_class_targets(
    keypoints: Tensor, labelled: Tensor, size: tuple[int, int], stride: int, kind: CellTarget = "multihot"
) -> Tensor:
    """Targets that mark the cells of keypoints.

    Args:
        keypoints: (B, M, K, 2) xy, pixels.
        labelled: (B, M, K) bool.
        size: (height, width) of the map, cells; keypoints outside mark the nearest cell.
        stride: Pixels per cell.
        kind: ``multihot``: every keypoint marks its cell floor(x / stride). ``index``: of the keypoints in a cell, only
            the last one of the schema marks it. ``one_class``: only the last keypoint of the last person marks it, and
            the cell is round((x - stride / 2) / stride), which differs only on the border between two cells.

    Returns:
        (B, K, height, width) float32, 0 or 1.
    """
    batch, people, count, _ = keypoints.shape
    height, width = size
    position = ((keypoints - stride / 2) / stride).round() if kind == "one_class" else (keypoints / stride).floor()
    column = position[..., 0].clamp(0, width - 1).long()
    row = position[..., 1].clamp(0, height - 1).long()
    cell = row * width + column  # (B, M, K)
    if kind == "multihot":
        slot = torch.arange(count, device=cell.device) * (height * width) + cell
        marks = torch.zeros(batch, count * height * width, device=cell.device)
        marks = marks.scatter_reduce(1, slot.flatten(1), labelled.flatten(1).float(), "amax")
        return marks.view(batch, count, height, width)
    # The last keypoint wins. Writing its index and keeping the largest gives the same result on every device.
    order = torch.arange(1, people * count + 1, device=cell.device).view(people, count)
    order = (order[:1] if kind == "index" else order).where(labelled, 0)
    last = torch.zeros(batch, height * width, dtype=torch.int64, device=cell.device)
    last = last.scatter_reduce(1, cell.flatten(1), order.flatten(1), "amax").view(batch, 1, height, width)
    classes = torch.arange(count, device=cell.device).view(1, count, 1, 1)
    return ((last > 0) & ((last - 1) % count == classes)).float()


def gaussian_targets(
    keypoints: Tensor,
    labelled: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    stride: int,
    *,
    overlap: float = 0.9,
    max_radius: int = 3,
) -> Tensor:
    """Targets with a Gaussian around the cell of each keypoint, wider for larger people (Law & Deng).

    Args:
        keypoints: (B, M, K, 2) xy, pixels.
        labelled: (B, M, K) bool.
        boxes: (B, M, 4) xyxy of the people, pixels.
        size: (height, width) of the map, cells; keypoints outside are moved to the nearest cell.
        stride: Pixels per cell.
        overlap: IoU, see :func:`gaussian_radius`.
        max_radius: Largest radius, cells.

    Returns:
        (B, K, height, width) float32 in [0, 1], exactly 1 in the cells floor(x / stride) of labelled keypoints. The
        radius R is a whole number; the Gaussian has deviation (2 R + 1) / 6 and ends R cells from its centre.
    """
    limit = torch.tensor([size[1] - 1, size[0] - 1], device=keypoints.device)
    centres = (keypoints / stride).floor().clamp(min=0).minimum(limit)
    width, height = ((boxes[..., 2:] - boxes[..., :2]) / stride).unbind(-1)
    radii = gaussian_radius(height, width, overlap).floor().clamp(0, max_radius)[..., None]  # (B, M, 1)
    return draw_gaussians(centres, labelled, (2 * radii + 1) / 6, radii, size, reach=max_radius)


def draw_gaussians(
    centres: Tensor,
    drawn: Tensor,
    deviations: Tensor,
    radii: Tensor,
    size: tuple[int, int],
    *,
    reach: int,
    within: bool = False,
) -> Tensor:
    """Maps of Gaussians, evaluated at whole cells. Where several overlap, the largest value counts.

    Args:
        centres: (B, M, K, 2) xy, cells, not necessarily whole.
        drawn: (B, M, K) bool, True where a Gaussian is drawn.
        deviations: Standard deviations, cells; broadcasts to (B, M, K).
        radii: Broadcasts to (B, M, K): cells further than this from floor(centre) in x or y stay 0.
        size: (height, width), cells; Gaussians are cut at the border.
        reach: Upper bound of the radii, a number on the host, so that nothing waits for the device.
        within: Measure radii from the centre itself, and leave cells at exactly that distance 0, too.

    Returns:
        (B, K, height, width) float32.
    """
    batch, _, count, _ = centres.shape
    steps = torch.arange(-reach, reach + 1, device=centres.device)
    whole = steps.abs() <= radii[..., None]  # (..., n) with n = 2 reach + 1

    def profile(centre: Tensor, limit: int) -> tuple[Tensor, Tensor]:
        """Cells along one axis and the Gaussian there, both (B, M, K, n)."""
        cells = centre.floor().long()[..., None] + steps
        near = (cells - centre[..., None]).abs() < radii[..., None] if within else whole
        values = torch.exp(-(cells - centre[..., None]).square() / (2 * deviations.square())[..., None])
        return cells.clamp(0, limit - 1), values.where(near & (cells >= 0) & (cells < limit), 0.0)

    height, width = size
    columns, across = profile(centres[..., 0], width)
    rows, down = profile(centres[..., 1], height)
    values = (down[..., :, None] * across[..., None, :]).where(drawn[..., None, None], 0.0)  # (B, M, K, n, n)
    channel = torch.arange(count, device=centres.device)[:, None, None]
    slot = (channel * height + rows[..., :, None]) * width + columns[..., None, :]
    maps = torch.zeros(batch, count * height * width, device=centres.device)
    maps = maps.scatter_reduce(1, slot.flatten(1), values.flatten(1), "amax")
    return maps.view(batch, count, height, width)


def drawn_cells(centres: Tensor, drawn: Tensor, radii: Tensor, size: tuple[int, int]) -> Tensor:
    """Cells in which :func:`draw_gaussians` draws with ``within``, for any keypoint: the union of its squares.

    Args:
        centres: (B, N, 2) xy, cells.
        drawn: (B, N) bool.
        radii: Broadcasts to (B, N), cells.
        size: (height, width), cells.

    Returns:
        (B, height, width) bool.
    """
    height, width = size
    near_x = (torch.arange(width, device=centres.device) - centres[..., :1]).abs() < radii[..., None]  # (B, N, w)
    near_y = (torch.arange(height, device=centres.device) - centres[..., 1:]).abs() < radii[..., None]
    near_y = near_y & drawn[..., None]
    return near_y.transpose(1, 2).float() @ near_x.float() > 0


def gaussian_radius(height: Tensor, width: Tensor, overlap: float = 0.9) -> Tensor:
    """Largest shift of a box's corners at which its IoU with the unshifted box is still about ``overlap``.

    The unit and shape are those of ``height`` and ``width``. CornerNet's code takes the least of three bounds. The
    bound for a box inside the original one is at most (h + w) / 4 and the others are at least (h + w) / 2, so it is
    always the least.
    """
    half = overlap * (height + width)
    return (half.square() + 4 * overlap * (1 - overlap) * height * width).sqrt() - half


def local_peaks(maps: Tensor, threshold: float, max_peaks: int) -> tuple[Tensor, Tensor]:
    """The highest local maxima of maps: cells that no cell of their 3x3 neighbourhood exceeds.

    Args:
        maps: (B, K, h, w).
        threshold: Peaks must be higher.
        max_peaks: Peaks returned for each map.

    Returns:
        (B, K, n, 2) xy in cells, and values (B, K, n), highest first, -inf where a map has fewer peaks; n is
        ``max_peaks``, or h * w if that is less.
    """
    peak = (maps == F.max_pool2d(maps, 3, stride=1, padding=1)) & (maps > threshold)
    values, flat = maps.where(peak, -torch.inf).flatten(2).topk(min(max_peaks, maps.shape[-2] * maps.shape[-1]))
    width = maps.shape[-1]
    return torch.stack([flat % width, flat // width], dim=-1).float(), values
