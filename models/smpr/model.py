"""SMPR: single-stage multi-person pose regression (Lin et al., 2020).

Every cell of P3..P7 predicts whether it belongs to a person, and a whole pose as offsets from the cell. A first pose is
computed from one feature vector. Sampling points computed from it steer a deformable convolution. The aligned features
give an additive correction, the classification and a pose score that learns the OKS. The second stage trains only
where the first pose is already good (OKS >= 0.5). A keypoint map on P3 helps training and is not used afterwards.

``Config.released()`` follows the authors' released code, whose weights can be imported, and ``Config.paper()`` the
paper's text, and RepPoints (its base) where the text is silent; but with GroupNorm inside the alignment
(``align_norm``), without which the second stage stops learning within a few steps. The defaults are the released code's
but for the points that :class:`~posefleet.models.smpr.config.Config` lists. By default a cell of the keypoint map has
one class; ``heatmap_target`` can keep all keypoints of a cell, or draw Gaussians.

Letters: B images, M people of an image (padded), P cells, N positive cells, K keypoints.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.structures import Frames, People, Poses
from posefleet.models.parts.layers.fpn import FPN
from posefleet.models.parts.ops.assign import PaddedPeople, supervised_cells
from posefleet.models.parts.ops.cells import decode_offsets, flatten_levels, map_sizes, pyramid_cells
from posefleet.models.parts.ops.heatmaps import cell_class_targets, gaussian_targets
from posefleet.models.parts.ops.losses import bce_loss, focal_loss, gaussian_focal_loss, mean_counts
from posefleet.models.parts.regression.oks_gate import assignment_stats, best_cells_of_image, oks_gate
from posefleet.models.parts.regression.pose_head import Maps
from posefleet.models.parts.regression.pose_loss import pose_loss
from posefleet.models.parts.regression.positives import (
    CellTargets,
    assign,
    gather_rows,
    known_cells,
    pad_for,
    positives_of,
    targets_at,
)
from posefleet.models.parts.regression.pyramid_model import PyramidModel
from posefleet.models.smpr.config import Config


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
        judged: Literal["refine", "init"] = "refine" if config.assign.oks_of == "refined" else "init"
        first = chosen[judged].detach()
        keep, best = config.assign.keep_best, None
        if keep == "image":
            best = best_cells_of_image(maps[judged], cells, padded, self.sigmas).flatten()[rows.index]
        gated = oks_gate(  # section 3.2
            decode_offsets(targets.points, targets.strides, first),
            rows,
            padded,
            self.sigmas,
            threshold=config.assign.refine_oks_threshold,
            keep_best=keep == "assigned",
            anyway=best,
        )
        s1, s2 = rows.used.float(), gated.kept.float()
        cls_rows = s2 if config.assign.cls_target == "s2" else s1
        weight = gated.oks if config.loss.oks_weighted_regression else torch.ones_like(gated.oks)
        marks, drawn_for = self._heatmap_targets(maps, padded)

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
            losses["heatmap"] = config.loss.heatmap * focal(maps["heatmap"][0], marks, drawn_for) / for_heatmap
        if self.training:
            self.diagnostics = assignment_stats(rows, gated)
            if self.head.alive is not None:
                self.diagnostics["alive"] = self.head.alive
        return losses

    def _heatmap_targets(self, maps: Maps, people: PaddedPeople) -> tuple[Tensor, Tensor | None]:
        """(B, K, h, w) of P3, and the cells that have a loss (None: all); a single zero if there is no keypoint map."""
        if not self.config.head.heatmap:
            return self.sigmas.new_zeros(1), None
        loss, stride = self.config.loss, FPN.strides[0]
        (size,) = map_sizes(maps["heatmap"])
        supervised = supervised_cells(people.supervised_maps, people.seams, size, stride)
        if loss.heatmap_target == "gaussian":
            marks = gaussian_targets(
                people.keypoints,
                people.labelled,
                people.boxes,
                size,
                stride,
                overlap=loss.gaussian_overlap,
                max_radius=loss.gaussian_radius,
            )
        else:
            marks = cell_class_targets(people.keypoints, people.labelled, size, stride, loss.heatmap_target)
        return marks if supervised is None else marks * supervised, supervised

    def _pose_loss(self, offsets: Tensor, targets: CellTargets, weights: Tensor) -> Tensor:
        loss = self.config.loss
        return pose_loss(offsets, targets, weights, self.sigmas, form=loss.regression, beta=loss.beta)

    # ------------------------------------------------------------------------------------------------ decode

    def decode(self, maps: Maps, size: tuple[int, int], frames: Frames | None = None) -> list[Poses]:
        """See :meth:`DenseModel.decode`."""
        config = self.config
        scores = flatten_levels(maps["cls"])[..., 0].sigmoid()  # (B, P)
        if config.head.psm and config.score.rank == "psm":
            quality = flatten_levels(maps["psm"])[..., 0].sigmoid()
            scores = (scores**config.score.exponent * quality ** (1 - config.score.exponent)).square()
        stage = "refine" if config.head.refine and config.score.pose == "refined" else "init"
        return self.poses_of(maps, stage, scores, size, frames, screened=False)
