"""Targets of auxiliary keypoint maps."""

from typing import Literal

import torch
from torch import Tensor

CellTarget = Literal["one_class", "multihot"]


def cell_class_targets(
    keypoints: Tensor, labelled: Tensor, size: tuple[int, int], stride: int, kind: CellTarget = "multihot"
) -> Tensor:
    """Which keypoint each cell of a map holds.

    Args:
        keypoints: (B, M, K, 2) xy, pixels.
        labelled: (B, M, K) bool.
        size: (height, width) of the map, cells; keypoints outside go to the nearest cell.
        stride: Pixels per cell.
        kind: ``multihot``: every keypoint marks its cell floor(x / stride). ``one_class``: a cell has one class, the
            last keypoint of the last person wins, and the cell is round((x - stride / 2) / stride), which differs
            only on the border between two cells.

    Returns:
        (B, K, height, width) float32, 0 or 1.
    """
    batch, people, count, _ = keypoints.shape
    height, width = size
    position = (keypoints / stride).floor() if kind == "multihot" else ((keypoints - stride / 2) / stride).round()
    column = position[..., 0].clamp(0, width - 1).long()
    row = position[..., 1].clamp(0, height - 1).long()
    cell = row * width + column  # (B, M, K)
    if kind == "multihot":
        slot = torch.arange(count, device=cell.device) * (height * width) + cell
        marks = torch.zeros(batch, count * height * width, device=cell.device)
        marks = marks.scatter_reduce(1, slot.flatten(1), labelled.flatten(1).float(), "amax")
        return marks.view(batch, count, height, width)
    # The order of writing decides, so write the order itself and keep the largest: the same on every device.
    order = torch.arange(1, people * count + 1, device=cell.device).view(people, count).where(labelled, 0)
    last = torch.zeros(batch, height * width, dtype=torch.int64, device=cell.device)
    last = last.scatter_reduce(1, cell.flatten(1), order.flatten(1), "amax").view(batch, 1, height, width)
    classes = torch.arange(count, device=cell.device).view(1, count, 1, 1)
    return ((last > 0) & ((last - 1) % count == classes)).float()
