"""Published weights: their names from those of the authors' code to ours, and which backbone a file holds.

mmdetection's ResNet and HRNet, and HRNet's own code, name their weights as timm does.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Rules = Sequence[tuple[str, str]]
"""Regular expressions of the authors' names, and what replaces them (``re.sub``); the first that matches counts."""

FPN_RULES: Rules = (
    (r"neck\.lateral_convs\.(\d)\.conv\.(.*)", r"neck.lateral.\1.\2"),
    (r"neck\.fpn_convs\.([0-2])\.conv\.(.*)", r"neck.output.\1.\2"),
    (r"neck\.fpn_convs\.3\.conv\.(.*)", r"neck.coarser.0.\1"),
    (r"neck\.fpn_convs\.4\.conv\.(.*)", r"neck.coarser.1.\1"),
)
"""mmdetection's names of a pyramid P3..P7, and those of ``fpn.FPN``."""


@dataclass(frozen=True, kw_only=True)
class Released:
    """Weights that the authors of a method published, under our names."""

    variant: str
    """Which of the published models it is: timm's name of its backbone, such as ``resnet50``."""
    config: Any
    """``Config`` of the method: its preset ``released`` for this variant, with ``pretrained`` off."""
    weights: Mapping[str, Tensor]
    """State dict of ``Model(config, schema)``."""
    keypoints: int
    """Number of keypoints that the network predicts."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the experiment, dotted names such as ``data.resize.short_side``, in which this variant differs from
    ``jobs/configs/METHOD_released.yaml``."""


_LISTED = 20
"""Names of one kind in a message; the others are counted."""


def split_weights(stored: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights whose names start with ``prefix``, without it, and all others."""
    inside = {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
    return inside, {name: value for name, value in stored.items() if not name.startswith(prefix)}


def tower_rules(towers: Sequence[tuple[str, str, int]]) -> Rules:
    """A rule for each convolution and each norm of the towers of a head.

    Args:
        towers: The authors' name of a tower below ``bbox_head``, ours below ``head``, and its number of layers. Layer i
            has ``conv`` and ``gn`` there; here these are modules 3 i and 3 i + 1, before the ReLU.
    """
    return [
        (rf"bbox_head\.{theirs}\.{i}\.{part}\.(.*)", rf"head.{ours}.{3 * i + j}.\1")
        for theirs, ours, layers in towers
        for i in range(layers)
        for j, part in enumerate(("conv", "gn"))
    ]


def rename_weights(stored: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """Weights under the names that ``rules`` give them.

    Raises:
        ValueError: No rule matches a name, or two names become one; the message lists these names.
    """
    renamed: dict[str, Tensor] = {}
    unknown, twice = [], []
    for name, value in stored.items():
        new = next((re.sub(rule, to, name) for rule, to in rules if re.fullmatch(rule, name)), None)
        if new is None:
            unknown.append(name)
        elif new in renamed:
            twice.append(name)
        else:
            renamed[new] = value
    if unknown or twice:
        raise ValueError("; ".join(filter(None, (_listed("not expected", unknown), _listed("given twice", twice)))))
    return renamed


def differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """What differs in names and shapes: every weight that is missing, left over or of another shape. Empty: nothing."""
    shapes = [
        f"{name} is {tuple(found[name].shape)}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if name in found and found[name].shape != value.shape
    ]
    missing = [name for name in expected if name not in found]
    left = [name for name in found if name not in expected]
    kinds = _listed("missing", missing), _listed("not expected", left), _listed("of another shape", shapes)
    return "; ".join(filter(None, kinds))


def weight_of(stored: Mapping[str, Tensor], name: str) -> Tensor:
    """One weight; ``ValueError`` if it is missing."""
    if name not in stored:
        raise ValueError(f"1 missing: {name}")
    return stored[name]


def backbone_name(stored: Mapping[str, Tensor]) -> str:
    """timm's name of the ResNet or HRNet whose weights ``stored`` are, such as ``resnet50`` or ``hrnet_w32``.

    The number of a ResNet's blocks tells its depth, and the width at stride 4 names an HRNet. The name need not be one
    that ``BackboneConfig`` takes.

    Raises:
        ValueError: The weights are neither.
    """
    branch = stored.get("stage2.0.branches.0.0.conv1.weight")
    if branch is not None:
        return f"hrnet_w{len(branch)}"
    blocks = [
        len({name.split(".")[1] for name in stored if name.startswith(f"layer{stage}.")}) for stage in range(1, 5)
    ]
    if not all(blocks):
        raise ValueError(f"the backbone is no ResNet and no HRNet: its stages have {blocks} blocks")
    convolutions = 3 if "layer1.0.conv3.weight" in stored else 2
    return f"resnet{convolutions * sum(blocks) + 2}"


def _listed(what: str, names: Sequence[str]) -> str:
    """ "3 missing: a, b, c"; empty if there are no names."""
    if not names:
        return ""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{len(names)} {what}: {', '.join(names[:_LISTED])}{more}"
