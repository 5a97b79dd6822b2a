"""SMPR: single-stage multi-person pose regression (Miao et al., 2020).

Every cell of P3..P7 predicts whether it belongs to a person, and a whole pose as offsets from the cell. A first pose is
computed from one feature vector. Sampling points computed from it steer a deformable convolution. The aligned features
give an additive correction, the classification and a pose score that learns the OKS. The second stage trains only
where the first pose is already good (OKS >= 0.5). A keypoint map on P3 helps training and is not used afterwards.

The defaults follow the released code. :meth:`Config.paper` follows the paper's text, and RepPoints (its base) where the
text is silent. Both deviate in one point: GroupNorm inside the alignment (``align_norm``), without which the second
stage stops learning within a few steps. By default a cell of the keypoint map has one class;
``heatmap_target`` can keep all keypoints of a cell, or draw Gaussians.

Letters: B images, M people of an image (padded), P cells, N positive cells, K keypoints.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from posefleet.data.keypoints import KeypointSchema
from posefleet.data.structures import People, Poses
from posefleet.models.parts.layers.backbones import BackboneConfig
from posefleet.models.parts.layers.fpn import FPN
from posefleet.models.parts.ops.assign import PaddedPeople
from posefleet.models.parts.ops.cells import decode_offsets, flatten_levels, map_sizes, pyramid_cells
from posefleet.models.parts.ops.decode import DecodeConfig, best_poses
from posefleet.models.parts.ops.heatmaps import cell_class_targets, gaussian_targets
from posefleet.models.parts.ops.losses import bce_loss, focal_loss, gaussian_focal_loss, mean_counts
from posefleet.models.parts.regression.oks_gate import assignment_stats, oks_gate
from posefleet.models.parts.regression.pose_head import Maps, PoseHeadConfig
from posefleet.models.parts.regression.pose_loss import PoseLoss, pose_loss
from posefleet.models.parts.regression.positives import (
    CellTargets,
    PositivesConfig,
    assign,
    gather_rows,
    known_cells,
    pad_for,
    positives_of,
    targets_at,
)
from posefleet.models.parts.regression.pyramid_model import Neck, PyramidModel


@dataclass(frozen=True, kw_only=True, slots=True)
class AssignConfig(PositivesConfig):
    """Which cells train which part of the network. S1 are all assigned cells, S2 those that pass the OKS gate."""

    oks_of: Literal["init", "refined"] = "init"
    """The pose whose OKS filters cells, weights the regression and is the target of the pose score."""
    refine_oks_threshold: float = 0.5
    """0..1: cells whose pose has a lower OKS do not train the second stage. Raised, fewer and better first poses train
    it, and training starts more slowly. The paper has 0.5."""
    keep_best: bool = True
    """The best cell of every person trains the second stage whatever its OKS. Without it an untrained network has no
    cell above the threshold, so the second stage starts late."""
    cls_target: Literal["s2", "s1"] = "s2"
    """Positives of the classification: the cells of the second stage (S2), or all assigned cells (S1)."""
    ignore_unlabelled: bool = False
    """Skip the classification loss inside boxes of crowds and of people without keypoints; otherwise these cells are
    negatives."""

    def __post_init__(self) -> None:
        PositivesConfig.__post_init__(self)
        if not 0 <= self.refine_oks_threshold <= 1:
            raise ValueError(f"refine_oks_threshold must be 0..1, not {self.refine_oks_threshold}")


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """Weights (eq. 5) and forms of the losses. A raised weight makes that part learn faster than the others."""

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
    regression: PoseLoss = "l1"
    """Form of both pose losses; ``oks`` is 1 - OKS of a pose and its person."""
    beta: float = 1 / 9
    """Error at which ``smooth_l1`` becomes linear, cells, above 0. Raised, small errors count less."""
    oks_weighted_regression: bool = True
    """Weight each cell's pose loss by its OKS, and divide by the sum of weights instead of the number of cells."""
    count_images: bool = True
    """Divide the two focal losses by the number of positives plus the number of images, instead of positives alone.
    This makes batches with few people count less."""
    psm_target: Literal["s2", "s1"] = "s2"
    """Cells that train the pose score: those of the second stage (all assigned cells if it has none), or all assigned
    cells."""
    heatmap_target: Literal["one_class", "multihot", "gaussian"] = "one_class"
    """Targets of the keypoint map: a cell has the class of its last keypoint; or of all its keypoints (better for
    images below 400 px); or Gaussians around the keypoints, with the focal loss made for Gaussians."""
    gaussian_overlap: float = 0.9
    """0..1, IoU that a box shifted by the radius of a Gaussian still has. Lowered, Gaussians are wider."""
    gaussian_radius: int = 3
    """Largest radius of a Gaussian, cells. Raised, Gaussians of large people are wider."""

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta must be above 0, not {self.beta}")
        if not 0 < self.gaussian_overlap < 1:
            raise ValueError(f"gaussian_overlap must be between 0 and 1, not {self.gaussian_overlap}")
        if self.gaussian_radius < 0:
            raise ValueError(f"gaussian_radius must not be negative, but is {self.gaussian_radius}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreConfig:
    """Which pose is returned, and how poses are ranked."""

    pose: Literal["refined", "initial"] = "refined"
    """Stage whose pose is returned; without a second stage it is the first one's."""
    rank: Literal["psm", "cls"] = "psm"
    """Rank poses by classification and pose score, or by classification alone."""
    exponent: float = 0.5
    """0..1, the a of the score (classification^a * pose score^(1 - a))^2. Raised, the classification counts more."""

    def __post_init__(self) -> None:
        if not 0 <= self.exponent <= 1:
            raise ValueError(f"exponent must be 0..1, not {self.exponent}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """SMPR; the defaults are the authors' released setting."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """Network that computes features C3..C5."""
    neck: Neck = "pafpn"
    """Feature pyramid; ``pafpn`` adds a path from fine to coarse levels to ``fpn``, and costs more time."""
    head: PoseHeadConfig = field(default_factory=PoseHeadConfig)
    """What the head predicts."""
    assign: AssignConfig = field(default_factory=AssignConfig)
    """Which cells train which part."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Weights and forms of the losses."""
    score: ScoreConfig = field(default_factory=ScoreConfig)
    """Which pose is returned, and how poses are ranked."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    """Which cells become poses, and how duplicates are suppressed."""

    def __post_init__(self) -> None:
        if self.assign.oks_of == "refined" and not self.head.refine:
            raise ValueError("assign.oks_of is 'refined' but head.refine is false: there is no refined pose")
        if self.head.centerness:
            raise ValueError("head.centerness is true, but SMPR has no loss for it; head.psm takes its place")

    @classmethod
    def paper(cls) -> Self:
        """The settings of the paper's text, and those of RepPoints where it is silent."""
        return cls(
            neck="fpn",
            head=PoseHeadConfig(
                tower_depth=3,
                heatmap_channels=256,
                offset_groups=1,
                offset_bias=True,
                offset_std=0.01,
                gradient_mul=0.1,
                level_scales=False,
                hidden_layer=True,
                output_kernel=1,
            ),
            assign=AssignConfig(
                level_rule="reppoints",
                center_half_side=0.75,
                force_one=True,
                cls_target="s1",
                ignore_unlabelled=True,
            ),
            loss=LossConfig(
                oks_weighted_regression=False, count_images=False, psm_target="s1", heatmap_target="multihot"
            ),
            decode=DecodeConfig(max_poses=100),
        )


class Model(PyramidModel[Config]):
    """SMPR as a :class:`posefleet.models.PoseModel`."""

    decoding: ClassVar = ("decode", "score")
    minimum_counts: Tensor
    diagnostics: dict[str, Tensor]
    """Statistics of the last training step, 0-dim tensors on the device: ``alive`` (share of aligned features above
    zero; at 0 the second stage gets no gradient any more), ``initial_oks`` (mean over assigned cells), ``kept`` (share
    of assigned cells that train the second stage), ``swapped`` (share of assigned cells whose pose is more similar to
    another person than to the assigned one)."""

    def __init__(self, config: Config, schema: KeypointSchema) -> None:
        super().__init__(config, schema)
        least = 1e-6 if config.loss.oks_weighted_regression else 1.0
        # In the order of `losses`: cls, heatmap, init, refine, |S1|, |S2|.
        minimum = torch.tensor([1.0, 1.0, least, least, 1.0, 0.0])
        self.register_buffer("minimum_counts", minimum, persistent=False)
        self.diagnostics = {}

    @property
    def score_rule(self) -> str:
        """How poses are ranked, in words. Reports print it beside every AP."""
        score, decode, scored = self.config.score, self.config.decode, self.config.head.psm
        powers = f"^{2 * score.exponent:g} * psm^{2 * (1 - score.exponent):g}"
        product = f"cls{powers if score.exponent != 0.5 else ' * psm'}" if scored and score.rank == "psm" else "cls"
        pose = score.pose if self.config.head.refine else "initial"
        return f"{product}, {pose} pose, cls > {decode.score_floor:g}, {decode.nms} NMS at {decode.nms_threshold:g}"

    # ------------------------------------------------------------------------------------------------ losses

    def losses(self, maps: Maps, people: list[People]) -> dict[str, Tensor]:
        """Weighted losses ``cls``, ``init`` and, if switched on, ``refine``, ``psm``, ``heatmap``."""
        config = self.config
        cells = pyramid_cells(map_sizes(maps["cls"]), FPN.strides, self.sigmas.device)
        padded = pad_for(people, self.sigmas.device, config.assign)
        assignment = assign(cells, padded, config.assign)  # (B, P)
        rows = positives_of(assignment, padded, config.assign)  # the set S1
        targets = targets_at(rows, cells, padded)

        chosen = {name: gather_rows(maps[name], rows) for name in ("init", "refine", "psm") if name in maps}
        first = chosen["refine" if config.assign.oks_of == "refined" else "init"].detach()
        gated = oks_gate(  # section 3.2
            decode_offsets(targets.points, targets.strides, first),
            rows,
            padded,
            self.sigmas,
            threshold=config.assign.refine_oks_threshold,
            keep_best=config.assign.keep_best,
        )
        s1, s2 = rows.used.float(), gated.kept.float()
        cls_rows = s2 if config.assign.cls_target == "s2" else s1
        weight = gated.oks if config.loss.oks_weighted_regression else torch.ones_like(gated.oks)
        marks = self._heatmap_targets(maps, padded)

        counts = [cls_rows.sum(), (marks == 1).sum(), (s1 * weight).sum(), (s2 * weight).sum(), s1.sum(), s2.sum()]
        extra = len(people) if config.loss.count_images else 0
        means = mean_counts(torch.stack([counts[0] + extra, counts[1] + extra, *counts[2:]]), self.minimum_counts)
        for_cls, for_heatmap, for_init, for_refine, size1, size2 = means.unbind()

        logits = flatten_levels(maps["cls"])[..., 0]  # (B, P)
        target = torch.zeros_like(logits).flatten().index_add_(0, rows.index, cls_rows).view_as(logits)
        known = known_cells(cells, padded, target > 0) if config.assign.ignore_unlabelled else None
        cls = focal_loss(logits, target, known)
        losses = {
            "cls": config.loss.cls * cls / for_cls,
            "init": config.loss.init * self._pose_loss(chosen["init"], targets, s1 * weight) / for_init,
        }
        if config.head.refine:
            refine = self._pose_loss(chosen["refine"], targets, s2 * weight)
            losses["refine"] = config.loss.refine * refine / for_refine
        if config.head.psm:
            on_s2 = (size2 > 0) & (config.loss.psm_target == "s2")
            psm = bce_loss(chosen["psm"][:, 0], gated.oks, torch.where(on_s2, s2, s1))
            losses["psm"] = config.loss.psm * psm / torch.where(on_s2, size2, size1)
        if config.head.heatmap:
            focal = gaussian_focal_loss if config.loss.heatmap_target == "gaussian" else focal_loss
            losses["heatmap"] = config.loss.heatmap * focal(maps["heatmap"][0], marks) / for_heatmap
        if self.training:
            self.diagnostics = assignment_stats(rows, gated)
            if self.head.alive is not None:
                self.diagnostics["alive"] = self.head.alive
        return losses

    def _heatmap_targets(self, maps: Maps, people: PaddedPeople) -> Tensor:
        """(B, K, h, w) of P3; a single zero if there is no keypoint map."""
        if not self.config.head.heatmap:
            return self.sigmas.new_zeros(1)
        loss, stride = self.config.loss, FPN.strides[0]
        (size,) = map_sizes(maps["heatmap"])
        if loss.heatmap_target == "gaussian":
            return gaussian_targets(
                people.keypoints,
                people.labelled,
                people.boxes,
                size,
                stride,
                overlap=loss.gaussian_overlap,
                max_radius=loss.gaussian_radius,
            )
        return cell_class_targets(people.keypoints, people.labelled, size, stride, loss.heatmap_target)

    def _pose_loss(self, offsets: Tensor, targets: CellTargets, weights: Tensor) -> Tensor:
        loss = self.config.loss
        return pose_loss(offsets, targets, weights, self.sigmas, form=loss.regression, beta=loss.beta)

    # ------------------------------------------------------------------------------------------------ decode

    def decode(self, maps: Maps, size: tuple[int, int]) -> list[Poses]:
        """Dense predictions of images of ``size`` (height, width) pixels -> candidate poses, best first."""
        config = self.config
        cells = pyramid_cells(map_sizes(maps["cls"]), FPN.strides, maps["cls"][0].device)
        probabilities = flatten_levels(maps["cls"])[..., 0].sigmoid()  # (B, P)
        scores = probabilities
        if config.head.psm and config.score.rank == "psm":
            quality = flatten_levels(maps["psm"])[..., 0].sigmoid()
            scores = (probabilities**config.score.exponent * quality ** (1 - config.score.exponent)).square()
        stage = "refine" if config.head.refine and config.score.pose == "refined" else "init"
        return best_poses(scores, probabilities, flatten_levels(maps[stage]), cells, size, config.decode)
