"""Finds the checkpoint for a path, a run folder or a registry address."""

import json
from pathlib import Path

import fsspec

from posefleet.data.errors import DataError
from posefleet.data.io.files import read_json
from posefleet.platform.checkpoints.format import META, CheckpointError
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.runtime.paths import MODELS
from posefleet.platform.tracking.client import TrackingError
from posefleet.platform.tracking.registry import find_model

POINTER = "posefleet_checkpoint.json"
"""File in a folder that refers to a checkpoint elsewhere."""


def find_checkpoint(path: str, *, tracking: str = "") -> str:
    """Path of the checkpoint that ``path`` means.

    A checkpoint is returned as it is; of a pointer, such as ``ray.train.Result.checkpoint.path``, it is the checkpoint
    that it refers to. In the folder of a run, or a folder of checkpoints, it is the best checkpoint, or the latest if
    none has a score.

    Args:
        path: Path or URI, or the address of a registered version: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
        tracking: MLflow store of the registry, see ``registry.find_model``.

    Raises:
        CheckpointError: There is no checkpoint, or the registry has no such version or does not answer.
    """
    if path.startswith(MODELS):
        try:
            return find_model(path, tracking)
        except (ValueError, TrackingError) as error:
            raise CheckpointError(str(error)) from error
    path = path.rstrip("/")
    fs, plain = fsspec.url_to_fs(path)
    if fs.exists(f"{plain}/{META}"):
        return path
    if pointed := _read_pointer(path):
        return find_checkpoint(pointed)
    for folder in (f"{path}/checkpoints", path):
        store = CheckpointStore(folder)
        if found := store.best() or store.latest():
            return found
    raise CheckpointError(f"no checkpoint in {path}; expected {META} in it, or folders step-* in {path}/checkpoints")


def write_pointer(folder: str, checkpoint: str) -> None:
    """Make the local ``folder`` refer to a checkpoint, so that :func:`find_checkpoint` takes it for the checkpoint."""
    Path(folder, POINTER).write_text(json.dumps({"checkpoint": checkpoint}))


def _read_pointer(folder: str) -> str | None:
    """Path of the checkpoint that ``folder`` refers to; None if it refers to none.

    Raises:
        CheckpointError: The file that should say it is damaged.
    """
    try:
        content = read_json(f"{folder}/{POINTER}")
        return None if content is None else str(content["checkpoint"])
    except (DataError, OSError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}/{POINTER} does not say where the checkpoint is: {error!r}") from None
