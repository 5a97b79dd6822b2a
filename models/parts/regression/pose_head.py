"""Head of two-stage pose regression on a feature pyramid (RepPoints for poses; Yang et al., Lin et al.).

Each cell predicts a first pose from its feature vector. Sampling points computed from that pose steer a deformable
convolution. The aligned features give an additive correction of the pose, the classification and a score of the pose.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from posefleet.models.parts.layers.blocks import (
    AlignBlock,
    align_levels,
    block_gradient,
    conv,
    prior_bias,
    scale_gradient,
    tower,
)
from posefleet.models.parts.layers.deform_conv import TAPS, Kernel, read_keypoints, subtract_base_grid
from posefleet.models.parts.layers.keypoint_channels import KeypointChannels, Layout, coordinates, one_each

PRIOR = 0.01
"""Probability of a person, or of a keypoint, that an untrained network predicts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoseHeadConfig:
    """What the head predicts, and how wide and deep it is."""

    channels: int = 256
    """Channels of the pyramid and of the towers; a multiple of 4 below 128, of 32 above. Fewer is faster and needs less
    memory."""
    tower_depth: int = 4
    """Number of 3x3 convolutions of each of the two towers, at least 1. Fewer is faster, and sees less context."""
    refine: bool = True
    """Second stage: aligned features correct the pose. Without it classification and pose are read from the towers."""
    align_cls: bool = True
    """Let the classification also read aligned features, like the regression and the pose score."""
    psm: bool = True
    """Pose scoring module: predicts the OKS of each pose, by which poses can be ranked. Needs ``refine``."""
    centerness: bool = False
    """Branch on the pose tower that predicts how central a cell lies in its person's box (FCOS)."""
    heatmap: bool = True
    """Auxiliary keypoint map on P3. It is computed in training only, so prediction is as fast with it."""
    heatmap_channels: int = 128
    """Channels of the keypoint map's branch."""
    align_norm: Literal["gn", "none"] = "gn"
    """Norm between the deformable convolution and its ReLU: GroupNorm, or ``none``, the published layout, in which the
    second stage soon stops learning (its outputs are all 0)."""
    offset_groups: int = 4
    """Groups of channels, each with its own sampling points; divides ``channels``. More groups read more places."""
    offset_bias: bool = False
    """Bias of the layer that turns a pose into sampling points."""
    offset_init: Literal["normal", "keypoints"] = "normal"
    """Initial weights of that layer: random, or such that the taps read at the keypoints of the first pose (needs
    ``subtract_base``), which random weights have to learn."""
    offset_std: float = 0.1
    """Deviation of that layer's weights if they start ``normal``. Raised, sampling points start further apart."""
    gradient_mul: float = 0.0
    """0..1: factor on the gradient that flows from the sampling points to the first pose; 0 stops it."""
    subtract_base: bool = False
    """Sampling points are relative to the cell's centre (RepPoints) instead of to the regular 3x3 taps."""
    level_scales: bool = True
    """Multiply the offsets of each level and stage by a learned factor."""
    hidden_layer: bool = False
    """Put a 3x3 convolution and ReLU before the layer of the first pose, which then is a 1x1 convolution."""
    output_kernel: Literal[1, 3] = 3
    """Kernel size of the layers that read aligned features. Layers that read a tower have 3."""
    deform_kernel: Kernel = "auto"
    """Implementation of the deformable convolution; all give the same result. ``auto`` chooses the fastest."""

    def __post_init__(self) -> None:
        if self.psm and not self.refine:
            raise ValueError("psm is true but refine is false: the pose score reads the aligned features")
        if self.channels % self.offset_groups:
            raise ValueError(f"channels {self.channels} cannot be split into offset_groups {self.offset_groups}")
        if self.offset_init == "keypoints" and not self.subtract_base:
            raise ValueError("offset_init 'keypoints' gives positions of taps; it needs subtract_base: true")
        if self.tower_depth < 1:
            raise ValueError(f"tower_depth must be at least 1, not {self.tower_depth}")
        if not 0 <= self.gradient_mul <= 1:
            raise ValueError(f"gradient_mul must be 0..1, not {self.gradient_mul}")


Maps = dict[str, list[Tensor]]
"""Dense predictions: name -> one map (B, C, h, w) per level. ``cls``, ``psm`` and ``centerness``: 1 channel, logits;
``init`` and ``refine``: 2K channels, cells, dx before dy; ``heatmap``: K channels, logits, P3 only."""

_OUTPUTS = ("init", "centerness", "refine", "cls", "psm")
"""Maps of a level in the order in which exported networks have them."""


