"""Structure-aware loss (Ke et al.): a keypoint answers also for its neighbours in the skeleton.

Per sample it is the mean over keypoints n of E_n + a * (sum of E over the neighbours of n), where E_n is the error of
the map of keypoint n. Errors add, so this is a mean of E_n weighted by 1 + a * degree(n).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Norm = Literal["squared", "plain"]


def structure_weights(edges: Sequence[tuple[int, int]], keypoints: int, neighbours: float) -> Tensor:
    """(K,) weights 1 + ``neighbours`` * degree of each keypoint in the graph ``edges``."""
    degrees = torch.bincount(torch.tensor(edges, dtype=torch.int64).flatten(), minlength=keypoints)
    return 1 + neighbours * degrees.float()


def structure_aware_loss(
    maps: Tensor, targets: Tensor, labelled: Tensor, weights: Tensor, *, norm: Norm = "squared"
) -> Tensor:
    """Sum over samples.

    Args:
        maps: (N, K, h, w).
        targets: (N, K, h, w).
        labelled: (N, K) 0 or 1; other maps teach nothing.
        weights: (K,) see :func:`structure_weights`.
        norm: ``squared``: the mean square over cells; ``plain``: the root of the sum of squares.
    """
    squares = (maps.float() - targets).square()
    errors = squares.mean((2, 3)) if norm == "squared" else (squares.sum((2, 3)) + 1e-12).sqrt()
    return (errors * labelled * weights).mean(1).sum()
