"""Finds the runs to compare; functions return name of a row -> folder of a run, checkpoint, or models:/ address."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posefleet.data.io.files import read_json
from posefleet.platform.runtime.paths import resolve_path
from posefleet.platform.tracking import registry
from posefleet.platform.tracking import runs as tracking
from posefleet.platform.tracking.client import TrackingError, store_uri


def named_runs(given: Sequence[str]) -> dict[str, str]:
    """Runs, each named by the shortest end of its path that no other path has.

    Args:
        given: Folders of runs, checkpoints, or MLflow run ids.

    Raises:
        ValueError: One is given twice, or MLflow has no such run.
    """
    paths = [_folder(run) if _is_run_id(run) else resolve_path(run.rstrip("/")) for run in given]
    if twice := sorted({path for path in paths if paths.count(path) > 1}):
        raise ValueError(f"{', '.join(twice)} would be compared with itself; name every run once")
    names = [_short(path, paths) for path in paths]
    return dict(zip(names, paths, strict=True))


def _short(path: str, paths: Sequence[str]) -> str:
    """The fewest last parts of ``path`` that no other path ends with."""
    parts = [Path(other).parts for other in paths if other != path]
    own = Path(path).parts
    ends = (own[-count:] for count in range(1, len(own) + 1))
    return next(("/".join(end) for end in ends if all(other[-len(end) :] != end for other in parts)), path)


def _is_run_id(run: str) -> bool:
    return re.fullmatch("[0-9a-f]{32}", run) is not None and not Path(resolve_path(run)).exists()


def _folder(run_id: str) -> str:
    """Folder of an MLflow run."""
    uri = store_uri()
    if uri.startswith("sqlite:") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise ValueError(
            f"{run_id} is not a folder, and there is no MLflow store {uri} to search for a run of that id; give a "
            "run's folder, or set MLFLOW_TRACKING_URI"
        )
    try:
        run = tracking.read_run(uri, run_id)
    except TrackingError as error:
        raise ValueError(f"{run_id} is neither a folder nor a run in {uri}: {error}") from None
    if "folder" not in run.tags:
        raise ValueError(f"MLflow run {run_id} ({run.name}) has no tag 'folder' with its folder; give that folder")
    return run.tags["folder"]


def trained_trials(folder: str) -> list[dict[str, Any]]:
    """The trials of a search that were trained to their end, as ``trials.json`` has them; highest AP first.

    Raises:
        ValueError: There is no search, or no trial was trained to its end.
    """
    listed = _listed_trials(folder)
    complete = [trial for trial in listed if trial["scores"] and trial.get("stopped") is None]
    if not complete:
        raise ValueError(f"{folder}: none of the {len(listed)} trials reached its end with scores")
    trained = [trial for trial in complete if trial.get("run")]
    if not trained:
        raise ValueError(
            f"{folder} is a search of decoding: its trials are settings of one checkpoint and have no runs. search.md "
            "lists their scores, and best.yaml has the best settings; give them as options with that checkpoint"
        )
    return sorted(trained, key=lambda trial: -trial["scores"]["AP"])


def trials(folder: str, top: int) -> dict[str, str]:
    """Runs of a search's ``top`` best trials, then of trial 0, which has the settings that the search started from.

    Raises:
        ValueError: See :func:`trained_trials`.
    """
    best = trained_trials(folder)[:top]
    first = [t for t in _listed_trials(folder) if t["trial"] == 0 and t["scores"] and t.get("run") and t not in best]
    return {_trial_name(trial): trial["run"] for trial in [*best, *first]}


def _listed_trials(folder: str) -> list[dict[str, Any]]:
    path = Path(folder, "trials.json")
    listed: list[dict[str, Any]] | None = read_json(str(path))
    if listed is None:
        raise ValueError(f"{folder} is not the folder of a search: there is no {path}")
    return listed


def _trial_name(trial: Mapping[str, Any]) -> str:
    stopped = trial.get("stopped")
    return f"trial {trial['trial']}" + ("" if stopped is None else f", stopped after {stopped:g} epochs")


def registered(models: Sequence[str]) -> dict[str, str]:
    """Versions of registered models that have an alias, such as ``smpr/3 champion`` -> ``models:/smpr/3``.

    A version with several aliases is listed once, under the first of champion, challenger and previous.

    Args:
        models: Names of models; empty: all.

    Raises:
        ValueError: There is no such model, or no version has one of these aliases.
        TrackingError: The registry does not answer.
    """
    known = registry.model_names()
    if unknown := [name for name in models if name not in known]:
        raise ValueError(f"no registered model {', '.join(unknown)}; the registry has {', '.join(known) or 'none'}")
    found: dict[str, str] = {}
    for name in models or known:
        for alias in (registry.CHAMPION, registry.CHALLENGER, registry.PREVIOUS):
            version = registry.find_alias("", name, alias)
            if version and version.address not in found.values():
                found[f"{name}/{version.number} {alias}"] = version.address
    if not found:
        raise ValueError(
            f"no version of {', '.join(models or known) or 'any model'} is champion, challenger or previous; "
            "promote one with posefleet promote"
        )
    return found
