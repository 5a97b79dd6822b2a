"""The pose methods, and the interfaces that the platform uses them through.

A method is found by its name: ``models/<name>.py`` or ``models/<name>/__init__.py`` defines ``Config`` (a frozen
dataclass) and ``Model`` (an ``nn.Module``, built as ``Model(config, schema)``, that implements :class:`PoseModel`).
Doors: :func:`load_method`, :func:`available_methods` and the three protocols. Methods share ``parts``.
"""

import importlib
from pathlib import Path
from types import ModuleType
from typing import ClassVar, Protocol

from torch import Tensor

from posefleet.data.structures import People, Poses


class PoseModel(Protocol):
    """The interface that ``Model`` of every method implements.

    Images are uint8 (B, 3, H, W), RGB, H and W multiples of 32; the model normalises them on their device.
    Coordinates of people and poses are pixels of those images.
    """

    def forward(self, images: Tensor, people: list[People]) -> dict[str, Tensor]:
        """Named losses (scalars, float32), already weighted. Training minimises their sum. DDP wraps this call."""
        ...

    def predict(self, images: Tensor) -> list[Poses]:
        """Poses of every image, best first. Called on the module itself (not DDP), in eval mode, without gradients."""
        ...


class RedecodableModel(PoseModel, Protocol):
    """A model whose poses can be decoded again with other settings, from outputs of its network that were kept."""

    decoding: ClassVar[tuple[str, ...]]
    """Dotted names in ``Config`` that only ``predict`` reads. It reads them from ``self.config`` at each call, after
    the network has run."""
    network: ClassVar[tuple[str, ...]]
    """Names of the attributes that hold the network: functions of a batch of images whose outputs may be kept."""


class ExportableModel(PoseModel, Protocol):
    """A model whose network can run outside PyTorch."""

    decoder: ClassVar[tuple[str, ...]]
    """Dotted names of the modules with weights that turn outputs of the network into poses. All other weights that a
    prediction needs belong to the network."""

    def forward_features(self, images: Tensor) -> dict[str, list[Tensor]]:
        """Run the network: images to named maps (B, C, h, w). A prediction needs nothing else of the network."""
        ...


def available_methods() -> list[str]:
    """Sorted names of the methods: the files and packages of this folder except ``parts``."""
    folder = Path(__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    packages = {path.parent.name for path in folder.glob("*/__init__.py")} - {"parts"}
    return sorted(files | packages)


def load_method(name: str) -> ModuleType:
    """Import ``models/<name>.py`` or ``models/<name>/``, which defines ``Config`` and ``Model``.

    Raises:
        ValueError: No method has this name; the message lists the methods.
    """
    if name not in available_methods():
        raise ValueError(f"unknown method {name!r}; models/ has {', '.join(available_methods())}")
    return importlib.import_module(f"{__name__}.{name}")
