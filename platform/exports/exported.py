"""What exported files have in common: the network that they hold, what they say about it, and a model that runs it.

A file holds a network from uint8 images to the named maps of ``forward_features``, for any batch and any size that is a
multiple of 32; normalisation is inside. The model's own PyTorch code decodes the maps into poses, whatever computed
them. The weights that this code needs (``Model.decoder``) are in the file, too.
"""

import contextlib
import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from posefleet.data.structures import STRIDE
from posefleet.models import ExportableModel
from posefleet.platform.checkpoints.format import WEIGHTS, CheckpointError, read_content
from posefleet.platform.checkpoints.load import build_within, load_model
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.loading import build_experiment, to_dict

FORMAT = "1"
"""Version of the metadata and the content of the files; files of another version are not used."""
INPUT = "images"
"""Name of the network's input."""

_FOLDED = 4
"""A model may have this many times the tensors of its file, in which a convolution holds its normalisation, too."""


class ExportedNetwork(ABC):
    """Computes the maps of an exported network, in place of a model's ``forward_features``."""

    names: Sequence[str]
    """Of the outputs: ``NAME.LEVEL``."""
    device = "cpu"
    """Where it runs; the model that decodes its maps belongs there, too."""

    @abstractmethod
    def compute(self, images: Tensor) -> Sequence[Tensor]:
        """(B, 3, H, W) uint8 RGB images on ``device``, contiguous, to a float32 map there for each of ``names``."""

    def __call__(self, images: Tensor, **_options: bool) -> dict[str, list[Tensor]]:
        """(B, 3, H, W) uint8 RGB images to named maps, float32, on the device of the images; options that select maps
        have no effect."""
        maps: dict[str, list[Tensor]] = {}
        found = self.compute(images.to(self.device, torch.uint8).contiguous())
        for name, values in zip(self.names, found, strict=True):
            maps.setdefault(name.rpartition(".")[0], []).append(values.to(images.device))
        return maps


class ExportedFile(NamedTuple):
    """A file that was read."""

    facts: dict[str, str]
    """Its metadata: ``method``, ``keypoints``, ``experiment``, ..."""
    decoder: dict[str, Tensor]
    """Weights that decoding needs."""
    sizes: Sequence[int]
    """Number of values of each of its weights."""
    network: Callable[[], ExportedNetwork]
    """Makes its network ready to run."""


class Source(NamedTuple):
    """A checkpoint's network as exporters need it."""

    network: nn.Module
    """(B, 3, H, W) uint8 images to a flat list of maps."""
    example: Tensor
    """Images to trace it with."""
    sizes: dict[int, Any]
    """Which dimensions of the images vary, and how."""
    outputs: list[str]
    """Names of the maps."""
    decoder: dict[str, Tensor]
    facts: dict[str, str]
    """As in :class:`ExportedFile`."""


def open_source(checkpoint: str, experiment: Experiment | None) -> Source:
    """Load a checkpoint for an export.

    Args:
        checkpoint: See :func:`posefleet.platform.checkpoints.resolve.find_checkpoint`.
        experiment: Settings to write into the file instead of the checkpoint's own, such as other decoding settings.

    Raises:
        CheckpointError: The checkpoint is damaged.
        ValueError: The method's model has no ``decoder``.
    """
    model, experiment = load_model(checkpoint, experiment=experiment)
    if not hasattr(model, "decoder"):
        raise ValueError(f"method {experiment.method!r} does not say where its network ends: its Model has no decoder")
    example = torch.zeros(2, 3, 8 * STRIDE, 12 * STRIDE, dtype=torch.uint8)
    with torch.no_grad():
        shapes = {
            f"{name}.{level}": (values.shape[1], round(example.shape[2] / values.shape[2]))
            for name, maps in cast(ExportableModel, model).forward_features(example).items()
            for level, values in enumerate(maps)
        }
    height, width = torch.export.Dim("height", min=1, max=1024), torch.export.Dim("width", min=1, max=1024)
    return Source(
        network=_Flat(model).eval(),
        example=example,
        sizes={0: torch.export.Dim("batch", min=1, max=65536), 2: STRIDE * height, 3: STRIDE * width},
        outputs=list(shapes),
        decoder=_decoder_weights(model),
        facts=_metadata(checkpoint, experiment, shapes),
    )


