"""Checkpoints: a directory that describes itself, appears whole or not at all, and is read without pickle.

    step-00000812/
        model.safetensors   the weights that are evaluated and served (averaged ones where the run averages)
        state.pt            what training needs to go on: optimiser, raw weights, average; read with weights_only
        meta.json           experiment, step, position in the data, metrics, revision; sizes and SHA-256 of the others

``meta.json`` is written last, so a directory without it, or whose files differ from it, is not a checkpoint: readers
pass over it and take the one before. Locally the directory is also renamed into place when whole.
"""

import hashlib
import io
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from posefleet.data.errors import DataError
from posefleet.data.io.files import read_json
from posefleet.models.parts.layers.safe_load import read_tensors
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.loading import build_experiment, to_dict

log = logging.getLogger(__name__)

WEIGHTS, STATE, META = "model.safetensors", "state.pt", "meta.json"

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
"""What ``meta.json`` holds, with its types."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message says which and what is still intact."""


@dataclass(frozen=True, kw_only=True)
class Meta:
    """What ``meta.json`` holds."""

    experiment: Experiment
    step: int
    """Optimiser steps taken."""
    position: int
    """Samples seen, over all epochs."""
    metrics: dict[str, float]
    """Of the evaluation at this step; empty where there was none."""
    provenance: dict[str, str]
    """Git revision, data fingerprint, run id, ..."""


def read_content(path: str) -> dict[str, Any]:
    """The raw ``meta.json`` of a checkpoint.

    Raises:
        CheckpointError: ``path`` is not a checkpoint.
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
    if not {WEIGHTS} <= set(content["files"]) <= {WEIGHTS, STATE}:
        raise CheckpointError(f"{path}/{META} is damaged: it names the files {', '.join(content['files'])}")
    return content


def read_meta(path: str) -> Meta:
    """What ``meta.json`` says, with the experiment validated.

    Raises:
        CheckpointError: ``path`` is not a checkpoint.
    """
    content = read_content(path)
    return Meta(
        experiment=build_experiment(content["experiment"], where=f"{path}/{META}"),
        step=content["step"],
        position=content["position"],
        metrics=content["metrics"],
        provenance=content["provenance"],
    )


def verify(path: str) -> None:
    """Raise ``CheckpointError`` unless every file of the checkpoint has the recorded size and SHA-256."""
    for file in read_content(path)["files"]:
        _read_file(path, file)


def read_state(path: str) -> dict[str, Any]:
    """``state.pt``, read without running any code from it.

    Raises:
        CheckpointError: It is missing or damaged, or holds more than tensors and plain values.
    """
    try:
        return read_tensors(io.BytesIO(_read_file(path, STATE)), f"{path}/{STATE}")
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def read_weights(path: str) -> dict[str, Tensor]:
    """``model.safetensors``.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    try:
        return safetensors.torch.load(_read_file(path, WEIGHTS))
    except SafetensorError as error:
        raise CheckpointError(f"{path}/{WEIGHTS} is refused: it is no file of safetensors ({error})") from None


def copy_for_use(
    path: str,
    folder: Path,
    *,
    experiment: Experiment | None = None,
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Copy what evaluation and serving need of a checkpoint, which is all but the state of its training.

    Args:
        path: The checkpoint.
        folder: Becomes a checkpoint; made if it is new.
        experiment: What the copy says of its settings (another decoding, say); default: what the checkpoint says.
        metrics: What the copy says of its scores; default: what the checkpoint says.

    Raises:
        CheckpointError: The checkpoint is missing or damaged.
    """
    content = read_content(path)
    content["files"] = {WEIGHTS: content["files"][WEIGHTS]}
    if experiment is not None:
        content["experiment"] = to_dict(experiment)
    if metrics is not None:
        content["metrics"] = dict(metrics)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(_read_file(path, WEIGHTS))
    (folder / META).write_text(json.dumps(content, indent=1))


def _read_file(path: str, file: str) -> bytes:
    """The bytes of one file of a checkpoint, checked against ``meta.json``."""
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
