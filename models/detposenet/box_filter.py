"""Coarse-pose filtering: bottom-up poses choose the boxes that are refined, instead of box NMS.

This is Algorithm 1 of DetPoseNet. Its pseudo-code, text and figures differ; this version is consistent: a box without a
pose is a false detection, a box whose pose was already accepted is redundant, and a pose without a box of its own gets
a box around its keypoints. The default departs from the paper in four points, each a switch of :class:`FilterConfig`;
:meth:`FilterConfig.paper` has none of them. ``tests/bench/bench_filter.py`` measures what each brings.

Pure functions of the boxes and poses of one image, on the host. Letters: D boxes, N poses, K keypoints.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from posefleet.models.detposenet.pose_nms import pose_oks
from posefleet.models.parts.ops.assign import pseudo_boxes
from posefleet.models.parts.ops.counts import in_proportion
from posefleet.models.parts.ops.nms import box_iou, widen

Source = Literal["normal", "recovered", "unmatched", "uncovered"]
"""Origin of a box: detected, with a pose of its own; made around the second pose of a detected box; made around a pose
without a box; detected, without a pose, and left by box NMS."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterConfig:
    """Which boxes are refined."""

    mode: Literal["coarse", "nms", "none"] = "coarse"
    """Coarse-pose filtering, box NMS, or no filter (every box is refined, which is slow)."""
    delta_kpt: int = 3
    """A pose with at most this many keypoints is a false detection; at least 0, usually 1..8. It is stated for COCO's
    17 keypoints: other schemas have the same share of theirs, rounded. Raised, fewer false boxes and fewer mostly
    hidden people are refined."""
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
    """0..1, IoU of boxes above which box NMS drops the box of lower score: of all boxes with ``mode: nms``, of boxes
    without a pose with ``uncovered: nms``. Raised, more boxes remain."""
    box: Literal["first", "fit", "mean"] = "fit"
    """The box of a pose, among the detected ones that it fits best. ``first``: that of the highest score, as in the
    paper; in crowds it is often mostly another person's. ``fit``: that of the largest IoU with the pose's own box.
    ``mean``: of a pose with all keypoints, the mean of that box and its own; the fewer a pose has, the less its own box
    counts in the mean, and the more the scores count in the choice. It is the best with perfect maps, and the worst
    where trained maps put a keypoint elsewhere. All three keep the highest score."""
    uncovered: Literal["nms", "drop"] = "nms"
    """Boxes that contain no pose: leave to box NMS, or drop as false detections, as in the paper. ``nms`` finds people
    who have too few keypoints for a coarse pose, and refines false detections, which costs time."""
    merge_fragments: bool = True
    """Join two poses without a common keypoint where a detected box fits them together better than any box fits one of
    them. Without it a person whose limbs were not all found is several poses, and each gets a box."""
    scale_recovered: bool = True
    """Multiply the score of a box made around the second pose of a detected box by the share of keypoints that the pose
    has. Without it a few keypoints that are wrong rank as high as the detected person."""

    def __post_init__(self) -> None:
        if self.delta_kpt < 0:
            raise ValueError(f"delta_kpt must not be negative, but is {self.delta_kpt}")
        if not 0 <= self.t_cov <= 1 or self.t_oks <= 0:
            raise ValueError(f"t_cov {self.t_cov} must be 0..1 and t_oks {self.t_oks} above 0")
        if not 1 <= self.margin <= 2:
            raise ValueError(f"margin must be 1..2, not {self.margin}")
        if not 0 <= self.nms_threshold <= 1:
            raise ValueError(f"nms_threshold must be 0..1, not {self.nms_threshold}")

    @classmethod
    def paper(cls) -> Self:
        """Algorithm 1 of the paper, without the departures."""
        return cls(box="first", uncovered="drop", merge_fragments=False, scale_recovered=False)


@dataclass(frozen=True, slots=True)
class Filtered:
    """The boxes that passed the filter, in the order of acceptance."""

    boxes: Tensor
    """(n, 4) xyxy, pixels."""
    scores: Tensor
    """(n,) in [0, 1]."""
    poses: list[int]
    """Row of the pose of each box, the first one of a merged pose; -1 for a box without a pose."""
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
        kept = _nms(boxes, scores, config.nms_threshold)
        boxes, scores = boxes[kept], scores[kept]
    return Filtered(boxes, scores, [-1] * len(boxes), ["normal"] * len(boxes))


def _nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    from torchvision.ops import nms  # seconds to import

    kept: Tensor = nms(boxes, scores, threshold)
    return kept


