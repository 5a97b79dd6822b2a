"""The checkpoint format: a folder that describes itself, is written atomically, and is read without pickle.

    step-00000812/
        model.safetensors   weights to evaluate and serve (the averaged weights if the run averages)
        network.onnx        or .trt.onnx, or .xml and .bin: exported network to serve instead, if it was promoted
        state.pt            state to resume training: optimiser, raw weights, average; read with weights_only
        meta.json           experiment, step, position in the data, metrics, revision; size and SHA-256 of the others

``meta.json`` is written last. A folder without it, or with files that differ from it, is not a complete checkpoint:
readers skip it and take the one before. On a local disk, the folder is also renamed into place when it is complete.
"""

import hashlib
import io
import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import fsspec
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from posefleet.data.errors import DataError
from posefleet.data.io.files import PIECE, read_json
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.schemas.shipped import choose_schema
from posefleet.models.parts.layers.safe_load import check_storage, read_tensors
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.loading import build_experiment, to_dict
from posefleet.platform.runtime.errors import PlatformError

log = logging.getLogger(__name__)

WEIGHTS, STATE, META = "model.safetensors", "state.pt", "meta.json"

NETWORKS = ("network.onnx", "network.trt.onnx", "network.xml", "network.bin")
"""Files of an exported network that was promoted with the checkpoint; it is what predicts, in place of the weights."""

FileRecord = dict[str, int | str]
"""Size (``bytes``) and ``sha256`` of a file, as ``meta.json`` has them."""

_CONTENT = {
    "method": str,
    "schema": str,
    "step": int,
    "position": int,
    "metrics": dict,
    "provenance": dict,
    "experiment": dict,
    "files": dict,
}
"""Required keys of ``meta.json`` and the types of their values."""

_MOST_COUNTED = 2**53
"""Largest step and position: JSON's readers, MLflow and PyTorch all keep whole numbers up to here."""


class CheckpointError(PlatformError):
    """A checkpoint cannot be written or read; the message names it, and what is still intact after a failed write."""


@dataclass(frozen=True, kw_only=True)
class Meta:
    """The content of ``meta.json`` that describes the training run."""

    experiment: Experiment
    step: int
    """Optimiser steps taken."""
    position: int
    """Samples seen in all epochs together."""
    metrics: dict[str, float]
    """Metrics of the evaluation at this step; empty if there was none."""
    provenance: dict[str, str]
    """Git revision, data fingerprint, run id, ..."""


def read_content(path: str) -> dict[str, Any]:
    """The content of a checkpoint's ``meta.json`` as plain values; the experiment in it is not validated.

    Raises:
        CheckpointError: ``path`` is not a checkpoint, or its ``meta.json`` is damaged.
    """
    try:
        content = read_json(f"{path}/{META}")
    except (OSError, DataError) as error:
        raise CheckpointError(f"{path} is not a checkpoint: no readable {META} ({error})") from None
    if content is None:
        raise CheckpointError(f"{path} is not a checkpoint: no readable {META} (no such file)")
    if not isinstance(content, dict) or content.get("format") != 1:
        raise CheckpointError(f"{path}/{META} is not of checkpoint format 1; it was written by something else")
    if missing := [key for key, kind in _CONTENT.items() if not isinstance(content.get(key), kind)]:
        raise CheckpointError(f"{path}/{META} is damaged: no usable {', '.join(missing)}")
    if text := _unusable_numbers(content):
        raise CheckpointError(f"{path}/{META} is damaged: {text}")
    if not {WEIGHTS} <= set(content["files"]) <= {WEIGHTS, STATE, *NETWORKS}:
        raise CheckpointError(f"{path}/{META} is damaged: it names the files {', '.join(content['files'])}")
    return content


def _unusable_numbers(content: Mapping[str, Any]) -> str:
    """What is wrong with step, position and metrics; empty if nothing is."""
    for key in ("step", "position"):
        if isinstance(content[key], bool) or not 0 <= content[key] <= _MOST_COUNTED:
            return f"{key} {shortened(content[key])} is no number from 0 to {_MOST_COUNTED}"
    for name, value in content["metrics"].items():
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > sys.float_info.max != value:
            return f"the metric {name[:40]!r} is {shortened(value)}, expected a number"
    for name, value in content["provenance"].items():
        if not isinstance(value, str | None):
            return f"the provenance {name[:40]!r} is {shortened(value)}, expected text"
    return ""


def shortened(value: Any) -> str:
    """A value of a file for an error message, cut to 60 characters; a number may have thousands of digits."""
    if isinstance(value, int) and abs(value) > 10**60:
        return f"a number of about {int(value.bit_length() * 0.30103) + 1} digits"
    return repr(value)[:60]


def read_meta(path: str) -> Meta:
    """The content of a checkpoint's ``meta.json``, with the experiment validated.

    Raises:
        CheckpointError: ``path`` is not a checkpoint, its ``meta.json`` is damaged, or a setting of the experiment is
            unknown or wrong.
    """
    content = read_content(path)
    settings = {**content["experiment"], "schema": content.get("keypoints", content["schema"])}
    try:
        experiment = build_experiment(settings, where=f"{path}/{META}")
    except (ArithmeticError, TypeError, ValueError) as error:
        raise CheckpointError(str(error)) from None
    return Meta(
        experiment=experiment,
        step=content["step"],
        position=content["position"],
        metrics=content["metrics"],
        provenance=content["provenance"],
    )


