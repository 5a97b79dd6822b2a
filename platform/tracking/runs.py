"""Creates, continues and reads MLflow runs.

The driver opens a run (:func:`start_run`) and passes its id to the workers. Rank 0 logs through a
:class:`~posefleet.platform.tracking.tracker.Tracker`, which writes events to a spool on disk. A ``sender.Sender``
sends them to MLflow while training runs; after an outage, this command sends the rest::

    python -m posefleet.platform.tracking sync SPOOL_DIR
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from posefleet.command_line import Argument
from posefleet.platform.runtime.redaction import redact
from posefleet.platform.tracking.client import (
    TrackingError,
    asking,
    check_answer,
    clean_name,
    first_line,
    tracking_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

LONGEST_PARAM = 1000
"""Maximum characters of a parameter; MLflow refuses more than 6000, and its tables are unreadable well below that."""
LONGEST_DIGEST = 36
"""Maximum characters of a data fingerprint, MLflow's limit."""

_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Makes MLflow's pages open with training charts instead of traces of language models."""

_RESUMED = "resumed."
"""Prefix of the tags with settings that a continued run has instead of its parameters."""

_log = logging.getLogger(__name__)


def git_revision(path: Path | str = ".") -> str:
    """Commit of the checkout that holds ``path``, with ``-dirty`` if files differ from it; "unknown" without git.

    $POSEFLEET_REVISION wins if it is set. Set it for a submitted job, which is shipped without its ``.git``.
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
    """Value of every metric at its last step."""
    tags: dict[str, str]
    artifact_uri: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DataInput:
    """A data set that a run reads."""

    name: str
    use: str
    """Purpose in the run, such as ``train``."""
    fingerprint: str
    """Hash of the data's content."""
    source: str
    """Path or URI."""


def start_run(
    uri: str,
    experiment_name: str,
    run_name: str,
    *,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    inputs: Sequence[DataInput] = (),
    artifact_location: str | None = None,
    resume_run_id: str | None = None,
) -> str:
    """Open or continue a run; the driver calls it before any worker logs.

    Args:
        uri: MLflow store, see :func:`~posefleet.platform.tracking.client.tracking_uri`.
        experiment_name: MLflow experiment; created if it does not exist.
        run_name: Name of a new run.
        params: Settings; nested mappings become dotted names (``optim.lr``). MLflow's parameters are final, so a
            setting that a continued run now has another value of gets a tag ``resumed.<name>``. A setting that is again
            what it was at first loses that tag.
        tags: Tags to add or change. A new run continues a run that is still RUNNING without metrics and has the same
            tag ``folder``, if there is one: a driver that died right after opening it left it behind.
        inputs: Data sets, for MLflow's column "Dataset". A run continued by ``resume_run_id`` keeps its own.
        artifact_location: Path or URI under which a new experiment keeps its artifacts. None: beside the sqlite
            database, or what the server decides.
        resume_run_id: The run to continue. If the server is down, the function logs a warning and returns the id.

    Returns:
        The run id.

    Raises:
        ValueError: The URI is not usable.
        TrackingError: MLflow cannot create the run, or the run to continue does not exist.
    """
    uri = tracking_uri(uri)
    flat, tags = flatten(params), _shown({**_source_tags(), **tags})
    with asking(uri) as client:
        if resume_run_id is not None:
            _continue_run(client, uri, resume_run_id, flat, tags)
            return resume_run_id
        experiment_id = _experiment_id(client, experiment_name, artifact_location or _beside_database(uri))
        check_answer(uri, experiment_id)
        abandoned = _abandoned(client, experiment_id, tags.get("folder"))
        if abandoned:
            run_id: str = abandoned
            _continue_run(client, uri, run_id, flat, tags)
        else:
            run_id = client.create_run(experiment_id, run_name=run_name, tags=tags).info.run_id
            check_answer(uri, run_id)
            _log_params(client, run_id, flat)
        _log_inputs(client, run_id, inputs)
    return run_id


def set_tags(uri: str, run_id: str, tags: Mapping[str, str]) -> None:
    """Add or change tags of a run.

    Raises:
        TrackingError: There is no such run, or MLflow does not answer.
    """
    with asking(tracking_uri(uri)) as client:
        for name, text in _shown(tags).items():
            client.set_tag(run_id, name, text)


def read_run(uri: str, run_id: str) -> RunSummary:
    """The summary of one run.

    Raises:
        TrackingError: There is no such run, or MLflow does not answer.
    """
    uri = tracking_uri(uri)
    with asking(uri) as client:
        summary = _summary(client.get_run(run_id))
    check_answer(uri, summary.run_id, run_id)
    return summary


