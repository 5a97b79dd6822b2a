"""Exports a checkpoint's network to OpenVINO's files, FILE.xml and FILE.bin, which describe themselves, and reads them.

OpenVINO's ONNX frontend has no DeformConv, so its PyTorch frontend converts the network. Weights that only decoding
needs are in FILE.bin behind those of the network, as safetensors; the metadata are runtime information of the model.
OpenVINO is optional: ``pip install 'posefleet[openvino]'``.
"""

import hashlib
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from posefleet.light_import import without
from posefleet.models.parts.layers.deform_conv import as_operators
from posefleet.platform.checkpoints.format import CheckpointError
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.exports.exported import (
    FORMAT,
    INPUT,
    ExportedFile,
    ExportedNetwork,
    open_source,
    optional,
    refusals,
)

GRAPH, WEIGHTS = ".xml", ".bin"
_INFO = "posefleet"
_REPORTER = "openvino_telemetry"
"""A package with which OpenVINO tells its makers that it is used. Without it, it does not."""


class OpenVinoNetwork(ExportedNetwork):
    """Computes a network with OpenVINO, in as many threads as PyTorch uses when the object is created."""

    def __init__(self, network: Any) -> None:
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",  # processors with bfloat16 would take it
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
        }
        self._network: Any = _openvino().Core().compile_model(network, "CPU", settings)
        self.names = [output.get_any_name() for output in self._network.outputs]

    def compute(self, images: Tensor) -> Sequence[Tensor]:
        """(B, 3, H, W) uint8 RGB images to a float32 map for each of ``names``."""
        found = self._network(images.numpy())
        return [torch.from_numpy(found[row]) for row in range(len(self.names))]


def export_openvino(checkpoint: str, *, experiment: Experiment | None = None) -> dict[str, bytes]:
    """Convert a checkpoint to OpenVINO, in float32.

    Takes the arguments of :func:`posefleet.platform.exports.onnx.export_onnx` and raises its errors.

    Returns:
        The bytes of the two files by the suffixes of their names.
    """
    openvino = _openvino()
    source = open_source(checkpoint, experiment)
    with refusals(checkpoint, "OpenVINO"), torch.no_grad(), warnings.catch_warnings(), as_operators():
        warnings.simplefilter("ignore")
        program = torch.export.export(source.network, (source.example,), dynamic_shapes=(source.sizes,), strict=False)
        network = openvino.convert_model(program)
        network.reshape({network.input(): openvino.PartialShape([-1, 3, -1, -1])})
    network.input().get_tensor().set_names({INPUT})
    for name, output in zip(source.outputs, network.outputs, strict=True):
        output.get_tensor().set_names({name})
    _, weights = _serialize(openvino, network)
    facts = {**source.facts, "decoder": str(len(weights))}
    weights += safetensors.torch.save({name: value.contiguous() for name, value in source.decoder.items()})
    for name, value in {**facts, "weights": hashlib.sha256(weights).hexdigest()}.items():
        network.set_rt_info(value, [_INFO, name])
    return {WEIGHTS: weights, GRAPH: _serialize(openvino, network)[0]}


def read_openvino(path: str) -> ExportedFile:
    """Read the files of :func:`export_openvino`, and check their format and weights.

    Args:
        path: Local path or URI of FILE.xml; FILE.bin lies beside it.

    Raises:
        CheckpointError: A file is damaged, or something else wrote it.
        ValueError: OpenVINO is missing.
        OSError: A file cannot be read.
    """
    openvino, files = _openvino(), []
    for name in (path, path.removesuffix(GRAPH) + WEIGHTS):
        with fsspec.open(name, "rb") as stream:
            files.append(stream.read())
    graph, weights = files
    try:
        network = openvino.Core().read_model(graph, weights)
        sizes = [
            int(np.prod(node.get_output_shape(0))) for node in network.get_ops() if node.get_type_name() == "Constant"
        ]
        facts = _facts(network)
    except Exception as error:  # OpenVINO raises RuntimeError and others
        raise CheckpointError(f"{path} is damaged, or no file of OpenVINO: {str(error)[:500]}") from None
    if facts.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no OpenVINO file of format {FORMAT} by posefleet export; export it again")
    if facts.get("weights") != hashlib.sha256(weights).hexdigest():
        raise CheckpointError(f"{path} is damaged: its weights are not those that were written beside it")
    try:
        decoder = safetensors.torch.load(weights[int(facts["decoder"]) :])
    except (SafetensorError, LookupError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: no weights to decode with: {error}") from None
    sizes += [value.numel() for value in decoder.values()]
    return ExportedFile(facts, decoder, sizes, partial(OpenVinoNetwork, network))


def _facts(network: Any) -> dict[str, str]:
    if not network.has_rt_info([_INFO]):
        return {}
    found: Mapping[str, Any] = network.get_rt_info([_INFO]).value
    return {name: str(getattr(value, "value", value)) for name, value in found.items()}


def _serialize(openvino: Any, network: Any) -> tuple[bytes, bytes]:
    """The bytes of FILE.xml and FILE.bin."""
    with tempfile.TemporaryDirectory() as folder:
        openvino.save_model(network, f"{folder}/network.xml", compress_to_fp16=False)
        return Path(folder, "network.xml").read_bytes(), Path(folder, "network.bin").read_bytes()


def _openvino() -> Any:
    with without(_REPORTER):
        return optional("openvino", "openvino")
