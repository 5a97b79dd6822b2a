"""OKS between predicted poses, and the suppression built on it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from posefleet.data.structures import Poses
from posefleet.models.parts.assign import pseudo_boxes
from posefleet.models.parts.oks import oks


def pose_oks(keypoints: Tensor, identified: Tensor, sigmas: Tensor) -> Tensor:
    """Similarity of N poses with each other.

    The scale is the mean of the two tight boxes' areas; only keypoints that both have count.

    Args:
        keypoints: (N, K, 2) xy, pixels.
        identified: (N, K) bool, the keypoints that a pose has.
        sigmas: (K,) deviations of the schema.

    Returns:
        (N, N) in [0, 1]; 0 where no keypoint is in both.
    """
    low, high = pseudo_boxes(keypoints, identified).split(2, dim=-1)
    areas = (high - low).prod(-1)  # (N,)
    shared = identified[:, None] & identified[None]
    return oks(keypoints[:, None], keypoints[None], shared, (areas[:, None] + areas[None]) / 2, sigmas)


def greedy_keep(similarity: Tensor, threshold: float) -> list[int]:
    """Rows of (N, N), taken in order unless one taken before is at least ``threshold`` similar. Waits for the host."""
    alike = (similarity >= threshold).cpu()
    kept: list[int] = []
    free = torch.ones(len(alike), dtype=torch.bool)
    for row in range(len(alike)):
        if free[row]:
            kept.append(row)
            free &= ~alike[row]
    return kept


def suppress_by_oks(poses: Sequence[Poses], sigmas: Tensor, threshold: float, limit: int) -> list[Poses]:
    """The best poses of every image, none of which is at least ``threshold`` similar to a better one.

    Args:
        poses: Of each image, in any order; may come from several passes over it.
        sigmas: (K,) deviations of the schema.
        threshold: OKS; above 1 nothing is suppressed.
        limit: Poses kept of an image.
    """
    result = []
    for p in poses:
        p = p[p.scores.argsort(descending=True, stable=True)]
        everything = torch.ones_like(p.keypoint_scores, dtype=torch.bool)
        kept = greedy_keep(pose_oks(p.keypoints, everything, sigmas.to(p.keypoints.device)), threshold)
        result.append(p[kept[:limit]])
    return result
