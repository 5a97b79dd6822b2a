"""PFS: multi-person pose regression by filtering and scoring of poses (Miao et al.).

FCOS made into a pose regressor: every cell of P3..P7 says whether a person answers to it and gives a whole pose as
offsets from the cell. A deformable convolution steered by this first pose re-aligns the regression features, from
which a correction is read. The OKSFilter lets only those cells train the correction whose first pose is already like
some person (OKS >= 0.5). The pose scoring module (PSM) learns the OKS of the final pose and takes the place of FCOS's
centre-ness: in the ranking, and, as the true OKS, in the weights of the second loss. A keypoint map on P3 helps
training and is not used afterwards.

The paper came without code; where it is silent, the defaults are what the same authors released for SMPR, and FCOS's.
Deviations: GroupNorm inside the alignment (``align_norm``), without which the second stage dies within a few steps;
cells that the filter drops still train the PSM, or it would never see a bad pose.

Letters: B images, M people of an image (padded), P cells, N rows of cells, K keypoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from posefleet.data.keypoints import KeypointSchema
from posefleet.data.structures import People, Poses
from posefleet.models.parts.layers.backbones import BackboneConfig
from posefleet.models.parts.layers.fpn import FPN
from posefleet.models.parts.ops import decode as decoding
from posefleet.models.parts.ops.assign import PaddedPeople, Positives, unlabelled_cells
from posefleet.models.parts.ops.cells import Cells, decode_offsets, flatten_levels, map_sizes, pyramid_cells
from posefleet.models.parts.ops.heatmaps import cell_class_targets
from posefleet.models.parts.ops.losses import bce_loss, focal_loss, mean_counts
from posefleet.models.parts.regression import pose_head
from posefleet.models.parts.regression.oks_gate import Match, OksMatch, assignment_stats, best_oks, oks_gate
from posefleet.models.parts.regression.pose_head import Maps
from posefleet.models.parts.regression.pose_loss import pose_loss
from posefleet.models.parts.regression.positives import (
    CellTargets,
    PositivesConfig,
    assign,
    every_cell,
    gather_rows,
    known_cells,
    pad_for,
    positives_of,
    random_negatives,
    truth_at,
)
from posefleet.models.parts.regression.pyramid_model import Neck, PyramidModel


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadConfig(pose_head.HeadConfig):
    """What the head predicts, and how wide and deep it is; ``psm`` and ``centerness`` choose what learns quality."""

    align_cls: bool = False
    """Let the classification read aligned features, too, and not only the regression and the pose score."""
    offset_groups: int = 1
    """Groups of channels with sampling points of their own; divides ``channels``."""
    offset_bias: bool = True
    """Bias of the layer that turns a pose into sampling points."""
    offset_std: float = 0.01
    """Deviation of that layer's weights if they start ``normal``."""
    gradient_mul: float = 0.1
    """0..1: share of the sampling points' gradient that reaches the first pose."""
    output_kernel: Literal[1, 3] = 1
    """Kernel size of the layers that read aligned features; those that read a tower have 3."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AssignConfig(PositivesConfig):
    """Which cells are positive, the set S1."""

    ignore_unlabelled: bool = True
    """No classification and keypoint-map loss inside boxes of crowds and of people without keypoints, but at what is
    known to be positive there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterConfig:
    """OKSFilter: which cells train the second stage, the set S2."""

    enabled: bool = True
    """Without the filter these are all of S1, each for the person to whom it is assigned."""
    threshold: float = 0.5
    """0..1: cells whose first pose has a lower OKS are dropped."""
    warmup_steps: int = 0
    """Training steps over which the threshold rises from ``warmup_start``; 0: it does not."""
    warmup_start: float = 0.1
    """0..``threshold``, where it rises from."""
    match: Match = "max"
    """Judge a pose by the most similar person of the image and refine it towards that one, or by the assigned one."""
    candidates: Literal["positives", "all"] = "positives"
    """Cells that may pass: those of S1, or any; the latter compares every cell with every person and is slow."""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be 0..1, not {self.threshold}")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must not be negative, but is {self.warmup_steps}")
        if self.warmup_steps and not 0 <= self.warmup_start <= self.threshold:
            raise ValueError(f"warmup_start must be 0..threshold {self.threshold}, not {self.warmup_start}")
        if self.candidates == "all" and self.match == "assigned":
            raise ValueError("candidates is 'all' but match is 'assigned': most cells are assigned to nobody")


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """Weights and forms of the losses."""

    cls: float = 1.0
    """Weight of the classification."""
    heatmap: float = 4.0
    """Weight of the keypoint map."""
    init: float = 0.05
    """Weight of the first pose, whose error is in cells."""
    refine: float = 0.1
    """Weight of the second pose, whose error is in cells."""
    psm: float = 1.0
    """Weight of the pose score."""
    centerness: float = 1.0
    """Weight of the centre-ness."""
    alpha: float | None = 0.25
    """0..1, balance of positives and negatives in both focal losses; null is eq. 8 as printed, without a balance."""
    gamma: float = 2.0
    """Focus of both focal losses on hard cells, at least 0."""
    beta: float = 1.0
    """Where the smooth L1 of both poses turns linear, cells, above 0."""
    refine_weight: Literal["oks", "centerness", "none"] = "oks"
    """What weights the cells in the second pose's loss: the OKS of that pose, the cells' centre-ness (as in all of the
    paper's rows that train the centre-ness branch), or nothing."""
    weight_power: float = 1.0
    """Exponent of that weight, at least 0."""
    psm_cells: Literal["s1", "s2"] = "s1"
    """Cells that train the pose score: all positive ones, or those that pass the filter."""
    psm_negatives: int = 0
    """Random cells of each image that are not positive and train the pose score, too."""
    heatmap_target: Literal["multihot", "index"] = "multihot"
    """Where several keypoints share a cell of the keypoint map it has all their classes, or the last one's."""

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be 0..1 or null, not {self.alpha}")
        if self.beta <= 0:
            raise ValueError(f"beta must be above 0, not {self.beta}")
        for name in ("gamma", "weight_power", "psm_negatives"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, but is {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeConfig(decoding.DecodeConfig):
    """Which cells become poses, and how duplicates lose."""

    max_poses: int = 100
    """Poses of one image, at least 1; COCO counts 20."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """PFS; the defaults are the paper's complete method."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """Where features come from."""
    neck: Neck = "fpn"
    """Feature pyramid."""
    head: HeadConfig = field(default_factory=HeadConfig)
    """What is predicted."""
    assign: AssignConfig = field(default_factory=AssignConfig)
    """Which cells are positive."""
    filter: FilterConfig = field(default_factory=FilterConfig)
    """Which cells train the second stage."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Losses and their weights."""
    quality: Literal["psm", "centerness", "none"] = "psm"
    """What multiplies the classification to rank poses."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    """Which cells become poses, and how duplicates lose."""

    def __post_init__(self) -> None:
        if self.quality != "none" and not getattr(self.head, self.quality):
            raise ValueError(f"quality is {self.quality!r} but head.{self.quality} is false: nothing learns it")
        if self.filter.candidates == "all" and not self.filter.enabled:
            raise ValueError("filter.candidates is 'all' but filter.enabled is false: every cell would be refined")
        if self.filter.candidates == "all" and self.loss.refine_weight == "centerness":
            raise ValueError("filter.candidates is 'all' but loss.refine_weight is 'centerness', which few cells have")


class Model(PyramidModel[Config]):
    """PFS as a :class:`posefleet.models.PoseModel`."""

    decoding: ClassVar = ("decode", "quality")
    minimum_counts: Tensor
    steps: Tensor
    """0-dim int64, training steps done; there only if the threshold of the filter rises."""
    diagnostics: dict[str, Tensor]
    """What the last training step saw, as 0-dim tensors on the device: ``alive`` (see :class:`pose_head.Head`; 0 means
    that the second stage is dead), ``initial_oks`` and ``refined_oks`` (means over the candidate cells), ``kept``
    (share of them that train the second stage), ``swapped`` (share whose pose resembles another person more than the
    assigned one). Empty without a second stage."""

    def __init__(self, config: Config, schema: KeypointSchema) -> None:
        super().__init__(config, schema)
        optional = ("refine", "psm", "centerness", "heatmap")
        self.loss_names = ("cls", "init", *(name for name in optional if getattr(config.head, name)))
        minimum = torch.tensor([1e-6 if name == "refine" else 1.0 for name in self.loss_names])
        self.register_buffer("minimum_counts", minimum, persistent=False)
        if config.filter.warmup_steps:
            self.register_buffer("steps", torch.tensor(0))
        self.diagnostics = {}

    @property
    def score_rule(self) -> str:
        """How poses are ranked, for the protocol that stands beside every AP."""
        decode, quality = self.config.decode, self.config.quality
        product = "cls" if quality == "none" else f"cls * {quality}"
        return f"{product}, cls > {decode.score_floor:g}, {decode.nms} NMS at {decode.nms_threshold:g}"

    # ------------------------------------------------------------------------------------------------ losses

    def losses(self, maps: Maps, people: list[People]) -> dict[str, Tensor]:
        """Weighted losses ``cls``, ``init`` and, if they are switched on, ``refine``, ``psm``, ``centerness``,
        ``heatmap``."""
        config = self.config
        cells = pyramid_cells(map_sizes(maps["cls"]), FPN.strides, self.sigmas.device)
        padded = pad_for(people, self.sigmas.device, config.assign)
        assignment = assign(cells, padded, config.assign)  # (B, P)
        rows = positives_of(assignment, padded, config.assign)  # the set S1
        used, truth = rows.used.float(), truth_at(rows, cells, padded)

        # Name -> sum of the loss, and the count that, averaged over ranks, divides it.
        terms = {
            "cls": (self._cls_loss(maps, cells, padded, assignment >= 0), used.sum()),
            "init": (self._pose_loss(gather_rows(maps["init"], rows), truth, used), used.sum()),
        }
        if config.head.refine:
            terms |= self._second_stage(maps, cells, padded, assignment, rows)
        if config.head.centerness:
            logits = gather_rows(maps["centerness"], rows)[:, 0]
            terms["centerness"] = bce_loss(logits, centerness(truth.points, truth.boxes), used), used.sum()
        if config.head.heatmap:
            terms["heatmap"] = self._heatmap_loss(maps["heatmap"][0], cells, padded)
        counts = mean_counts(torch.stack([terms[name][1] for name in self.loss_names]), self.minimum_counts).unbind()
        return {
            name: getattr(config.loss, name) * terms[name][0] / count
            for name, count in zip(self.loss_names, counts, strict=True)
        }

    def _cls_loss(self, maps: Maps, cells: Cells, people: PaddedPeople, positive: Tensor) -> Tensor:
        loss = self.config.loss
        known = known_cells(cells, people, positive) if self.config.assign.ignore_unlabelled else None
        logits = flatten_levels(maps["cls"])[..., 0]
        return focal_loss(logits, positive, known, alpha=loss.alpha, gamma=loss.gamma)

    def _pose_loss(self, offsets: Tensor, truth: CellTargets, weights: Tensor) -> Tensor:
        return pose_loss(offsets, truth, weights, self.sigmas, form="smooth_l1", beta=self.config.loss.beta)

    def _second_stage(
        self, maps: Maps, cells: Cells, people: PaddedPeople, assignment: Tensor, positives: Positives
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Losses of the second pose and of its score, with their counts."""
        config, loss = self.config, self.config.loss
        rows = positives if config.filter.candidates == "positives" else every_cell(assignment, people)
        judged = self._filter(_poses(maps["init"], cells, rows), rows, people)
        reached = best_oks(_poses(maps["refine"], cells, rows), rows, people, self.sigmas)

        target = truth_at(rows, cells, people, judged.match)
        weight = self._refine_weights(reached, truth_at(rows, cells, people)) * judged.kept
        terms = {"refine": (self._pose_loss(gather_rows(maps["refine"], rows), target, weight), weight.sum())}
        if config.head.psm:
            positive = rows.used & (assignment.flatten()[rows.index] >= 0)
            chosen = (positive if loss.psm_cells == "s1" else judged.kept).float()
            score, count = bce_loss(gather_rows(maps["psm"], rows)[:, 0], reached, chosen), chosen.sum()
            if loss.psm_negatives:
                rest = random_negatives(assignment, loss.psm_negatives)
                oks = best_oks(_poses(maps["refine"], cells, rest), rest, people, self.sigmas)
                score = score + bce_loss(gather_rows(maps["psm"], rest)[:, 0], oks, rest.used)
                count = count + rest.used.sum()
            terms["psm"] = score, count
        if self.training:
            self.diagnostics = assignment_stats(rows, judged)
            self.diagnostics["refined_oks"] = reached.sum() / rows.used.sum().clamp(min=1)
            if self.head.alive is not None:
                self.diagnostics["alive"] = self.head.alive
        return terms

    def _filter(self, poses: Tensor, rows: Positives, people: PaddedPeople) -> OksMatch:
        """OKSFilter (section 3.2) of first poses (N, K, 2)."""
        config = self.config.filter
        threshold: Tensor | float = config.threshold
        if config.warmup_steps:
            share = (self.steps / config.warmup_steps).clamp(max=1)
            threshold = config.warmup_start + (config.threshold - config.warmup_start) * share
            if self.training:
                self.steps += 1
        judged = oks_gate(poses, rows, people, self.sigmas, threshold=threshold, match=config.match)
        return judged if config.enabled else OksMatch(judged.oks, rows.used, rows.person)

    def _refine_weights(self, reached: Tensor, assigned: CellTargets) -> Tensor:
        """(N,) weight of each row: from the OKS of the second pose (N,), or from where the cell lies."""
        loss = self.config.loss
        if loss.refine_weight == "none":
            return torch.ones_like(reached)
        central = loss.refine_weight == "centerness"
        return (centerness(assigned.points, assigned.boxes) if central else reached).pow(loss.weight_power)

    def _heatmap_loss(self, logits: Tensor, cells: Cells, people: PaddedPeople) -> tuple[Tensor, Tensor]:
        """Focal loss of the keypoint map (B, K, h, w) of P3, and the number of its positives."""
        loss = self.config.loss
        (size,) = map_sizes([logits])
        target = cell_class_targets(people.keypoints, people.labelled, size, FPN.strides[0], loss.heatmap_target)
        known = None
        if self.config.assign.ignore_unlabelled:
            unlabelled = unlabelled_cells(cells, people)[:, : size[0] * size[1]].unflatten(1, (1, *size))
            known = ~unlabelled | (target > 0)
        return focal_loss(logits, target, known, alpha=loss.alpha, gamma=loss.gamma), target.sum()

    # ------------------------------------------------------------------------------------------------ decode

    def decode(self, maps: Maps, size: tuple[int, int]) -> list[Poses]:
        """Dense predictions of images of ``size`` (height, width) pixels -> candidate poses, best first."""
        config = self.config
        cells = pyramid_cells(map_sizes(maps["cls"]), FPN.strides, maps["cls"][0].device)
        scores = probabilities = flatten_levels(maps["cls"])[..., 0].sigmoid()  # (B, P)
        if config.quality != "none":
            scores = probabilities * flatten_levels(maps[config.quality])[..., 0].sigmoid()
        offsets = flatten_levels(maps["refine" if config.head.refine else "init"])
        return decoding.best_poses(scores, probabilities, offsets, cells, size, config.decode, rank=probabilities)


def _poses(levels: Sequence[Tensor], cells: Cells, rows: Positives) -> Tensor:
    """(N, K, 2) pixels, the poses that offsets (B, 2K, h, w) of all levels give at the rows; without gradients."""
    return decode_offsets(cells.points[rows.cell], cells.strides[rows.cell], gather_rows(levels, rows).detach())


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
