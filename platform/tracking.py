"""Experiment tracking: the one door to MLflow.

The driver opens a run (:func:`start_run`) and hands its id to the workers; rank 0 logs through a :class:`Tracker`.
Training never waits for the tracking server and never fails because of it: events go to a queue in memory, one
background thread writes them to a :class:`~posefleet.platform.spool.Spool` on disk and sends them from there. When the
server is down they stay in the spool, and this process or a later one sends them::

    python -m posefleet.platform.tracking sync RUN_FOLDER/spool

Everything may safely be sent twice. A metric has one point per step: a point is sent unless the server already has one
of that name at that step. So events that are sent again after a crash, and steps that are trained again after a resume
from an older checkpoint, leave the charts as one uninterrupted run would have drawn them (the first value stays). Tags,
artifacts and status are assignments.

Only ``MlflowClient`` is used: active runs and MLFLOW_EXPERIMENT_ID, MLFLOW_RUN_ID or MLFLOW_TRACKING_URI of the
environment change nothing.
"""

import argparse
import contextlib
import json
import logging
import math
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import psutil

from posefleet.platform.spool import Event, Spool

if TYPE_CHECKING:
    from mlflow import MlflowClient

Status = Literal["FINISHED", "FAILED", "KILLED"]

DATABASES = ("postgresql", "mysql", "mssql")
LONGEST_PARAM = 1000
"""Characters of a parameter; MLflow refuses more than 6000 and its tables are unreadable long before."""
POINTS_PER_REQUEST = 1000
"""MLflow's own limit."""

_log = logging.getLogger(__name__)


class TrackingError(RuntimeError):
    """MLflow refused or could not be reached; the message says where and why."""


# ---------------------------------------------------------------------------------------------------- where


def default_uri(storage: str) -> str:
    """The tracking database beside the runs under ``storage``, an absolute path or ``file://`` URI.

    Raises:
        ValueError: The storage is relative or remote (a database cannot live in a bucket).
    """
    path = Path(storage.removeprefix("file://"))
    if "://" in storage.removeprefix("file://") or not path.is_absolute():
        raise ValueError(
            f"no tracking database can be kept under {storage!r}: give an absolute local path as storage, or a "
            "tracking URI such as http://host:5000 (start one with `mlflow server`)"
        )
    return f"sqlite:///{path / 'mlflow.db'}"


def tracking_uri(uri: str) -> str:
    """``uri`` as MLflow wants it: a relative sqlite path becomes absolute, for workers have other current folders.

    Raises:
        ValueError: MLflow would refuse it, or lose what it is given.
    """
    scheme, _, rest = uri.partition(":")
    if scheme in ("http", "https") or scheme.partition("+")[0] in DATABASES:
        return uri.rstrip("/")
    if scheme == "sqlite" and rest.startswith("///") and not rest.startswith("///:memory:") and len(rest) > 3:
        return f"sqlite:///{Path(rest[3:]).absolute()}"
    advice = "use sqlite:////absolute/path/mlflow.db or the http(s):// address of an MLflow server"
    if scheme == "file" or not rest:
        raise ValueError(f"tracking URI {uri!r}: MLflow no longer writes runs to a folder; {advice}")
    raise ValueError(f"tracking URI {uri!r} is not one of sqlite, http, https, {', '.join(DATABASES)}; {advice}")


def git_revision(path: Path | str = ".") -> str:
    """Commit of the checkout that holds ``path``, with ``-dirty`` when files differ from it; "unknown" without git.

    A submitted job is shipped without its ``.git``: set POSEFLEET_REVISION in its environment to say what it is.
    """
    if revision := os.environ.get("POSEFLEET_REVISION"):
        return revision
    describe = ["git", "-C", str(path), "describe", "--always", "--dirty", "--abbrev=40", "--match="]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


# ---------------------------------------------------------------------------------------------------- runs


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """What MLflow knows about a run."""

    run_id: str
    name: str
    status: str
    params: dict[str, str]
    metrics: dict[str, float]
    """The value at the last step of every metric."""
    tags: dict[str, str]
    artifact_uri: str


