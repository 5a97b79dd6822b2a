"""Decoding of dense predictions into poses: the best cells of each level, then suppression of duplicates."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from posefleet.data.structures import Poses
from posefleet.models.parts.ops.cells import Cells, decode_offsets
from posefleet.models.parts.ops.nms import Rule, pick_boxes, suppress_poses


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeConfig:
    """Which cells become poses, and how duplicates are suppressed."""

    score_floor: float = 0.05
    """0..1: cells are dropped unless their classification score is higher. Raised, decoding is faster and finds fewer
    people; lowered, more candidates remain, most of them weak."""
    top_k: int = 1000
    """Number of best cells kept of each level, at least 1. Fewer is faster and may lose people in crowds."""
    nms: Rule = "linear"
    """How a pose loses score when its box overlaps that of a better pose: ``linear`` and ``gaussian`` (soft NMS) lower
    it, ``hard`` removes the pose, ``none`` keeps all."""
    nms_threshold: float = 0.3
    """0..1, IoU of pseudo boxes from which ``linear`` (and above which ``hard``) acts. Raised, it keeps more people who
    stand close together, and more duplicates."""
    nms_sigma: float = 0.5
    """Width of ``gaussian``, above 0. Raised, overlapping poses lose less score."""
    min_score: float = 1e-3
    """0..1: a pose whose score falls below this during suppression is dropped. Raised, fewer weak poses remain."""
    max_poses: int = 20
    """Largest number of poses of one image, at least 1; COCO evaluates 20. More is slower."""

    def __post_init__(self) -> None:
        for name in ("score_floor", "nms_threshold", "min_score"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be 0..1, not {getattr(self, name)}")
        if self.nms_sigma <= 0:
            raise ValueError(f"nms_sigma must be above 0, not {self.nms_sigma}")
        if self.top_k < 1 or self.max_poses < 1:
            raise ValueError(f"top_k and max_poses must be at least 1, not {self.top_k} and {self.max_poses}")


def best_poses(
    scores: Tensor,
    probabilities: Tensor,
    offsets: Tensor,
    cells: Cells,
    limits: Tensor,
    config: DecodeConfig,
    rank: Tensor | None = None,
) -> list[Poses]:
    """Poses of the best cells of every image, before suppression.

    Args:
        scores: (B, P) in [0, 1], rank the cells; each becomes the score of its pose and of the pose's keypoints.
        probabilities: (B, P) in [0, 1], compared with ``score_floor``.
        offsets: (B, P, 2K) in cells.
        cells: The P cells.
        limits: (B, 4) xyxy, pixels; poses are clipped to the box of their image.
        rank: See :func:`best_cells`.
    """
    scores, chosen = best_cells(scores, probabilities, [h * w for h, w in cells.sizes], config, rank)
    counts = (scores > 0).sum(1).tolist()  # the host waits here, and once more after the suppression
    most = max(counts)
    scores, chosen = scores[:, :most], chosen[:, :most]

    offsets = offsets.gather(1, chosen[..., None].expand(-1, -1, offsets.shape[-1]))
    keypoints = decode_offsets(cells.points[chosen], cells.strides[chosen], offsets)
    keypoints = clip_points(keypoints, limits[:, None, None])
    keypoint_scores = scores[..., None].expand(keypoints.shape[:-1])
    return [Poses(keypoints[i, :n], keypoint_scores[i, :n], scores[i, :n]) for i, n in enumerate(counts)]


def clip_points(points: Tensor, limits: Tensor) -> Tensor:
    """Points (..., 2) moved into boxes (..., 4) xyxy that broadcast; padding around an image must not hold any."""
    return points.maximum(limits[..., :2].to(points)).minimum(limits[..., 2:].to(points))


def best_cells(
    scores: Tensor,
    probabilities: Tensor,
    sizes: Sequence[int],
    config: DecodeConfig,
    rank: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Candidate cells of every image, best first.

    Args:
        scores: (B, P) in [0, 1], rank the candidates.
        probabilities: (B, P) in [0, 1], compared with ``score_floor``.
        sizes: Number of cells of each part; ``top_k`` counts within a part: the levels, or all P cells together.
        rank: (B, P) numbers by which ``top_k`` chooses; default: ``scores``.

    Returns:
        (B, n) scores, 0 where the floor drops the cell, and (B, n) indices of the cells.
    """
    chosen = _top_of_each(scores if rank is None else rank, sizes, config.top_k)
    scores = scores.gather(1, chosen).where(probabilities.gather(1, chosen) > config.score_floor, 0.0)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return scores, chosen.gather(1, order)


def pick_cells(scores: Tensor, chosen: Tensor, boxes: Tensor, config: DecodeConfig) -> tuple[Tensor, Tensor]:
    """Scores and indices (B, n) of :func:`best_cells` that survive suppression by ``boxes`` (B, n, 4), best first."""
    picks, kept = pick_boxes(
        boxes,
        scores,
        rule=config.nms,
        threshold=config.nms_threshold,
        sigma=config.nms_sigma,
        min_score=config.min_score,
        limit=config.max_poses,
    )
    return kept, chosen.gather(1, picks)


def suppress(
    poses: Sequence[Poses],
    config: DecodeConfig,
    *,
    pixels: bool = False,
    ratios: Tensor | None = None,
    decay_keypoints: bool = True,
) -> list[Poses]:
    """Candidates of every image -> at most ``max_poses`` poses, best first, scores decayed by overlap.

    Further arguments are those of :func:`posefleet.models.parts.ops.nms.suppress_poses`.
    """
    return suppress_poses(
        poses,
        rule=config.nms,
        threshold=config.nms_threshold,
        sigma=config.nms_sigma,
        min_score=config.min_score,
        limit=config.max_poses,
        pixels=pixels,
        ratios=ratios,
        decay_keypoints=decay_keypoints,
    )


def _top_of_each(scores: Tensor, sizes: Sequence[int], count: int) -> Tensor:
    """(B, n) indices of the ``count`` best cells of each part of (B, P); ``sizes`` are the parts' numbers of cells."""
    chosen, start = [], 0
    for part in scores.split(list(sizes), dim=1):
        if part.shape[1] > count:
            chosen.append(start + part.topk(count, dim=1).indices)
        else:
            chosen.append((start + torch.arange(part.shape[1], device=scores.device)).expand(len(scores), -1))
        start += part.shape[1]
    return torch.cat(chosen, dim=1)