def read_metrics(uri: str, run_id: str, names: Iterable[str]) -> dict[str, list[tuple[int, float]]]:
    """Every (step, value) of the metrics ``names``, sorted by step; an empty list for a metric that was never logged.

    Raises:
        TrackingError: There is no such run, or MLflow does not answer.
    """
    with asking(tracking_uri(uri)) as client:
        found = {name: client.get_metric_history(run_id, name) for name in names}
    return {name: sorted((point.step, point.value) for point in points) for name, points in found.items()}


def flatten(settings: Mapping[str, Any]) -> dict[str, str]:
    """Nested settings as dotted names and text: ``{"optim": {"lr": 0.1}}`` -> ``{"optim.lr": "0.1"}``.

    Secrets are redacted, and text longer than ``LONGEST_PARAM`` is cut.
    """
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= {f"{clean_name(name)}.{inner}": text for inner, text in flatten(value).items()}
            continue
        text = redact(json.dumps(value, default=str) if isinstance(value, list | tuple | Mapping) else str(value))
        if len(text) > LONGEST_PARAM:
            text = f"{text[: LONGEST_PARAM - 40]} ... ({len(text)} characters)"
        flat[clean_name(name)] = text
    return flat


def _abandoned(client: "MlflowClient", experiment_id: str, folder: str | None) -> str | None:
    """Id of a run that a driver opened for ``folder`` before it died without recording the id there; else None."""
    for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'"):
        if folder and run.data.tags.get("folder") == folder and not run.data.metrics:
            return str(run.info.run_id)
    return None


def _continue_run(
    client: "MlflowClient", uri: str, run_id: str, params: dict[str, str], tags: Mapping[str, str]
) -> None:
    from mlflow.exceptions import MlflowException

    try:
        known = client.get_run(run_id)
        check_answer(uri, known.info.run_id, run_id)
        before, resumed = known.data.params, [name for name in known.data.tags if name.startswith(_RESUMED)]
        client.update_run(run_id, status="RUNNING")
        _log_params(client, run_id, {name: text for name, text in params.items() if name not in before})
        changed = {name: text for name, text in params.items() if before.get(name, text) != text}
        now = {f"{_RESUMED}{name}": text for name, text in changed.items()}
        for name in resumed:
            if name not in now:
                client.delete_tag(run_id, name)
        for name, text in {**now, **tags}.items():
            client.set_tag(run_id, name, text)
    except (MlflowException, TrackingError) as error:
        if getattr(error, "error_code", "") in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        _log.warning("MLflow at %s does not answer (%s); run %s goes on", redact(uri), first_line(error), run_id)
        return
    if changed:
        _log.warning("run %s goes on with other settings: %s", run_id, changed)


def _experiment_id(client: "MlflowClient", name: str, artifact_location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.create_experiment(name, artifact_location, tags=_EXPERIMENT_TAGS)
        except MlflowException as error:
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise error
            # another driver created it in the meantime
    return experiment.experiment_id


def _beside_database(uri: str) -> str | None:
    return (Path(uri.removeprefix("sqlite:///")).parent / "artifacts").as_uri() if uri.startswith("sqlite:") else None


def _log_params(client: "MlflowClient", run_id: str, params: dict[str, str]) -> None:
    from mlflow.entities import Param

    entries = [Param(name, text) for name, text in params.items()]
    for start in range(0, len(entries), 100):  # MLflow's limit per request
        client.log_batch(run_id, params=entries[start : start + 100])


def _log_inputs(client: "MlflowClient", run_id: str, inputs: Sequence[DataInput]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    def entry(data: DataInput) -> DatasetInput:
        scheme, found, _ = data.source.partition("://")
        source = json.dumps({"uri": redact(data.source)})
        dataset = Dataset(data.name, data.fingerprint[:LONGEST_DIGEST], scheme if found else "local", source)
        return DatasetInput(dataset, [InputTag("mlflow.data.context", data.use)])

    if inputs:
        client.log_inputs(run_id, [entry(data) for data in inputs])


def _source_tags() -> dict[str, str]:
    """Tags with the revision (``git``), and with program and commit under the names that MLflow's pages show."""
    revision = git_revision()
    commit, dirty, _ = revision.partition("-dirty")
    return {
        "git": revision,
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": Path(sys.argv[0]).name,
        "mlflow.source.git.commit": commit,
        "mlflow.source.git.dirty": str(bool(dirty)).lower(),
    }


def _shown(tags: Mapping[str, str]) -> dict[str, str]:
    return {name: redact(text) for name, text in tags.items()}


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


# ---------------------------------------------------------------------------------------------------- command line


@dataclass(frozen=True, kw_only=True)
class SyncOptions:
    """Which events to send, and where."""

    spool_dir: Annotated[Path, Argument("SPOOL_DIR")]
    """The spool folder of the run."""
    uri: Annotated[str, "URI"] | None = None
    """MLflow's address, when the server has moved. Default: where the training meant to send it."""
