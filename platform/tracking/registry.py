"""The model registry: registers versions of models, moves the aliases that select the served version, and finds files.

A version holds a checkpoint without its training state, and the evidence for it:

    MLmodel            signature and description for MLflow's pages; has no flavour that MLflow could run
    checkpoint/        model.safetensors and meta.json, see ``checkpoints/format.py``
    experiment.yaml    all settings
    gate.txt           results of the checks before registration
    evaluation/        table, curves and images

``champion`` is served, ``previous`` was the champion before it, ``challenger`` may become champion. Nothing here
imports torch, so that a rollback to the previous champion is quick.
"""

import contextlib
import getpass
import hashlib
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlparse
from urllib.request import url2pathname

from posefleet.data.io.files import cache_folder
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.platform.runtime.paths import MODELS, check_name
from posefleet.platform.runtime.redaction import redact
from posefleet.platform.tracking.client import asking, clean_name, explained, first_line, store_uri
from posefleet.platform.tracking.runs import LONGEST_DIGEST, DataInput, flatten, start_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"

CHECKPOINT = "checkpoint"
"""Name of the checkpoint's folder among the files of a version."""

_ADDRESS = re.compile(rf"{MODELS}(?P<name>[\w.-]+)(@(?P<alias>[\w.-]+)|/(?P<version>\d+))")

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """A registered version of a model."""

    name: str
    """Name of the model."""
    number: str
    tags: dict[str, str]
    source: str
    """Path or URI of the version's files."""

    @property
    def address(self) -> str:
        """Registry address of the version, ``models:/NAME/VERSION``, which :func:`find_model` takes."""
        return f"{MODELS}{self.name}/{self.number}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """What :func:`promote` registers as a version."""

    folder: Path
    """Folder with the files of the version; :func:`promote` adds MLmodel to it."""
    method: str
    schema: KeypointSchema
    experiment: str
    """MLflow experiment that lists the model."""
    training_run: str
    """MLflow run id of the training run; ignored if it is empty or the store has no such run."""
    step: int
    """Optimiser steps of the checkpoint."""
    settings: Mapping[str, Any]
    metrics: Mapping[str, float]
    """Metrics of the evaluation on ``split``."""
    split: DataInput
    tags: Mapping[str, str]
    description: str
    """Text for the page of the version, in Markdown."""


def signed() -> str:
    """Text for a tag that says who acted and when: ``USER at YYYY-MM-DD hh:mm:ss UTC``."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # the user id of a container may have no name
        user = str(os.getuid())
    return f"{user} at {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"


# ---------------------------------------------------------------------------------------------------- finding


def check_model_name(name: str) -> str:
    """``name``, if it is valid as the name of a model.

    Raises:
        ValueError: The name is no plain name, see :func:`~posefleet.platform.runtime.paths.check_name`, or has
            characters that an address such as ``models:/NAME@ALIAS`` cannot hold.
    """
    check_name(name, "model name")
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"model name {name!r}: use letters, digits, '.', '_' and '-' only")
    return name


def find_alias(uri: str, name: str, alias: str) -> Version | None:
    """The version of model ``name`` that has ``alias``; None if no version has it or there is no such model.

    Raises:
        TrackingError: The registry does not answer.
    """
    with asking(store_uri(uri)) as client:
        model = _if_known(client.get_registered_model, name)
        return _aliased(client, model, alias) if model else None


def model_names(uri: str = "") -> list[str]:
    """Sorted names of all registered models.

    Raises:
        ValueError: There is no such store.
        TrackingError: The registry does not answer.
    """
    with asking(_existing(store_uri(uri), "registered models")) as client:
        names, token = list[str](), None
        while token != "":
            page = client.search_registered_models(page_token=token)
            names += [model.name for model in page]
            token = page.token or ""
    return sorted(names)


