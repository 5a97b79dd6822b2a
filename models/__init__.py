"""The pose methods, a file or a package each, and the contract that every one of them fulfils.

A method is found by its file name: ``models/<name>.py`` defines ``Config`` (a frozen dataclass) and
``Model`` (an ``nn.Module`` built as ``Model(config, schema)`` that offers :class:`PoseModel`).
"""

import importlib
from pathlib import Path
from types import ModuleType
from typing import ClassVar, Protocol

from torch import Tensor

from posefleet.data.structures import People, Poses


class PoseModel(Protocol):
    """What every file in ``models/`` offers as ``Model``.

    Images are uint8 (B, 3, H, W), RGB, H and W multiples of 32; the model normalises them on their device.
    Coordinates of people and poses are pixels of those images.
    """

    def forward(self, images: Tensor, people: list[People]) -> dict[str, Tensor]:
        """Named losses (scalars, float32), already weighted, whose sum is minimised; what DDP wraps."""
        ...

    def predict(self, images: Tensor) -> list[Poses]:
        """Poses of every image, best first; called on the bare module, in eval mode, without gradients."""
        ...


class RedecodableModel(PoseModel, Protocol):
    """What a model also offers whose poses can be decoded again, with other settings, from what its network said."""

    decoding: ClassVar[tuple[str, ...]]
    """Dotted names in ``Config`` that only ``predict`` reads, each time anew from ``self.config``, once the network has
    run."""
    network: ClassVar[tuple[str, ...]]
    """Attributes that hold the network: functions of a batch of images whose answers may be kept."""


class ExportableModel(PoseModel, Protocol):
    """What a model also offers whose network can run outside of PyTorch."""

    decoder: ClassVar[tuple[str, ...]]
    """Dotted names of the modules with weights that make poses of what the network said; all other weights that a
    prediction needs are the network's."""

    def forward_features(self, images: Tensor) -> dict[str, list[Tensor]]:
        """The network, which predictions ask for nothing else: images to named maps (B, C, h, w)."""
        ...


def available_methods() -> list[str]:
    """Names of the methods: the files and packages of this folder, without ``parts``."""
    folder = Path(__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    packages = {path.parent.name for path in folder.glob("*/__init__.py")} - {"parts"}
    return sorted(files | packages)


def load_method(name: str) -> ModuleType:
    """Import ``models/<name>.py`` or ``models/<name>/``, which defines ``Config`` and ``Model``.

    Raises:
        ValueError: There is no such method.
    """
    if name not in available_methods():
        raise ValueError(f"unknown method {name!r}; models/ has {', '.join(available_methods())}")
    return importlib.import_module(f"{__name__}.{name}")
