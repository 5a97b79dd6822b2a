"""Decoding that methods of pose regression share: the limits of an image, and the score of a keypoint."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from posefleet.data.structures import Frames, Poses
from posefleet.models.parts.ops import decode

KeypointScores = Literal["pose", "map"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PoseDecodeConfig(decode.DecodeConfig):
    """Which cells become poses, how duplicates are suppressed, and what the score of a keypoint is."""

    keypoint_scores: KeypointScores = "pose"
    """Score of a keypoint. ``pose``: the network scores whole poses only, so every keypoint has the score of its pose,
    repeated. ``map``: the probability that the keypoint map of P3 gives to the keypoint's cell. It needs
    ``head.heatmap`` and makes prediction slower, because the map is otherwise computed in training only. COCO's
    evaluation ignores the scores of keypoints."""
    pixel_boxes: bool = False
    """Measure boxes by the pixels that they touch, as the code that SMPR's authors released: poses are clipped to the
    centre of the last pixel, boxes have sides that are one pixel of the original image longer, and scores decay only
    above ``nms_threshold``. Coordinates are divided by the scale before it was rounded, which moves them by up to half
    a pixel of the resized image. Otherwise images and boxes are continuous."""


def image_limits(frames: Frames, config: PoseDecodeConfig) -> Tensor:
    """(B, 4) xyxy, pixels of the batch: the boxes to which poses are clipped."""
    return frames.boxes - frames.boxes.new_tensor([0.0, 0.0, 1.0, 1.0]) if config.pixel_boxes else frames.boxes


def by_nominal_scale(poses: list[Poses], frames: Frames) -> list[Poses]:
    """Move poses in pixels of the batch so that, mapped to the original images by the real ratios of their sizes, they
    lie where the nominal scale of the resize would put them."""
    left, top, right, _ = frames.boxes.unbind(1)
    origin = torch.stack([right if frames.mirrored else left, top], dim=1)  # (B, 2)
    factors = frames.ratios / frames.nominal[:, None]
    return [
        Poses(start + (p.keypoints - start) * factor, p.keypoint_scores, p.scores)
        for p, start, factor in zip(poses, origin, factors, strict=True)
    ]


def with_map_scores(poses: list[Poses], logits: Tensor, stride: int) -> list[Poses]:
    """Poses whose keypoints have the probability that a keypoint map gives to their cell.

    Args:
        poses: Poses of B images, pixels of the batch.
        logits: (B, K, h, w), the keypoint map.
        stride: Pixels per cell of the map; cell j covers pixels j * stride to (j + 1) * stride.
    """
    height, width = logits.shape[-2:]
    result = []
    for p, image in zip(poses, logits.float().sigmoid(), strict=True):
        cells = (p.keypoints / stride).floor().long()
        x, y = cells[..., 0].clamp(0, width - 1), cells[..., 1].clamp(0, height - 1)  # (N, K)
        scores = image.flatten(1).gather(1, (y * width + x).T).T
        result.append(Poses(p.keypoints, scores, p.scores))
    return result
