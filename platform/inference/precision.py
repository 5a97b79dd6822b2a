"""Autocast in the precision of ``train.precision``."""

import torch

from posefleet.platform.config.experiment import Precision

_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Within, layers that gain from it compute in ``precision`` on ``device``; nothing changes for float32."""
    dtype = _AUTOCAST.get(precision)
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)
