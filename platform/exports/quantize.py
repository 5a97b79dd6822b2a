"""Quantises an exported ONNX network to INT8, with ranges of activations measured on images."""

import contextlib
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from posefleet.platform.exports.exported import INPUT, optional
from posefleet.platform.exports.onnx import pack, read_onnx

OPERATORS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
"""What is quantised. Files in which everything is do not load, and the rest is little work."""


def quantize_onnx(graph: bytes, images: Iterable[Tensor], *, calibration: str) -> bytes:
    """Quantise weights (a scale for each channel) and activations of a network, both to uint8.

    With uint8 weights all processors compute the same; signed ones overflow on those without VNNI. The first layer and
    the last ones, which need the precision most, stay float32.

    Args:
        graph: Bytes of a file of :func:`posefleet.platform.exports.onnx.export_onnx`.
        images: (1, 3, H, W) uint8, as the network gets them. The averages over them of the smallest and the largest
            value of an activation become the ends of its range.
        calibration: What the images are, for the metadata.

    Raises:
        ValueError: A package is missing, or there are no images.
    """
    onnx, quantization = optional("onnx", "onnx"), optional("onnxruntime.quantization", "onnx")
    with tempfile.TemporaryDirectory() as folder:
        plain, folded, quantized = (str(Path(folder, f"{name}.onnx")) for name in ("plain", "folded", "quantized"))
        Path(plain).write_bytes(graph)
        file = read_onnx(plain)[1]
        _fold_constants(plain, folded)
        with _without_advice():
            quantization.quantize_static(
                folded,
                quantized,
                _Reader(images),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(OPERATORS),
                nodes_to_exclude=_outer_layers(onnx.load(folded).graph),
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QUInt8,
                extra_options={"CalibMovingAverage": True},
            )
        proto = onnx.load(quantized)
    return pack(proto, file.decoder, {**file.facts, "precision": "int8", "calibration": calibration})


def _fold_constants(path: str, folded: str) -> None:
    """Weights that the graph computes from others would stay float32."""
    runtime = optional("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = folded
    runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _outer_layers(graph: Any) -> list[str]:
    """Names of the layers that read the input or compute an output with no layer between."""
    producers = {name: [node] for node in graph.node for name in node.output}
    consumers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    found: set[str] = set()

    def walk(names: Iterable[str], neighbours: Mapping[str, list[Any]], onwards: str) -> None:
        waiting, seen = list(names), set[str]()
        while waiting:
            for node in neighbours.get(waiting.pop(), []):
                if node.name in seen:
                    continue
                seen.add(node.name)
                if node.op_type in (*OPERATORS, "DeformConv"):
                    found.add(node.name)
                else:
                    waiting.extend(getattr(node, onwards))

    walk([INPUT], consumers, "output")
    walk([output.name for output in graph.output], producers, "input")
    return sorted(found)


class _Reader:
    """Hands out calibration images as ONNX Runtime asks for them."""

    def __init__(self, images: Iterable[Tensor]) -> None:
        self._images = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(({INPUT: image.numpy()} for image in self._images), None)


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """ONNX Runtime advises on the root logger to fold constants, which is done, and names layers that may lose
    precision, which the AP of the file shows."""

    def wanted(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    root: Any = logging.getLogger()
    root.addFilter(wanted)
    try:
        yield
    finally:
        root.removeFilter(wanted)
