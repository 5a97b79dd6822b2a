"""Head of instance-aware networks (Shi et al., InsPose).

For every cell it predicts a score, and the weights of a small network that locates the keypoints of the cell's person
on one shared feature map. Offsets and keypoint maps are the same for all people. The layers that predict weights
(``controller``) and boxes (``box``) are the widest, and their output is needed at few cells. The head therefore returns
the features that they read (``controls``), and ``sparse.conv_at`` runs them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from posefleet.data.schemas.schema import KeypointSchema
from posefleet.models.inspose.boxes import Activation
from posefleet.models.inspose.dynamic import DynamicConfig
from posefleet.models.parts.layers.blocks import (
    AlignBlock,
    align_levels,
    block_gradient,
    conv,
    prior_bias,
    scale_gradient,
    tower,
)
from posefleet.models.parts.layers.deform_conv import TAPS, Kernel, subtract_base_grid
from posefleet.models.parts.layers.keypoint_channels import KeypointChannels, Layout, coordinates, one_each

PRIOR = 0.01
"""Probability of a person that an untrained network predicts."""
KEYPOINT_PRIOR = 0.1
"""Probability of a keypoint that an untrained map predicts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceHeadConfig:
    """What the head predicts, and how wide and deep it is. Norms are GroupNorm everywhere."""

    channels: int = 256
    """Channels of the pyramid and of the towers; a multiple of 4 below 128, of 32 above. Fewer is faster and needs less
    memory."""
    tower_depth: int = 4
    """Number of 3x3 convolutions of the towers on all levels, at least 1. Fewer is faster, and sees less context."""
    kpnet: DynamicConfig = field(default_factory=DynamicConfig)
    """The network of one instance."""
    controller_std: float = 0.01
    """Standard deviation of the initial weights of the layer that predicts the parameters of that network, above 0.
    Raised, the networks of instances differ more at the start."""
    feature_channels: int = 128
    """Channels of the branch that computes the shared feature map."""
    feature_depth: int = 4
    """Number of 3x3 convolutions of that branch, at least 1."""
    disk: bool = True
    """Predict offsets around keypoints, which restore the precision that the maps' stride loses."""
    heatmap: bool = True
    """Auxiliary keypoint map. It is computed in training only, so prediction is as fast with it."""
    map_branch: Literal["separate", "joint"] = "joint"
    """Predict offsets and keypoint map by two branches of two layers at stride 8, or by one branch of three layers at
    stride 4, which is finer and slower."""
    map_channels: int = 512
    """Channels of those branches. Fewer is faster and needs less memory."""
    tags: bool = False
    """Associative embedding of keypoints, computed in training only. Nothing reads it in prediction. Needs
    ``map_branch: joint``. The released code reads it one cell too far up and to the left; this code does not."""
    direct: bool = True
    """Add a branch that predicts a whole pose as offsets from the cell."""
    direct_channels: int = 512
    """Channels of that branch."""
    align: bool = True
    """Add deformable convolutions that read at the ``align_keypoints`` of the direct pose. Needs ``direct``."""
    align_keypoints: tuple[str, ...] = ()
    """Names of nine keypoints, one for each tap of the deformable convolutions. Empty: the authors' nine, if the schema
    has them (nose, shoulders, wrists, hips, ankles); else nine that are spread evenly over its list, repeated if it has
    fewer."""
    gradient_mul: float = 0.1
    """0..1: factor on the gradient that flows from the taps to the direct pose; 0 stops it."""
    bbox_head: bool = False
    """Predict boxes, which ``nms_boxes: detected`` uses for suppression. Cells are then chosen by annotated boxes."""
    box_activation: Activation = "exp"
    """Function that turns outputs of the box layer into distances to the four sides, in cells."""
    deform_kernel: Kernel = "auto"
    """Implementation of the deformable convolution; all give the same result. ``auto`` chooses the fastest."""

    def __post_init__(self) -> None:
        if self.tower_depth < 1 or self.feature_depth < 1:
            raise ValueError(
                f"tower_depth and feature_depth must be at least 1, not {self.tower_depth} and {self.feature_depth}"
            )
        if self.controller_std <= 0:
            raise ValueError(f"controller_std must be above 0, not {self.controller_std}")
        if self.align and not self.direct:
            raise ValueError("align is true but direct is false: the taps read where the direct pose is")
        if len(self.align_keypoints) not in (0, TAPS):
            raise ValueError(f"align_keypoints must name {TAPS} keypoints or none, not {len(self.align_keypoints)}")
        if self.tags and self.map_branch != "joint":
            raise ValueError(f"tags are read from the joint branch, but map_branch is {self.map_branch!r}")
        if not 0 <= self.gradient_mul <= 1:
            raise ValueError(f"gradient_mul must be 0..1, not {self.gradient_mul}")

    @property
    def map_stride(self) -> int:
        """Pixels per cell at which offsets and keypoint map are predicted."""
        return 4 if self.map_branch == "joint" else 8