def schema_in(content: Mapping[str, Any]) -> KeypointSchema:
    """The keypoint schema in the content of a ``meta.json``; those of earlier versions have only its name.

    Raises:
        ValueError: The name is not that of a shipped schema, or the schema is damaged.
    """
    return choose_schema(content.get("keypoints", content["schema"]))


def verify(path: str) -> None:
    """Raise ``CheckpointError`` unless every file of the checkpoint has the recorded size and SHA-256."""
    for file in read_content(path)["files"]:
        _read_file(path, file)


def read_state(path: str) -> dict[str, Any]:
    """The training state in ``state.pt``; reading it runs no code from the file.

    Raises:
        CheckpointError: The file is missing or damaged, or holds more than tensors and plain values.
    """
    try:
        state = read_tensors(io.BytesIO(_read_file(path, STATE)), f"{path}/{STATE}")
        check_storage(state, f"{path}/{STATE}")
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    return state


def read_weights(path: str) -> dict[str, Tensor]:
    """The weights in ``model.safetensors`` by name, on the CPU.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    try:
        return safetensors.torch.load(_read_file(path, WEIGHTS))
    except SafetensorError as error:
        raise CheckpointError(f"{path}/{WEIGHTS} is refused: it is no file of safetensors ({error})") from None


class Stream(Protocol):
    """What bytes are written to."""

    def write(self, data: Any, /) -> int: ...


class HashingStream(io.RawIOBase):
    """Passes what is written on to another stream, and remembers its size and SHA-256."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._sha256, self._size = stream, hashlib.sha256(), 0

    def writable(self) -> bool:
        """See :class:`io.IOBase`."""
        return True

    def write(self, data: Any) -> int:
        """Write bytes, or anything with a buffer; returns their number."""
        with memoryview(data).cast("B") as view:
            for start in range(0, len(view), PIECE):  # an object store uploads a large file in parts
                self._stream.write(view[start : start + PIECE])
            self._sha256.update(view)
            self._size += len(view)
            return len(view)

    @property
    def record(self) -> FileRecord:
        """What ``meta.json`` says of the file."""
        return {"bytes": self._size, "sha256": self._sha256.hexdigest()}


def encode_content(meta: Meta, files: Mapping[str, FileRecord]) -> bytes:
    """The bytes of ``meta.json`` for a checkpoint that holds ``files``, a record of each by name."""
    content = {
        "format": 1,
        "method": meta.experiment.method,
        "schema": meta.experiment.keypoints.name,
        "keypoints": meta.experiment.keypoints.as_dict(),
        "step": meta.step,
        "position": meta.position,
        "metrics": meta.metrics,
        "provenance": meta.provenance,
        "experiment": to_dict(meta.experiment),
        "files": dict(files),
    }
    return json.dumps(content, indent=1).encode()


def write_weights(weights: Mapping[str, Tensor], stream: Stream) -> None:
    """Write ``model.safetensors``."""
    stream.write(safetensors.torch.save({name: value.detach().cpu().contiguous() for name, value in weights.items()}))


def copy_for_use(
    path: str,
    folder: Path,
    *,
    experiment: Experiment | None = None,
    metrics: Mapping[str, float] | None = None,
    network: Mapping[str, bytes] | None = None,
) -> None:
    """Copy a checkpoint without its training state, which evaluation and serving do not need.

    Args:
        path: Checkpoint to copy.
        folder: Folder of the copy, created if it does not exist.
        experiment: Settings of the copy, such as another decoding. Default: those of the checkpoint.
        metrics: Metrics of the copy. Default: those of the checkpoint.
        network: Exported network of the copy: the bytes of its files by name, see ``NETWORKS``. Default: that of the
            checkpoint, if it has one.

    Raises:
        CheckpointError: The checkpoint is missing or damaged.
    """
    content = read_content(path)
    if network is None:
        network = {name: _read_file(path, name) for name in NETWORKS if name in content["files"]}
    content["files"] = {WEIGHTS: content["files"][WEIGHTS]} | {name: _record(data) for name, data in network.items()}
    if experiment is not None:
        content["experiment"] = to_dict(experiment)
        content |= {"schema": experiment.keypoints.name, "keypoints": experiment.keypoints.as_dict()}
    if metrics is not None:
        content["metrics"] = dict(metrics)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(_read_file(path, WEIGHTS))
    for name, data in network.items():
        (folder / name).write_bytes(data)
    (folder / META).write_text(json.dumps(content, indent=1))


def network_in(path: str) -> str:
    """Path of the exported network to load in a checkpoint; empty if it has none.

    Raises:
        CheckpointError: The checkpoint is damaged.
    """
    names = [name for name in NETWORKS if name in read_content(path)["files"]]
    for name in names:
        _read_file(path, name)
    return f"{path}/{names[0]}" if names else ""


def _record(data: bytes) -> FileRecord:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _read_file(path: str, file: str) -> bytes:
    """The bytes of one file of a checkpoint; ``CheckpointError`` if its size or SHA-256 differs from ``meta.json``."""
    recorded = read_content(path)["files"].get(file)
    if not isinstance(recorded, dict):
        raise CheckpointError(f"{path} has no {file}")
    try:
        with fsspec.open(f"{path}/{file}", "rb") as stream:
            data: bytes = stream.read()
    except OSError as error:
        raise CheckpointError(f"{path}/{file} cannot be read: {error}") from None
    size = recorded.get("bytes")
    if len(data) != size or hashlib.sha256(data).hexdigest() != recorded.get("sha256"):
        raise CheckpointError(f"{path}/{file} is damaged: {len(data)} bytes where {size} were written")
    return data
