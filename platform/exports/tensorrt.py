"""Runs an exported ONNX file, FILE.trt.onnx, with TensorRT through ONNX Runtime, on the GPU of this process.

The file is an ONNX file; its name says that TensorRT runs it, and its fact ``precision`` in which numbers. TensorRT
builds its engine for the GPU at hand when the file is loaded, which takes minutes, and keeps it under ``~/.cache``.
TensorRT is optional: ``pip install 'posefleet[tensorrt]'`` in place of ``[onnx]``.
"""

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from posefleet.data.io.files import cache_folder
from posefleet.data.structures import STRIDE
from posefleet.platform.exports.exported import INPUT, ExportedFile, ExportedNetwork, optional
from posefleet.platform.exports.onnx import read_onnx

PROVIDER = "TensorrtExecutionProvider"
LARGEST_BATCH = 16
"""Images in the largest batch that an engine is built for; for a larger one it is built anew."""


class BoundNetwork(ExportedNetwork):
    """Computes an ONNX graph on tensors where they are, without copies between GPU and host."""

    def __init__(self, session: Any, outputs: Mapping[str, tuple[int, int]], device: str) -> None:
        """
        Args:
            session: ONNX Runtime's session of the graph.
            outputs: Channels and stride of each of its outputs, by name.
            device: Where the session runs, ``cuda`` or ``cpu``.
        """
        self.device = device
        self.names = [output.name for output in session.get_outputs()]
        self._session, self._outputs = session, outputs

    def compute(self, images: Tensor) -> Sequence[Tensor]:
        """(B, 3, H, W) uint8 RGB images on ``device`` to a float32 map there for each of ``names``."""
        place = (images.device.type, images.device.index or 0)
        binding = self._session.io_binding()
        binding.bind_input(INPUT, *place, np.uint8, tuple(images.shape), images.data_ptr())
        maps = []
        for name in self.names:
            channels, stride = self._outputs[name]
            size = (math.ceil(side / stride) for side in images.shape[2:])
            values = torch.empty(len(images), channels, *size, device=images.device)
            binding.bind_output(name, *place, np.float32, tuple(values.shape), values.data_ptr())
            maps.append(values)
        if images.is_cuda:  # ONNX Runtime has a stream of its own, which it waits for before it returns
            torch.cuda.current_stream(images.device).synchronize()
        self._session.run_with_iobinding(binding)
        return maps


def read_tensorrt(path: str) -> ExportedFile:
    """Read a FILE.trt.onnx. Takes the argument of :func:`posefleet.platform.exports.onnx.read_onnx` and raises its
    errors; ``network`` of the result raises ``ValueError`` where there is no GPU, or TensorRT does not start."""
    graph, file = read_onnx(path)
    return file._replace(network=partial(_build, graph, file.facts))


def require_tensorrt() -> Any:
    """The module ``onnxruntime``, if it can run TensorRT here.

    Raises:
        ValueError: It cannot; the message says what is missing.
    """
    runtime = optional("onnxruntime", "tensorrt")
    if PROVIDER not in runtime.get_available_providers():
        raise ValueError(
            f"this onnxruntime has no {PROVIDER}: pip uninstall onnxruntime, then pip install 'posefleet[tensorrt]'"
        )
    if not torch.cuda.is_available():
        raise ValueError("TensorRT needs an NVIDIA GPU, and this process sees none; use another backend")
    return runtime


def _build(graph: bytes, facts: Mapping[str, str]) -> ExportedNetwork:
    runtime = require_tensorrt()
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(graph, options, providers=[(PROVIDER, provider_options(facts))])
    if session.get_providers()[0] != PROVIDER:  # it falls back to the CPU without an error
        raise ValueError("TensorRT does not start; are its libraries those that this onnxruntime was built for?")
    return BoundNetwork(session, outputs_of(facts), "cuda")


def outputs_of(facts: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Channels and stride of each output of a file, by name."""
    return {name: (about["channels"], about["stride"]) for name, about in json.loads(facts["outputs"]).items()}


def provider_options(facts: Mapping[str, str]) -> dict[str, str]:
    """Options of ONNX Runtime's TensorRT for a file: its precision, and the sizes that one engine serves."""
    resize = json.loads(facts["experiment"])["data"]["resize"]
    long, short = (math.ceil(resize[f"{side}_side"] / STRIDE) * STRIDE for side in ("long", "short"))
    folder = cache_folder("tensorrt")
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "device_id": str(torch.cuda.current_device() if torch.cuda.is_available() else 0),
        "trt_fp16_enable": str(facts.get("precision") == "float16"),
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(folder),
        "trt_profile_min_shapes": f"{INPUT}:1x3x{STRIDE}x{STRIDE}",
        "trt_profile_opt_shapes": f"{INPUT}:1x3x{short}x{long}",
        "trt_profile_max_shapes": f"{INPUT}:{LARGEST_BATCH}x3x{long}x{long}",
    }
