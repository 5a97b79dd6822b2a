"""Boxes predicted at cells: distances to the four sides, and a loss on the overlap of boxes."""

from typing import Literal

import torch
from torch import Tensor

Activation = Literal["exp", "relu"]

_MOST = 6.0
"""Upper limit of the input of exp, whose output is in cells; without it one bad prediction makes the loss infinite."""


def decode_boxes(points: Tensor, strides: Tensor, outputs: Tensor, activation: Activation = "exp") -> Tensor:
    """Boxes of cells (Tian et al., FCOS).

    Args:
        points: (..., 2) pixels.
        strides: (...) pixels per cell.
        outputs: (..., 4) before the activation, which gives distances to the left, top, right and bottom in cells.

    Returns:
        (..., 4) xyxy pixels.
    """
    cells = outputs.clamp(max=_MOST).exp() if activation == "exp" else outputs.relu()
    before, after = (strides[..., None, None] * cells.unflatten(-1, (2, 2))).unbind(-2)
    return torch.cat([points - before, points + after], dim=-1)


def giou_loss(boxes: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of 1 - GIoU (Rezatofighi et al.); boxes and targets (..., 4) xyxy, weights (...).

    torchvision's loss gives the same values, but indexes by a mask, for which the host waits for the device.
    """
    low, high = torch.maximum(boxes[..., :2], targets[..., :2]), torch.minimum(boxes[..., 2:], targets[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = [(b[..., 2:] - b[..., :2]).prod(-1) for b in (boxes, targets)]
    union = (areas[0] + areas[1] - shared).clamp(min=1e-6)
    low, high = torch.minimum(boxes[..., :2], targets[..., :2]), torch.maximum(boxes[..., 2:], targets[..., 2:])
    hull = (high - low).prod(-1).clamp(min=1e-6)
    return ((1 - shared / union + (hull - union) / hull) * weights).sum()
