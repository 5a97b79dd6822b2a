"""Experiment tracking: the one door to MLflow.

The driver opens a run (:func:`start_run`) and hands its id to the workers; rank 0 logs through a
:class:`~posefleet.platform.tracker.Tracker`, which puts events into a spool on disk. A :class:`Sender` empties spools,
while training runs or later::

    python -m posefleet.platform.tracking sync SPOOL_DIR

Everything may safely be sent twice. A metric has one point per step: a point is sent unless the server already has one
of that name at that step. So events that are sent again after a crash, and steps that are trained again after a resume
from an older checkpoint, leave the charts as one uninterrupted run would have drawn them (the first value stays). Tags,
artifacts and status are assignments.

Only ``MlflowClient`` is used: active runs and MLFLOW_EXPERIMENT_ID, MLFLOW_RUN_ID or MLFLOW_TRACKING_URI of the
environment change nothing.
"""

import argparse
import contextlib
import fcntl
import json
import logging
import math
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posefleet.platform.spool import Event, Spool

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

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


def read_metrics(uri: str, run_id: str, names: Iterable[str]) -> dict[str, list[tuple[int, float]]]:
    """Every (step, value) of the metrics called ``names``, by step; a name that was never logged has none.

    Raises:
        TrackingError: There is no such run, or no answer.
    """
    uri = tracking_uri(uri)
    with _explained(uri):
        client = _connect(uri)
        found = {name: client.get_metric_history(run_id, name) for name in names}
    return {name: sorted((point.step, point.value) for point in points) for name, points in found.items()}


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
        _log.warning("MLflow at %s does not answer (%s); run %s goes on", uri, first_line(error), run_id)
        return
    if changed:
        _log.warning("run %s goes on with other settings: %s", run_id, changed)


def _experiment_id(client: "MlflowClient", name: str, artifact_location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.create_experiment(name, artifact_location)
        except MlflowException as error:
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise error
            # else another driver was faster
    return experiment.experiment_id


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
    _settle_mlflow()
    from mlflow import MlflowClient

    if not uri.startswith("sqlite:"):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    database = Path(uri.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_suffix(".lock").open("w") as lock, warnings.catch_warnings():
        fcntl.flock(lock, fcntl.LOCK_EX)  # MLflow lets two processes create the tables at once, and one of them fails
        if not database.exists():
            warnings.simplefilter("ignore")  # of the migrations
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _settle_mlflow() -> None:
    """Make MLflow quiet, silent to third parties and quick to give up (it retries for minutes), unless told otherwise.

    It reads these settings from the environment only, some of them when it is imported. The import takes over a
    second: no function here does it before it must.
    """
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    _settle_mlflow()
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise TrackingError(f"MLflow at {uri}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What ``error`` says, short enough for a log line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _clean(name: object) -> str:
    """``name`` with what MLflow refuses in names replaced."""
    return re.sub(r"[^\w/.\- :]", "_", str(name))[:250]


# ---------------------------------------------------------------------------------------------------- sending


class Sender:
    """Sends the events of a spool to one run, as the server knows it when this is made; not reusable after an error."""

    def __init__(self, uri: str, run_id: str) -> None:
        """
        Raises:
            MlflowException: There is no answer, or no such run.
        """
        self._client = _connect(uri)
        self._run_id = run_id
        run = self._client.get_run(run_id)
        self._started = run.info.start_time
        self._ended = run.info.end_time or 0
        self._last_step = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        self._earlier_steps: dict[str, set[int]] = {}

    def send(self, spool: Spool) -> int:
        """Send what is pending; returns the number of events. Whatever it raises, nothing is lost."""
        with spool.sending():
            pending = spool.pending()
            for batch in _batches(pending):
                events = [event for event, _ in batch]
                self._send_batch(events, spool.folder)
                spool.mark_sent(batch[-1][1], events)
            return len(pending)

    def _send_batch(self, events: list[Event], folder: Path) -> None:
        """``events`` are metrics, or one event of another kind."""
        event = events[0]
        match event["kind"]:
            case "metrics":
                if points := self._new_points(events):
                    self._client.log_batch(self._run_id, metrics=points)
            case "tags":
                for name, text in event["values"].items():
                    self._client.set_tag(self._run_id, name, text)
            case "artifact":
                kept = folder / event["file"]
                upload = self._client.log_artifacts if kept.is_dir() else self._client.log_artifact
                upload(self._run_id, str(kept), event["folder"] or None)
            case "status" if event["time"] >= self._ended:  # else the run went on from another spool meanwhile
                if event["status"] == "RUNNING":
                    self._client.update_run(self._run_id, status="RUNNING")
                else:
                    self._client.set_terminated(self._run_id, event["status"], event["time"])

    def _new_points(self, events: list[Event]) -> "list[Metric]":
        from mlflow.entities import Metric

        points: list[Metric] = []
        accepted: set[tuple[str, int]] = set()
        for event in events:
            step = event["step"]
            if step is None:
                step = max(0, event["time"] - self._started) // 1000  # the machine's own axis: seconds of the run
            for name, value in event["values"].items():
                if self._is_new(key := _clean(name), step, accepted):
                    accepted.add((key, step))
                    points.append(Metric(key, value, event["time"], step))
        return points

    def _is_new(self, key: str, step: int, accepted: set[tuple[str, int]]) -> bool:
        """Neither the server nor ``accepted``, the points of the same request, has ``key`` at ``step``."""
        if step > self._last_step.get(key, -math.inf):
            self._last_step[key] = step
            self._earlier_steps.pop(key, None)  # caught up; histories can be long
            return True
        if key not in self._earlier_steps:
            history = self._client.get_metric_history(self._run_id, key)
            known = {point.step for point in history} | {other for name, other in accepted if name == key}
            self._earlier_steps[key] = known
        if step in self._earlier_steps[key]:
            return False
        self._earlier_steps[key].add(step)
        return True


def _batches(pending: Sequence[tuple[Event, int]]) -> Iterator[list[tuple[Event, int]]]:
    """Runs of metrics that fit one request; every other event alone. Order is kept."""
    batch: list[tuple[Event, int]] = []
    points = 0
    for event, offset in pending:
        size = len(event["values"]) + 1 if event["kind"] == "metrics" else POINTS_PER_REQUEST
        if batch and points + size > POINTS_PER_REQUEST:
            yield batch
            batch, points = [], 0
        batch.append((event, offset))
        points += size
    if batch:
        yield batch


# ---------------------------------------------------------------------------------------------------- command line


def sync_spool(spool_dir: Path | str, uri: str | None = None) -> int:
    """Send what a training left in its spool; safe at any time, as often as you like, also beside a running training.

    Args:
        uri: Where to send it; None: where the training meant to.

    Returns:
        The number of events sent.

    Raises:
        ValueError: The folder is not a spool.
        TrackingError: MLflow does not answer or refuses; the events stay.
    """
    spool = Spool(spool_dir)
    header = spool.header()
    uri = tracking_uri(uri or header["uri"])
    with _explained(uri):
        return Sender(uri, header["run_id"]).send(spool)


def main(arguments: Sequence[str] | None = None) -> int:
    """``sync SPOOL_DIR``: returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m posefleet.platform.tracking", description="Tools for tracking.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    sync = commands.add_parser("sync", help="send the events that a training kept while its server was down")
    sync.add_argument("spool_dir", type=Path, help="the spool folder of the run")
    sync.add_argument("--uri", help="tracking URI, when the server has moved")
    options = parser.parse_args(arguments)
    try:
        count = sync_spool(options.spool_dir, options.uri)
    except (ValueError, TrackingError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{count} events sent from {options.spool_dir}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
