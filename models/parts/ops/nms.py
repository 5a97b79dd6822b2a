"""Suppression of duplicate poses by the overlap of boxes: hard, and soft (linear, Gaussian; Bodla et al.).

All rules share one loop: pick the best remaining box of every image, lower the scores of boxes that overlap it, repeat.
The loop is batched over images and vectorised over boxes; only the picks are sequential.
"""

from collections.abc import Sequence
from typing import Literal

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
    # Picks are sequential and tiny: one takes less time on the host than the launch of its kernels on a device.
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
    images, count = scores.shape
    current = scores if pixels else scores.where(scores >= min_score, 0.0)
    indices = torch.zeros(images, min(limit, count), dtype=torch.int64, device=scores.device)
    picked = torch.zeros(images, min(limit, count), dtype=scores.dtype, device=scores.device)
    extra = 1.0 if pixels else 0.0
    areas = (boxes[..., 2:] - boxes[..., :2] + extra).prod(-1)
    for i in range(indices.shape[1]):
        best, index = current.max(1, keepdim=True)  # (B, 1)
        indices[:, i : i + 1], picked[:, i : i + 1] = index, best
        if rule != "none":
            iou = _overlap(boxes, areas, index, extra)
            current = current * _decay(iou, rule, threshold, sigma, strict=pixels)
            current = current.where((current >= min_score) | ((iou <= 0) & pixels), 0.0)
        current = current.scatter(1, index, 0.0)
    return indices, picked


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes (..., 4) xyxy, broadcasting; 0 if both are degenerate."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - shared
    return torch.where(union > 0, shared / union, 0.0)


def _overlap(boxes: Tensor, areas: Tensor, index: Tensor, extra: float) -> Tensor:
    """(B, N) IoU of every box with box ``index`` (B, 1) of its image: :func:`box_iou` with areas computed before, and
    sides that are ``extra`` longer."""
    best = boxes.gather(1, index[..., None].expand(-1, -1, 4))  # (B, 1, 4)
    low, high = torch.maximum(boxes[..., :2], best[..., :2]), torch.minimum(boxes[..., 2:], best[..., 2:])
    shared = (high - low + extra).clamp(min=0).prod(-1)
    union = areas + areas.gather(1, index) - shared
    return torch.where(union > 0, shared / union, 0.0)


def _decay(iou: Tensor, rule: Rule, threshold: float, sigma: float, *, strict: bool) -> Tensor:
    if rule == "linear":
        return torch.where(iou > threshold if strict else iou >= threshold, 1 - iou, 1.0)
    if rule == "gaussian":
        return torch.exp(-iou.square() / sigma)
    return (iou <= threshold).to(iou.dtype)
