"""Finds the checkpoint for a path, a run folder or a registry address."""

import fsspec

from posefleet.platform.checkpoints.format import META, CheckpointError
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.runtime.paths import MODELS
from posefleet.platform.tracking.client import TrackingError
from posefleet.platform.tracking.registry import find_model


def find_checkpoint(path: str, *, tracking: str = "") -> str:
    """Path of the checkpoint that ``path`` means.

    A checkpoint is returned as it is. In the folder of a run, or a folder of checkpoints, it is the best checkpoint,
    or the latest if none has a score.

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
    for folder in (f"{path}/checkpoints", path):
        store = CheckpointStore(folder)
        if found := store.best() or store.latest():
            return found
    raise CheckpointError(f"no checkpoint in {path}; expected {META} in it, or folders step-* in {path}/checkpoints")