Maps = dict[str, list[Tensor]]
"""Dense predictions: name -> maps (B, C, h, w). On all levels ``cls`` (1 channel, logits), ``controls`` (features) and
``direct`` (2K channels, cells, dx before dy); ``features`` of P3; at ``map_stride`` ``disk`` (2K channels, cells),
``heatmap`` (K logits) and ``tags`` (K)."""


class Head(nn.Module):
    """Towers on all levels, and the branches on P3."""

    taps: Tensor
    """Channels of the direct pose that steer the taps of the alignment: y and x of each."""

    def __init__(self, config: InstanceHeadConfig, schema: KeypointSchema) -> None:
        super().__init__()
        channels, keypoints = config.channels, len(schema)
        self.config = config
        self.cls_tower = tower(channels, channels, config.tower_depth)
        self.control_tower = tower(channels, channels, config.tower_depth)
        read = 2 * channels if config.align else channels
        self.cls = conv(read, 1, 3, bias=prior_bias(PRIOR))
        self.controller = conv(read, sum(config.kpnet.sizes(keypoints)), 3, std=config.controller_std)
        if config.bbox_head:
            self.box = conv(read, 4, 3)
        if config.direct:
            self.direct = nn.Sequential(
                tower(channels, config.direct_channels, config.tower_depth),
                conv(config.direct_channels, 2 * keypoints, 3),
            )
        if config.align:
            chosen = _align_keypoints(config, schema)
            taps = torch.tensor([channel for k in chosen for channel in (2 * k + 1, 2 * k)])
            self.register_buffer("taps", taps, persistent=False)
            self.align_cls = AlignBlock(channels, 1, "gn", config.deform_kernel)
            self.align_control = AlignBlock(channels, 1, "gn", config.deform_kernel)
            nn.init.normal_(self.align_cls.deform.weight, std=0.1)
            nn.init.normal_(self.align_control.deform.weight, std=0.1)
        features = config.kpnet.features
        self.features = nn.Sequential(
            tower(channels, config.feature_channels, config.feature_depth),
            conv(config.feature_channels, features, 3, bias=None),
            nn.GroupNorm(2, features),
            nn.ReLU(inplace=True),
        )
        self._add_map_branches(keypoints)

    def _add_map_branches(self, keypoints: int) -> None:
        config, wide = self.config, self.config.map_channels
        joint = config.map_branch == "joint"
        outputs = {"disk": (config.disk, 2 * keypoints, 0.0)}
        outputs["heatmap"] = (config.heatmap, keypoints, prior_bias(KEYPOINT_PRIOR))
        outputs["tags"] = (config.tags, keypoints, 0.0)
        self.map_outputs = nn.ModuleDict()
        for name, (wanted, count, bias) in outputs.items():
            if wanted:
                out = conv(wide, count, 3, bias=bias)
                self.map_outputs[name] = out if joint else nn.Sequential(tower(config.channels, wide, 2), out)
        if joint and self.map_outputs:
            self.map_trunk = nn.Sequential(
                tower(config.channels, wide, 2),
                nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
                tower(wide, wide, 1),
            )

    def keypoint_channels(self, keypoints: Sequence[str]) -> Layout:
        """Layers whose channels depend on the schema, see ``models.TransferableModel``."""
        layout = {"controller": KeypointChannels(outputs=self.config.kpnet.channels(keypoints))}
        if self.config.direct:
            layout["direct.1"] = KeypointChannels(outputs=coordinates(keypoints))
        last = "" if self.config.map_branch == "joint" else ".1"
        for name in self.map_outputs:
            labels = coordinates(keypoints) if name == "disk" else one_each(keypoints)
            layout[f"map_outputs.{name}{last}"] = KeypointChannels(outputs=labels)
        return layout

    def forward(
        self, features: list[Tensor], *, auxiliary: bool = False, supervised: Sequence[Tensor | None] | None = None
    ) -> Maps:
        """P3..P7, each (B, C, h, w) -> dense predictions.

        Args:
            auxiliary: Whether the result has ``heatmap`` and ``tags``, which only training needs.
            supervised: (B, K, h, w) bool of each level. Where it is False, the direct pose gets no gradient from the
                taps. Default: True everywhere.
        """
        masks = supervised or [None] * len(features)
        maps = self._on_all_levels([self._towers(*level) for level in zip(features, masks, strict=True)])
        maps["features"] = [self.features(features[0])]
        wanted = [name for name in self.map_outputs if auxiliary or name == "disk"]
        if wanted:
            source = self.map_trunk(features[0]) if self.config.map_branch == "joint" else features[0]
            maps |= {name: [self.map_outputs[name](source)] for name in wanted}
        return maps

    def _towers(self, feature: Tensor, supervised: Tensor | None) -> dict[str, Tensor]:
        """What the towers of a level give: ``cls_tower``, ``control_tower``, ``direct``, and ``offset`` of the taps."""
        config = self.config
        maps = {"cls_tower": self.cls_tower(feature), "control_tower": self.control_tower(feature)}
        if config.direct:
            maps["direct"] = self.direct(feature).float()
        if config.align:
            coordinates = None if supervised is None else supervised.repeat_interleave(2, dim=1)
            pose = block_gradient(scale_gradient(maps["direct"], config.gradient_mul), coordinates)
            maps["offset"] = subtract_base_grid(pose.index_select(1, self.taps))
        return maps

    def _on_all_levels(self, levels: Sequence[dict[str, Tensor]]) -> Maps:
        """``direct``, ``cls`` and ``controls`` from what the towers gave."""
        cls, controls = ([level[name] for level in levels] for name in ("cls_tower", "control_tower"))
        if self.config.align:
            blocks, offsets = (self.align_cls, self.align_control), [level["offset"] for level in levels]
            aligned = align_levels(blocks, (cls, controls), offsets)
            cls, controls = (
                [torch.cat(pair, dim=1) for pair in zip(own, more, strict=True)]
                for own, more in zip((cls, controls), aligned, strict=True)
            )
        maps: Maps = {"direct": [level["direct"] for level in levels]} if self.config.direct else {}
        return maps | {"cls": [self.cls(level) for level in cls], "controls": controls}


_AUTHORS_TAPS = (
    "nose", "left_shoulder", "right_shoulder", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_ankle",
    "right_ankle",
)  # fmt: skip


def _align_keypoints(config: InstanceHeadConfig, schema: KeypointSchema) -> list[int]:
    """Indices of the keypoints where the taps of the alignment read.

    Raises:
        ValueError: ``align_keypoints`` has a name that the schema does not have.
    """
    known = set(schema.keypoints)
    if unknown := set(config.align_keypoints) - known:
        raise ValueError(
            f"align_keypoints names {sorted(unknown)}, which schema {schema.name} does not have; name {TAPS} of its "
            "keypoints, or none to have them chosen"
        )
    names = config.align_keypoints or (_AUTHORS_TAPS if known.issuperset(_AUTHORS_TAPS) else ())
    if names:
        return [schema.keypoints.index(name) for name in names]
    return [round(tap * (len(schema) - 1) / (TAPS - 1)) for tap in range(TAPS)]
