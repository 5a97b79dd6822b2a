"""The weights that SMPR's authors published, under our names."""

from collections.abc import Mapping

import torch
from torch import Tensor

from posefleet.models.parts.layers.backbones import backbone_weights
from posefleet.models.parts.layers.fpn import FPN, HRFPN
from posefleet.models.parts.layers.released import (
    FPN_RULES,
    Released,
    Rules,
    backbone_name,
    rename_weights,
    split_weights,
    tower_rules,
    weight_of,
)
from posefleet.models.smpr.config import Config

MARK = "bbox_head.feature_adaption.conv_adaption_reg.weight"
SOURCE = "https://github.com/cmdi-dlut/SMPR"
LICENCE = "The authors' repository is under the Apache License 2.0."
REPORTED = {
    "resnet50": "AP 62.6, AP50 85.9, AP75 68.6, APM 56.1, APL 71.7 on COCO test-dev2017 (the paper: 64.7)",
    "hrnet_w32": "AP 68.2, AP50 88.7, AP75 75.3, APM 63.3, APL 75.4 on COCO test-dev2017",
}

_RULES: Rules = (
    *FPN_RULES,
    (r"neck\.downsample_convs\.(\d)\.conv\.(.*)", r"neck.down.\1.\2"),
    (r"neck\.pafpn_convs\.(\d)\.conv\.(.*)", r"neck.up_output.\1.\2"),
)

_HRFPN_RULES: Rules = (
    (r"neck\.reduction_conv\.conv\.(.*)", r"neck.reduce.conv.\1"),
    # Versions of mmdetection differ in these names.
    (r"neck\.fpn_convs?\.(\d)\.(?:conv\.)?(weight|bias)", r"neck.output.\1.\2"),
)

_HEAD_RULES: Rules = (
    (r"bbox_head\.hm_out\.(.*)", r"head.heatmap.1.\1"),
    (r"bbox_head\.fcos_cls\.(.*)", r"head.cls.\1"),
    (r"bbox_head\.fcos_reg\.(.*)", r"head.init.\1"),
    (r"bbox_head\.fcos_rescore\.(.*)", r"head.psm.\1"),
    (r"bbox_head\.fcos_refine_out\.(.*)", r"head.refine.\1"),
    (r"bbox_head\.feature_adaption\.conv_offset\.weight", r"head.offset.weight"),
    (r"bbox_head\.feature_adaption\.conv_adaption_reg\.weight", r"head.align_pose.deform.weight"),
    (r"bbox_head\.feature_adaption\.conv_adaption_cls\.weight", r"head.align_cls.deform.weight"),
    (r"bbox_head\.scales_1\.(\d)\.scale", r"head.init_scale.\1"),
    (r"bbox_head\.scales_2\.(\d)\.scale", r"head.refine_scale.\1"),
)

_TOWERS = (("cls_convs", "cls_tower", 4), ("reg_convs", "pose_tower", 4), ("hm_convs", "heatmap.0", 2))
"""See :func:`tower_rules`."""

_SCALES = ("head.init_scale", "head.refine_scale")
"""Vectors of ours, one number for each level; the authors have a scalar for each level."""


def released_weights(stored: Mapping[str, Tensor]) -> Released:
    """See :meth:`posefleet.models.ReleasedModule.released_weights`."""
    body, others = split_weights(stored, "backbone.")
    name = backbone_name(body)
    if name not in REPORTED:
        raise ValueError(f"the backbone is {name}; SMPR's authors published {', '.join(REPORTED)}")
    config = Config.released("hrnet_w32" if name == "hrnet_w32" else "resnet50")
    hrnet = config.neck == "hrfpn"
    weights = rename_weights(others, (*(_HRFPN_RULES if hrnet else _RULES), *tower_rules(_TOWERS), *_HEAD_RULES))
    for scale in _SCALES:
        levels = [weight_of(weights, f"{scale}.{i}") for i in range(len(FPN.strides))]
        weights = {key: value for key, value in weights.items() if not key.startswith(f"{scale}.")}
        weights[scale] = torch.stack([level.reshape(()) for level in levels])
    strides = (HRFPN if hrnet else FPN).reads
    body = backbone_weights(config.backbone, body, strides)
    weights |= {f"backbone.{key}": value for key, value in body.items()}
    return Released(
        variant=name, config=config, weights=weights, keypoints=len(weight_of(others, "bbox_head.hm_out.weight"))
    )
