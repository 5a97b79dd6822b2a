"""The gate before the registry: what a candidate must show, measured here and now, in the form that will be served.

Every check runs, also after one that failed, and tells its value and its bound.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from posefleet.data.evaluation.evaluate import Evaluation
from posefleet.data.structures import Poses
from posefleet.platform.checkpoints.format import copy_for_use, read_meta
from posefleet.platform.checkpoints.load import load_model
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.inference.evaluate import evaluate
from posefleet.platform.inference.predictor import Predictor
from posefleet.platform.inference.split import Split
from posefleet.platform.promotion.checks import (
    Check,
    GateThresholds,
    ap,
    clean,
    finite,
    keypoints,
    latency,
    served_as_evaluated,
)
from posefleet.platform.runtime.worker import LocalWorker, Sink
from posefleet.platform.tracking.registry import CHECKPOINT

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class GateReport:
    """What came of all checks."""

    checks: tuple[Check, ...]
    evaluation: Evaluation | None
    """Of the candidate; None where it could not be evaluated."""

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the checks that failed."""
        return tuple(check.name for check in self.checks if not check.passed)

    def __str__(self) -> str:
        return "\n".join(map(str, self.checks))


def run_gate(
    checkpoint: str, experiment: Experiment, champion: str, split: Split | None, bounds: GateThresholds, folder: Path
) -> GateReport:
    """Look at a candidate from every side.

    Args:
        checkpoint: The candidate.
        experiment: Its settings, maybe with another decoding; they become those of the copy.
        champion: The checkpoint to compare with; empty where there is no champion yet.
        split: What both are scored on; None: only what needs no annotations is looked at.
        bounds: What is demanded.
        folder: Gets the files of the version to be: a copy of the checkpoint, and the report of its evaluation.

    Raises:
        CheckpointError: The candidate cannot be read.
    """
    step, schema, served = read_meta(checkpoint).step, experiment.keypoints, folder / CHECKPOINT
    reloaded = _once(lambda: _predictor(str(served)))
    if split is None:
        copy_for_use(checkpoint, served, experiment=experiment)
        whole = _run_check("weights", lambda: finite(str(served)))
        return GateReport(checks=(whole, _run_check("latency", lambda: latency(reloaded(), bounds))), evaluation=None)
    scored = _once(lambda: _score(checkpoint, experiment, split, FolderSink(folder), step))
    try:
        evaluation = scored()[0]
    except Exception:  # the checks below tell it
        evaluation = None
    copy_for_use(checkpoint, served, experiment=experiment, metrics=evaluation.as_dict() if evaluation else {})
    checks = (
        _run_check("weights", lambda: finite(str(served))),
        _run_check("split", lambda: clean(split, schema)),
        _run_check("AP", lambda: ap(scored()[0], _rival(champion, experiment, split), bounds.tolerance)),
        _run_check("keypoints", lambda: keypoints(scored()[0], bounds.keypoint_floor)),
        _run_check("latency", lambda: latency(reloaded(), bounds)),
        _run_check("served", lambda: served_as_evaluated(reloaded(), split, scored()[1], bounds.served_images)),
    )
    return GateReport(checks=checks, evaluation=evaluation)


class FolderSink:
    """Keeps the files that an evaluation leaves in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Metrics are part of the evaluation itself."""

    def log_bytes(self, name: str, data: bytes) -> None:
        """One file."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def store(self) -> None:
        """It is."""


# ---------------------------------------------------------------------------------------------------- steps


def _score(
    checkpoint: str, experiment: Experiment, split: Split, sink: Sink | None, step: int
) -> tuple[Evaluation, dict[int, Poses]]:
    """Evaluation of a checkpoint, and the poses by image id."""
    worker, poses = LocalWorker(sink=sink), dict[int, Poses]()
    model, _ = load_model(checkpoint, experiment=experiment)
    evaluation = evaluate(
        model.to(worker.device),
        experiment,
        worker,
        open_split=lambda view: split.open(view.schema, view),
        step=step,
        keep=poses.update,
    )
    assert evaluation is not None, "the gate runs in one process"
    return evaluation, poses


def _rival(champion: str, candidate: Experiment, split: Split) -> Evaluation | None:
    """The champion with its own settings, scored as the candidate is."""
    if not champion:
        return None
    own = read_meta(champion).experiment
    scoring = dataclasses.replace(
        own.evaluate, max_detections=candidate.evaluate.max_detections, backend=candidate.evaluate.backend
    )
    reading = dataclasses.replace(
        own.data, eval_batch_size=candidate.data.eval_batch_size, loaders=candidate.data.loaders
    )
    return _score(champion, dataclasses.replace(own, evaluate=scoring, data=reading), split, None, 0)[0]


def _predictor(checkpoint: str) -> Predictor:
    model, experiment = load_model(checkpoint)
    return Predictor(model, experiment, device=LocalWorker().device)


def _run_check(name: str, check: Callable[[], Check]) -> Check:
    """A check that cannot be made has failed, whatever was in its way; the others are still made."""
    try:
        return check()
    except Exception as error:
        return Check(name=name, value=f"{type(error).__name__}: {error}", bound="can be measured", passed=False)


def _once(make: Callable[[], _T]) -> Callable[[], _T]:
    """``make``, called at most once; what it raised is raised again."""

    @functools.cache
    def made() -> _T | Exception:
        try:
            return make()
        except Exception as error:
            return error

    def result() -> _T:
        if isinstance(found := made(), Exception):
            raise found
        return found

    return result
