"""The weights that InsPose's authors published in opera, under our names."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from posefleet.models.inspose.model import Config
from posefleet.models.parts.layers.backbones import backbone_weights
from posefleet.models.parts.layers.released import (
    Released,
    Rules,
    backbone_name,
    rename_weights,
    split_weights,
    weight_of,
)

MARK = "bbox_head.ctr_star_conv.weight"
SOURCE = "https://github.com/hikvision-research/opera/tree/main/configs/inspose"
LICENCE = "The authors' repository is under the Apache License 2.0."
REPORTED = {"resnet50": "AP 65.2, AP50 87.2, AP75 71.3, APM 60.6, APL 72.2 on COCO val2017"}

BACKBONES = ("resnet50", "resnet101", "hrnet_w32")
"""Backbones of the paper. The authors published the first; the others can be trained with their code."""

_RULES: Rules = (
    (r"neck\.lateral_convs\.(\d)\.conv\.(.*)", r"neck.lateral.\1.\2"),
    (r"neck\.fpn_convs\.([0-2])\.conv\.(.*)", r"neck.output.\1.\2"),
    (r"neck\.fpn_convs\.3\.conv\.(.*)", r"neck.coarser.0.\1"),
    (r"neck\.fpn_convs\.4\.conv\.(.*)", r"neck.coarser.1.\1"),
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
    (r"bbox_head\.shared_convs\.4\.conv\.(.*)", r"head.features.1.\1"),
    (r"bbox_head\.shared_convs\.4\.gn\.(.*)", r"head.features.2.\1"),
)

_TOWERS = {
    "cls_convs": "head.cls_tower",
    "ctrl_convs": "head.control_tower",
    "shared_convs": "head.features.0",
    "kpt_convs": "head.direct.0",
    "hm_convs": "head.map_trunk.0",
}
"""The authors' towers, whose layer i is a convolution and a norm, and ours, where these are modules 3 i and 3 i + 1."""


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
    weights = rename_weights(others, (*_tower_rules(), *_RULES))
    weights |= {f"backbone.{key}": value for key, value in backbone_weights(config.backbone, body).items()}
    return Released(variant=name, config=config, weights=weights, keypoints=keypoints)


def _tower_rules() -> Rules:
    """A rule for each layer of the towers. The last layer of the map trunk comes after the upsampling."""
    return [
        (rf"bbox_head\.{theirs}\.{i}\.{part}\.(.*)", rf"{ours}.{3 * i + j}.\1")
        if (theirs, i) != ("hm_convs", 2)
        else (rf"bbox_head\.hm_convs\.2\.{part}\.(.*)", rf"head.map_trunk.2.{j}.\1")
        for theirs, ours in _TOWERS.items()
        for i in range(4)
        for j, part in enumerate(("conv", "gn"))
    ]
