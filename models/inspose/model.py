"""InsPose: instance-aware dynamic networks for single-stage multi-person pose estimation (Shi et al., 2021).

Every cell of P3..P7 predicts whether it belongs to a person, and the weights of a tiny network (KP-Net). Its inputs are
one shared feature map and the coordinates relative to the cell. It predicts one map per keypoint of that person over
the whole image, in which only the keypoint's cell should be high. Offsets in a disk around every keypoint, the same for
all people, restore the precision that the stride of these maps loses. A keypoint map helps training and is not used
afterwards.

:class:`Config` has three presets. :meth:`Config.paper` is the paper's text, :meth:`Config.released` the authors' later,
stronger code (65.2 instead of 63.1 AP on val2017, both in 36 epochs), and the defaults are that code without its
faults. In all of them the weights of KP-Nets are computed only for the cells that need them, and ``assign.min_side`` is
measured in pixels of the network's input instead of the original image. Not even the preset ``released`` repeats three
things: tags are read at the keypoint's own cell (the released code reads at the cell above and to the left, so its
losses ``pull`` and ``push`` differ), keypoints have a score (there it is always 1), and keypoints outside the image are
moved to its border.

Letters: B images, M people of an image (padded), P cells, N positive or candidate cells, K keypoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.structures import Frames, People, Poses, TargetPoints
from posefleet.models.inspose.boxes import decode_boxes, giou_loss
from posefleet.models.inspose.disks import Disks, Radius, Shape, disk_radii, disk_targets, read_disks
from posefleet.models.inspose.dynamic import directions, run_instances
from posefleet.models.inspose.head import Head, InstanceHeadConfig, Maps
from posefleet.models.inspose.keypoint_maps import cell_cross_entropy, keypoint_cells, peaks, rescale, tag_losses
from posefleet.models.inspose.sparse import conv_at, in_chunks, read_at
from posefleet.models.inspose.targets import AssignConfig, Assigned, assign_instances, outside_unlabelled
from posefleet.models.parts.layers.backbones import Backbone, BackboneConfig
from posefleet.models.parts.layers.fpn import FPN
from posefleet.models.parts.layers.keypoint_channels import Layout, under
from posefleet.models.parts.ops.assign import PaddedPeople, Positives, positive_cells, supervised_cells
from posefleet.models.parts.ops.cells import (
    Cells,
    decode_offsets,
    encode_offsets,
    flatten_levels,
    level_sizes,
    map_sizes,
    pyramid_cells,
)
from posefleet.models.parts.ops.decode import DecodeConfig, best_cells, clip_points, pick_cells
from posefleet.models.parts.ops.heatmaps import gaussian_targets
from posefleet.models.parts.ops.losses import focal_loss, gaussian_focal_loss, l1_loss, mean_counts, varifocal_loss
from posefleet.models.parts.ops.oks import oks
from posefleet.models.parts.regression.dense_model import DenseModel
from posefleet.models.parts.regression.positives import CellTargets, targets_at


@dataclass(frozen=True, kw_only=True, slots=True)
class MapConfig:
    """The maps of keypoints and offsets, and their targets."""

    map_stride: Literal[16, 8, 4, 2] = 8
    """Pixels per cell to which KP-Net's maps, and the offsets of a separate branch, are resized from stride 8. Lowered,
    maps are finer, slower, and need more memory."""
    bicubic: bool = True
    """Double the size of the keypoint maps before their peaks are read; in prediction only, which it slows down."""
    disk_radius: Radius = "auto"
    """Radius of the disks, cells; ``auto``: 0..3 by the size of the person."""
    disk_shape: Shape = "square"
    """Shape of the region whose cells learn an offset to the keypoint."""
    overlap: float = 0.9
    """0..1, IoU that a box shifted by the radius of a Gaussian, or of an ``auto`` disk, still has. Lowered, radii are
    larger."""
    chunk: int = 50
    """Largest number of KP-Nets run at once, at least 1; lower it if memory runs out. If training has more KP-Nets, the
    backward pass computes their maps again, which costs time."""

    def __post_init__(self) -> None:
        if not 0 < self.overlap < 1:
            raise ValueError(f"overlap must be between 0 and 1, not {self.overlap}")
        if self.chunk < 1:
            raise ValueError(f"chunk must be at least 1, not {self.chunk}")


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """Weights (eq. 3) and forms of the losses. A raised weight makes that part learn faster than the others."""

    cls: float = 1.0
    """Weight of the classification."""
    kpf: float = 1.0
    """Weight of the keypoint maps of people (eq. 4)."""
    disk: float = 1.0
    """Weight of the offsets around keypoints, whose error is in cells."""
    heatmap: float = 1.0
    """Weight of the auxiliary keypoint map."""
    direct: float = 1.0
    """Weight of the direct pose, whose error is in cells."""
    box: float = 1.0
    """Weight of the boxes."""
    tags: float = 1.0
    """Weight of the associative embedding."""
    cls_form: Literal["focal", "varifocal"] = "varifocal"
    """Target of positives: 1 (``focal``), or the OKS of the pose that their KP-Net predicts now (``varifocal``)."""
    oks_units: Literal["px", "code_mixed"] = "px"
    """Units of that OKS. ``code_mixed`` takes distances between whole cells but areas in pixels, as the released code
    does, which makes the OKS far too high."""
    weak_quality: float = 0.1
    """0..1, target of positives of people without keypoints (``assign.unlabelled: weak_positive``)."""
    count_images: bool = True
    """Divide the classification loss by the number of positives plus the number of images, instead of positives alone.
    This makes batches with few people count less."""
    kpf_per: Literal["keypoint", "cell"] = "keypoint"
    """Divide the keypoint maps' loss by the number of labelled keypoints of positive cells, or (eq. 4) of these
    cells."""

    def __post_init__(self) -> None:
        if not 0 <= self.weak_quality <= 1:
            raise ValueError(f"weak_quality must be 0..1, not {self.weak_quality}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """InsPose. The defaults are the authors' released settings but for these, of which none changes the network that
    predicts:

    * ``head.tags: false``. Nothing reads tags in prediction, and the released code trains them at the wrong cells.
    * ``loss.oks_units: px``. Distances in cells beside areas in pixels are eight times too small, so that poor poses
      get high targets and the classification ranks less.
    * ``assign.unlabelled: ignore``. COCO leaves many people without keypoints. The released code teaches such a person
      a score of 0.1, and that a crowd is background; COCO's evaluation ignores both, and so does the loss.
    """

    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig(norm="trained"))
    """Network that computes features C3..C5."""
    head: InstanceHeadConfig = field(default_factory=InstanceHeadConfig)
    """What the head predicts."""
    assign: AssignConfig = field(default_factory=AssignConfig)
    """Which cells are assigned to which people."""
    maps: MapConfig = field(default_factory=MapConfig)
    """Maps of keypoints and offsets, and their targets."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Weights and forms of the losses."""
    decode: DecodeConfig = field(default_factory=lambda: DecodeConfig(score_floor=0.05, top_k=1000, max_poses=100))
    """Which cells become poses, and how duplicates are suppressed."""
    top_of: Literal["image", "level"] = "level"
    """``decode.top_k`` counts cells of the whole image, or of each level."""
    nms_boxes: Literal["keypoints", "direct", "detected"] = "direct"
    """Boxes that suppression compares: those of the final keypoints, of the direct pose, or of the box head. The last
    two are known before KP-Nets run, so KP-Nets run only for cells that survive, which is faster."""

    def __post_init__(self) -> None:
        if self.nms_boxes == "direct" and not self.head.direct:
            raise ValueError("nms_boxes is 'direct' but head.direct is false: there is no direct pose")
        if self.nms_boxes == "detected" and not self.head.bbox_head:
            raise ValueError("nms_boxes is 'detected' but head.bbox_head is false: there are no boxes")
        if self.assign.max_positives and self.loss.cls_form == "varifocal":
            raise ValueError(
                f"loss.cls_form 'varifocal' needs the pose of every positive cell, but assign.max_positives is "
                f"{self.assign.max_positives}; set it to 0"
            )
        if self.assign.unlabelled == "weak_positive" and self.loss.cls_form != "varifocal":
            raise ValueError(
                f"assign.unlabelled 'weak_positive' has soft targets; loss.cls_form must be 'varifocal', "
                f"not {self.loss.cls_form!r}"
            )

    @classmethod
    def paper(cls) -> Self:
        """The settings of the paper's text, and those of the released code where it is silent."""
        return cls(
            head=InstanceHeadConfig(map_branch="separate", map_channels=256, direct=False, align=False),
            maps=MapConfig(bicubic=False, disk_shape="disk"),
            loss=LossConfig(cls_form="focal", count_images=False),
            decode=DecodeConfig(score_floor=0.1, top_k=500, max_poses=100),
            top_of="image",
            nms_boxes="keypoints",
        )

    @classmethod
    def released(cls) -> Self:
        """The settings of the authors' released code; imported weights have them."""
        return cls(
            head=InstanceHeadConfig(tags=True),
            assign=AssignConfig(unlabelled="weak_positive"),
            loss=LossConfig(oks_units="code_mixed"),
        )


