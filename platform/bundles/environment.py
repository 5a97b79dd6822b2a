"""Describes what predicted: versions and kind of machine, without anything that names a person or a machine."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from posefleet import __version__

PACKAGES = (
    *("torch", "torchvision", "timm", "numpy", "scipy"),
    *("opencv-python-headless", "pillow", "pycocotools", "safetensors", "webdataset"),
)
"""Packages that poses and scores depend on."""


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions, platform and device as plain values."""
    return {
        "posefleet": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
