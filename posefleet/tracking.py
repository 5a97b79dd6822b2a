"""Track any training as one MLflow run, however often its process dies; no model, config or loop of ours is needed.

    from posefleet import tracking

    with tracking.open_run("runs", "first", params={"lr": 0.1}) as run:  # on rank 0
        for step in range(first_step, 1000):
            run.log_metrics({"loss": loss}, step)

The name stands for the run: whoever opens it again, after a kill and on another machine, goes on with the same MLflow
run. The loop never waits for the tracking server, and never fails because of it. ``docs/parts.md`` shows more.
"""

from collections.abc import Mapping
from typing import Any

from posefleet.platform.runtime.lock import FolderLock
from posefleet.platform.runtime.paths import check_name, resolve_path
from posefleet.platform.runtime.redaction import restored
from posefleet.platform.tracking.client import store_uri
from posefleet.platform.tracking.run_folder import read_run_file, spool_folder, write_run_file
from posefleet.platform.tracking.runs import start_run
from posefleet.platform.tracking.tracker import Status, Tracker

__all__ = ["TrackedRun", "open_run"]

PATIENCE = 60.0
"""Seconds to wait for a process that has the run: Ray starts new workers while it ends the old ones."""


class TrackedRun(Tracker):
    """An open run; its methods are those of :class:`~posefleet.platform.tracking.tracker.Tracker`.

    As a context manager it ends FINISHED, FAILED after an exception, or KILLED after Ctrl-C; opening it again makes it
    RUNNING. A metric has one value for each step: steps that are trained again from an older checkpoint change nothing.
    """

    def __init__(self, folder: str, uri: str, run_id: str, lock: FolderLock, system_every: float) -> None:
        super().__init__(uri, run_id, spool_folder(folder, run_id), system_every=system_every)
        self.folder = folder
        """Absolute path or URI; a good place for the checkpoints of the run, too."""
        self._lock = lock

    def close(self, status: Status = "FINISHED", timeout: float = 30.0) -> None:
        """Stop logging, set the run's ``status``, and let another process open it; see :meth:`Tracker.close`."""
        try:
            super().close(status, timeout)
        finally:
            self._lock.release()


def open_run(
    storage: str,
    name: str,
    *,
    uri: str = "",
    experiment: str = "posefleet",
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    system_every: float = 10.0,
    patience: float = PATIENCE,
) -> TrackedRun:
    """Open the run STORAGE/NAME: a new one, or the one that an earlier process has opened under this name.

    Call it in one process of the training, rank 0.

    Args:
        storage: Folder of runs, a path or URI that every node can write to. In a bucket, what the server does not have
            yet waits on the node's own disk, and is lost with the node.
        name: Name of the run; a folder of this name keeps what a restart needs.
        uri: MLflow store: http(s)://, sqlite:/// or a database. Default: $MLFLOW_TRACKING_URI, else the database
            ``mlflow.db`` in ``storage``. A run stays in the store that it was opened in.
        experiment: MLflow experiment that lists the run.
        params: Settings, nested or not. Of a run that goes on, those that changed become tags ``resumed.NAME``.
        tags: Tags to add or change.
        system_every: Seconds between two samples of the machine's load (metrics ``system/...``). 0: none.
        patience: Seconds to wait for another process that has the run open.

    Raises:
        ValueError: The name is no plain name, the store cannot be used, or the folder is a run of ``posefleet train``.
        InUseError: Another process has the run open, after ``patience`` seconds.
        TrackingError: MLflow cannot open a new run. A run that goes on does not need the server.
        OSError: The folder cannot be written.
    """
    folder = f"{resolve_path(storage).rstrip('/')}/{check_name(name, 'name')}"
    lock = FolderLock(folder, f"run {name}").acquire(patience=patience)
    try:
        known = read_run_file(folder)
        if known and known.get("method"):
            raise ValueError(f"{folder} is a training of method {known['method']!r}; choose another name")
        where = restored(known["tracking_uri"], uri) if known else store_uri(uri, storage)
        run_id = start_run(
            where,
            experiment,
            name,
            params=params or {},
            tags={"folder": folder, **(tags or {})},
            resume_run_id=known["run_id"] if known else None,
        )
        if not known:
            write_run_file(folder, run_id, where, "")
        return TrackedRun(folder, where, run_id, lock, system_every)
    except BaseException:
        lock.release()
        raise