class Model(DenseModel[Config]):
    """InsPose as a :class:`posefleet.models.PoseModel`."""

    decoding: ClassVar = ("decode", "top_of", "nms_boxes", "maps.bicubic")
    decoder: ClassVar = ("head.controller", "head.box")
    sigmas: Tensor
    diagnostics: dict[str, Tensor]
    """Statistics of the last training step, 0-dim tensors on the device: ``positives`` (positive cells per image),
    ``hit`` (mean probability that the map of a labelled keypoint gives to its cell)."""

    def __init__(self, config: Config, schema: KeypointSchema) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.backbone)
        self.neck = FPN(self.backbone.channels, config.head.channels)
        self.head = Head(config.head, schema)
        self.register_buffer("sigmas", torch.tensor(schema.sigmas), persistent=False)
        joint = config.head.map_branch == "joint"
        self.disk_stride = config.head.map_stride if joint else config.maps.map_stride
        self.diagnostics = {}

    @staticmethod
    def keypoint_score_rule(config: Config) -> str:
        """What the scores of keypoints are, in words."""
        return "probability of the peak of the person's keypoint map"

    @property
    def score_rule(self) -> str:
        """How poses are ranked, in words. Reports print it beside every AP."""
        decode, boxes = self.config.decode, self.config.nms_boxes
        return f"cls, cls > {decode.score_floor:g}, {decode.nms} NMS of {boxes} boxes at {decode.nms_threshold:g}"

    def keypoint_channels(self, schema: KeypointSchema) -> Layout:
        """See :meth:`posefleet.models.TransferableModel.keypoint_channels`."""
        return under("head", self.head.keypoint_channels(schema.keypoints))

    def forward(self, images: Tensor, people: list[People]) -> dict[str, Tensor]:
        """Weighted losses ``cls``, ``kpf`` and, if switched on, ``disk``, ``heatmap``, ``direct``, ``box``, ``pull``,
        ``push``."""
        assigned = self._assign((images.shape[-2], images.shape[-1]), people)
        supervised = [
            supervised_cells(assigned.people.supervised_maps, assigned.people.seams, *level)
            for level in zip(assigned.cells.sizes, FPN.strides, strict=True)
        ]
        maps = self.forward_features(images, auxiliary=True, supervised=supervised)
        with torch.autocast(images.device.type, enabled=False):
            return self._losses(maps, assigned)

    def forward_features(
        self, images: Tensor, *, auxiliary: bool = False, supervised: Sequence[Tensor | None] | None = None
    ) -> Maps:
        """Run the network: (B, 3, H, W) RGB images in 0..255, any dtype, to dense predictions; :meth:`Head.forward` has
        the arguments."""
        maps: Maps = self.head(self.neck(self.backbone(images)), auxiliary=auxiliary, supervised=supervised)
        return maps

    @torch.no_grad()
    def predict(self, images: Tensor, frames: Frames | None = None) -> list[Poses]:
        """At most ``decode.max_poses`` poses of every image, best first.

        If ``nms_boxes`` is not ``keypoints``, :meth:`decode` has already suppressed duplicates, before KP-Nets ran.
        """
        found = self.candidates(images, frames)
        return self.suppress(found) if self.config.nms_boxes == "keypoints" else found

    @torch.no_grad()
    def target_points(self, size: tuple[int, int], people: list[People]) -> list[list[TargetPoints]]:
        """The cells that are assigned to people, and those that learn an offset to a keypoint, to be drawn.

        Args:
            size: (height, width) of the images, pixels.
            people: People of each image.

        Returns:
            For each image, a list of two entries; of one entry without offsets.
        """
        assigned = self._assign(size, people)
        cells, stride = assigned.cells, self.disk_stride
        disks = self._disk_targets(assigned.people, (size[0] // stride, size[1] // stride))
        result = []
        for person, owner in zip(assigned.person, disks.owner, strict=True):
            chosen = person >= 0
            points = [TargetPoints("assigned cells", cells.points[chosen], person[chosen], cells.strides[chosen])]
            if self.config.head.disk:
                keypoint, row, column = (owner >= 0).nonzero().unbind(1)
                places = (torch.stack([column, row], dim=1) + 0.5) * stride
                side = torch.full_like(places[:, 0], stride)
                points.append(TargetPoints("disks", places, owner[keypoint, row, column], side))
            result.append(points)
        return result

    # ------------------------------------------------------------------------------------------------ targets

    def _assign(self, size: tuple[int, int], people: list[People]) -> Assigned:
        cells = pyramid_cells(level_sizes(*size, FPN.strides), FPN.strides, self.sigmas.device)
        return assign_instances(cells, people, self.config.assign, annotated_boxes=self.config.head.bbox_head)

    def _disk_targets(self, people: PaddedPeople, size: tuple[int, int]) -> Disks:
        maps = self.config.maps
        radii = disk_radii(people.boxes, self.disk_stride, maps.disk_radius, overlap=maps.overlap)
        return disk_targets(people.keypoints, people.labelled, radii, size, self.disk_stride, shape=maps.disk_shape)

    # ------------------------------------------------------------------------------------------------ losses

    def _losses(self, maps: Maps, assigned: Assigned) -> dict[str, Tensor]:
        head, loss, people = self.config.head, self.config.loss, assigned.people
        # The host waits here for the assignment, which ran before the network. A bound would need no wait, but it is
        # two to three times the number, and KP-Nets would run for padding.
        rows = positive_cells(assigned.trained, max(1, assigned.trained_count()))
        targets = targets_at(rows, assigned.cells, people)
        targets = replace(targets, labelled=targets.labelled & rows.used[:, None])  # unused rows teach nothing
        entropy, poses = self._keypoint_loss(maps, assigned.cells, rows, targets)  # (N, K), (N, K, 2)
        keypoints, used, positives = targets.labelled.sum(), rows.used.float(), (assigned.person >= 0).sum()
        images = torch.full_like(positives, len(people.valid))

        sums: dict[str, tuple[Tensor, Tensor]] = {}  # a loss and what it is divided by
        cls = self._cls_loss(maps, assigned, rows, targets, poses)
        sums["cls"] = loss.cls * cls, positives + images if loss.count_images else positives
        kpf = entropy.where(targets.labelled, 0.0).sum()
        sums["kpf"] = loss.kpf * kpf, keypoints if loss.kpf_per == "keypoint" else used.sum()
        if head.disk:
            disk, coordinates = self._disk_loss(maps, people)
            sums["disk"] = loss.disk * disk, coordinates
        if head.heatmap:
            heatmap, ones = self._heatmap_loss(maps, people)
            sums["heatmap"] = loss.heatmap * heatmap, ones
        if head.direct:
            offsets = read_at(maps["direct"], rows.image, rows.cell, assigned.cells)
            target = encode_offsets(targets.points, targets.strides, targets.keypoints)
            direct = l1_loss(offsets, target, targets.labelled.repeat_interleave(2, dim=1))
            sums["direct"] = loss.direct * direct, 2 * keypoints
        if head.bbox_head:
            outputs = conv_at(self.head.box, maps["controls"], rows.image, rows.cell, assigned.cells)
            boxes = decode_boxes(targets.points, targets.strides, outputs, head.box_activation)
            sums["box"] = loss.box * giou_loss(boxes, people.annotated_boxes[rows.image, rows.person], used), used.sum()
        if head.tags:
            size = (maps["tags"][0].shape[-2], maps["tags"][0].shape[-1])
            cells = keypoint_cells(people.keypoints, size, head.map_stride)
            pull, push = tag_losses(maps["tags"][0], cells, people.labelled)
            sums["pull"], sums["push"] = (loss.tags * pull, images), (loss.tags * push, images)

        means = mean_counts(torch.stack([count.float() for _, count in sums.values()])).unbind()
        if self.training:
            hit = (-entropy.detach()).exp().where(targets.labelled, 0.0).sum() / keypoints.clamp(min=1)
            self.diagnostics = {"positives": positives / images, "hit": hit}
        return {name: total / mean for (name, (total, _)), mean in zip(sums.items(), means, strict=True)}

    def _keypoint_loss(self, maps: Maps, cells: Cells, rows: Positives, targets: CellTargets) -> tuple[Tensor, Tensor]:
        """Cross-entropy of each keypoint map of N positive cells (N, K), and the cells x, y of the peaks (N, K, 2)."""
        theta = conv_at(self.head.controller, maps["controls"], rows.image, rows.cell, cells)
        (features,) = maps["features"]
        stride = self.config.maps.map_stride
        size = (features.shape[-2] * FPN.strides[0] // stride, features.shape[-1] * FPN.strides[0] // stride)

        def run(target: Tensor, *instances: Tensor) -> tuple[Tensor, Tensor]:
            logits = self._instance_maps(features, *instances)
            entropy = cell_cross_entropy(logits, target)
            if self.config.loss.cls_form == "focal":  # the focal loss does not need the peaks
                return entropy, entropy.new_zeros(len(target), 0, 2)
            column, row, _ = peaks(logits.detach())
            return entropy, torch.stack([column, row], dim=-1).float()

        target = keypoint_cells(targets.keypoints, size, stride)
        instances = (theta, rows.image, targets.points, targets.strides)
        entropy, poses = in_chunks(run, (target, *instances), self.config.maps.chunk)
        return entropy, poses

    def _instance_maps(self, features: Tensor, theta: Tensor, image: Tensor, points: Tensor, strides: Tensor) -> Tensor:
        """KP-Nets with parameters ``theta`` of N cells: logits (N, K, h, w) at ``map_stride``."""
        kpnet, stride = self.config.head.kpnet, FPN.strides[0]
        where = directions(points, strides, (features.shape[-2], features.shape[-1]), stride, kpnet)
        logits = run_instances(theta, features, image, where, kpnet, len(self.sigmas))
        return rescale(logits, stride / self.config.maps.map_stride)

    def _cls_loss(self, maps: Maps, assigned: Assigned, rows: Positives, targets: CellTargets, poses: Tensor) -> Tensor:
        logits = flatten_levels(maps["cls"]).flatten()  # (B * P)
        positive = assigned.person >= 0
        known = outside_unlabelled(assigned.cells, assigned.people, self.config.assign, positive)
        positive, known = positive.flatten(), known.flatten()
        weights = (known | positive).float()
        if self.config.loss.cls_form == "focal":
            return focal_loss(logits, positive.float(), weights)
        quality = self._quality(targets, poses).where(rows.used, 0.0)
        return varifocal_loss(logits, torch.zeros_like(logits).index_add(0, rows.index, quality), weights)

    @torch.no_grad()
    def _quality(self, targets: CellTargets, poses: Tensor) -> Tensor:
        """(N,) OKS of poses (N, K, 2), whole cells of the keypoint maps; a constant for people without keypoints."""
        stride, loss = self.config.maps.map_stride, self.config.loss
        keypoints = targets.keypoints
        if loss.oks_units == "code_mixed":
            keypoints = (keypoints / stride).floor()
        else:
            poses = (poses + 0.5) * stride
        similarity = oks(poses, keypoints, targets.labelled, targets.areas, self.sigmas)
        return similarity.where(targets.labelled.any(1), loss.weak_quality)

    def _disk_map(self, maps: Maps) -> Tensor:
        """(B, 2K, h, w) offsets at ``disk_stride``."""
        return rescale(maps["disk"][0], self.config.head.map_stride / self.disk_stride).float()

    def _disk_loss(self, maps: Maps, people: PaddedPeople) -> tuple[Tensor, Tensor]:
        """The loss and the number of coordinates in it."""
        offsets = self._disk_map(maps)
        target = self._disk_targets(people, (offsets.shape[-2], offsets.shape[-1]))
        mask = (target.owner >= 0).repeat_interleave(2, dim=1)
        return l1_loss(offsets, target.offsets, mask), mask.sum()

    def _heatmap_loss(self, maps: Maps, people: PaddedPeople) -> tuple[Tensor, Tensor]:
        """The loss and the number of cells that hold a keypoint."""
        (logits,) = maps["heatmap"]
        size, stride = (logits.shape[-2], logits.shape[-1]), self.config.head.map_stride
        target = gaussian_targets(
            people.keypoints, people.labelled, people.boxes, size, stride, overlap=self.config.maps.overlap
        )
        cells = pyramid_cells([size], [stride], logits.device)
        drawn = (target > 0).any(1).flatten(1)
        known = outside_unlabelled(cells, people, self.config.assign, drawn).unflatten(1, size)[:, None] | (target == 1)
        supervised = supervised_cells(people.supervised_maps, people.seams, size, stride)
        if supervised is not None:
            known, target = known & supervised, target * supervised
        return gaussian_focal_loss(logits, target, known.float()), (target == 1).sum()

    # ------------------------------------------------------------------------------------------------ decode

    def decode(self, maps: Maps, size: tuple[int, int], frames: Frames | None = None) -> list[Poses]:
        """See :meth:`DenseModel.decode`."""
        cells = pyramid_cells(map_sizes(maps["cls"]), FPN.strides, maps["cls"][0].device)
        limits = (frames or Frames.whole(len(maps["cls"][0]), size)).boxes.to(cells.points)  # (B, 4)
        scores, chosen = self._best_cells(maps, cells, limits)
        counts = (scores > 0).sum(1).tolist()  # the host waits here, and once more for the suppression
        # (N,) each, best of each image first.
        image, slot = torch.nonzero_static(scores > 0, size=sum(counts)).unbind(1)
        cell, scores = chosen[image, slot], scores[image, slot]

        theta = conv_at(self.head.controller, maps["controls"], image, cell, cells)
        features, disks = maps["features"][0], self._disk_map(maps) if self.config.head.disk else None
        keypoints, keypoint_scores = in_chunks(
            lambda *rows: self._locate(features, disks, *rows),
            (theta, image, cells.points[cell], cells.strides[cell]),
            self.config.maps.chunk,
        )
        keypoints = clip_points(keypoints, limits[image, None])
        columns = (values.split(counts) for values in (keypoints, keypoint_scores, scores))
        return [Poses(*row) for row in zip(*columns, strict=True)]

    def _best_cells(self, maps: Maps, cells: Cells, limits: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and indices (B, n) of candidate cells, best first, after suppression if it needs no KP-Net. A score of
        0 marks padding."""
        config = self.config
        probabilities = flatten_levels(maps["cls"])[..., 0].sigmoid()  # (B, P)
        sizes = [h * w for h, w in cells.sizes]
        parts = sizes if config.top_of == "level" else [sum(sizes)]
        scores, chosen = best_cells(probabilities, probabilities, parts, config.decode)
        if config.nms_boxes == "keypoints":
            return scores, chosen
        return pick_cells(scores, chosen, self._cell_boxes(maps, cells, chosen, limits), config.decode)

    def _cell_boxes(self, maps: Maps, cells: Cells, chosen: Tensor, limits: Tensor) -> Tensor:
        """(B, n, 4) xyxy px of cells (B, n): predicted boxes, or boxes of the direct poses; clipped to the images' own
        boxes, ``limits`` (B, 4)."""
        image = torch.arange(len(chosen), device=chosen.device)[:, None].expand_as(chosen).flatten()
        cell = chosen.flatten()
        points, strides = cells.points[cell], cells.strides[cell]
        if self.config.nms_boxes == "detected":
            outputs = conv_at(self.head.box, maps["controls"], image, cell, cells)
            boxes = decode_boxes(points, strides, outputs, self.config.head.box_activation)
        else:
            poses = decode_offsets(points, strides, read_at(maps["direct"], image, cell, cells))
            boxes = torch.cat([poses.amin(1), poses.amax(1)], dim=1)
        corners = boxes.view(*chosen.shape, 2, 2)
        return clip_points(corners, limits[:, None, None]).flatten(-2)

    def _locate(
        self, features: Tensor, disks: Tensor | None, theta: Tensor, image: Tensor, points: Tensor, strides: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Keypoints (N, K, 2), pixels, and their scores (N, K) of N cells."""
        logits = self._instance_maps(features, theta, image, points, strides)
        stride: int = self.config.maps.map_stride
        if self.config.maps.bicubic:
            logits, stride = rescale(logits, 2, "bicubic"), stride // 2
        column, row, score = peaks(logits)
        if disks is None:
            return (torch.stack([column, row], dim=-1) + 0.5) * stride, score
        # The offset comes from the cell that holds the centre of the peak's cell.
        column, row = ((2 * index + 1) * stride // (2 * self.disk_stride) for index in (column, row))
        return (torch.stack([column, row], dim=-1) + read_disks(disks, image, column, row)) * self.disk_stride, score