def find_version(address: str, uri: str = "") -> Version:
    """The version to which a registry address points now.

    Args:
        address: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
        uri: MLflow store, see :func:`~posefleet.platform.tracking.client.store_uri`.

    Raises:
        ValueError: The address is malformed, or there is no such store, model, alias or version. The message lists
            the models, aliases or versions that exist.
        TrackingError: The registry does not answer.
    """
    if not (parts := _ADDRESS.fullmatch(address)):
        raise ValueError(f"{address!r} names no model; write {MODELS}NAME@ALIAS or {MODELS}NAME/VERSION")
    uri = _existing(store_uri(uri), address)
    with asking(uri) as client:
        return _find(client, uri, address, **parts.groupdict())


def find_model(address: str, uri: str = "") -> str:
    """Local path of the checkpoint of a registered version; files of a remote store are copied here once.

    Takes the arguments of :func:`find_version` and raises its errors.
    """
    version, uri = find_version(address, uri), store_uri(uri)
    with explained(uri):
        return _local_copy(f"{version.source}/{CHECKPOINT}", uri)


def _find(client: "MlflowClient", uri: str, address: str, name: str, alias: str | None, version: str | None) -> Version:
    model, shown = _if_known(client.get_registered_model, name), redact(uri)
    if model is None:
        known = ", ".join(model_names(uri))
        has = f"it has {known}" if known else "it has no models; posefleet promote registers one"
        raise ValueError(f"{address}: {shown} has no model {name!r}; {has}")
    if alias is not None:
        if found := _aliased(client, model, alias):
            return found
        raise ValueError(f"{address}: model {name!r} in {shown} has no alias {alias!r}, but {_listed(model.aliases)}")
    numbers = [str(found.version) for found in client.search_model_versions(f"name='{name}'")]
    if version not in numbers:
        known = ", ".join(sorted(numbers, key=int))
        raise ValueError(f"{address}: model {name!r} in {shown} has no version {version}, but {known or 'none'}")
    return _version(client.get_model_version(name, version))


def _existing(uri: str, address: str) -> str:
    """``uri``; ``ValueError`` if it is a database that does not exist, as a search for a model must not create it."""
    if uri.startswith("sqlite:") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise ValueError(f"{address}: there is no registry {uri}; say which one with MLFLOW_TRACKING_URI")
    return uri