def _by_poses(
    boxes: Tensor,
    scores: Tensor,
    keypoints: Tensor,
    keypoint_scores: Tensor,
    sigmas: Tensor,
    size: tuple[int, int],
    config: FilterConfig,
) -> Filtered:
    """Decide about every pose once, in the order of the algorithm's tuples (box, pose), then about boxes without one.

    Only the first tuple of a pose matters. A dropped pose stays dropped, because the set of accepted poses only grows.
    An accepted pose makes its own later tuples redundant.
    """
    rows = torch.arange(len(keypoints))
    if config.merge_fragments:
        keypoints, keypoint_scores, rows = _merge_fragments(boxes, keypoints, keypoint_scores, size, config)
    enough = (keypoint_scores > 0).sum(1) > in_proportion(config.delta_kpt, keypoints.shape[1])
    keypoints, keypoint_scores, rows = keypoints[enough], keypoint_scores[enough], rows[enough]
    identified = keypoint_scores > 0
    own_boxes = boxes_of_poses(keypoints, identified, size, config.margin)
    solid = (widen(tight := pseudo_boxes(keypoints, identified)) == tight).all(1)  # a thin box does not say how large
    complete = identified.float().mean(1)  # (N,)
    fit = _fit(boxes, keypoints, identified, size, config)
    worth = complete * fit + (1 - complete) * scores[:, None] if config.box == "mean" else fit
    matched = _match(fit, worth)
    similar = (pose_oks(keypoints, identified, sigmas) >= config.t_oks).tolist()
    own_scores = 0.5 * keypoint_scores.sum(1) / identified.sum(1).clamp(min=1)
    shares = complete if config.scale_recovered else torch.ones(len(rows))

    accepted: list[int] = []
    chosen: list[Tensor] = []
    chosen_scores: list[Tensor] = []
    sources: list[Source] = []
    used: set[int] = set()
    for pose in matched.turn.argsort(stable=True).tolist():
        first, best = int(matched.first[pose]), int(matched.best[pose])
        if any(similar[pose][other] for other in accepted):
            continue
        if first < 0 and not config.recover_unmatched:
            continue
        accepted.append(pose)
        taken = first in used if config.box == "first" else best < 0
        if first < 0:
            sources.append("unmatched")
            chosen.append(own_boxes[pose])
            chosen_scores.append(own_scores[pose])
        elif taken:
            sources.append("recovered")
            chosen.append(own_boxes[pose])
            chosen_scores.append(scores[first] * shares[pose])
        else:
            sources.append("normal")
            fitting = boxes[first if config.box == "first" else best]
            own = complete[pose] * solid[pose] * (config.box == "mean")
            chosen.append((fitting + own * own_boxes[pose]) / (1 + own))
            chosen_scores.append(scores[first])
        used.add(first)
    poses = rows[accepted].tolist()
    if config.uncovered == "nms":
        for box in _uncovered(boxes, scores, matched.covered, chosen, config.nms_threshold):
            chosen.append(boxes[box])
            chosen_scores.append(scores[box])
            sources.append("uncovered")
            poses.append(-1)
    if not chosen:
        return Filtered(boxes[:0], scores[:0], [], [])
    return Filtered(torch.stack(chosen), torch.stack(chosen_scores).clamp(0, 1), poses, sources)


_AS_WELL = 0.05
"""IoU by which the fit of two fragments may be below that of the better one where they are joined all the same."""


class _Matched(NamedTuple):
    """Which of D boxes, best first, belong to which of N poses."""

    turn: Tensor
    """(N,) int64, the order in which poses are decided about: that of their first tuples."""
    first: Tensor
    """(N,) int64, box of the first tuple of each pose; -1 where no box contains it."""
    best: Tensor
    """(N,) int64, of the boxes whose best pose this is, the one of the highest worth; -1 where there is none."""
    covered: Tensor
    """(D,) bool, boxes that contain a pose."""


def _match(fit: Tensor, worth: Tensor) -> _Matched:
    """Match boxes and poses by their fit (D, N) and, of the boxes of a pose, by their worth to it (D, N).

    Tuples are all boxes (best first) with their best pose, then all boxes with their other poses.
    """
    count, people = fit.shape
    last = 2 * count * people  # poses without a box come at the end, in their own order
    if not count or not people:
        nothing = torch.full((people,), -1)
        return _Matched(torch.full((people,), last), nothing, nothing, torch.zeros(count, dtype=torch.bool))
    associated = fit >= 0
    rank = fit.argsort(dim=1, descending=True, stable=True).argsort(1)  # of the poses of a box; ties: the lower index
    place = torch.arange(count)[:, None] * people + rank
    turns = torch.where(rank == 0, place, count * people + place).where(associated, last)
    turn, first = turns.min(0)
    highest, best = worth.where(associated & (rank == 0), -1.0).max(0)
    return _Matched(turn, first.where(turn < last, -1), best.where(highest >= 0, -1), associated.any(1))


