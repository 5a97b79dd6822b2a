"""Centre-ness of a cell in a box: how good a place it is to answer for the person (FCOS; Tian et al.)."""

import torch
from torch import Tensor


def centerness(points: Tensor, boxes: Tensor) -> Tensor:
    """1 in the centre of a box, 0 on its border and outside.

    Args:
        points: (..., 2) xy.
        boxes: (..., 4) xyxy, same unit.

    Returns:
        (...) square root of (nearer / farther side in x) * (nearer / farther side in y).
    """
    low, high = points - boxes[..., :2], boxes[..., 2:] - points
    near, far = torch.minimum(low, high).clamp(min=0), torch.maximum(low, high)
    return (near / far.clamp(min=1e-6)).prod(-1).sqrt()
