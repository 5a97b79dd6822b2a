"""Suppression of duplicate poses by how many of their keypoints are near each other (DEKR, LOGO-CAP)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from posefleet.data.structures import Poses
from posefleet.models.parts.ops.nms import pose_boxes


def suppress_near(
    poses: Sequence[Poses], *, distance: float, keypoints: int, limit: int, best_first: bool = True
) -> list[Poses]:
    """Keep at most ``limit`` poses of every image, best first.

    Candidates may come from several passes over the same image (scales, flips): concatenate them first.

    Args:
        poses: Poses of each image.
        best_first: Visit poses by their score; else in their order.
        distance: Keypoints of two poses are near if closer than this share of the diagonal of the first one's box,
            which is widened if it is thin.
        keypoints: Poses with more near keypoints than this are duplicates.
        limit: Poses kept of an image.
    """
    ordered = [_sorted(p) for p in poses] if best_first else poses
    kept = pick_near(
        pad_sequence([p.keypoints for p in ordered], batch_first=True),
        pad_sequence([p.scores for p in ordered], batch_first=True, padding_value=-1.0),
        distance=distance,
        keypoints=keypoints,
    )
    survivors = (~kept).to(torch.uint8).argsort(dim=1, stable=True)  # (B, N), those who were kept first
    counts = kept.sum(1).tolist()  # the host waits here
    left = [p[rows[:count]] for p, rows, count in zip(ordered, survivors, counts, strict=True)]
    return [p[:limit] for p in (left if best_first else map(_sorted, left))]


def pick_near(poses: Tensor, scores: Tensor, *, distance: float, keypoints: int) -> Tensor:
    """Which poses survive.

    Poses are visited in order, except those that are settled. Of the visited pose and its duplicates, the best one
    survives, unless it is settled; then all of them are settled.

    Args:
        poses: (B, N, K, 2) xy, pixels.
        scores: (B, N) in [0, 1]; below 0 for padding.

    Returns:
        (B, N) bool.
    """
    kept = torch.zeros_like(scores, dtype=torch.bool)
    settled = scores < 0
    if not poses.shape[1]:
        return kept
    low, high = pose_boxes(poses).split(2, dim=-1)
    diagonal = (high - low).norm(dim=-1)  # (B, N)
    gaps = (poses[:, :, None] - poses[:, None]).norm(dim=-1)  # (B, N, N, K)
    near = (gaps < distance * diagonal[:, :, None, None]).sum(-1) > keypoints  # (B, N, N): j is near i
    near |= torch.eye(poses.shape[1], dtype=torch.bool, device=poses.device)
    near &= ~settled[:, None]
    for i in range(poses.shape[1]):
        group = near[:, i]  # (B, N)
        best = scores.where(group, -2.0).argmax(1, keepdim=True)
        alone = torch.zeros_like(kept).scatter_(1, best, True)
        act = ~settled[:, i : i + 1] & ~settled.gather(1, best)
        kept |= alone & act
        settled |= group & act
    return kept


def _sorted(poses: Poses) -> Poses:
    """The poses, best first."""
    return poses[poses.scores.argsort(descending=True, stable=True)]
