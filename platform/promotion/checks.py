"""The checks that a candidate must pass before it is promoted."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from posefleet.data.evaluation.bootstrap import CONFIDENCE, difference
from posefleet.data.evaluation.evaluate import Evaluation
from posefleet.data.keypoints import KeypointSchema
from posefleet.data.structures import Poses
from posefleet.platform.checkpoints.format import read_weights
from posefleet.platform.inference.latency import predict_ms
from posefleet.platform.inference.predictor import Predictor
from posefleet.platform.inference.split import Split
from posefleet.platform.promotion.shadow import Shadowing

MOST_PIXELS, MOST_SCORE = 0.01, 1e-4
"""Between a served pose and the evaluated one: keypoints in pixels of the image, scores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateThresholds:
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
class ShadowThresholds:
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


def latency(predictor: Predictor, bounds: GateThresholds) -> Check:
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


def shadow_checks(seen: Shadowing, champion: str, challenger: str, bounds: ShadowThresholds) -> tuple[Check, ...]:
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
