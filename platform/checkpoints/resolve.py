"""Finds the checkpoint that a path, a run folder or a registry address means."""

import fsspec

from posefleet.platform.checkpoints.format import META, CheckpointError
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.runtime.paths import MODELS
from posefleet.platform.tracking.client import TrackingError
from posefleet.platform.tracking.registry import find_model


def find_checkpoint(path: str, *, tracking: str = "") -> str:
    """``path`` itself if it is a checkpoint; of a run's folder, or a folder of checkpoints, the best or the latest one.

    Args:
        path: Path or URI; or a version of a registered model, ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
        tracking: Where models are registered, see ``registry.find_model``.

    Raises:
        CheckpointError: There is none.
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