def _if_known(get: Callable[[str], _T], name: str) -> _T | None:
    """What ``get`` returns for a name or id; None where MLflow knows no such thing."""
    from mlflow.exceptions import MlflowException

    try:
        return get(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _aliased(client: "MlflowClient", model: "RegisteredModel", alias: str) -> Version | None:
    number = model.aliases.get(alias)
    return None if number is None else _version(client.get_model_version(model.name, str(number)))


def _version(found: "ModelVersion") -> Version:
    return Version(
        name=found.name, number=str(found.version), tags=dict(found.tags), source=(found.source or "").rstrip("/")
    )


def _listed(aliases: Mapping[str, str]) -> str:
    return ", ".join(f"{alias} (version {number})" for alias, number in sorted(aliases.items())) or "none"


def _local_copy(source: str, uri: str) -> str:
    """Local path of ``source``, of a cached copy if it is remote; versions never change, so one copy is enough."""
    if urlparse(source).scheme in ("", "file"):
        return url2pathname(urlparse(source).path)
    from mlflow.artifacts import download_artifacts

    cache = cache_folder("models")
    kept = cache / hashlib.sha256(f"{redact(uri)} {source}".encode()).hexdigest()[:32]
    if not kept.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            whole = download_artifacts(artifact_uri=source, dst_path=folder, tracking_uri=uri)
            with contextlib.suppress(OSError):  # another process has made the copy in the meantime
                Path(whole).rename(kept)
    return str(kept)


# ---------------------------------------------------------------------------------------------------- promoting


def promote(uri: str, name: str, release: Release, alias: str) -> Version:
    """Register ``release`` as the next version of model ``name`` and give it ``alias``, both or neither.

    If the version becomes ``champion``, the champion before it becomes ``previous``.

    Raises:
        TrackingError: The registry refused or could not be reached; everything created so far is deleted.
    """
    uri, release = store_uri(uri), replace(release, tags={key: redact(text) for key, text in release.tags.items()})
    with asking(uri) as client, contextlib.ExitStack() as undo:
        if _if_known(client.get_registered_model, name) is None:
            client.create_registered_model(name)
            undo.callback(_attempt, client.delete_registered_model, name)
        known = _if_known(client.get_run, release.training_run) if release.training_run else None
        training = release.training_run if known else ""  # the checkpoint may come from another store
        run_id = _open_run(uri, name, release, training)
        undo.callback(_attempt, client.delete_run, run_id)
        model_id, source = _log_model(client, name, release, run_id, training or run_id, undo)
        version = client.create_model_version(
            name,
            source,
            run_id=training or run_id,
            tags=dict(release.tags),
            description=f"{release.description}\n\n{_report(release.folder, client.get_logged_model(model_id))}",
            await_creation_for=0,
            model_id=model_id,
        )
        undo.callback(_attempt, client.delete_model_version, name, str(version.version))
        # An MLflow server sets this tag itself; a plain database does not.
        client.set_logged_model_tags(
            model_id, {"mlflow.modelVersions": json.dumps([{"name": name, "version": version.version}])}
        )
        client.set_terminated(run_id)
        _move(client, name, {alias: str(version.version)})
        undo.pop_all()
        return _version(client.get_model_version(name, str(version.version)))


def rollback(uri: str, name: str) -> tuple[Version, Version | None]:
    """Make the previous champion of model ``name`` the champion again; the current champion becomes ``previous``.

    Returns:
        The new champion, and the champion that it replaced (None if there was none).

    Raises:
        ValueError: There is no such model, or it has no previous champion.
        TrackingError: The registry does not answer; the aliases are unchanged.
    """
    address = f"{MODELS}{name}@{PREVIOUS}"
    uri = _existing(store_uri(uri), address)
    with asking(uri) as client:
        back = _find(client, uri, address, name, PREVIOUS, None)
        replaced = find_alias(uri, name, CHAMPION)
        _move(client, name, {CHAMPION: back.number})
        if replaced:
            trace = f"to version {back.number} by {signed()}"
            _attempt(client.set_model_version_tag, name, replaced.number, "rolled_back", trace)
        return back, replaced


def promote_challenger(uri: str, challenger: Version, tags: Mapping[str, str], description: str) -> Version | None:
    """Make the version ``challenger`` champion without registering a new version; it loses the alias ``challenger``.

    Args:
        uri: MLflow store.
        challenger: Version to promote.
        tags: Tags to add to the version.
        description: Markdown to put in front of the version's description.

    Returns:
        The champion before, which is ``previous`` now; None if there was none.

    Raises:
        TrackingError: The registry refused or could not be reached; the aliases are unchanged.
    """
    uri, name, number = store_uri(uri), challenger.name, challenger.number
    with asking(uri) as client:
        before, current = find_alias(uri, name, CHAMPION), find_alias(uri, name, CHALLENGER)
        earlier = client.get_model_version(name, number).description or ""
        is_challenger = current is not None and current.number == number
        _move(client, name, {CHAMPION: number} | ({CHALLENGER: None} if is_challenger else {}))
        for key, value in tags.items():
            _attempt(client.set_model_version_tag, name, number, key, value)
        _attempt(client.update_model_version, name, number, f"{description}\n\n{earlier}")
        return before


def _move(client: "MlflowClient", name: str, aliases: Mapping[str, str | None]) -> None:
    """Set each alias to a version number, or remove it where the number is None; all of them or none.

    If the champion changes, the champion before becomes ``previous``.
    """
    before = {alias: str(number) for alias, number in client.get_registered_model(name).aliases.items()}
    after = dict(aliases)
    if CHAMPION in aliases and CHAMPION in before and before[CHAMPION] != aliases[CHAMPION]:
        after[PREVIOUS] = before[CHAMPION]
    with contextlib.ExitStack() as undo:
        for alias, number in after.items():
            undo.callback(_attempt, _set_alias, client, name, alias, before.get(alias))
            _set_alias(client, name, alias, number)
        undo.pop_all()


def _set_alias(client: "MlflowClient", name: str, alias: str, number: str | None) -> None:
    if number is None:
        client.delete_registered_model_alias(name, alias)
    else:
        client.set_registered_model_alias(name, alias, number)


def _attempt(step: Callable[..., object], *arguments: object) -> None:
    """Call ``step``; an error of MLflow is logged and does not stop the caller."""
    from mlflow.exceptions import MlflowException

    try:
        step(*arguments)
    except MlflowException as error:
        _log.warning("MLflow: %s%s: %s", step.__name__, arguments, first_line(error))


# ---------------------------------------------------------------------------------------------------- MLflow's records


def _open_run(uri: str, name: str, release: Release, training: str) -> str:
    """Open a run for the promotion, which holds the model's metrics, so that the training run's stay unchanged."""
    parent = {"mlflow.parentRunId": training} if training else {}
    return start_run(
        uri, release.experiment, f"promote {name}", params={}, tags={**release.tags, **parent}, inputs=[release.split]
    )


def _log_model(
    client: "MlflowClient", name: str, release: Release, run_id: str, source_run: str, undo: contextlib.ExitStack
) -> tuple[str, str]:
    """Create MLflow's logged model, which the experiment's pages list; returns its id and the location of its files."""
    from mlflow.entities import LoggedModelOutput, Metric

    model = client.create_logged_model(
        client.get_run(run_id).info.experiment_id,
        name=name,
        source_run_id=source_run,
        tags=dict(release.tags),
        params=flatten(release.settings),
        model_type="pose estimator",
    )
    undo.callback(_attempt, client.delete_logged_model, model.model_id)
    _write_mlmodel(release, model.model_id, source_run)
    client.log_model_artifacts(model.model_id, str(release.folder))
    now, digest = time.time_ns() // 1_000_000, release.split.fingerprint[:LONGEST_DIGEST]
    metrics = [
        Metric(clean_name(key), value, now, release.step, model.model_id, release.split.name, digest, run_id)
        for key, value in release.metrics.items()
    ]
    client.log_batch(run_id, metrics=metrics)
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, release.step)])
    return model.model_id, model.artifact_location