class Head(nn.Module):
    """Two towers, the first pose, the alignment, and the layers that read aligned features; shared by all levels."""

    alive: Tensor | None
    """Share of the aligned regression features of P3 that were above zero in the last training step (0-dim)."""

    def __init__(self, config: PoseHeadConfig, keypoints: int, levels: int) -> None:
        super().__init__()
        channels, kernel, coordinates = config.channels, config.output_kernel, 2 * keypoints
        self.config = config
        self.alive = None
        self.cls_tower = tower(channels, channels, config.tower_depth)
        self.pose_tower = tower(channels, channels, config.tower_depth)
        self.init: nn.Module = conv(channels, coordinates, 3)
        if config.hidden_layer:
            self.init = nn.Sequential(conv(channels, channels, 3), nn.ReLU(), conv(channels, coordinates, 1))
        self.cls = conv(channels, 1, kernel if config.refine and config.align_cls else 3, bias=prior_bias(PRIOR))
        if config.level_scales:
            self.init_scale = nn.Parameter(torch.ones(levels))
        if config.refine:
            groups, norm, implementation = config.offset_groups, config.align_norm, config.deform_kernel
            offset_bias = 0.0 if config.offset_bias else None
            self.offset = conv(coordinates, groups * 2 * TAPS, 1, std=config.offset_std, bias=offset_bias)
            if config.offset_init == "keypoints":
                read_keypoints(self.offset, keypoints)
            if config.align_cls:
                self.align_cls = AlignBlock(channels, groups, norm, implementation)
            self.align_pose = AlignBlock(channels, groups, norm, implementation)
            self.refine = conv(channels, coordinates, kernel)
            if config.level_scales:
                self.refine_scale = nn.Parameter(torch.ones(levels))
        if config.psm:
            self.psm = conv(channels, 1, kernel)
        if config.centerness:
            self.centerness = conv(channels, 1, 3)
        if config.heatmap:
            self.heatmap = nn.Sequential(
                tower(channels, config.heatmap_channels, 2),
                conv(config.heatmap_channels, keypoints, 3, bias=prior_bias(PRIOR)),
            )

    def keypoint_channels(self, keypoints: Sequence[str]) -> Layout:
        """Layers whose channels depend on the schema, see ``models.TransferableModel``."""
        pose = KeypointChannels(outputs=coordinates(keypoints))
        layout = {"init.2" if self.config.hidden_layer else "init": pose}
        if self.config.refine:
            layout |= {"offset": KeypointChannels(inputs=pose.outputs), "refine": pose}
        if self.config.heatmap:
            layout["heatmap.1"] = KeypointChannels(outputs=one_each(keypoints))
        return layout

    def forward(
        self, features: list[Tensor], *, heatmap: bool = False, supervised: Sequence[Tensor | None] | None = None
    ) -> Maps:
        """P3..P7, each (B, C, h, w) -> dense predictions; the keypoint map only with ``heatmap``.

        Args:
            supervised: (B, K, h, w) bool of each level. Where it is False, the first pose gets no gradient from the
                sampling points. Default: True everywhere.
        """
        masks = supervised or [None] * len(features)
        levels = [self._first_pose(feature, level, masks[level]) for level, feature in enumerate(features)]
        if self.config.refine:
            levels = self._second_pose(levels)
        else:
            levels = [level | {"cls": self.cls(level.pop("cls_tower"))} for level in levels]
        maps = {name: [level[name] for level in levels] for name in levels[0] if name in _OUTPUTS}
        if heatmap:
            maps["heatmap"] = [self.heatmap(features[0])]
        return maps

    def _first_pose(self, feature: Tensor, level: int, supervised: Tensor | None) -> dict[str, Tensor]:
        """What the towers of a level give: ``init``, ``centerness``, and for the second pose ``cls_tower``,
        ``pose_tower`` and ``offset`` of the taps."""
        config = self.config
        cls, pose = self.cls_tower(feature), self.pose_tower(feature)
        init = self.init(pose).float()
        if config.level_scales:
            init = init * self.init_scale[level]
        maps = {"init": init, "cls_tower": cls, "pose_tower": pose}
        if config.centerness:
            maps["centerness"] = self.centerness(pose)
        if config.refine:
            with torch.autocast(feature.device.type, enabled=False):  # positions need more than bfloat16's 8 bits
                coordinates = None if supervised is None else supervised.repeat_interleave(2, dim=1)
                offset = self.offset(block_gradient(scale_gradient(init, config.gradient_mul), coordinates))
            maps["offset"] = subtract_base_grid(offset) if config.subtract_base else offset
        return maps

    def _second_pose(self, levels: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """The levels with what is read from aligned features: ``refine``, ``cls``, ``psm``."""
        config = self.config
        blocks = [self.align_pose, *([self.align_cls] if config.align_cls else [])]
        towers = ["pose_tower", "cls_tower"][: len(blocks)]
        pyramids = [[level[name] for level in levels] for name in towers]
        aligned = align_levels(blocks, pyramids, [level["offset"] for level in levels])
        poses = aligned[0]
        classes = aligned[1] if config.align_cls else [level["cls_tower"] for level in levels]
        if self.training:
            self.alive = (poses[0].detach() > 0).float().mean()
        result = []
        for number, (level, pose, cls) in enumerate(zip(levels, poses, classes, strict=True)):
            delta = self.refine(pose).float()
            if config.level_scales:
                delta = delta * self.refine_scale[number]
            maps = level | {"refine": level["init"].detach() + delta, "cls": self.cls(cls)}
            if config.psm:
                maps["psm"] = self.psm(pose)
            result.append(maps)
        return result
