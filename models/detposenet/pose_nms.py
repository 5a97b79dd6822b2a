"""Suppression of duplicate poses by the OKS between predicted poses."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from posefleet.data.structures import Poses
from posefleet.models.parts.ops.assign import pseudo_boxes
from posefleet.models.parts.ops.nms import widen
from posefleet.models.parts.ops.oks import oks


def pose_oks(keypoints: Tensor, identified: Tensor, sigmas: Tensor) -> Tensor:
    """Similarity of N poses of an image with each other.

    The scale is the mean of the areas of the two tight boxes, widened if they are thin; only keypoints that both have
    count.

    Args:
        keypoints: (..., N, K, 2) xy, pixels.
        identified: (..., N, K) bool, True for keypoints that a pose has.
        sigmas: (K,) deviations of the schema.

    Returns:
        (..., N, N) in [0, 1]; 0 where two poses have no keypoint in common.
    """
    low, high = widen(pseudo_boxes(keypoints, identified)).split(2, dim=-1)
    areas = (high - low).prod(-1)  # (..., N)
    shared = identified.unsqueeze(-2) & identified.unsqueeze(-3)
    scale = (areas.unsqueeze(-1) + areas.unsqueeze(-2)) / 2
    return oks(keypoints.unsqueeze(-3), keypoints.unsqueeze(-4), shared, scale, sigmas)


def greedy_keep(alike: Tensor) -> list[int]:
    """Rows of (N, N) bool, on the host, kept in order; a row is skipped if an earlier kept row is alike."""
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
        poses: Poses of each image, in any order; they may come from several passes over it.
        sigmas: (K,) deviations of the schema.
        threshold: OKS; above 1 nothing is suppressed.
        limit: Poses kept of an image.
    """
    ordered = [p[p.scores.argsort(descending=True, stable=True)] for p in poses]
    if threshold > 1:
        return [p[:limit] for p in ordered]
    keypoints = pad_sequence([p.keypoints for p in ordered], batch_first=True)  # (B, N, K, 2)
    everything = torch.ones_like(keypoints[..., 0], dtype=torch.bool)
    similarity = pose_oks(keypoints, everything, sigmas.to(keypoints.device))
    alike = (similarity >= threshold).cpu()  # the host waits here
    chosen = [greedy_keep(rows[: len(p), : len(p)])[:limit] for rows, p in zip(alike, ordered, strict=True)]
    kept = [torch.tensor(rows, dtype=torch.int64) for rows in chosen]
    rows = pad_sequence(kept, batch_first=True).to(keypoints.device, non_blocking=True)
    return [p[index[: len(found)]] for p, index, found in zip(ordered, rows, kept, strict=True)]
