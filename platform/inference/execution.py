"""How a network runs: its precision, and the compiler."""

from typing import Any

import torch
from torch import nn

from posefleet.platform.config.experiment import Precision

_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Within, layers that gain from it compute in ``precision`` on ``device``; nothing changes for float32."""
    dtype = _AUTOCAST.get(precision)
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def compile_network(model: nn.Module, **options: Any) -> None:
    """Let torch.compile compile the parts of ``model`` that hold its layers, in training and prediction.

    The parts are compiled when they first run, and again for new shapes. What lies between them (assignment, decoding,
    suppression) depends on the data and stays as it is. Weights and names do not change.

    Args:
        model: The parts are the modules that its ``compiled`` names; default: its direct children with parameters.
        options: Of :meth:`torch.nn.Module.compile`.
    """
    children = [name for name, part in model.named_children() if any(True for _ in part.parameters())]
    for name in getattr(model, "compiled", children):
        model.get_submodule(name).compile(**options)
