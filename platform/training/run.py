"""A run: one folder and one MLflow run, however often it is started.

STORAGE/NAME/
    lock.json       who trains the run now, see ``runtime.lock``
    run.json        MLflow run id and store (without its password), so that a restart continues the same run
    checkpoints/    see ``checkpoints.store``
    report/         overlays, curves, tables, profiles and summary.json, also kept as artifacts in MLflow
    logs/           see ``logs`` and ``watchdog``
    spool/          events that MLflow has not received yet
    progress.json, interruptions.json   see ``monitoring.interruptions``
"""

import dataclasses
import logging
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import fsspec

from posefleet.data.io.cluster import ray_starts_here
from posefleet.data.io.files import write_file
from posefleet.data.shards.layout import read_manifest
from posefleet.models.parts.layers.published import check_published
from posefleet.platform.checkpoints.format import CheckpointError, copy_for_use
from posefleet.platform.checkpoints.resolve import find_checkpoint
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.loading import parameters
from posefleet.platform.monitoring import interruptions
from posefleet.platform.runtime import lock
from posefleet.platform.runtime.paths import check_name
from posefleet.platform.runtime.redaction import restored
from posefleet.platform.tracking import runs as tracking
from posefleet.platform.tracking.client import TrackingError, store_uri
from posefleet.platform.tracking.mirrors import Mirrors, check_mirrors, open_mirrors
from posefleet.platform.tracking.run_folder import read_run_file, spool_folder, write_run_file
from posefleet.platform.tracking.tracker import Status, Tracker
from posefleet.platform.training.state import check_start
from posefleet.platform.visualization.report import log_curves

log = logging.getLogger(__name__)

Request = Literal["stop", "save"]
"""What the workers of a run can be asked: to write a checkpoint and end, or to write one and go on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Where a run is stored; plain strings, so that it can be sent to the workers."""

    folder: str
    """Absolute path or URI."""
    run_id: str
    """Id of the MLflow run."""
    tracking_uri: str
    owner: str = ""
    """Token of the lock under which the run was opened; empty if it was only read."""

    def store(self, experiment: Experiment) -> CheckpointStore:
        """The run's checkpoints; only as long as no other process has taken the run over, new ones can be written."""
        keep = experiment.train.keep_checkpoints
        return CheckpointStore(f"{self.folder}/checkpoints", keep=keep, before_save=self._check_owner)

    def taken_over(self) -> lock.Owner | None:
        """The owner of the run's lock, if that is not the process that opened this run any more."""
        try:
            owner = lock.current_owner(self.folder) if self.owner else None
        except OSError as error:
            log.warning("cannot see who has the lock of %s: %s", self.folder, error)
            return None
        return owner if owner and owner.token not in ("", self.owner) else None

    def release(self) -> None:
        """Give up the lock under which this process opened the run."""
        lock.release(self.owner)

    def _check_owner(self) -> None:
        if owner := self.taken_over():
            raise CheckpointError(
                f"no checkpoint is written: {self.folder} was taken over by {owner}, as this training was silent; that "
                "process goes on with the run, and this one ends"
            )

    def request(self, what: Request) -> None:
        """Ask the workers, wherever they are, by a file in the run's folder."""
        with fsspec.open(f"{self.folder}/{what}", "wb") as stream:
            stream.write(b"")

    def requested(self, what: Request) -> bool:
        """Whether the workers are asked; False while the storage does not answer."""
        fs, path = fsspec.url_to_fs(f"{self.folder}/{what}")
        fs.invalidate_cache()
        try:
            return bool(fs.exists(path))
        except OSError as error:
            log.warning("cannot see whether %s is there: %s", path, error)
            return False

    def withdraw(self, what: Request) -> None:
        """Remove a request that was met, or that an earlier start has left behind."""
        if self.requested(what):
            fs, path = fsspec.url_to_fs(f"{self.folder}/{what}")
            fs.rm(path)

    @property
    def spool(self) -> str:
        """Local folder in which events wait for MLflow; inside the run's folder if that is on a file system."""
        return spool_folder(self.folder, self.run_id)

    def finish(self, status: Status, *, curves: bool = True) -> None:
        """Send the events that earlier workers could not, log curves and summary of a training, and set the status."""
        try:
            sink = RunLogger(self, system_every=0)
        except OSError as error:
            log.warning("MLflow does not learn that run %s is %s: no spool can be kept: %s", self.run_id, status, error)
            return
        if curves:
            sink.log_bytes("summary.json", interruptions.summary(self.folder, run=self.run_id, status=status))
        sink.log_profiles()
        if not sink.flush():
            sink.close(status, timeout=0.0)
            return
        try:
            if curves:
                log_curves(sink, tracking.read_run(self.tracking_uri, self.run_id).metrics, self._history)
        except TrackingError as error:
            log.warning("no curves of the whole run: %s", error)
        sink.close(status)

    def _history(self, names: Iterable[str]) -> dict[str, list[tuple[int, float]]]:
        return tracking.read_metrics(self.tracking_uri, self.run_id, names)


