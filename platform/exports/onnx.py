"""Exports a checkpoint's network to an ONNX file that describes itself, and reads such a file.

Weights that only decoding needs are in the file as initialisers that no node reads; the metadata have the keys
``posefleet.NAME``. ONNX, ONNX Script and ONNX Runtime are optional: ``pip install 'posefleet[onnx]'``.
"""

import hashlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import fsspec
import torch
from torch import Tensor

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

OPSET = 20
"""Version of ONNX's operator set; DeformConv needs at least 19."""
_KEY, _DECODER = "posefleet.", "decoder."


class OnnxNetwork(ExportedNetwork):
    """Computes an ONNX graph with ONNX Runtime, in as many threads as PyTorch uses when the object is created."""

    def __init__(self, graph: bytes) -> None:
        runtime = optional("onnxruntime", "onnx")
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # lower levels warn about the initialisers that no node reads
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # PyTorch decodes on the same cores
        self._session: Any = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self._session.get_outputs()]

    def compute(self, images: Tensor) -> Sequence[Tensor]:
        """(B, 3, H, W) uint8 RGB images to a float32 map for each of ``names``."""
        return [torch.from_numpy(values) for values in self._session.run(None, {INPUT: images.numpy()})]


def export_onnx(checkpoint: str, *, experiment: Experiment | None = None, precision: str = "float32") -> bytes:
    """Convert a checkpoint to the bytes of an ONNX file, with float32 weights.

    Args:
        checkpoint: See :func:`posefleet.platform.checkpoints.resolve.find_checkpoint`.
        experiment: Settings to write into the file instead of the checkpoint's own, such as other decoding settings.
        precision: In which the file asks to be computed, for backends that choose.

    Raises:
        CheckpointError: The checkpoint is damaged, or its network cannot be expressed in ONNX.
        ValueError: A package is missing, or the method's model has no ``decoder``.
    """
    optional("onnx", "onnx")
    optional("onnxscript", "onnx")
    source = open_source(checkpoint, experiment)
    with refusals(checkpoint, "ONNX"), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own code
        program = torch.onnx.export(
            source.network,
            (source.example,),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=(source.sizes,),
            input_names=[INPUT],
            output_names=source.outputs,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    return pack(program.model_proto, source.decoder, {**source.facts, "precision": precision})


def pack(proto: Any, decoder: Mapping[str, Tensor], facts: Mapping[str, str]) -> bytes:
    """The bytes of a file with a graph.

    Args:
        proto: The graph as an ONNX model, which gets the rest.
        decoder: Weights that decoding needs.
        facts: Metadata; those of the weights are added.
    """
    onnx = optional("onnx", "onnx")
    for name, values in decoder.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values.numpy(), _DECODER + name))
    facts = {**facts, "weights": _digest(onnx, proto)}
    onnx.helper.set_model_props(proto, {_KEY + name: value for name, value in facts.items()})
    graph: bytes = proto.SerializeToString()
    return graph


def read_onnx(path: str) -> tuple[bytes, ExportedFile]:
    """Read an ONNX file of :func:`export_onnx`, and check its format and its weights.

    Args:
        path: Local path or URI.

    Returns:
        The bytes of the file, and its content, whose network ONNX Runtime computes.

    Raises:
        CheckpointError: The file is damaged, or something else wrote it.
        ValueError: A package is missing.
        OSError: The file cannot be read.
    """
    onnx = optional("onnx", "onnx")
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
    decoder = {
        tensor.name.removeprefix(_DECODER): torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
        for tensor in proto.graph.initializer
        if tensor.name.startswith(_DECODER)
    }
    sizes = [math.prod(tensor.dims) for tensor in proto.graph.initializer]
    return graph, ExportedFile(facts, decoder, sizes, partial(OnnxNetwork, graph))


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
