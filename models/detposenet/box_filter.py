"""Coarse-pose filtering: bottom-up poses choose the boxes that are refined, instead of box NMS.

This is Algorithm 1 of DetPoseNet. Its pseudo-code, text and figures differ; this version is consistent: a box without a
pose is a false detection, a box whose pose was already accepted is redundant, and a pose without a box of its own gets
a box around its keypoints. Pure functions of the boxes and poses of one image, on the host. Letters: D boxes, N poses,
K keypoints.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from posefleet.models.detposenet.pose_nms import pose_oks
from posefleet.models.parts.ops.assign import pseudo_boxes
from posefleet.models.parts.ops.nms import box_iou

Source = Literal["normal", "recovered", "unmatched"]
"""Origin of a box: detected; made around the second pose of a detected box; made around a pose without a box."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterConfig:
    """Which boxes are refined."""

    mode: Literal["coarse", "nms", "none"] = "coarse"
    """Coarse-pose filtering, box NMS, or no filter (every box is refined, which is slow)."""
    delta_kpt: int = 3
    """A pose with at most this many keypoints is a false detection; at least 0, usually 1..8. Raised, fewer false boxes
    and fewer mostly hidden people are refined."""
    t_oks: float = 0.7
    """OKS from which two poses count as one person, usually 0.4..0.9. Raised, more overlapping people and duplicates
    remain; above 1 no pose is redundant."""
    t_cov: float = 0.6
    """0..1, share of a pose's keypoints that a box must contain to belong to that pose. Raised, fewer boxes match."""
    margin: float = 1.2
    """Side of a box made from keypoints, in sides of their tight box, 1..2, usually up to 1.5."""
    recover_unmatched: bool = True
    """Also refine poses that no box contains. This finds people whom the detector misses, and costs time."""
    nms_threshold: float = 0.5
    """0..1, IoU of boxes above which ``nms`` drops the box of lower score. Raised, more boxes remain."""

    def __post_init__(self) -> None:
        if self.delta_kpt < 0:
            raise ValueError(f"delta_kpt must not be negative, but is {self.delta_kpt}")
        if not 0 <= self.t_cov <= 1 or self.t_oks <= 0:
            raise ValueError(f"t_cov {self.t_cov} must be 0..1 and t_oks {self.t_oks} above 0")
        if not 1 <= self.margin <= 2:
            raise ValueError(f"margin must be 1..2, not {self.margin}")


@dataclass(frozen=True, slots=True)
class Filtered:
    """The boxes that passed the filter, in the order of acceptance."""

    boxes: Tensor
    """(n, 4) xyxy, pixels."""
    scores: Tensor
    """(n,) in [0, 1]."""
    poses: list[int]
    """Row of the pose of each box; -1 where the mode uses no poses."""
    sources: list[Source]
    """Origin of each box."""