class RunLogger(Tracker):
    """Logs for rank 0: metrics to MLflow, files to MLflow and to the run's ``report`` folder.

    Use it as a context manager. Leaving the context does not end the run; :meth:`Run.finish` does.
    """

    def __init__(self, run: Run, *, system_every: float = 10.0, experiment: Experiment | None = None) -> None:
        """
        Args:
            run: Where it is stored.
            system_every: Seconds between two samples of the machine's load. 0: none.
            experiment: Given where the run is trained: its ``run.mirrors`` get the same metrics and pictures.
        """
        super().__init__(run.tracking_uri, run.run_id, run.spool, system_every=system_every)
        self._report = f"{run.folder}/report"
        self._mirrors = _open_mirrors(run, experiment) if experiment and experiment.run.mirrors else None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._mirrors:
            self._mirrors.close()
        self.close("RUNNING", timeout=0.0 if kind else 30.0)  # an error waits for no server

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Add one point to each metric at training step ``step``."""
        super().log_metrics(metrics, step)
        if self._mirrors:
            self._mirrors.log_metrics(metrics, step)

    def log_bytes(self, name: str, data: bytes) -> None:
        """Log a small file, such as ``overlays/000812/139.jpg``; if the storage refuses it, the training continues."""
        try:
            write_file(f"{self._report}/{name}", data)
        except OSError as error:
            log.warning("%s/%s is not written: %s", self._report, name, error)
        super().log_bytes(name, data)
        if self._mirrors:
            self._mirrors.log_bytes(name, data)

    def log_checkpoint(self, path: str) -> None:
        """Log the weights and the description of a checkpoint, which is all that serving and evaluation need."""
        with tempfile.TemporaryDirectory() as folder:
            copy_for_use(path, Path(folder))
            self.log_artifact(folder, "checkpoint")

    def log_profiles(self) -> None:
        """Log the profiles of ranks other than 0, which write them to the run's folder only."""
        fs, path = fsspec.url_to_fs(f"{self._report}/profile")
        for file in fs.ls(path, detail=False) if fs.exists(path) else ():
            name = file.rpartition("/")[2]
            if name.startswith("rank") and not name.startswith("rank0-"):
                super().log_bytes(f"profile/{name}", fs.cat_file(file))


def _open_mirrors(run: Run, experiment: Experiment) -> Mirrors:
    wanted = experiment.run
    return open_mirrors(
        wanted.mirrors, run.folder, run_id=run.run_id, project=wanted.experiment, settings=parameters(experiment)
    )


def read_run(folder: str) -> Run | None:
    """The run in ``folder``, or None if the folder holds none."""
    known = read_run_file(folder)
    return Run(folder=folder, run_id=known["run_id"], tracking_uri=restored(known["tracking_uri"])) if known else None


def _remember(run: Run, method: str) -> None:
    write_run_file(run.folder, run.run_id, run.tracking_uri, method)


def open_run(experiment: Experiment, *, patience: float = 0.0) -> tuple[Experiment, Run]:
    """Open a new run of the experiment, or the existing one of that name, and lock it until ``Run.release``.

    Args:
        experiment: With absolute paths.
        patience: Seconds to wait for another process that has the run, because it is about to end.

    Returns:
        The experiment with its name filled in, and the run.

    Raises:
        ValueError: The name is no plain name, it exists and ``run.resume`` is off, another method has it, or
            ``train.freeze`` names no part, or published weights cannot be fetched here, where the run trains.
        InUseError: Another process trains the run.
        CheckpointError: ``run.init_from`` is not a checkpoint, or does not fit.
        TrackingError: MLflow cannot open a new run.
        OSError: The run's folder cannot be written.
    """
    name = experiment.run.name or f"{experiment.method}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = f"{experiment.run.storage.rstrip('/')}/{name}"
    try:
        check_name(name, "run.name")
    except ValueError:  # earlier versions were not so strict
        if any(part in name for part in ("/", "..", "::", "\0")) or not read_run_file(folder):
            raise
    experiment = dataclasses.replace(experiment, run=dataclasses.replace(experiment.run, name=name))
    held = lock.FolderLock(folder, f"run {name}").acquire(patience=patience)
    try:
        return _open_locked(experiment, folder, held.token)
    except BaseException:
        held.release()
        raise