def _report(folder: Path, model: "LoggedModel") -> str:
    """Markdown for the page of a version: its figures, links to its overlays and a link to all files."""
    address = f"ajax-api/2.0/mlflow/logged-models/{model.model_id}/artifacts/files?artifact_file_path="
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = [f"[all files](#/experiments/{model.experiment_id}/models/{model.model_id}/artifacts)"]
    lines += [f"[{name}]({address}{name})" for name in names if name.endswith(".jpg")]  # too wide to show on the page
    lines += [f"![{name}]({address}{name})" for name in names if name.endswith(".png")]
    return "\n\n".join(lines)


def _write_mlmodel(release: Release, model_id: str, run_id: str) -> None:
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, Object, Property, Schema

    keypoints = Property("keypoints", Array(Array(DataType.double)))  # (K, 3): x and y in pixels, and a score
    person = Object([keypoints, Property("score", DataType.double)])
    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]), outputs=Schema([ColSpec(Array(person), "poses")])
    )
    model = Model(
        model_id=model_id,
        run_id=run_id,
        signature=signature,
        metadata={
            "method": release.method,
            "schema": release.schema.name,
            "keypoints": list(release.schema.keypoints),
            "keypoint_schema": release.schema.as_dict(),
        },
    )
    model.add_flavor("posefleet", checkpoint=CHECKPOINT, method=release.method, schema=release.schema.name)
    model.save(str(release.folder / "MLmodel"))
