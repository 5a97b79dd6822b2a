"""The gate before the registry: checks a candidate on this machine, in the form in which it will be served.

Every check runs, also after one that failed, and reports its value and its bound.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from posefleet.data.errors import DataError
from posefleet.data.evaluation.evaluate import Evaluation
from posefleet.data.structures import Poses
from posefleet.platform.checkpoints.format import copy_for_use, read_meta
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.exports.backends import device_for, open_model, read_files
from posefleet.platform.inference.agreement import Agreement
from posefleet.platform.inference.evaluate import evaluate
from posefleet.platform.inference.predictor import Predictor
from posefleet.platform.inference.split import Split
from posefleet.platform.promotion.checks import (
    Check,
    agreement,
    ap,
    clean,
    finite,
    keypoints,
    keypoints_kept,
    latency,
    served_as_evaluated,
    slower,
)
from posefleet.platform.promotion.thresholds import ExportThresholds, GateThresholds
from posefleet.platform.runtime.worker import LocalWorker, Sink
from posefleet.platform.tracking.registry import CHECKPOINT

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class GateReport:
    """Outcome of all checks."""

    checks: tuple[Check, ...]
    evaluation: Evaluation | None
    """Evaluation of the candidate; None if it was not or could not be evaluated."""

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the checks that failed."""
        return tuple(check.name for check in self.checks if not check.passed)

    def __str__(self) -> str:
        return "\n".join(map(str, self.checks))


def run_gate(
    checkpoint: str,
    experiment: Experiment,
    champion: str,
    split: Split | None,
    bounds: GateThresholds,
    folder: Path,
    *,
    exported: str = "",
) -> GateReport:
    """Run all checks on a candidate.

    Args:
        checkpoint: The candidate.
        experiment: Its settings, maybe with another decoding; the copy gets them.
        champion: The checkpoint to compare with; empty if there is no champion yet.
        split: Annotated images to score both on; None: only the checks that need no annotations run.
        bounds: Bounds of the checks.
        folder: Receives the files of the new version: a copy of the checkpoint, and the report of its evaluation.
        exported: Exported file of the checkpoint, to be scored, timed and served in place of its PyTorch network.

    Raises:
        CheckpointError: The candidate cannot be read.
        DataError: The split cannot be read, or has other keypoints than the candidate.
    """
    step, schema, served = read_meta(checkpoint).step, experiment.keypoints, folder / CHECKPOINT
    if split is None:
        copy_for_use(checkpoint, served, experiment=experiment)
        weights = _run_check("weights", lambda: finite(str(served)))
        timed = _run_check("latency", lambda: latency(_predictor(str(served)), bounds))
        return GateReport(checks=(weights, timed), evaluation=None)
    scored = _attempt(lambda: _score(exported or checkpoint, experiment, split, _FolderSink(folder), step))
    if isinstance(error := scored.exception(), DataError):
        raise error
    evaluation = None if scored.exception() else scored.result()[0]
    copy_for_use(
        checkpoint,
        served,
        experiment=experiment,
        metrics=evaluation.as_dict() if evaluation else {},
        network={f"network{suffix}": data for suffix, data in read_files(exported).items()} if exported else None,
    )
    reloaded = _attempt(lambda: _predictor(str(served)))
    checks = (
        _run_check("weights", lambda: finite(str(served))),
        _run_check("split", lambda: clean(split, schema)),
        _run_check(
            "AP", lambda: ap(scored.result()[0], _score_champion(champion, experiment, split), bounds.tolerance)
        ),
        _run_check("keypoints", lambda: keypoints(scored.result()[0], bounds.keypoint_floor)),
        _run_check("latency", lambda: latency(reloaded.result(), bounds)),
        _run_check(
            "served", lambda: served_as_evaluated(reloaded.result(), split, scored.result()[1], bounds.served_images)
        ),
    )
    return GateReport(checks=checks, evaluation=evaluation)