def filter_boxes(
    boxes: Tensor,
    scores: Tensor,
    keypoints: Tensor,
    keypoint_scores: Tensor,
    sigmas: Tensor,
    size: tuple[int, int],
    config: FilterConfig,
) -> Filtered:
    """Choose the boxes of one image that are refined.

    Args:
        boxes: (D, 4) xyxy, pixels.
        scores: (D,) in [0, 1].
        keypoints: (N, K, 2) xy of coarse poses, pixels.
        keypoint_scores: (N, K), above 0 where a keypoint was identified.
        sigmas: (K,) deviations of the schema.
        size: (height, width) of the image, pixels.
        config: Mode and thresholds.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes, scores = boxes[order], scores[order]
    if config.mode == "coarse":
        return _by_poses(boxes, scores, keypoints, keypoint_scores, sigmas, size, config)
    if config.mode == "nms":
        from torchvision.ops import nms  # seconds to import

        kept = nms(boxes, scores, config.nms_threshold)
        boxes, scores = boxes[kept], scores[kept]
    return Filtered(boxes, scores, [-1] * len(boxes), ["normal"] * len(boxes))


def _by_poses(
    boxes: Tensor,
    scores: Tensor,
    keypoints: Tensor,
    keypoint_scores: Tensor,
    sigmas: Tensor,
    size: tuple[int, int],
    config: FilterConfig,
) -> Filtered:
    """Decide about every pose once, in the order of the algorithm's tuples (box, pose).

    Only the first tuple of a pose matters. A dropped pose stays dropped, because the set of accepted poses only grows.
    An accepted pose makes its own later tuples redundant.
    """
    identified = keypoint_scores > 0
    own_boxes = boxes_of_poses(keypoints, identified, size, config.margin)
    turn, box = _first_tuple(boxes, keypoints, identified, own_boxes, config.t_cov)
    similar = (pose_oks(keypoints, identified, sigmas) >= config.t_oks).tolist()
    enough = (identified.sum(1) > config.delta_kpt).tolist()
    own_scores = 0.5 * keypoint_scores.sum(1) / identified.sum(1).clamp(min=1)

    accepted: list[int] = []
    chosen: list[Tensor] = []
    chosen_scores: list[Tensor] = []
    sources: list[Source] = []
    used: set[int] = set()
    for pose in turn.argsort(stable=True).tolist():
        b = int(box[pose])
        if not enough[pose] or any(similar[pose][other] for other in accepted):
            continue
        if b < 0 and not config.recover_unmatched:
            continue
        source: Source = "unmatched" if b < 0 else "recovered" if b in used else "normal"
        accepted.append(pose)
        chosen.append(boxes[b] if source == "normal" else own_boxes[pose])
        chosen_scores.append(own_scores[pose] if source == "unmatched" else scores[b])
        sources.append(source)
        used.add(b)
    if not accepted:
        return Filtered(boxes[:0], scores[:0], [], [])
    return Filtered(torch.stack(chosen), torch.stack(chosen_scores).clamp(0, 1), accepted, sources)


def _first_tuple(
    boxes: Tensor, keypoints: Tensor, identified: Tensor, own_boxes: Tensor, t_cov: float
) -> tuple[Tensor, Tensor]:
    """The turn of each pose (N,), and its box (N,), -1 where no box contains it.

    Tuples are all boxes (best first) with their best pose, then all boxes with their other poses.
    """
    count, people = len(boxes), len(keypoints)
    last = 2 * count * people  # poses without a box come at the end, in their own order
    if not count or not people:
        return torch.full((people,), last), torch.full((people,), -1)
    x, y = keypoints[None].unbind(-1)  # (1, N, K)
    x1, y1, x2, y2 = boxes[:, None, None].unbind(-1)  # (D, 1, 1)
    inside = (x >= x1) & (x <= x2) & (y >= y1) & (y <= y2) & identified
    covered = inside.sum(-1) / identified.sum(-1).clamp(min=1)
    associated = (covered >= t_cov - 1e-6) & identified.any(-1)  # (D, N)
    fit = box_iou(boxes[:, None], own_boxes[None]).where(associated, -1.0)
    rank = fit.argsort(dim=1, descending=True, stable=True).argsort(1)  # of the poses of a box; ties: the lower index
    place = torch.arange(count)[:, None] * people + rank
    turns = torch.where(rank == 0, place, count * people + place).where(associated, last)
    turn, box = turns.min(0)
    return turn, box.where(turn < last, -1)


def boxes_of_poses(keypoints: Tensor, identified: Tensor, size: tuple[int, int], margin: float) -> Tensor:
    """Tight boxes (N, 4) of identified keypoints, their sides scaled by ``margin``, clipped to an image of ``size``."""
    tight = pseudo_boxes(keypoints, identified)
    centre, half = (tight[:, :2] + tight[:, 2:]) / 2, (tight[:, 2:] - tight[:, :2]) * margin / 2
    limit = torch.tensor([size[1], size[0]], dtype=tight.dtype)
    return torch.cat([(centre - half).clamp(min=0).minimum(limit), (centre + half).clamp(min=0).minimum(limit)], 1)


# ---------------------------------------------------------------------------------------------------- oracles

Oracle = Literal["no_false", "no_missed", "annotated"]
"""Correction of boxes: remove those without a person, add those of missed people, or use the annotated ones alone."""

_FOUND = 0.5
"""IoU from which a box counts as a detection of an annotated box."""


def correct_boxes(boxes: Tensor, scores: Tensor, annotated: Tensor, oracle: Oracle) -> tuple[Tensor, Tensor]:
    """Correct boxes (D, 4) and their scores (D,) by annotated boxes (M, 4); annotated boxes get score 1."""
    if oracle == "annotated":
        return annotated, scores.new_ones(len(annotated))
    found = box_iou(boxes[:, None], annotated[None]) >= _FOUND  # (D, M)
    if oracle == "no_false":
        kept = found.any(1)
        return boxes[kept], scores[kept]
    missed = annotated[~found.any(0)]
    return torch.cat([boxes, missed]), torch.cat([scores, scores.new_ones(len(missed))])
