"""The model that methods of pose regression share: every cell of P3..P7 predicts a whole pose. Losses and scores are
the methods' own."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor

from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.structures import Frames, People, Poses, TargetPoints
from posefleet.models.parts.layers.backbones import Backbone, BackboneConfig
from posefleet.models.parts.layers.fpn import FPN, HRFPN, PAFPN, Activation
from posefleet.models.parts.layers.keypoint_channels import Layout, under
from posefleet.models.parts.ops.assign import supervised_cells, supervision_of
from posefleet.models.parts.ops.cells import flatten_levels, level_sizes, map_sizes, pyramid_cells
from posefleet.models.parts.ops.decode import best_poses, suppress
from posefleet.models.parts.regression.dense_model import DenseConfig, DenseModel
from posefleet.models.parts.regression.pose_decode import (
    KeypointScores,
    PoseDecodeConfig,
    by_nominal_scale,
    image_limits,
    with_map_scores,
)
from posefleet.models.parts.regression.pose_head import Head, Maps, PoseHeadConfig
from posefleet.models.parts.regression.positives import PositivesConfig, assign, assigned_points, pad_for

Neck = Literal["fpn", "pafpn", "hrfpn"]


class PyramidConfig(DenseConfig, Protocol):
    """The fields of a method's ``Config`` that :class:`PyramidModel` reads."""

    @property
    def backbone(self) -> BackboneConfig: ...
    @property
    def neck(self) -> Neck: ...
    @property
    def neck_activation(self) -> Activation: ...
    @property
    def head(self) -> PoseHeadConfig: ...
    @property
    def assign(self) -> PositivesConfig: ...
    @property
    def decode(self) -> PoseDecodeConfig: ...


ConfigT = TypeVar("ConfigT", bound=PyramidConfig)


class PyramidModel(DenseModel[ConfigT]):
    """Backbone, pyramid and two-stage head. A method adds ``losses`` and ``decode``."""

    sigmas: Tensor

    def __init__(self, config: ConfigT, schema: KeypointSchema) -> None:
        super().__init__()
        self.config = config
        necks: dict[str, type[FPN] | type[HRFPN]] = {"fpn": FPN, "pafpn": PAFPN, "hrfpn": HRFPN}
        neck = necks[config.neck]
        self.backbone = Backbone(config.backbone, strides=neck.reads)
        self.neck = neck(self.backbone.channels, config.head.channels, config.neck_activation)
        self.head = Head(config.head, len(schema), levels=len(neck.strides))
        self.register_buffer("sigmas", torch.tensor(schema.sigmas), persistent=False)

    def keypoint_channels(self, schema: KeypointSchema) -> Layout:
        """See :meth:`posefleet.models.TransferableModel.keypoint_channels`."""
        return under("head", self.head.keypoint_channels(schema.keypoints))

    @abstractmethod
    def losses(self, maps: Maps, people: list[People]) -> dict[str, Tensor]:
        """Weighted losses of the dense predictions of a batch, in float32."""

    def forward(self, images: Tensor, people: list[People]) -> dict[str, Tensor]:
        """Weighted losses of a batch, by name; :meth:`losses` lists them."""
        sizes = level_sizes(images.shape[-2], images.shape[-1], FPN.strides)
        supervision = supervision_of(people, self.sigmas.device)
        supervised = [supervised_cells(*supervision, *level) for level in zip(sizes, FPN.strides, strict=True)]
        maps = self.forward_features(images, heatmap=self.config.head.heatmap, supervised=supervised)
        with torch.autocast(images.device.type, enabled=False):
            return self.losses(maps, people)

    def forward_features(
        self, images: Tensor, *, heatmap: bool | None = None, supervised: Sequence[Tensor | None] | None = None
    ) -> Maps:
        """Run the network: (B, 3, H, W) RGB images in 0..255, any dtype, to dense predictions.

        Args:
            heatmap: Whether the result has the keypoint map. Default: if keypoints get their scores from it.
            supervised: See :meth:`Head.forward`.
        """
        wanted = self.config.decode.keypoint_scores == "map" if heatmap is None else heatmap
        maps: Maps = self.head(self.neck(self.backbone(images)), heatmap=wanted, supervised=supervised)
        return maps

    @staticmethod
    def keypoint_score_rule(config: PyramidConfig) -> str:
        """What the scores of keypoints are, in words."""
        scores: KeypointScores = config.decode.keypoint_scores
        return {"pose": "pose score, repeated", "map": "probability of the keypoint map at the keypoint"}[scores]

    def poses_of(
        self, maps: Maps, stage: str, scores: Tensor, size: tuple[int, int], frames: Frames | None, *, screened: bool
    ) -> list[Poses]:
        """The poses of the best cells of every image, before suppression.

        Args:
            stage: Name of the offsets in ``maps`` that give the poses.
            scores: (B, P) in [0, 1], rank the poses.
            size: (height, width) of the batch, pixels.
            frames: See :meth:`decode`.
            screened: Choose the best cells of a level by their classification instead of by ``scores``.
        """
        config = self.config.decode
        cells = pyramid_cells(map_sizes(maps["cls"]), FPN.strides, scores.device)
        frames = (frames or Frames.whole(len(scores), size)).to(scores.device)
        probabilities = flatten_levels(maps["cls"])[..., 0].sigmoid()
        found = best_poses(
            scores,
            probabilities,
            flatten_levels(maps[stage]),
            cells,
            image_limits(frames, config),
            config,
            rank=probabilities if screened else None,
        )
        if config.keypoint_scores == "map":
            if "heatmap" not in maps:
                raise ValueError(
                    "decode.keypoint_scores is 'map', but these outputs of the network have no keypoint map: they were "
                    "computed, or exported, with 'pose'"
                )
            found = with_map_scores(found, maps["heatmap"][0], FPN.strides[0])
        return by_nominal_scale(found, frames) if config.pixel_boxes else found

    def suppress(self, poses: Sequence[Poses], frames: Frames | None = None) -> list[Poses]:
        """Suppress duplicates: scores of overlapping poses decay. At most ``decode.max_poses`` poses are returned.

        Args:
            frames: If the poses are in pixels of a batch: how its images were resized. Default: the poses are in pixels
                of the original images.
        """
        config = self.config.decode
        return suppress(
            poses,
            config,
            pixels=config.pixel_boxes,
            ratios=frames.ratios if frames and config.pixel_boxes else None,
            decay_keypoints=config.keypoint_scores == "pose",
        )

    @torch.no_grad()
    def target_points(self, size: tuple[int, int], people: list[People]) -> list[list[TargetPoints]]:
        """The cells that are assigned to people, to be drawn.

        Args:
            size: (height, width) of the images, pixels.
            people: People of each image.

        Returns:
            For each image, a list of one entry: the assigned cells.
        """
        config = self.config.assign
        cells = pyramid_cells(level_sizes(*size, FPN.strides), FPN.strides, self.sigmas.device)
        return assigned_points(cells, assign(cells, pad_for(people, self.sigmas.device, config), config))