def _open_locked(experiment: Experiment, folder: str, token: str) -> tuple[Experiment, Run]:
    """:func:`open_run`, once this process has the lock of the run's folder."""
    name = experiment.run.name
    known = read_run_file(folder)
    if known and not experiment.run.resume:
        raise ValueError(f"{folder} exists and run.resume is off; choose another run.name or leave run.resume on")
    if known and known["method"] != experiment.method:
        raise ValueError(f"{folder} is a run of method {known['method']!r}; choose another run.name")
    if not CheckpointStore(f"{folder}/checkpoints").names():
        if experiment.run.init_from:
            weights = find_checkpoint(experiment.run.init_from, tracking=experiment.run.tracking)
            experiment = dataclasses.replace(experiment, run=dataclasses.replace(experiment.run, init_from=weights))
        elif not experiment.scaling.num_workers or ray_starts_here():  # other machines may have what this one has not
            check_published(experiment.model)
        check_start(experiment)
    check_mirrors(experiment.run.mirrors, folder)
    parent = {"mlflow.parentRunId": experiment.run.parent} if experiment.run.parent else {}
    run = _open(experiment, folder, known, name=name, params=parameters(experiment), tags=parent)
    run.withdraw("stop")
    return experiment, dataclasses.replace(run, owner=token)


def open_search(experiment: Experiment, folder: str, settings: Mapping[str, Any]) -> Run:
    """Open the MLflow run that the trials of a search are listed under, or the existing one of ``folder``.

    Args:
        experiment: The experiment whose settings the search varies.
        folder: Absolute folder of the search.
        settings: Settings of the search, such as its space.

    Raises:
        ValueError: The folder holds a search of another method.
        TrackingError: MLflow cannot open a new run.
    """
    known = read_run_file(folder)
    if known and known["method"] != experiment.method:
        raise ValueError(f"{folder} is of method {known['method']!r}, not {experiment.method!r}; choose another folder")
    params = {"search": settings, **parameters(experiment)}
    return _open(experiment, folder, known, name=Path(folder).name, params=params, tags={"kind": "search"})


def _open(
    experiment: Experiment,
    folder: str,
    known: Mapping[str, str] | None,
    *,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
) -> Run:
    """Open the MLflow run of ``folder``, or go on with the ``known`` one, the content of the folder's ``run.json``."""
    if known:
        uri = restored(known["tracking_uri"], experiment.run.tracking)
    else:
        uri = store_uri(experiment.run.tracking, experiment.run.storage)
    inputs = _inputs(experiment)
    run_id = tracking.start_run(
        uri,
        experiment.run.experiment,
        name,
        params=params,
        tags={
            "method": experiment.method,
            "folder": folder,
            **tags,
            **{f"data.{data.use}": data.fingerprint for data in inputs},
        },
        inputs=inputs,
        resume_run_id=known["run_id"] if known else None,
    )
    run = Run(folder=folder, run_id=run_id, tracking_uri=uri)
    if not known:
        _remember(run, experiment.method)
    return run


def _inputs(experiment: Experiment) -> list[tracking.DataInput]:
    """The data sets of the run; of several sources each is one, whose use has its name: ``train.coco``."""
    found = []
    for use, given in (("train", experiment.data.train), ("eval", experiment.data.eval)):
        sources = [("", given)] if isinstance(given, str) else [(f".{source.name}", source.path) for source in given]
        found += [
            tracking.DataInput(
                name=root.rstrip("/").rpartition("/")[2],
                use=f"{use}{end}",
                fingerprint=read_manifest(root).fingerprint,
                source=root,
            )
            for end, root in sources
            if root
        ]
    return found
