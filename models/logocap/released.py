"""The weights that LOGO-CAP's authors published, under our names.

The files hold bare state dicts of HRNet-W32 and HRNet-W48 for COCO's 17 keypoints. A checkpoint of a training has one
under ``state_dict``, with ``module.`` before every name.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import cast, get_args

import torch
from torch import Tensor

from posefleet.data.schemas.shipped import COCO17
from posefleet.models.logocap.model import STRIDES, Config, Model, ReleasedBackbone
from posefleet.models.parts.layers.backbones import backbone_weights
from posefleet.models.parts.layers.released import (
    Released,
    Rules,
    backbone_name,
    differences,
    rename_weights,
    split_weights,
    weight_of,
)

MARK = "transition_embedding.0.weight"
SOURCE = "https://github.com/cherubicXN/logocap"
LICENCE = "The authors' repository has no licence: nothing permits to copy or change the weights; ask the authors."
REPORTED = {
    "hrnet_w32": "AP 69.6, AP50 87.5, AP75 75.9, APM 64.1, APL 78.0 on COCO val2017, with the flip test",
    "hrnet_w48": "AP 72.2, AP50 88.9, AP75 78.9, APM 68.1, APL 78.9 on COCO val2017, with the flip test",
}

_STACKED = ("transition_cls.0.weight", "transition_reg.0.weight", "transition_embedding.0.weight")
"""1x1 convolutions of the backbone's features, in the order in which ``fuse`` computes them as one."""

_ATTENTION = "message_passing.4.attention.weight"
"""A linear layer here, a 1x1 convolution there."""

_RULES: Rules = (
    (r"transition_cls\.1\.(.*)", r"heat.0.\1"),
    (r"final_layer_cls\.(.*)", r"heat.2.\1"),
    (r"transition_reg\.1\.(.*)", r"offset.0.\1"),
    (r"final_layer_reg\.(.*)", r"offset.2.\1"),
    (r"transition_embedding\.1\.(.*)", r"embedding.0.\1"),
    (r"joints_mlp\.4\.weight_", r"message_passing.4.scales"),
    (r"joints_mlp\.4\.bias_", r"message_passing.4.shifts"),
    (r"joints_mlp\.4\.attn_weights\.attention\.0\.(.*)", r"message_passing.4.attention.\1"),
    (r"joints_mlp\.4\.((?:running|num)_.*)", r"message_passing.4.norm.\1"),
    (r"joints_mlp\.((?!4\.).*)", r"message_passing.\1"),
)

_SHORT_SIDES = {"hrnet_w32": 512, "hrnet_w48": 640}
"""Pixels of the short side of the images in training and evaluation."""


def released_weights(stored: Mapping[str, Tensor]) -> Released:
    """See :meth:`posefleet.models.ReleasedModule.released_weights`."""
    body, others = split_weights(stored, "backbone.")
    name = backbone_name(body)
    if name not in get_args(ReleasedBackbone):
        raise ValueError(f"the backbone is {name}; LOGO-CAP has {', '.join(get_args(ReleasedBackbone))}")
    config = Config.released(cast(ReleasedBackbone, name))
    config = replace(config, backbone=replace(config.backbone, pretrained=False))
    stacked = [weight_of(others, part) for part in _STACKED]
    keypoints = len(weight_of(others, "final_layer_reg.weight")) // 2
    if keypoints != len(COCO17):
        raise ValueError(f"final_layer_reg.weight has {2 * keypoints} channels; {len(COCO17)} keypoints have 34")
    weights = rename_weights({key: value for key, value in others.items() if key not in _STACKED}, _RULES)
    if _ATTENTION in weights:
        weights[_ATTENTION] = weights[_ATTENTION].flatten(1)
    with torch.device("meta"):
        expected = Model(config, COCO17).state_dict()
    rows = dict(zip(_STACKED, expected["fuse.conv.weight"].split(config.widths), strict=True))
    heads = {key: value for key, value in expected.items() if not key.startswith(("backbone.", "fuse."))}
    wrong = differences(heads | rows, weights | dict(zip(_STACKED, stacked, strict=True)))
    if wrong:
        raise ValueError(f"these are not the weights of LOGO-CAP with {name}: {wrong}")
    weights["fuse.conv.weight"] = torch.cat(stacked)
    weights |= {f"backbone.{key}": value for key, value in backbone_weights(config.backbone, body, STRIDES).items()}
    settings = {"data.resize.short_side": _SHORT_SIDES[name], "data.augment.crop": _SHORT_SIDES[name]}
    return Released(
        variant=name,
        config=config,
        weights=weights,
        keypoints=keypoints,
        settings={} if name == "hrnet_w32" else settings,
    )
