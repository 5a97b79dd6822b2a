"""PFS: multi-person pose regression by filtering and scoring of poses (Miao et al.).

PFS turns FCOS into a pose regressor. Every cell of P3..P7 predicts whether it belongs to a person, and a whole pose as
offsets from the cell. A deformable convolution steered by this first pose aligns the regression features, which give a
correction. Only cells whose first pose is already similar to a person (OKS >= 0.5) train the correction (OKSFilter).
The pose scoring module (PSM) learns the OKS of the final pose. It replaces FCOS's centre-ness in the ranking; the
measured OKS replaces it in the weights of the second loss. A keypoint map on P3 helps training and is not used
afterwards.

The paper has no code. Where it is silent, the defaults are those of SMPR, which the same authors released, and of
FCOS. Deviations: GroupNorm inside the alignment (``align_norm``), without which the second stage stops learning within
a few steps; cells that the filter drops still train the PSM, which would otherwise never see a bad pose.

Letters: B images, M people of an image (padded), P cells, N rows of cells, K keypoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.structures import Frames, People, Poses
from posefleet.models.parts.layers.backbones import BackboneConfig
from posefleet.models.parts.layers.fpn import FPN, Activation
from posefleet.models.parts.ops.assign import PaddedPeople, Positives, ignored_cells, supervised_cells
from posefleet.models.parts.ops.cells import Cells, decode_offsets, flatten_levels, map_sizes, pyramid_cells
from posefleet.models.parts.ops.heatmaps import cell_class_targets
from posefleet.models.parts.ops.losses import bce_loss, focal_loss, mean_counts
from posefleet.models.parts.regression import pose_head
from posefleet.models.parts.regression.oks_gate import Match, OksMatch, assignment_stats, best_oks, oks_gate
from posefleet.models.parts.regression.pose_decode import PoseDecodeConfig
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
    targets_at,
)
from posefleet.models.parts.regression.pyramid_model import Neck, PyramidModel


@dataclass(frozen=True, kw_only=True, slots=True)
class PfsHeadConfig(pose_head.PoseHeadConfig):
    """What the head predicts, and how wide and deep it is. ``psm`` and ``centerness`` are two branches that learn the
    quality of a pose."""

    align_cls: bool = False
    """Let the classification also read aligned features, like the regression and the pose score."""
    offset_groups: int = 1
    """Groups of channels, each with its own sampling points; divides ``channels``. More groups read more places."""
    offset_bias: bool = True
    """Bias of the layer that turns a pose into sampling points."""
    offset_std: float = 0.01
    """Deviation of that layer's weights if they start ``normal``. Raised, sampling points start further apart."""
    gradient_mul: float = 0.1
    """0..1: factor on the gradient that flows from the sampling points to the first pose; 0 stops it."""
    output_kernel: Literal[1, 3] = 1
    """Kernel size of the layers that read aligned features. Layers that read a tower have 3."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AssignConfig(PositivesConfig):
    """Which cells are positive: the set S1."""

    ignore_unlabelled: bool = True
    """Skip the classification and keypoint-map losses inside crowds and people without keypoints, except
    at positive cells. If false, these cells are negatives."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterConfig:
    """OKSFilter: which cells train the second stage, the set S2."""

    enabled: bool = True
    """Filter cells by OKS. If false, all cells of S1 train the second stage, each for its assigned person."""
    threshold: float = 0.5
    """0..1: cells whose first pose has a lower OKS are dropped. Raised, fewer and better first poses train the second
    stage, and its training starts later. The paper has 0.5."""
    warmup_steps: int = 0
    """Training steps over which the threshold rises from ``warmup_start`` to ``threshold``; 0: constant threshold."""
    warmup_start: float = 0.1
    """0..``threshold``, the threshold at the first step of the warm-up. Lowered, more cells train early."""
    match: Match = "max"
    """Person whose OKS counts and towards whom a pose is refined: the most similar one of the image (``max``), or the
    assigned one."""
    cls_target: Literal["s1", "s2"] = "s1"
    """Positives of the classification: all cells of S1, or those that pass the filter (S2), so that cells with a bad
    first pose are negatives. The paper says that bad poses affect "the classification of training samples", and the
    SMPR of the same authors has ``s2``; the paper's formulas do not. With ``s2`` nothing is positive until the first
    poses pass the threshold, so a high threshold and a short training go badly together."""
    candidates: Literal["positives", "all"] = "positives"
    """Cells that may pass: those of S1, or all. ``all`` compares every cell with every person and is slow."""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be 0..1, not {self.threshold}")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must not be negative, but is {self.warmup_steps}")
        if self.warmup_steps and not 0 <= self.warmup_start <= self.threshold:
            raise ValueError(f"warmup_start must be 0..threshold {self.threshold}, not {self.warmup_start}")
        if self.cls_target == "s2" and (self.candidates == "all" or not self.enabled):
            other = "candidates is 'all'" if self.candidates == "all" else "enabled is false"
            raise ValueError(f"cls_target is 's2' but {other}: S2 must be the cells of S1 that pass the filter")
        if self.candidates == "all" and self.match == "assigned":
            raise ValueError("candidates is 'all' but match is 'assigned': most cells are assigned to nobody")


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """Weights and forms of the losses. A raised weight makes that part learn faster than the others."""

    cls: float = 1.0
    """Weight of the classification."""
    heatmap: float = 4.0
    """Weight of the keypoint map."""
    init: float = 0.05
    """Weight of the first pose. Its error is in cells, summed over coordinates."""
    refine: float = 0.1
    """Weight of the second pose. Its error is in cells, summed over coordinates."""
    psm: float = 1.0
    """Weight of the pose score."""
    centerness: float = 1.0
    """Weight of the centre-ness."""
    alpha: float | None = 0.25
    """0..1, weight of positives in both focal losses; negatives have 1 - alpha. null weights both with 1, as eq. 8 is
    printed."""
    gamma: float = 2.0
    """Exponent of both focal losses, at least 0. Raised, easy cells count less."""
    beta: float = 1.0
    """Error at which the smooth L1 of both poses becomes linear, cells, above 0. Raised, small errors count less."""
    refine_weight: Literal["oks", "centerness", "none"] = "oks"
    """Weight of a cell in the second pose's loss: the OKS of that pose; the cell's centre-ness (as in all of the
    paper's rows that train the centre-ness branch); or 1."""
    weight_power: float = 1.0
    """Exponent of that weight, at least 0. Raised, good cells count even more than poor ones."""
    psm_cells: Literal["s1", "s2"] = "s1"
    """Cells that train the pose score: all positive cells, or those that pass the filter."""
    psm_negatives: int = 0
    """Number of random cells drawn in each image to also train the pose score, where they are not positive. Raised,
    the score learns more bad poses."""
    heatmap_target: Literal["multihot", "index"] = "multihot"
    """If several keypoints share a cell of the keypoint map, the cell has all their classes, or only the last one's."""

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be 0..1 or null, not {self.alpha}")
        if self.beta <= 0:
            raise ValueError(f"beta must be above 0, not {self.beta}")
        for name in ("gamma", "weight_power", "psm_negatives"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, but is {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeConfig(PoseDecodeConfig):
    """Which cells become poses, how duplicates are suppressed, and what the score of a keypoint is."""

    max_poses: int = 100
    """Largest number of poses of one image, at least 1; COCO evaluates 20. More is slower."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """PFS; the defaults are the paper's complete method."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """Network that computes features C3..C5."""
    neck: Neck = "fpn"
    """Feature pyramid. ``pafpn`` adds a path from fine to coarse levels to ``fpn`` and costs more time; ``hrfpn``, made
    for HRNet, fuses the maps of strides 4 to 32 and pools the result."""
    neck_activation: Activation = "none"
    """What follows every convolution of the pyramid; it must be what the weights were trained with. SMPR's authors
    released weights with ``relu``."""
    head: PfsHeadConfig = field(default_factory=PfsHeadConfig)
    """What the head predicts."""
    assign: AssignConfig = field(default_factory=AssignConfig)
    """Which cells are positive."""
    filter: FilterConfig = field(default_factory=FilterConfig)
    """Which cells train the second stage."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Weights and forms of the losses."""
    quality: Literal["psm", "centerness", "none"] = "psm"
    """Branch whose output multiplies the classification to rank poses; it must be switched on in ``head``."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    """Which cells become poses, and how duplicates are suppressed."""

    def __post_init__(self) -> None:
        if self.quality != "none" and not getattr(self.head, self.quality):
            raise ValueError(f"quality is {self.quality!r} but head.{self.quality} is false: nothing learns it")
        if self.decode.keypoint_scores == "map" and not self.head.heatmap:
            raise ValueError("decode.keypoint_scores is 'map' but head.heatmap is false: there is no keypoint map")
        if self.filter.candidates == "all" and not self.filter.enabled:
            raise ValueError("filter.candidates is 'all' but filter.enabled is false: every cell would be refined")
        if self.filter.candidates == "all" and self.loss.refine_weight == "centerness":
            raise ValueError("filter.candidates is 'all' but loss.refine_weight is 'centerness', which few cells have")


class Model(PyramidModel[Config]):
    """PFS as a :class:`posefleet.models.PoseModel`."""

    decoding: ClassVar = ("decode", "quality")
    minimum_counts: Tensor
    steps: Tensor
    """0-dim int64, number of training steps done; exists only if ``filter.warmup_steps`` is set."""
    diagnostics: dict[str, Tensor]
    """Statistics of the last training step, 0-dim tensors on the device: ``alive`` (share of aligned features above
    zero; at 0 the second stage gets no gradient any more), ``initial_oks`` and ``refined_oks`` (means over the
    candidate cells), ``kept`` (share of candidates that train the second stage), ``swapped`` (share of candidates whose
    pose is more similar to another person than to the assigned one). Empty without a second stage."""

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
        """How poses are ranked, in words. Reports print it beside every AP."""
        decode, quality = self.config.decode, self.config.quality
        product = "cls" if quality == "none" else f"cls * {quality}"
        return f"{product}, cls > {decode.score_floor:g}, {decode.nms} NMS at {decode.nms_threshold:g}"

    # ------------------------------------------------------------------------------------------------ losses

    def losses(self, maps: Maps, people: list[People]) -> dict[str, Tensor]:
        """Weighted losses ``cls``, ``init`` and, if switched on, ``refine``, ``psm``, ``centerness``, ``heatmap``."""
        config = self.config
        cells = pyramid_cells(map_sizes(maps["cls"]), FPN.strides, self.sigmas.device)
        padded = pad_for(people, self.sigmas.device, config.assign)
        assignment = assign(cells, padded, config.assign)  # (B, P)
        rows = positives_of(assignment, padded, config.assign)  # the set S1
        used, targets = rows.used.float(), targets_at(rows, cells, padded)

        positive, gated = assignment >= 0, None  # (B, P)
        if config.head.refine or config.filter.cls_target == "s2":
            # Rows of the second stage: S1, or all cells of images with people.
            second = rows if config.filter.candidates == "positives" else every_cell(assignment, padded)
            gated = self._filter(_poses(maps["init"], cells, second), second, padded)
            if config.filter.cls_target == "s2":
                passed = torch.zeros(positive.numel(), device=positive.device)
                passed.index_add_(0, second.index, gated.kept.float())
                positive = passed.view_as(positive) > 0
        # Name -> sum of the loss, and this rank's count; the average of the counts over ranks divides the sum.
        terms = {
            "cls": (self._cls_loss(maps, cells, padded, positive), positive.sum()),
            "init": (self._pose_loss(gather_rows(maps["init"], rows), targets, used), used.sum()),
        }
        if config.head.refine:
            assert gated is not None
            terms |= self._second_stage(maps, cells, padded, assignment, second, gated)
        if config.head.centerness:
            logits = gather_rows(maps["centerness"], rows)[:, 0]
            terms["centerness"] = bce_loss(logits, centerness(targets.points, targets.boxes), used), used.sum()
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

    def _pose_loss(self, offsets: Tensor, targets: CellTargets, weights: Tensor) -> Tensor:
        return pose_loss(offsets, targets, weights, self.sigmas, form="smooth_l1", beta=self.config.loss.beta)

    def _second_stage(
        self,
        maps: Maps,
        cells: Cells,
        people: PaddedPeople,
        assignment: Tensor,
        rows: Positives,
        gated: OksMatch,
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Losses of the second pose and of its score, with their counts."""
        config, loss = self.config, self.config.loss
        reached = best_oks(_poses(maps["refine"], cells, rows), rows, people, self.sigmas)

        target = targets_at(rows, cells, people, gated.match)
        weight = self._refine_weights(reached, targets_at(rows, cells, people)) * gated.kept
        terms = {"refine": (self._pose_loss(gather_rows(maps["refine"], rows), target, weight), weight.sum())}
        if config.head.psm:
            positive = rows.used & (assignment.flatten()[rows.index] >= 0)
            chosen = (positive if loss.psm_cells == "s1" else gated.kept).float()
            score, count = bce_loss(gather_rows(maps["psm"], rows)[:, 0], reached, chosen), chosen.sum()
            if loss.psm_negatives:
                rest = random_negatives(assignment, loss.psm_negatives)
                oks = best_oks(_poses(maps["refine"], cells, rest), rest, people, self.sigmas)
                score = score + bce_loss(gather_rows(maps["psm"], rest)[:, 0], oks, rest.used)
                count = count + rest.used.sum()
            terms["psm"] = score, count
        if self.training:
            self.diagnostics = assignment_stats(rows, gated)
            self.diagnostics["refined_oks"] = reached.sum() / rows.used.sum().clamp(min=1)
            if self.head.alive is not None:
                self.diagnostics["alive"] = self.head.alive
        return terms

    def _filter(self, poses: Tensor, rows: Positives, people: PaddedPeople) -> OksMatch:
        """Apply the OKSFilter (section 3.2) to first poses (N, K, 2), pixels."""
        config = self.config.filter
        threshold: Tensor | float = config.threshold
        if config.warmup_steps:
            share = (self.steps / config.warmup_steps).clamp(max=1)
            threshold = config.warmup_start + (config.threshold - config.warmup_start) * share
            if self.training:
                self.steps += 1
        gated = oks_gate(poses, rows, people, self.sigmas, threshold=threshold, match=config.match)
        return gated if config.enabled else OksMatch(gated.oks, rows.used, rows.person)

    def _refine_weights(self, reached: Tensor, assigned: CellTargets) -> Tensor:
        """(N,) weight of each row, from the OKS of the second pose (N,) or from the position of the cell."""
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
        known = supervised_cells(people.supervised_maps, people.seams, size, FPN.strides[0])
        target = target if known is None else target * known
        if self.config.assign.ignore_unlabelled:
            finest, marked = cells.points[: size[0] * size[1]], target > 0
            ignored = ignored_cells(finest, people, marked.any(1).flatten(1)).unflatten(1, (1, *size))
            clear = ~ignored | marked
            known = clear if known is None else clear & known
        return focal_loss(logits, target, known, alpha=loss.alpha, gamma=loss.gamma), target.sum()

    # ------------------------------------------------------------------------------------------------ decode

    def decode(self, maps: Maps, size: tuple[int, int], frames: Frames | None = None) -> list[Poses]:
        """See :meth:`DenseModel.decode`."""
        config = self.config
        scores = flatten_levels(maps["cls"])[..., 0].sigmoid()  # (B, P)
        if config.quality != "none":
            scores = scores * flatten_levels(maps[config.quality])[..., 0].sigmoid()
        return self.poses_of(maps, "refine" if config.head.refine else "init", scores, size, frames, screened=True)


def _poses(levels: Sequence[Tensor], cells: Cells, rows: Positives) -> Tensor:
    """Poses (N, K, 2), pixels, from the offsets (B, 2K, h, w) of all levels at the rows' cells; without gradients."""
    return decode_offsets(cells.points[rows.cell], cells.strides[rows.cell], gather_rows(levels, rows).detach())


def centerness(points: Tensor, boxes: Tensor) -> Tensor:
    """Centre-ness of points (FCOS): 1 in the centre of a box, 0 on its border and outside.

    Args:
        points: (..., 2) xy.
        boxes: (..., 4) xyxy, same unit.

    Returns:
        (...) square root of (nearer / farther side in x) * (nearer / farther side in y).
    """
    low, high = points - boxes[..., :2], boxes[..., 2:] - points
    near, far = torch.minimum(low, high).clamp(min=0), torch.maximum(low, high)
    return (near / far.clamp(min=1e-6)).prod(-1).sqrt()