def start_run(
    uri: str,
    experiment_name: str,
    run_name: str,
    *,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    artifact_location: str | None = None,
    resume_run_id: str | None = None,
) -> str:
    """Open a run, or continue one; called by the driver, before any worker logs.

    Args:
        uri: See :func:`tracking_uri`.
        experiment_name: Created when it is new.
        params: Settings; nested mappings become dotted names (``optim.lr``). When a continued run has other
            settings than it began with, the new value becomes a tag ``resumed.<name>``: MLflow's parameters are final.
        artifact_location: Path or URI under which a new experiment keeps its artifacts. None: beside the sqlite
            database, or what the server decides.
        resume_run_id: The run to continue. It goes on without MLflow when the server is down.

    Returns:
        The run id.

    Raises:
        ValueError: The URI is not usable.
        TrackingError: A new run cannot be created, or the run to continue does not exist.
    """
    uri = tracking_uri(uri)
    flat = flatten(params)
    with _explained(uri):
        client = _connect(uri)
        if resume_run_id is not None:
            _continue_run(client, uri, resume_run_id, flat, tags)
            return resume_run_id
        experiment_id = _experiment_id(client, experiment_name, artifact_location or _beside_database(uri))
        run_id: str = client.create_run(experiment_id, run_name=run_name, tags=dict(tags)).info.run_id
        _log_params(client, run_id, flat)
    return run_id


def read_run(uri: str, run_id: str) -> RunSummary:
    """The summary of one run.

    Raises:
        TrackingError: There is no such run, or no answer.
    """
    uri = tracking_uri(uri)
    with _explained(uri):
        return _summary(_connect(uri).get_run(run_id))


def find_runs(uri: str, experiment_name: str, filter_string: str = "") -> list[RunSummary]:
    """Runs of an experiment, newest first; ``filter_string`` is MLflow's, e.g. ``"params.method = 'smpr'"``.

    Raises:
        TrackingError: There is no such experiment, or no answer.
    """
    uri = tracking_uri(uri)
    with _explained(uri):
        client = _connect(uri)
        experiment = client.get_experiment_by_name(experiment_name)
        if experiment is None:
            raise TrackingError(f"{uri} has no experiment {experiment_name!r}")
        runs, token = [], None
        while token != "":
            page = client.search_runs([experiment.experiment_id], filter_string, page_token=token)
            runs += [_summary(run) for run in page]
            token = page.token or ""
    return runs


