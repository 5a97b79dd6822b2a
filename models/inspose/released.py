"""The weights that InsPose's authors published in opera, under our names."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from posefleet.models.inspose.model import Config
from posefleet.models.parts.layers.backbones import backbone_weights
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

MARK = "bbox_head.ctr_star_conv.weight"
SOURCE = "https://github.com/hikvision-research/opera/tree/main/configs/inspose"
LICENCE = "The authors' repository is under the Apache License 2.0."
REPORTED = {"resnet50": "AP 65.2, AP50 87.2, AP75 71.3, APM 60.6, APL 72.2 on COCO val2017"}

BACKBONES = ("resnet50", "resnet101", "hrnet_w32")
"""Backbones of the paper. The authors published the first; the others can be trained with their code."""

_RULES: Rules = (
    *FPN_RULES,
    (r"bbox_head\.conv_cls\.(.*)", r"head.cls.\1"),
    (r"bbox_head\.controller\.(.*)", r"head.controller.\1"),
    (r"bbox_head\.kpt_offset\.(.*)", r"head.direct.1.\1"),
    (r"bbox_head\.cls_star_conv\.weight", r"head.align_cls.deform.weight"),
    (r"bbox_head\.cls_star_gn\.(.*)", r"head.align_cls.norm.\1"),
    (r"bbox_head\.ctr_star_conv\.weight", r"head.align_control.deform.weight"),
    (r"bbox_head\.ctr_star_gn\.(.*)", r"head.align_control.norm.\1"),
    (r"bbox_head\.hm_pred\.(.*)", r"head.map_outputs.heatmap.\1"),
    (r"bbox_head\.ae_pred\.(.*)", r"head.map_outputs.tags.\1"),
    (r"bbox_head\.hm_offset\.(.*)", r"head.map_outputs.disk.\1"),
    # The last layer of the map trunk comes after the upsampling.
    (r"bbox_head\.hm_convs\.2\.conv\.(.*)", r"head.map_trunk.2.0.\1"),
    (r"bbox_head\.hm_convs\.2\.gn\.(.*)", r"head.map_trunk.2.1.\1"),
    (r"bbox_head\.shared_convs\.4\.conv\.(.*)", r"head.features.1.\1"),
    (r"bbox_head\.shared_convs\.4\.gn\.(.*)", r"head.features.2.\1"),
)

_TOWERS = (
    ("cls_convs", "cls_tower", 4),
    ("ctrl_convs", "control_tower", 4),
    ("shared_convs", "features.0", 4),
    ("kpt_convs", "direct.0", 4),
    ("hm_convs", "map_trunk.0", 2),
)
"""See :func:`tower_rules`."""


def released_weights(stored: Mapping[str, Tensor]) -> Released:
    """See :meth:`posefleet.models.ReleasedModule.released_weights`."""
    body, others = split_weights(stored, "backbone.")
    name = backbone_name(body)
    if name not in BACKBONES:
        raise ValueError(f"the backbone is {name}; InsPose has {', '.join(BACKBONES)}")
    preset = Config.released()
    config = replace(preset, backbone=replace(preset.backbone, name=name, pretrained=False))
    keypoints = len(weight_of(others, "bbox_head.kpt_offset.weight")) // 2
    outputs, expected = len(weight_of(others, "bbox_head.controller.weight")), sum(config.head.kpnet.sizes(keypoints))
    if outputs != expected:
        raise ValueError(
            f"bbox_head.controller has {outputs} outputs; a network of {config.head.kpnet.depth} layers for "
            f"{keypoints} keypoints has {expected} parameters"
        )
    weights = rename_weights(others, (*_RULES, *tower_rules(_TOWERS)))
    weights |= {f"backbone.{key}": value for key, value in backbone_weights(config.backbone, body).items()}
    return Released(variant=name, config=config, weights=weights, keypoints=keypoints)
