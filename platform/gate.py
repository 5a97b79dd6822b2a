"""The gate before the registry: what a candidate must show, measured here and now, in the form that will be served.

Every check runs, also after one that failed, and tells its value and its bound.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from posefleet.data.evaluation.bootstrap import CONFIDENCE, difference
from posefleet.data.evaluation.evaluate import Evaluation
from posefleet.data.keypoints import KeypointSchema, load_schema
from posefleet.data.structures import Poses
from posefleet.platform.checkpoints.format import copy_for_use, read_meta, read_weights
from posefleet.platform.checkpoints.load import load_model
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.inference.evaluate import evaluate
from posefleet.platform.inference.latency import predict_ms
from posefleet.platform.inference.predictor import Predictor
from posefleet.platform.inference.split import Split
from posefleet.platform.runtime.worker import LocalWorker, Sink
from posefleet.platform.shadowing import Shadowing
from posefleet.platform.tracking.registry import CHECKPOINT

MOST_PIXELS, MOST_SCORE = 0.01, 1e-4
"""Between a served pose and the evaluated one: keypoints in pixels of the image, scores."""

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """What the checks demand."""

    tolerance: float
    """AP that the candidate may lie below the champion; a negative one asks for a gain."""
    keypoint_floor: float
    """AP that every keypoint must reach."""
    latency_ms: float
    """Milliseconds from a decoded image to its poses; 0: they are measured, but not judged."""
    latency_people: int
    """People in that image."""
    served_images: int
    """Images whose served poses are compared with the evaluated ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShadowBounds:
    """What a challenger must have shown on live images beside the champion."""

    images: int
    """At least so many."""
    people: int
    """At least so many that the champion found on them."""
    oks: float
    """Least mean OKS between the two poses of a person."""
    missed: float
    """Largest share of the champion's people whom the challenger did not find."""
    slower: float
    """Most milliseconds of an image, in those of the champion; 0: they are told, but not judged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    value: str
    bound: str
    passed: bool

    def __str__(self) -> str:
        return f"{'pass' if self.passed else 'FAIL'}  {self.name:10}  {self.value}  [{self.bound}]"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
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


def judge(
    checkpoint: str, experiment: Experiment, champion: str, split: Split | None, bounds: Bounds, folder: Path
) -> Verdict:
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
    step, schema, served = read_meta(checkpoint).step, load_schema(experiment.schema), folder / CHECKPOINT
    reloaded = _once(lambda: _predictor(str(served)))
    if split is None:
        copy_for_use(checkpoint, served, experiment=experiment)
        whole = _guarded("weights", lambda: finite(str(served)))
        return Verdict(checks=(whole, _guarded("latency", lambda: latency(reloaded(), bounds))), evaluation=None)
    scored = _once(lambda: _score(checkpoint, experiment, split, FolderSink(folder), step))
    try:
        evaluation = scored()[0]
    except Exception:  # the checks below tell it
        evaluation = None
    copy_for_use(checkpoint, served, experiment=experiment, metrics=evaluation.as_dict() if evaluation else {})
    checks = (
        _guarded("weights", lambda: finite(str(served))),
        _guarded("split", lambda: clean(split, schema)),
        _guarded("AP", lambda: ap(scored()[0], _rival(champion, experiment, split), bounds.tolerance)),
        _guarded("keypoints", lambda: keypoints(scored()[0], bounds.keypoint_floor)),
        _guarded("latency", lambda: latency(reloaded(), bounds)),
        _guarded("served", lambda: served_as_evaluated(reloaded(), split, scored()[1], bounds.served_images)),
    )
    return Verdict(checks=checks, evaluation=evaluation)


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


# ---------------------------------------------------------------------------------------------------- checks


def finite(checkpoint: str) -> Check:
    """All weights are numbers."""
    weights = read_weights(checkpoint)
    bad = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    count = sum(tensor.numel() for tensor in weights.values())
    value = f"{count:,} numbers" if not bad else f"{len(bad)} of {len(weights)} tensors are not finite, {bad[0]} first"
    return Check(name="weights", value=value, bound="all finite", passed=not bad)


def clean(split: Split, schema: KeypointSchema) -> Check:
    """The images and their people are what was meant to be evaluated on."""
    faults = split.faults(schema)
    return Check(name="split", value="; ".join(faults) or str(split), bound="no faults", passed=not faults)


def ap(candidate: Evaluation, champion: Evaluation | None, tolerance: float) -> Check:
    """The candidate is not worse than the champion by more than a tolerance, and not by the luck of the images.

    The whole interval of the difference over draws of images must lie above: where the images are too few to tell,
    the candidate does not pass.
    """
    if champion is None:
        value = f"{candidate.ap:.4f}, no champion to compare with"
        return Check(name="AP", value=value, bound="a number", passed=math.isfinite(candidate.ap))
    assert candidate.matches is not None and champion.matches is not None, "the gate scores with pycocotools"
    found = difference(candidate.matches, champion.matches)
    return Check(
        name="AP",
        value=f"{candidate.ap:.4f}, the champion's {champion.ap:.4f}: {found}",
        bound=f"{CONFIDENCE:.0%} interval above {-tolerance:+.3f}",
        passed=found.low >= -tolerance,
    )


def keypoints(candidate: Evaluation, floor: float) -> Check:
    """No keypoint alone is below a floor; keypoints that nobody has labelled do not count."""
    bound = f"at least {floor:.3f}"
    if np.isnan(candidate.keypoint_ap).all():
        return Check(name="keypoints", value="none is labelled", bound=bound, passed=False)
    worst = int(np.nanargmin(candidate.keypoint_ap))
    value = float(candidate.keypoint_ap[worst])
    told = f"lowest AP {value:.4f}, {candidate.keypoints[worst]}"
    return Check(name="keypoints", value=told, bound=bound, passed=value >= floor)


def latency(predictor: Predictor, bounds: Bounds) -> Check:
    """An image with people in it is predicted in time on this machine."""
    measured = predict_ms(predictor, bounds.latency_people)
    return Check(
        name="latency",
        value=f"{measured:.1f} ms an image with {bounds.latency_people} people, on {predictor.device}",
        bound=f"at most {bounds.latency_ms:g} ms" if bounds.latency_ms else "no budget given",
        passed=not bounds.latency_ms or measured <= bounds.latency_ms,
    )


def served_as_evaluated(predictor: Predictor, split: Split, evaluated: Mapping[int, Poses], images: int) -> Check:
    """The copy that will be served, given decoded images, finds the poses that were scored.

    Args:
        predictor: Of the copy.
        split: The images.
        evaluated: Poses by image id.
        images: How many are compared, filled up to whole batches: padding depends on the others in a batch.
    """
    source = split.open(predictor.schema, lambda sample, _: sample)
    whole = -(-images // predictor.batch_size) * predictor.batch_size
    samples = source.samples(range(min(whole, len(source))))
    served = predictor.predict_images([sample.image for sample in samples])
    bound = f"keypoints within {MOST_PIXELS:g} px, scores within {MOST_SCORE:g}"
    pixels = scores = 0.0
    for sample, found in zip(samples, served, strict=True):
        expected = evaluated[sample.image_id]
        if len(found) != len(expected):
            value = f"image {sample.image_id} has {len(found)} poses, {len(expected)} when it was evaluated"
            return Check(name="served", value=value, bound=bound, passed=False)
        if len(found):
            pixels = max(pixels, float((found.keypoints - expected.keypoints).abs().max()))
            scores = max(scores, float((found.scores - expected.scores).abs().max()))
    return Check(
        name="served",
        value=f"{len(samples)} images, keypoints differ by {pixels:.2g} px, scores by {scores:.2g} at most",
        bound=bound,
        passed=pixels <= MOST_PIXELS and scores <= MOST_SCORE,
    )


def live(seen: Shadowing, champion: str, challenger: str, bounds: ShadowBounds) -> tuple[Check, ...]:
    """What a server saw of a challenger beside the champion on live images.

    Args:
        seen: The server's answer.
        champion: The version that has this alias now, as ``models:/NAME/VERSION``; empty: none has it.
        challenger: The version that is to be champion.
        bounds: What is demanded.
    """
    pair = Check(
        name="pair",
        value=f"compared {seen.challenger} with {seen.champion}" if seen.images else "nothing was compared yet",
        bound=f"{challenger} with {champion or 'a champion, which the registry does not have'}",
        passed=(seen.champion, seen.challenger) == (champion, challenger),
    )
    people = seen.people or 0
    enough = Check(
        name="live",
        value=f"{seen.images:,} images with {people:,} people",
        bound=f"at least {bounds.images:,} with {bounds.people:,}",
        passed=seen.images >= bounds.images and people >= bounds.people,
    )
    alike = Check(
        name="agreement",
        value="nobody was found by both" if seen.mean_oks is None else f"mean OKS {seen.mean_oks:.3f}",
        bound=f"at least {bounds.oks:.3f}",
        passed=seen.mean_oks is not None and seen.mean_oks >= bounds.oks,
    )
    missed = Check(
        name="missed",
        value=f"{seen.only_champion or 0:,} of {people:,} people, {seen.missed:.1%}; "
        f"{seen.only_challenger or 0:,} were found by the challenger alone",
        bound=f"at most {bounds.missed:.1%}",
        passed=seen.missed <= bounds.missed,
    )
    slower = Check(
        name="slower",
        value=f"{seen.challenger_ms or 0:.1f} ms an image, the champion's {seen.champion_ms or 0:.1f}",
        bound=f"at most {bounds.slower:g} times as long" if bounds.slower else "no bound given",
        passed=not bounds.slower or seen.slower <= bounds.slower,
    )
    return pair, enough, alike, missed, slower


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


def _guarded(name: str, check: Callable[[], Check]) -> Check:
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