def _associated(boxes: Tensor, keypoints: Tensor, identified: Tensor, t_cov: float) -> Tensor:
    """(D, N) bool, whether a box contains at least ``t_cov`` of the identified keypoints of a pose."""
    x, y = keypoints[None].unbind(-1)  # (1, N, K)
    x1, y1, x2, y2 = boxes[:, None, None].unbind(-1)  # (D, 1, 1)
    inside = (x >= x1) & (x <= x2) & (y >= y1) & (y <= y2) & identified
    covered = inside.sum(-1) / identified.sum(-1).clamp(min=1)
    return (covered >= t_cov - 1e-6) & identified.any(-1)


def _uncovered(boxes: Tensor, scores: Tensor, covered: Tensor, accepted: list[Tensor], threshold: float) -> list[int]:
    """Boxes that contain no pose and that NMS leaves; boxes which a pose got suppress them, too."""
    free = torch.nonzero(~covered)[:, 0]
    if accepted and len(free):
        overlap = box_iou(boxes[free, None], torch.stack(accepted)[None]).amax(1)
        free = free[overlap <= threshold]
    kept: list[int] = free[_nms(boxes[free], scores[free], threshold)].tolist()
    return kept


def _merge_fragments(
    boxes: Tensor, keypoints: Tensor, keypoint_scores: Tensor, size: tuple[int, int], config: FilterConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Join poses without a common keypoint that belong to the same box, best fit first.

    One of them must count as a pose, with more than ``delta_kpt`` keypoints: peaks that are found twice leave small
    fragments, which are nobody together. Two are joined where a box fits them together better than any box fits one of
    them; and where it fits them as well as the better one alone, if no box prefers the other to all poses.

    Returns:
        Keypoints (n, K, 2) and their scores (n, K) of the poses that are left, and the rows (n,) that they had.
    """
    rows = torch.arange(len(keypoints))
    while len(boxes) and len(rows) > 1:
        identified = keypoint_scores > 0
        fit = _fit(boxes, keypoints, identified, size, config)  # (D, N)
        belongs = (fit >= 0).float()
        together = belongs.T @ belongs > 0  # in some box
        one, other = torch.triu_indices(len(rows), len(rows), 1)
        enough = identified.sum(1) > in_proportion(config.delta_kpt, identified.shape[1])
        apart = ~(identified[one] & identified[other]).any(1) & together[one, other]
        apart &= enough[one] | enough[other]
        one, other = one[apart], other[apart]
        if not len(one):
            break
        joint = keypoints[one].where(identified[one][..., None], keypoints[other])
        alone, preferred = fit.amax(0), torch.zeros(len(rows), dtype=torch.bool)
        preferred[fit.argmax(1)[fit.amax(1) >= 0]] = True  # by a box, over all other poses
        gain = _fit(boxes, joint, identified[one] | identified[other], size, config).amax(0)
        most, lesser = torch.maximum(alone[one], alone[other]), torch.where(alone[one] < alone[other], one, other)
        better = (gain > most + 1e-6) | ((gain >= most - _AS_WELL) & (gain >= 0) & ~preferred[lesser])
        if not better.any():
            break
        pick = int(gain.where(better, -1.0).argmax())
        a, b = int(one[pick]), int(other[pick])
        keypoints, keypoint_scores = keypoints.clone(), keypoint_scores.clone()
        keypoints[a], keypoint_scores[a] = joint[pick], torch.maximum(keypoint_scores[a], keypoint_scores[b])
        left = torch.arange(len(rows)) != b
        keypoints, keypoint_scores, rows = keypoints[left], keypoint_scores[left], rows[left]
    return keypoints, keypoint_scores, rows


def _fit(boxes: Tensor, keypoints: Tensor, identified: Tensor, size: tuple[int, int], config: FilterConfig) -> Tensor:
    """(D, N) IoU of each detected box with the own box of each pose that belongs to it; -1 for other poses."""
    own = boxes_of_poses(keypoints, identified, size, config.margin)
    associated = _associated(boxes, keypoints, identified, config.t_cov)
    return box_iou(boxes[:, None], own[None]).where(associated, -1.0)


def boxes_of_poses(keypoints: Tensor, identified: Tensor, size: tuple[int, int], margin: float) -> Tensor:
    """Tight boxes (N, 4) of identified keypoints, widened if they are thin, their sides scaled by ``margin``, clipped
    to an image of ``size``."""
    tight = widen(pseudo_boxes(keypoints, identified))
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
