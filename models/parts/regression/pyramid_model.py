"""The model that methods of pose regression share: every cell of P3..P7 predicts a whole pose. Losses and scores are
the methods' own."""

from abc import abstractmethod
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor

from posefleet.data.keypoints import KeypointSchema
from posefleet.data.structures import People, TargetPoints
from posefleet.models.parts.layers.backbones import Backbone, BackboneConfig
from posefleet.models.parts.layers.fpn import FPN, HRFPN, PAFPN, Activation
from posefleet.models.parts.ops.cells import level_sizes, pyramid_cells
from posefleet.models.parts.regression.dense_model import DenseConfig, DenseModel
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


ConfigT = TypeVar("ConfigT", bound=PyramidConfig)


class PyramidModel(DenseModel[ConfigT]):
    """Backbone, pyramid and two-stage head. A method adds ``losses`` and ``decode``."""

    sigmas: Tensor

    def __init__(self, config: ConfigT, schema: KeypointSchema) -> None:
        super().__init__()
        self.config = config
        neck: type[FPN | HRFPN] = {"fpn": FPN, "pafpn": PAFPN, "hrfpn": HRFPN}[config.neck]
        self.backbone = Backbone(config.backbone, strides=neck.reads)
        self.neck = neck(self.backbone.channels, config.head.channels, config.neck_activation)
        self.head = Head(config.head, len(schema), levels=len(neck.strides))
        self.register_buffer("sigmas", torch.tensor(schema.sigmas), persistent=False)

    @abstractmethod
    def losses(self, maps: Maps, people: list[People]) -> dict[str, Tensor]:
        """Weighted losses of the dense predictions of a batch, in float32."""

    def forward(self, images: Tensor, people: list[People]) -> dict[str, Tensor]:
        """Weighted losses of a batch, by name; :meth:`losses` lists them."""
        maps = self.forward_features(images, heatmap=self.config.head.heatmap)
        with torch.autocast(images.device.type, enabled=False):
            return self.losses(maps, people)

    def forward_features(self, images: Tensor, *, heatmap: bool = False) -> Maps:
        """Run the network: (B, 3, H, W) RGB images in 0..255, any dtype, to dense predictions."""
        maps: Maps = self.head(self.neck(self.backbone(images)), heatmap=heatmap)
        return maps

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
