"""Suppression of duplicate poses by the overlap of boxes: hard, and soft (linear, Gaussian; Bodla et al.).

All rules share one loop: pick the best remaining box of every image, lower the scores of boxes that overlap it, repeat.
The loop is batched over images and vectorised over boxes; only the picks are sequential.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from posefleet.data.structures import Poses

Rule = Literal["linear", "gaussian", "hard", "none"]

_THINNEST = 1 / 16
"""Smallest ratio of the sides of a box of which an overlap says how similar two poses are."""
_POINT_SIDE = 32.0
"""Side of the box of a pose that is a point, pixels: the smallest side of what COCO calls medium."""


def suppress_poses(
    poses: Sequence[Poses],
    *,
    rule: Rule = "linear",
    threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 1e-3,
    limit: int = 20,
    pixels: bool = False,
    ratios: Tensor | None = None,
    decay_keypoints: bool = True,
) -> list[Poses]:
    """Keep at most ``limit`` poses of every image. The overlap is that of the :func:`pose_boxes` of all keypoints.

    Candidates may come from several passes over the same image (scales, flips): concatenate them first.
    Scores of kept poses include the decay. Further arguments are those of :func:`pick_boxes`.

    Args:
        ratios: (B, 2) lengths, in x and y, by which boxes are divided before ``pixels`` counts: those of one pixel of
            the original image. Default: 1.
        decay_keypoints: Whether keypoint scores include the decay, too.
    """
    boxes = pad_sequence([pose_boxes(p.keypoints) for p in poses], batch_first=True)
    if ratios is not None:
        boxes = boxes / ratios.to(boxes).repeat(1, 2)[:, None]
    scores = pad_sequence([p.scores for p in poses], batch_first=True)  # padding has score 0: never picked
    picks, kept = pick_boxes(
        boxes.cpu(),
        scores.cpu(),
        rule=rule,
        threshold=threshold,
        sigma=sigma,
        min_score=min_score,
        limit=limit,
        pixels=pixels,
    )
    found = (kept > 0).sum(1).tolist()
    picks, kept = picks.to(boxes.device, non_blocking=True), kept.to(boxes.device, non_blocking=True)
    result = []
    for p, pick, score, n in zip(poses, picks, kept, found, strict=True):
        chosen, score = p[pick[:n]], score[:n]
        decay = (score / chosen.scores)[:, None] if decay_keypoints else 1.0
        result.append(Poses(chosen.keypoints, chosen.keypoint_scores * decay, score))
    return result


def pose_boxes(keypoints: Tensor) -> Tensor:
    """Boxes (..., 4) xyxy that stand for poses (..., K, 2), pixels: tight ones, widened by :func:`widen`."""
    return widen(torch.cat([keypoints.amin(-2), keypoints.amax(-2)], dim=-1))


def widen(boxes: Tensor) -> Tensor:
    """Tight boxes (..., 4) xyxy of poses, pixels, that have an area.

    Keypoints on a line, or a single one, have none, and then no two boxes would overlap. Sides are at least a sixteenth
    of the longer side; a box smaller than a pixel becomes a square of 32 px.
    """
    low, high = boxes.split(2, dim=-1)
    longest = (high - low).amax(-1, keepdim=True)
    least = (longest * _THINNEST).where(longest >= 1, _POINT_SIDE)
    more = (least - (high - low)).clamp(min=0) / 2
    return torch.cat([low - more, high + more], dim=-1)


def pick_boxes(
    boxes: Tensor,
    scores: Tensor,
    *,
    rule: Rule = "linear",
    threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 1e-3,
    limit: int = 20,
    pixels: bool = False,
) -> tuple[Tensor, Tensor]:
    """Pick boxes, best current score first.

    Args:
        boxes: (B, N, 4) xyxy, any unit.
        scores: (B, N) in [0, 1]; 0 marks padding.
        rule: ``linear``: score times (1 - IoU) where IoU >= threshold; ``gaussian``: times exp(-IoU^2 / sigma);
            ``hard``: 0 where IoU > threshold; ``none``: scores stay.
        min_score: Boxes whose current score is lower are dropped.
        limit: Picks per image.
        pixels: Measure boxes by the pixels that they touch, as old detection code does: sides are 1 longer, ``linear``
            acts only above the threshold, and ``min_score`` drops only boxes that overlap a picked one.

    Returns:
        (B, min(limit, N)) indices into N, and the scores at the time of the pick; 0 where no box was left.
    """
    # Picks are sequential and tiny: on the host, in NumPy, one takes less time than the launch of its kernels.
    corners = np.ascontiguousarray(boxes.detach().float().cpu().numpy().transpose(2, 0, 1))  # (4, B, N)
    current = scores.detach().float().cpu().numpy()
    current = current.copy() if pixels else np.where(current >= min_score, current, np.float32(0))
    images, count = current.shape
    indices = np.zeros((images, min(limit, count)), np.int64)
    picked = np.zeros((images, min(limit, count)), np.float32)
    low, high = corners[:2], corners[2:]
    extra = np.float32(1.0 if pixels else 0.0)
    areas = (high[0] - low[0] + extra) * (high[1] - low[1] + extra)
    rows = np.arange(images)
    for i in range(indices.shape[1]):
        best = current.argmax(1)
        indices[:, i], picked[:, i] = best, current[rows, best]
        if not picked[:, i].any():
            break
        if rule != "none":
            iou = _overlap(low, high, areas, (rows, best), extra)
            current = current * _decay(iou, rule, threshold, sigma, strict=pixels)
            dropped = current < min_score
            current[dropped & (iou > 0) if pixels else dropped] = 0
        current[rows, best] = 0
    return torch.from_numpy(indices).to(scores.device), torch.from_numpy(picked).to(scores)


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes (..., 4) xyxy, broadcasting; 0 if both are degenerate."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - shared
    return torch.where(union > 0, shared / union, 0.0)


def _overlap(
    low: np.ndarray, high: np.ndarray, areas: np.ndarray, best: tuple[np.ndarray, np.ndarray], extra: np.float32
) -> np.ndarray:
    """(B, N) IoU of every box with box ``best`` of its image: :func:`box_iou` with areas computed before, and sides
    that are ``extra`` longer. ``low`` and ``high`` are (2, B, N), xy."""
    own_low, own_high = low[:, *best, None], high[:, *best, None]  # (2, B, 1)
    sides = np.minimum(high, own_high) - np.maximum(low, own_low) + extra
    np.maximum(sides, 0, out=sides)
    shared = sides[0] * sides[1]
    union = areas + areas[*best, None] - shared
    iou: np.ndarray = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return iou


def _decay(iou: np.ndarray, rule: Rule, threshold: float, sigma: float, *, strict: bool) -> np.ndarray:
    factors: np.ndarray
    if rule == "linear":
        factors = np.where(iou > threshold if strict else iou >= threshold, 1 - iou, np.float32(1))
    elif rule == "gaussian":
        factors = np.exp(-np.square(iou) / np.float32(sigma))
    else:
        factors = (iou <= threshold).astype(iou.dtype)
    return factors