@contextlib.contextmanager
def refusals(checkpoint: str, language: str) -> Iterator[None]:
    """Turns whatever an exporter raises into a ``CheckpointError`` of one line."""
    try:
        yield
    except Exception as error:  # exporters raise many types
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise CheckpointError(f"the network of {checkpoint} cannot be expressed in {language}: {reason}") from error


def read_experiment(facts: Mapping[str, str], path: str) -> Experiment:
    """The settings that a file holds.

    Raises:
        CheckpointError: They cannot be used.
    """
    try:
        return build_experiment(json.loads(facts["experiment"]), where=path)
    except (LookupError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: no usable settings: {str(error)[:500]}") from None


def build_exported(file: ExportedFile, experiment: Experiment, path: str) -> nn.Module:
    """The model of an exported file, in eval mode. It can predict but not be trained.

    Args:
        file: The file.
        experiment: Settings of the model; those of the file, maybe with another decoding.
        path: Of the file, for errors.

    Raises:
        CheckpointError: The file does not fit the settings.
        ValueError: The package that runs the network is missing.
    """
    model = build_within(experiment, path, tensors=_FOLDED * len(file.sizes), values=sum(file.sizes))
    wanted = _decoder_weights(model)
    stored = file.decoder
    if {name: value.shape for name, value in stored.items()} != {name: value.shape for name, value in wanted.items()}:
        raise CheckpointError(f"{path} does not fit this version of method {experiment.method!r}; export it again")
    model.load_state_dict(stored, strict=False)
    for name, parameter in model.named_parameters():
        if name not in stored:
            parameter.data = torch.empty(0)  # its values are in the network
    model.forward_features = file.network()  # type: ignore[assignment]
    return model.eval()


def optional(package: str, extra: str) -> Any:
    """Import a package that is not always installed.

    Raises:
        ValueError: It is missing; the message says what installs it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        name = {"onnx": "ONNX", "openvino": "OpenVINO", "tensorrt": "TensorRT"}[extra]
        raise ValueError(f"{name} needs {package}: pip install 'posefleet[{extra}]' ({error})") from None


class _Flat(nn.Module):
    """The model's network with a flat list of maps as its output, as exporters need it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = cast(ExportableModel, self.model).forward_features(images)
        return [values for levels in maps.values() for values in levels]


def _decoder_weights(model: nn.Module) -> dict[str, Tensor]:
    parts = tuple(f"{name}." for name in cast(ExportableModel, model).decoder)
    return {name: value for name, value in model.state_dict().items() if name.startswith(parts)}


def _metadata(checkpoint: str, experiment: Experiment, shapes: Mapping[str, tuple[int, int]]) -> dict[str, str]:
    content, schema = read_content(checkpoint), experiment.keypoints
    provenance = content["provenance"]
    images = {
        "name": INPUT,
        "type": "uint8",
        "layout": "NCHW",
        "channels": "RGB",
        "range": [0, 255],
        "multiple_of": STRIDE,
        "normalisation": "inside the graph",
    }
    return {
        "format": FORMAT,
        "method": experiment.method,
        "schema": schema.name,
        "keypoints": json.dumps(schema.keypoints),
        "keypoint_schema": json.dumps(schema.as_dict()),
        "experiment": json.dumps(to_dict(experiment)),
        "step": str(content["step"]),
        "run_id": provenance.get("run_id", ""),
        "data": provenance.get("data", ""),
        "checkpoint": content["files"][WEIGHTS]["sha256"],
        "input": json.dumps(images),
        "outputs": json.dumps({name: {"channels": c, "stride": stride} for name, (c, stride) in shapes.items()}),
        "torch": torch.__version__,
        "precision": "float32",
    }