def run_export_gate(
    checkpoint: str,
    exported: str,
    experiment: Experiment,
    bounds: ExportThresholds,
    *,
    images: Sequence[np.ndarray] = (),
    split: Split | None = None,
) -> GateReport:
    """Compare an exported file with the checkpoint that it comes from, whose network PyTorch computes in float32.

    Args:
        checkpoint: The checkpoint.
        exported: The file.
        experiment: The settings of both.
        bounds: Bounds of the checks.
        images: Images, (H, W, 3) uint8 RGB, on which the poses must be the same; unused with ``split``.
        split: Annotated images on which AP must be about the same, for networks that change the poses.

    Raises:
        DataError: The split cannot be read, or has other keypoints than the checkpoint.
    """
    settings = dataclasses.replace(experiment.train, precision="float32")
    experiment = dataclasses.replace(experiment, train=settings)
    reference, candidate = (
        open_model(path, experiment=experiment, backend="torch")[0] for path in (checkpoint, exported)
    )
    ours, theirs = (Predictor(model, experiment, device=device_for(candidate)) for model in (reference, candidate))
    timed = _run_check("latency", lambda: slower(theirs, ours, bounds))
    if split is None:
        found = Agreement.of(ours.predict_images(images), theirs.predict_images(images))
        return GateReport(checks=(agreement(found, bounds), timed), evaluation=None)
    expected, evaluation = (_score_model(one.model, experiment, split, device=one.device)[0] for one in (ours, theirs))
    checks = (
        _run_check("AP", lambda: ap(evaluation, expected, bounds.ap_drop, against="PyTorch")),
        _run_check("keypoints", lambda: keypoints_kept(evaluation, expected, bounds.keypoint_drop)),
        timed,
    )
    if not expected.ap > 0:
        nothing = f"PyTorch's is {expected.ap:.4f}, so nothing can be compared on these images"
        checks = (Check(name="AP", value=nothing, bound="above 0", passed=False), *checks[1:])
    return GateReport(checks=checks, evaluation=evaluation)


class _FolderSink:
    """Writes the files that an evaluation logs into a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Does nothing: the metrics are part of the evaluation itself."""

    def log_bytes(self, name: str, data: bytes) -> None:
        """Write one file."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def store(self) -> None:
        """Does nothing: files are written at once."""


def _score(
    checkpoint: str, experiment: Experiment, split: Split, sink: Sink | None, step: int
) -> tuple[Evaluation, dict[int, Poses]]:
    """Evaluation of a checkpoint or exported file, and its poses by image id, in pixels of the original images."""
    return _score_model(open_model(checkpoint, experiment=experiment)[0], experiment, split, sink, step)


def _score_model(
    model: nn.Module,
    experiment: Experiment,
    split: Split,
    sink: Sink | None = None,
    step: int = 0,
    *,
    device: torch.device | None = None,
) -> tuple[Evaluation, dict[int, Poses]]:
    worker, poses = LocalWorker(device=device or device_for(model), sink=sink), dict[int, Poses]()
    evaluation = evaluate(
        model.to(worker.device),
        experiment,
        worker,
        open_split=split.view,
        step=step,
        keep=poses.update,
    )
    assert evaluation is not None, "the gate runs in one process"
    return evaluation, poses


def _score_champion(champion: str, candidate: Experiment, split: Split) -> Evaluation | None:
    """Evaluation of the champion, predicted with its own settings and scored with the candidate's."""
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
    model, experiment = open_model(checkpoint)
    return Predictor(model, experiment, device=LocalWorker(device=device_for(model)).device)


def _run_check(name: str, check: Callable[[], Check]) -> Check:
    """The outcome of ``check``; failed if it raises, so that the other checks still run."""
    try:
        return check()
    except Exception as error:
        return Check(name=name, value=f"{type(error).__name__}: {error}", bound="can be measured", passed=False)


def _attempt(make: Callable[[], _T]) -> "Future[_T]":
    """What ``make`` returned or raised, for every check that needs it; each of them fails if it raised."""
    attempt = Future[_T]()
    try:
        attempt.set_result(make())
    except Exception as error:
        attempt.set_exception(error)
    return attempt
