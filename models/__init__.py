"""The pose methods, and the interfaces that the platform uses them through.

A method is found by its name: ``models/<name>.py`` or ``models/<name>/__init__.py`` defines ``Config`` (a frozen
dataclass) and ``Model`` (an ``nn.Module``, built as ``Model(config, schema)``, that implements :class:`PoseModel`).
A method whose authors published weights is a package with a module ``released`` (:class:`ReleasedModule`), which turns
the authors' files into ours. Doors: :func:`load_method`, :func:`load_released`, :func:`available_methods`,
:func:`keypoint_score_rule`, :func:`trust` and the protocols. Methods share ``parts``.

A module of anybody's that defines the same two is a method, too, under its importable name (``my_package.my_module``).
Importing it runs its code, and checkpoints name their method, so it must be trusted first.
"""

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Protocol, cast

from torch import Tensor

from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.structures import People, Poses
from posefleet.models.parts.layers.keypoint_channels import Layout
from posefleet.models.parts.layers.released import Released

TRUSTED = "POSEFLEET_METHODS"
"""Environment variable with the importable names, separated by commas, of methods outside ``models/`` that may be
imported."""


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


def trust(name: str) -> None:
    """Allow this process, and those that it starts from now on, to import the module ``name`` as a method.

    Call it for modules whose code you would run anyway: a checkpoint of such a method is loaded by importing it.

    Raises:
        ValueError: ``name`` is not the dotted name of a module.
    """
    if not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"method {name!r} is not the name of a module, such as my_package.my_module")
    if name not in available_methods() and name not in trusted_methods():
        os.environ[TRUSTED] = ",".join([*trusted_methods(), name])


def trusted_methods() -> list[str]:
    """Names of the modules outside ``models/`` that may be imported as methods."""
    return [name.strip() for name in os.environ.get(TRUSTED, "").split(",") if name.strip()]


def method_module(name: str) -> str:
    """Full name of the module of a method; it is not imported.

    Raises:
        ValueError: No method has this name, and no module of this name is trusted.
    """
    _check_name(name)
    return f"{__name__}.{name}" if name in available_methods() else name


def load_method(name: str) -> ModuleType:
    """Import ``models/<name>.py``, ``models/<name>/`` or a trusted module, which defines ``Config`` and ``Model``.

    Raises:
        ValueError: No method has this name (the message lists the methods), or the module is not trusted, cannot be
            imported or lacks one of the two.
    """
    full = method_module(name)
    try:
        module = importlib.import_module(full)
    except ModuleNotFoundError as error:
        if full != name or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(f"method {name!r}: {error}; is the folder that it lies in on PYTHONPATH?") from None
    if missing := [part for part in ("Config", "Model") if not hasattr(module, part)]:
        raise ValueError(f"method {name!r}: {module.__file__} defines no {' and no '.join(missing)}")
    return module


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
    if name in available_methods() or name in trusted_methods():
        return
    known = f"unknown method {name!r}; models/ has {', '.join(available_methods())}"
    if not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(known)
    raise ValueError(
        f"{known}. Is it a module of your own? It is not imported, as that runs its code, unless you name it: "
        f'{TRUSTED}={name}, or posefleet.models.trust("{name}")'
    )
