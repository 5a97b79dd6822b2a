"""Exports a checkpoint's network to an ONNX file that describes itself, and loads such a file as a model.

The graph goes from uint8 images to the named maps of ``forward_features``, for any batch and any size that is a
multiple of 32; normalisation is inside. The model's own PyTorch code decodes the maps into poses, whether PyTorch or
ONNX Runtime computed them. The weights that this code needs (``Model.decoder``) are in the file as initialisers that no
node reads.

ONNX, ONNX Script and ONNX Runtime are optional: ``pip install 'posefleet[onnx]'``.
"""

import hashlib
import importlib
import json
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import fsspec
import numpy as np
import torch
from torch import Tensor, nn

from posefleet.data.io.files import write_file
from posefleet.data.structures import STRIDE, Poses
from posefleet.models import ExportableModel
from posefleet.platform.checkpoints.format import WEIGHTS, CheckpointError, read_content
from posefleet.platform.checkpoints.load import build_within, load_model
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.loading import build_experiment, to_dict

OPSET = 20
"""Version of ONNX's operator set; DeformConv needs at least 19."""
FORMAT = "1"
"""Version of the metadata and the content of the file; cached files of another version are not used."""
INPUT = "images"
_KEY, _DECODER = "posefleet.", "decoder."


class Agreement(NamedTuple):
    """How much the poses of two predictors differ on the same images."""

    images: int
    poses: int
    """Number of pairs: a pose of the first predictor and the nearest pose of the second that is not paired yet."""
    unpaired: int
    """Number of poses of either predictor without a partner."""
    pixels: float
    """Largest difference of a coordinate within a pair, pixels of the original image."""
    scores: float
    """Largest difference of a pose score or a keypoint score within a pair."""

    def __str__(self) -> str:
        alone = f", {self.unpaired} without a partner" if self.unpaired else ""
        return (
            f"{self.poses} poses in {self.images} images{alone}: "
            f"at most {self.pixels:.2g} px and {self.scores:.2g} in scores apart"
        )

    def within(self, pixels: float, scores: float) -> bool:
        """Whether every pose has a partner, and no pair differs by more than ``pixels`` and ``scores``."""
        return not self.unpaired and self.pixels <= pixels and self.scores <= scores

    @classmethod
    def of(cls, ours: Sequence[Poses], theirs: Sequence[Poses]) -> Self:
        """Compare the poses that two predictors found in the same images, image by image."""
        parts = [_compare_poses(a, b) for a, b in zip(ours, theirs, strict=True)]
        return cls(
            images=len(parts),
            poses=sum(part.poses for part in parts),
            unpaired=sum(part.unpaired for part in parts),
            pixels=max((part.pixels for part in parts), default=0.0),
            scores=max((part.scores for part in parts), default=0.0),
        )


class OnnxNetwork:
    """Computes the maps of an exported graph, in place of a model's ``forward_features``, with ONNX Runtime on the CPU.

    It uses as many threads as PyTorch uses when the object is created.
    """

    def __init__(self, graph: bytes) -> None:
        runtime = _import("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # lower levels warn about the initialisers that no node reads
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # PyTorch decodes on the same cores
        self._session: Any = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._names = [output.name for output in self._session.get_outputs()]

    def __call__(self, images: Tensor, **_options: bool) -> dict[str, list[Tensor]]:
        """(B, 3, H, W) uint8 RGB images to named maps, float32; options that select maps have no effect."""
        pixels = images.to(torch.uint8).contiguous().numpy()
        maps: dict[str, list[Tensor]] = {}
        for name, values in zip(self._names, self._session.run(None, {INPUT: pixels}), strict=True):
            maps.setdefault(name.rpartition(".")[0], []).append(torch.from_numpy(values))
        return maps


def export_onnx(checkpoint: str, *, experiment: Experiment | None = None) -> bytes:
    """Convert a checkpoint to the bytes of an ONNX file, in float32.

    Args:
        checkpoint: See :func:`posefleet.platform.checkpoints.resolve.find_checkpoint`.
        experiment: Settings to write into the file instead of the checkpoint's own, such as other decoding settings.

    Raises:
        CheckpointError: The checkpoint is damaged, or its network cannot be expressed in ONNX.
        ValueError: A package is missing, or the method's model has no ``decoder``.
    """
    onnx = _import("onnx")
    _import("onnxscript")
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
    sizes = {0: torch.export.Dim("batch", min=1, max=65536), 2: STRIDE * height, 3: STRIDE * width}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns about its own code
            program = torch.onnx.export(
                _Flat(model).eval(),
                (example,),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=(sizes,),
                input_names=[INPUT],
                output_names=list(shapes),
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises many types
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise CheckpointError(f"the network of {checkpoint} cannot be expressed in ONNX: {reason}") from error
    assert program is not None
    proto = program.model_proto
    for name, values in _decoder_weights(model).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values.numpy(), _DECODER + name))
    facts = _metadata(checkpoint, experiment, shapes) | {"weights": _digest(onnx, proto)}
    onnx.helper.set_model_props(proto, {_KEY + name: value for name, value in facts.items()})
    graph: bytes = proto.SerializeToString()
    return graph


def read_facts(path: str) -> dict[str, str]:
    """Metadata of an exported file: ``method``, ``keypoints``, ``experiment``, ...

    Raises:
        CheckpointError: The file is damaged, or was not written by :func:`export_onnx`.
        ValueError: A package is missing.
        OSError: The file cannot be read.
    """
    return _read(path)[2]


