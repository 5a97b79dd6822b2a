"""What can be compared: name of a row -> folder of a run, or checkpoint."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posefleet.data.io.files import read_json
from posefleet.platform.runtime.paths import resolve_path
from posefleet.platform.runtime.redaction import redacted
from posefleet.platform.tracking import registry
from posefleet.platform.tracking import runs as tracking
from posefleet.platform.tracking.client import TrackingError, store_uri


def named_runs(given: Sequence[str]) -> dict[str, str]:
    """Runs by the shortest ends of their paths that tell them apart.

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
    """The fewest last parts of ``path`` that no other one ends with."""
    parts = [Path(other).parts for other in paths if other != path]
    own = Path(path).parts
    for count in range(1, len(own) + 1):
        if all(other[-count:] != own[-count:] for other in parts):
            return "/".join(own[-count:])
    return path


def _is_run_id(run: str) -> bool:
    return re.fullmatch("[0-9a-f]{32}", run) is not None and not Path(resolve_path(run)).exists()


def _folder(run_id: str) -> str:
    """Where a run of MLflow keeps its checkpoints."""
    uri = store_uri()
    if uri.startswith("sqlite:") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise ValueError(
            f"{run_id} is no folder, and {uri} is not there to ask for an MLflow run of that id; give a run's folder, "
            "or set MLFLOW_TRACKING_URI"
        )
    try:
        run = tracking.read_run(uri, run_id)
    except TrackingError as error:
        raise ValueError(f"{run_id} is no folder and no run of {redacted(uri)}: {error}") from None
    if "folder" not in run.tags:
        raise ValueError(f"MLflow run {run_id} ({run.name}) does not say in which folder it is; give that folder")
    return run.tags["folder"]


def trials(folder: str, top: int) -> dict[str, str]:
    """The runs of the best trials of a search that reached their end, best first, and of trial 0, from which it began.

    Args:
        folder: Of the search; holds ``trials.json``.
        top: How many of the best.

    Raises:
        ValueError: There is no search, none of its trials reached its end, or they have no runs.
    """
    path = Path(resolve_path(folder), "trials.json")
    listed = read_json(str(path))
    if listed is None:
        raise ValueError(f"no {path}; give the folder of a search, its --out")
    scored = [trial for trial in listed if trial["scores"]]
    complete = [trial for trial in scored if trial.get("stopped") is None]
    if not complete:
        raise ValueError(f"{path}: none of {len(listed)} trials reached its end with scores: nothing to compare")
    complete = [trial for trial in complete if trial.get("run")]
    if not complete:
        raise ValueError(
            f"{path.parent} is a search of decoding: its trials are settings of one checkpoint and have no runs to "
            "compare. search.md has their scores; jobs/evaluate.py scores that checkpoint with any of them"
        )
    best = sorted(complete, key=lambda trial: -trial["scores"]["AP"])[:top]
    first = [trial for trial in scored if trial["trial"] == 0 and trial.get("run") and trial not in best]
    return {_trial_name(trial): trial["run"] for trial in [*best, *first]}


def _trial_name(trial: Mapping[str, Any]) -> str:
    stopped = trial.get("stopped")
    return f"trial {trial['trial']}" + ("" if stopped is None else f", stopped after {stopped:g} epochs")


def registered(models: Sequence[str]) -> dict[str, str]:
    """The versions of registered models that have an alias: ``smpr/3 champion`` -> ``models:/smpr/3``.

    A version with several aliases comes once, under the first of champion, challenger and previous.

    Args:
        models: Their names; none: all there are.

    Raises:
        ValueError: There is no such model, or no version has one of these aliases.
        TrackingError: The registry does not answer.
    """
    known = registry.model_names()
    if unknown := [name for name in models if name not in known]:
        raise ValueError(f"no registered model {', '.join(unknown)}; there is {', '.join(known) or 'none'}")
    found: dict[str, str] = {}
    for name in models or known:
        for alias in (registry.CHAMPION, registry.CHALLENGER, registry.PREVIOUS):
            version = registry.find_alias("", name, alias)
            if version and version.address not in found.values():
                found[f"{name}/{version.number} {alias}"] = version.address
    if not found:
        raise ValueError(
            f"no version of {', '.join(models or known) or 'any model'} is champion, challenger or previous; "
            "jobs/promote.py makes one"
        )
    return found
