"""What computes a model's network: PyTorch from a checkpoint, or another library from an exported file."""

import hashlib
import json
from typing import Literal

import fsspec
import torch
from torch import nn

from posefleet.data.io.files import cache_folder, write_file
from posefleet.platform.checkpoints.format import CheckpointError, Meta, network_in, read_content, read_meta
from posefleet.platform.checkpoints.load import load_model
from posefleet.platform.checkpoints.resolve import find_checkpoint
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.exports.exported import (
    FORMAT,
    ExportedFile,
    ExportedNetwork,
    build_exported,
    read_experiment,
)
from posefleet.platform.exports.onnx import OPSET, export_onnx, read_onnx
from posefleet.platform.exports.openvino import export_openvino, read_openvino
from posefleet.platform.exports.tensorrt import read_tensorrt, require_tensorrt
from posefleet.platform.runtime.paths import resolve_path

Backend = Literal["torch", "onnxruntime", "openvino", "tensorrt"]
"""Library that computes the network; the same PyTorch code decodes its outputs into poses."""

SUFFIXES: dict[str, Backend] = {".trt.onnx": "tensorrt", ".onnx": "onnxruntime", ".xml": "openvino"}
"""Ending of an exported file -> the backend that runs it; the first one that fits counts."""


def locate(address: str, *, tracking: str = "") -> str:
    """Path of the checkpoint or exported file at ``address``.

    Args:
        address: See :func:`posefleet.platform.checkpoints.resolve.find_checkpoint`; or the path or URI of an exported
            file.
        tracking: MLflow store of registered models.

    Raises:
        CheckpointError: There is no checkpoint.
    """
    path = resolve_path(address)
    return path if backend_of(path) else find_checkpoint(path, tracking=tracking)


def backend_of(path: str) -> Backend | None:
    """The backend that runs an exported file, by its ending; None for anything else."""
    return next((backend for suffix, backend in SUFFIXES.items() if path.endswith(suffix)), None)


def describe(path: str) -> Meta:
    """What a checkpoint or an exported file says about its model.

    Raises:
        CheckpointError: It is missing or damaged.
        ValueError: A package is missing that reads the file.
    """
    if not backend_of(path):
        return read_meta(path)
    facts = read_facts(path)
    if not facts.get("step", "").isdecimal():
        raise CheckpointError(f"{path} is damaged: its step is {facts.get('step', '')[:40]!r}, expected a number")
    return Meta(
        experiment=read_experiment(facts, path),
        step=int(facts["step"]),
        position=0,
        metrics={},
        provenance={name: facts[name] for name in ("run_id", "data") if facts.get(name)},
    )


def read_facts(path: str) -> dict[str, str]:
    """Metadata of an exported file: ``method``, ``keypoints``, ``experiment``, ...

    Raises:
        CheckpointError: The file is missing or damaged, or ``posefleet export`` did not write it.
        ValueError: A package is missing.
    """
    return _read(path).facts


def open_model(
    path: str, *, experiment: Experiment | None = None, backend: Backend | None = None
) -> tuple[nn.Module, Experiment]:
    """The model of a checkpoint or exported file in eval mode, on the CPU, and its experiment.

    Args:
        path: See :func:`locate`.
        experiment: Settings to use instead of those of ``path``, such as another decoding.
        backend: What computes the network of a checkpoint. It is exported on first use, see :func:`cached_export`,
            unless it was promoted in this form. None: as it was promoted, else PyTorch. An exported file is always run
            by its own.

    Raises:
        CheckpointError: There is no such model, it is damaged, or the settings do not fit it.
        ValueError: A package is missing.
    """
    if not backend_of(path):
        promoted = network_in(path)
        backend = backend or backend_of(promoted) or "torch"
        if backend == "torch":
            return load_model(path, experiment=experiment)
        experiment = experiment or read_meta(path).experiment
        path = promoted if backend_of(promoted) == backend else cached_export(path, backend)
    file = _read(path)
    experiment = experiment or read_experiment(file.facts, path)
    return build_exported(file, experiment, path), experiment


def is_exported(model: nn.Module) -> bool:
    """Whether another library than PyTorch computes the model's network."""
    return isinstance(getattr(model, "forward_features", None), ExportedNetwork)


def device_for(model: nn.Module) -> str | None:
    """``cpu`` or ``cuda`` for a model of :func:`open_model` that runs only there; None, the default device, for any
    other."""
    network = getattr(model, "forward_features", None)
    return network.device if isinstance(network, ExportedNetwork) else None


def export_network(
    checkpoint: str, backend: Backend, *, experiment: Experiment | None = None, precision: str = "float32"
) -> dict[str, bytes]:
    """Export a checkpoint: the bytes of each file by the ending of its name, the one to load last.

    Args:
        checkpoint: See :func:`posefleet.platform.exports.onnx.export_onnx`.
        backend: What will run it.
        experiment: See :func:`posefleet.platform.exports.onnx.export_onnx`.
        precision: In which TensorRT computes, ``float32`` or ``float16``; others export in float32.

    Raises:
        CheckpointError: See :func:`posefleet.platform.exports.onnx.export_onnx`.
        ValueError: See there.
    """
    if backend == "openvino":
        return export_openvino(checkpoint, experiment=experiment)
    if backend == "tensorrt":
        require_tensorrt()  # without it nobody could check the file
    return {_suffix(backend): export_onnx(checkpoint, experiment=experiment, precision=precision)}


def write_exported(path: str, files: dict[str, bytes]) -> None:
    """Write the files of :func:`export_network`; ``path``, a local path or URI, is that of the one to load."""
    for suffix, data in files.items():
        write_file(f"{_stem(path)}{suffix}", data)


def read_files(path: str) -> dict[str, bytes]:
    """The bytes of the files of an exported network by the suffixes of their names, as :func:`write_exported` takes
    them.

    Raises:
        OSError: A file cannot be read.
    """
    files = {}
    backend = backend_of(path)
    assert backend
    for suffix in (".bin", ".xml") if backend == "openvino" else (_suffix(backend),):
        with fsspec.open(f"{_stem(path)}{suffix}", "rb") as stream:
            files[suffix] = stream.read()
    return files


def cached_export(checkpoint: str, backend: Backend) -> str:
    """Path of the exported file of a checkpoint, exported on first use and kept under ``~/.cache``.

    The name of the file is a hash of the versions of format, backend and PyTorch, and of the checkpoint's content
    record, which holds the SHA-256 of its weights.

    Raises:
        CheckpointError: See :func:`export_network`.
        ValueError: See :func:`export_network`.
    """
    suffix = _suffix(backend)
    about = json.dumps([FORMAT, OPSET, torch.__version__, read_content(checkpoint)], sort_keys=True)
    path = str(cache_folder(suffix[1:]) / f"{hashlib.sha256(about.encode()).hexdigest()[:32]}{suffix}")
    try:
        _read(path)
    except CheckpointError:
        write_exported(path, export_network(checkpoint, backend))
    return path


def _read(path: str) -> ExportedFile:
    backend = backend_of(path)
    try:
        if backend == "openvino":
            return read_openvino(path)
        return read_tensorrt(path) if backend == "tensorrt" else read_onnx(path)[1]
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def _suffix(backend: Backend) -> str:
    return next(suffix for suffix, name in SUFFIXES.items() if name == backend)


def _stem(path: str) -> str:
    """The path of an exported file without its ending."""
    return next(path.removesuffix(suffix) for suffix in SUFFIXES if path.endswith(suffix))
