"""Quantises an exported ONNX network to INT8, with ranges of activations measured on images."""

import contextlib
import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from posefleet.platform.inference.exported import INPUT, optional
from posefleet.platform.inference.onnx import pack, read_onnx

OPERATORS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
"""What is quantised. Files in which everything is do not load, and the rest is little work."""


def quantize_onnx(graph: bytes, images: Iterable[Tensor], *, calibration: str) -> bytes:
    """Quantise weights (int8, a scale for each channel) and activations (uint8) of a network.

    Products of 7-bit weights fit into 16 bits, so that processors without VNNI, which add them up there, do not clip
    them.

    Args:
        graph: Bytes of a file of :func:`posefleet.platform.inference.onnx.export_onnx`.
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
        file = read_onnx(plain)
        _fold_constants(plain, folded)
        with _without_advice():
            quantization.quantize_static(
                folded,
                quantized,
                _Reader(images),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(OPERATORS),
                per_channel=True,
                reduce_range=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
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


class _Reader:
    """Hands out calibration images as ONNX Runtime asks for them."""

    def __init__(self, images: Iterable[Tensor]) -> None:
        self._images = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(({INPUT: image.numpy()} for image in self._images), None)


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """ONNX Runtime advises on the root logger to fold constants, which is done."""

    def wanted(record: logging.LogRecord) -> bool:
        return "pre-processing" not in record.getMessage()

    root: Any = logging.getLogger()
    root.addFilter(wanted)
    try:
        yield
    finally:
        root.removeFilter(wanted)
