"""The pose methods, and the interfaces that the platform uses them through.

A method is found by its name: ``models/<name>.py`` or ``models/<name>/__init__.py`` defines ``Config`` (a frozen
dataclass) and ``Model`` (an ``nn.Module``, built as ``Model(config, schema)``, that implements :class:`PoseModel`).
A method whose authors published weights is a package with a module ``released`` (:class:`ReleasedModule`), which turns
the authors' files into ours. Doors: :func:`load_method`, :func:`load_released`, :func:`available_methods`,
:func:`keypoint_score_rule` and the protocols. Methods share ``parts``.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Protocol, cast

from torch import Tensor

from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.structures import People, Poses
from posefleet.models.parts.layers.keypoint_channels import Layout
from posefleet.models.parts.layers.released import Released


class PoseModel(Protocol):
    """The interface that ``Model`` of every method implements.

    Images are uint8 (B, 3, H, W), RGB, H and W multiples of 32; the model normalises them on their device.
    Coordinates of people and poses are pixels of those images.
    """

    def forward(self, images: Tensor, people: list[People]) -> dict[str, Tensor]:
        """Named losses (scalars, float32), already weighted. Training minimises their sum. DDP wraps this call."""
        ...

    def predict(self, images: Tensor) -> list[Poses]:
        """Poses of every image, best first. Called on the module itself (not DDP), in eval mode, without gradients.

        A model whose attribute ``takes_frames`` is true gets the keyword argument ``frames``, a
        :class:`posefleet.data.structures.Frames` that says where the images lie in their padded batch, in ``predict``
        and ``candidates``.
        """
        ...


class CompilableModel(PoseModel, Protocol):
    """A model that says which of its modules torch.compile may compile; else its direct children are."""

    compiled: tuple[str, ...]
    """Dotted names of modules that are called as such, and whose graphs do not depend on the data."""


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


class TransferableModel(PoseModel, Protocol):
    """A model whose weights can start the training of a model of another schema."""

    def keypoint_channels(self, schema: KeypointSchema) -> Layout:
        """Layers whose channels depend on the schema, by name, with a label for each channel.

        Channels with equal labels are copied. Layers whose shapes do not depend on the schema are left out, and are
        copied whole.

        Args:
            schema: The schema that the model was built with.
        """
        ...


class ReleasedModule(Protocol):
    """What the module ``models/<method>/released.py`` defines."""

    MARK: str
    """Name of a weight that every file of this method has, and no file of another method."""
    SOURCE: str
    """Address where the authors offer the files."""
    LICENCE: str
    """One sentence: the licence of the authors' repository, or that it has none."""
    REPORTED: Mapping[str, str]
    """Variant -> the AP that the authors report for it, and on which images."""

    def released_weights(self, stored: Mapping[str, Tensor]) -> Released:
        """Turn the state dict of an authors' file into ours.

        Args:
            stored: Weights by the authors' names. A prefix ``module.`` is already removed.

        Raises:
            ValueError: Weights are missing, left over, or of a shape that no variant has; the message names each.
        """
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
    _check_name(name)
    return importlib.import_module(f"{__name__}.{name}")


def keypoint_score_rule(name: str, config: Any) -> str:
    """What the scores of keypoints are, in words: ``pose score, repeated`` where a method scores whole poses only.

    Args:
        name: Name of the method.
        config: Its ``Config``.

    Returns:
        What the function ``keypoint_score_rule(config)`` of the method's ``Model`` says; "not stated" if it has none.
    """
    rule = getattr(load_method(name).Model, "keypoint_score_rule", None)
    return "not stated" if rule is None else str(rule(config))


def load_released(name: str) -> ReleasedModule | None:
    """Import ``models/<name>/released.py``; None if the method has no such module.

    Raises:
        ValueError: No method has this name; the message lists the methods.
    """
    _check_name(name)
    if not (Path(__file__).parent / name / "released.py").exists():
        return None
    return cast(ReleasedModule, importlib.import_module(f"{__name__}.{name}.released"))


def _check_name(name: str) -> None:
    if name not in available_methods():
        raise ValueError(f"unknown method {name!r}; models/ has {', '.join(available_methods())}")
