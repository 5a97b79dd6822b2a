"""Prediction for methods with a :class:`DecodeConfig`: network, decoding of its dense predictions, suppression."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from posefleet.data.structures import Frames, Poses
from posefleet.models.parts.ops.decode import DecodeConfig, suppress
from posefleet.models.parts.regression.pose_head import Maps


class DenseConfig(Protocol):
    """The fields of a method's ``Config`` that :class:`DenseModel` reads."""

    @property
    def decode(self) -> DecodeConfig: ...


DenseConfigT = TypeVar("DenseConfigT", bound=DenseConfig)


class DenseModel(nn.Module, ABC, Generic[DenseConfigT]):
    """A model that decodes dense predictions into poses and suppresses duplicates by the boxes of their keypoints."""

    config: DenseConfigT
    network: ClassVar = ("forward_features",)
    takes_frames: ClassVar = True
    decoder: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def forward_features(self, images: Tensor) -> Maps:
        """Run the network: (B, 3, H, W) RGB images in 0..255, any dtype, to dense predictions."""

    @abstractmethod
    def decode(self, maps: Maps, size: tuple[int, int], frames: Frames | None = None) -> list[Poses]:
        """Dense predictions of images of ``size`` (height, width) pixels -> candidate poses, best first.

        Args:
            frames: Where the images lie in their padded batch, which has ``size``. Default: they fill it.
        """

    @torch.no_grad()
    def predict(self, images: Tensor, frames: Frames | None = None) -> list[Poses]:
        """At most ``decode.max_poses`` poses of every image, best first; ``frames`` as in :meth:`decode`."""
        return self.suppress(self.candidates(images, frames), frames)

    @torch.no_grad()
    def candidates(self, images: Tensor, frames: Frames | None = None) -> list[Poses]:
        """Poses of every image before suppression. Those of several passes over an image can be concatenated."""
        height, width = images.shape[-2:]
        maps = self.forward_features(images)
        with torch.autocast(images.device.type, enabled=False):
            return self.decode(maps, (height, width), frames)

    def suppress(self, poses: Sequence[Poses], frames: Frames | None = None) -> list[Poses]:
        """Suppress duplicates: scores of overlapping poses decay. At most ``decode.max_poses`` poses are returned.

        Args:
            frames: If the poses are in pixels of a batch: how its images were resized. Default: the poses are in pixels
                of the original images.
        """
        return suppress(poses, self.config.decode)