def flatten(settings: Mapping[str, Any]) -> dict[str, str]:
    """Nested settings as dotted names and text: ``{"optim": {"lr": 0.1}}`` -> ``{"optim.lr": "0.1"}``."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= {f"{_clean(name)}.{inner}": text for inner, text in flatten(value).items()}
            continue
        text = json.dumps(value, default=str) if isinstance(value, list | tuple | Mapping) else str(value)
        if len(text) > LONGEST_PARAM:
            text = f"{text[: LONGEST_PARAM - 40]} ... ({len(text)} characters)"
        flat[_clean(name)] = text
    return flat


def _continue_run(
    client: "MlflowClient", uri: str, run_id: str, params: dict[str, str], tags: Mapping[str, str]
) -> None:
    from mlflow.exceptions import MlflowException

    try:
        before = client.get_run(run_id).data.params
        client.update_run(run_id, status="RUNNING")
        _log_params(client, run_id, {name: text for name, text in params.items() if name not in before})
        changed = {name: text for name, text in params.items() if before.get(name, text) != text}
        for name, text in {**{f"resumed.{name}": text for name, text in changed.items()}, **tags}.items():
            client.set_tag(run_id, name, text)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        _log.warning("MLflow at %s does not answer (%s); run %s goes on", uri, _first_line(error), run_id)
        return
    if changed:
        _log.warning("run %s goes on with other settings: %s", run_id, changed)


def _experiment_id(client: "MlflowClient", name: str, artifact_location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    if experiment := client.get_experiment_by_name(name):
        return str(experiment.experiment_id)
    try:
        return str(client.create_experiment(name, artifact_location))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return str(client.get_experiment_by_name(name).experiment_id)  # another driver was faster


def _beside_database(uri: str) -> str | None:
    return (Path(uri.removeprefix("sqlite:///")).parent / "artifacts").as_uri() if uri.startswith("sqlite:") else None


def _log_params(client: "MlflowClient", run_id: str, params: dict[str, str]) -> None:
    from mlflow.entities import Param

    entries = [Param(name, text) for name, text in params.items()]
    for start in range(0, len(entries), 100):  # MLflow's limit of a request
        client.log_batch(run_id, params=entries[start : start + 100])


def _summary(run: Any) -> RunSummary:
    return RunSummary(
        run_id=run.info.run_id,
        name=run.info.run_name,
        status=run.info.status,
        params=run.data.params,
        metrics=run.data.metrics,
        tags=run.data.tags,
        artifact_uri=run.info.artifact_uri,
    )


def _connect(uri: str) -> "MlflowClient":
    """An MLflow client that is quiet, says nothing to third parties, and gives up soon (MLflow retries for minutes).

    MLflow takes over a second to import, so it is imported here; it reads these settings from the environment only.
    """
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    if uri.startswith("sqlite:"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise TrackingError(f"MLflow at {uri}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _clean(name: object) -> str:
    """``name`` with what MLflow refuses in names replaced."""
    return re.sub(r"[^\w/.\- :]", "_", str(name))[:250]


# ---------------------------------------------------------------------------------------------------- tracker


class Tracker:
    """Logs one run from rank 0 of a training. No method blocks on the server or raises because of it.

    Use it as a context manager: leaving it normally closes the run as FINISHED, an exception as FAILED, Ctrl-C as
    KILLED.
    """

    def __init__(
        self,
        uri: str,
        run_id: str,
        spool_dir: Path | str,
        *,
        send_every: float = 1.5,
        system_every: float = 10.0,
    ) -> None:
        """
        Args:
            uri: See :func:`tracking_uri`.
            run_id: From :func:`start_run`.
            spool_dir: Where events wait for the server; one folder per run, kept over restarts.
            send_every: Seconds between two requests.
            system_every: Seconds between two samples of the machine (``system/...``); 0: none.

        Raises:
            ValueError: The URI is not usable, or the spool holds another run.
        """
        self.uri = tracking_uri(uri)
        self.run_id = run_id
        self.spool = Spool.create(spool_dir, self.uri, run_id)
        self._send_every = send_every
        self._system_every = system_every
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._storing = threading.Lock()
        self._flushes: queue.SimpleQueue[threading.Event] = queue.SimpleQueue()
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._events.put({"kind": "status", "time": _now(), "status": "RUNNING"})
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._thread.start()

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Add one point to each metric at a training step; costs microseconds."""
        floats = {name: float(value) for name, value in values.items()}
        self._events.put({"kind": "metrics", "time": _now(), "step": step, "values": floats})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        self._events.put({"kind": "tags", "values": {name: str(text) for name, text in tags.items()}})

    def log_artifact(self, path: Path | str, artifact_path: str = "") -> None:
        """Store a file or folder under the folder ``artifact_path`` of the run; copied before the call returns."""
        self._keep(lambda: self.spool.keep_file(path), artifact_path, str(path))

    def log_bytes(self, name: str, data: bytes) -> None:
        """Store ``data``, such as a PNG, as the artifact ``name`` (``plots/curve.png``)."""
        folder, _, file = name.rpartition("/")
        self._keep(lambda: self.spool.keep_bytes(file, data), folder, name)

    def log_text(self, name: str, text: str) -> None:
        """Store ``text`` as the artifact ``name``."""
        self.log_bytes(name, text.encode())

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until the server has everything logged so far; False when it has not after ``timeout`` seconds."""
        done = threading.Event()
        self._flushes.put(done)
        self._wake.set()
        return done.wait(timeout)

    def close(self, status: Status = "FINISHED", timeout: float = 30.0) -> None:
        """End the run. What the server has not taken after ``timeout`` seconds stays in the spool."""
        if self._closed.is_set():
            return
        self._events.put({"kind": "status", "time": _now(), "status": status})
        sent = self.flush(timeout)
        self._closed.set()
        self._wake.set()
        self._thread.join(1.0)
        if not sent:
            self._store()  # the thread may be stuck in a request
            _log.warning(
                "events of run %s wait in %s; send them with: python -m posefleet.platform.tracking sync %s",
                self.run_id, self.spool.folder, self.spool.folder,
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close("FINISHED")
        else:
            self.close("KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED")

    def _keep(self, copy: Any, folder: str, what: str) -> None:
        try:
            self._events.put({"kind": "artifact", "file": copy(), "folder": folder})
        except OSError as error:
            _log.warning("the artifact %s is not logged: %s", what, error)

    def _work(self) -> None:
        """The background thread: machine samples, events to disk, events to the server."""
        sender: _Sender | None = None
        next_try, pause = 0.0, self._send_every
        machine = _Machine(self._system_every)
        while not self._closed.is_set():
            self._wake.wait(self._send_every)
            self._wake.clear()
            if sample := machine.sample():
                self._events.put({"kind": "metrics", "time": _now(), "step": None, "values": sample})
            asked = _drain(self._flushes)
            if time.monotonic() < next_try and not asked:
                self._store_quietly()
                continue
            try:
                self._store()
                sender = sender or _Sender(self.uri, self.run_id)
                sender.send(self.spool)
            # A network, a database, a bucket, a disk: whatever they raise, training goes on and we try again.
            except Exception as error:
                if next_try == 0.0:
                    _log.warning(
                        "MLflow at %s fails (%s); training goes on, events are kept in %s until it answers",
                        self.uri, _first_line(error), self.spool.folder,
                    )  # fmt: skip
                sender, pause = None, min(2 * pause, 60.0)
                next_try = time.monotonic() + pause
                for flush in asked:
                    self._flushes.put(flush)
            else:
                next_try, pause = 0.0, self._send_every
                for flush in asked:
                    flush.set()

    def _store(self) -> None:
        with self._storing:
            if events := _drain(self._events):
                self.spool.append(events)