def load_onnx(path: str) -> tuple[nn.Module, Experiment]:
    """Load the model of an exported file, in eval mode, and its experiment.

    The file's graph is the model's network, so the model can predict but not be trained.

    Args:
        path: Local path or URI.

    Raises:
        CheckpointError: The file is missing or damaged, or was not written by :func:`export_onnx`.
        ValueError: A package is missing.
    """
    try:
        graph, proto, facts = _read(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    try:
        experiment = build_experiment(json.loads(facts["experiment"]), where=path)
    except (LookupError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: no usable settings: {str(error)[:500]}") from None
    to_array = _import("onnx").numpy_helper.to_array
    sizes = [math.prod(tensor.dims) for tensor in proto.graph.initializer]
    model = build_within(experiment, path, tensors=len(sizes), values=sum(sizes))
    stored = {
        tensor.name.removeprefix(_DECODER): torch.from_numpy(to_array(tensor).copy())
        for tensor in proto.graph.initializer
        if tensor.name.startswith(_DECODER)
    }
    wanted = _decoder_weights(model)
    if {name: value.shape for name, value in stored.items()} != {name: value.shape for name, value in wanted.items()}:
        raise CheckpointError(f"{path} does not fit this version of method {experiment.method!r}; export it again")
    model.load_state_dict(stored, strict=False)
    for name, parameter in model.named_parameters():
        if name not in stored:
            parameter.data = torch.empty(0)  # its values are in the graph
    model.forward_features = OnnxNetwork(graph)  # type: ignore[assignment]
    return model.eval(), experiment


def cached_onnx(checkpoint: str) -> str:
    """Path of the ONNX file of a checkpoint, exported on first use and kept under ``~/.cache``.

    The name of the file is a hash of the versions of format, operator set and PyTorch, and of the checkpoint's content
    record, which holds the SHA-256 of its weights.

    Raises:
        CheckpointError: See :func:`export_onnx`.
        ValueError: See :func:`export_onnx`.
    """
    about = json.dumps([FORMAT, OPSET, torch.__version__, read_content(checkpoint)], sort_keys=True)
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "posefleet", "onnx")
    path = folder / f"{hashlib.sha256(about.encode()).hexdigest()[:32]}.onnx"
    try:
        read_facts(str(path))
    except (OSError, CheckpointError):
        graph = export_onnx(checkpoint)
        write_file(str(path), graph)
    return str(path)


class _Flat(nn.Module):
    """The model's network with a flat list of maps as its output, as the exporter needs it."""

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
    }


def _read(path: str) -> tuple[bytes, Any, dict[str, str]]:
    """The bytes of a file, the parsed file, and its metadata; checks format and weights."""
    onnx = _import("onnx")
    with fsspec.open(path, "rb") as stream:
        graph: bytes = stream.read()
    try:
        proto = onnx.load_model_from_string(graph)
    except Exception as error:  # protobuf's error class differs between its versions
        raise CheckpointError(f"{path} is damaged, or no ONNX file: {error}") from None
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(proto.graph)):
        raise CheckpointError(f"{path} is refused: it names other files to read weights from; export it again")
    facts = {entry.key.removeprefix(_KEY): entry.value for entry in proto.metadata_props if entry.key.startswith(_KEY)}
    if facts.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no ONNX file of format {FORMAT} by posefleet export; export it again")
    if facts.get("weights") != _digest(onnx, proto):
        raise CheckpointError(f"{path} is damaged: its weights are not those that were written")
    return graph, proto, facts


def _tensors(graph: Any) -> Iterator[Any]:
    """All tensors of an ONNX graph and of its subgraphs."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer:
                    yield from _tensors(inner)


def _digest(onnx: Any, proto: Any) -> str:
    """SHA-256 of the names, types, shapes and values of all initialisers of an ONNX model."""
    total = hashlib.sha256()
    for tensor in sorted(proto.graph.initializer, key=lambda tensor: tensor.name):
        total.update(f"{tensor.name} {tensor.data_type} {list(tensor.dims)}".encode())
        total.update(onnx.numpy_helper.to_array(tensor).tobytes())
    return total.hexdigest()


def _compare_poses(ours: Poses, theirs: Poses) -> Agreement:
    """Compare the poses of one image: pair each pose of ours, best first, with the nearest unpaired pose of theirs.

    Pairs do not follow the ranking, because poses with equal scores may be in any order.
    """
    differences = (ours.keypoints[:, None] - theirs.keypoints[None]).abs().amax((-2, -1))  # (N, M)
    distances = differences.nan_to_num(torch.inf).numpy()
    pixels, scores, pairs = 0.0, 0.0, min(distances.shape)
    for row in range(pairs):
        column = int(distances[row].argmin())
        pixels = max(pixels, float(distances[row, column]))
        scores = max([scores, *_score_gaps(ours[row : row + 1], theirs[column : column + 1])])
        distances[:, column] = np.inf
    return Agreement(1, pairs, len(ours) + len(theirs) - 2 * pairs, pixels, scores)


def _score_gaps(one: Poses, other: Poses) -> Iterable[float]:
    yield float((one.scores - other.scores).abs().nan_to_num(torch.inf).max())
    yield float((one.keypoint_scores - other.keypoint_scores).abs().nan_to_num(torch.inf).max())


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f"ONNX needs {package}: pip install 'posefleet[onnx]' ({error})") from None
