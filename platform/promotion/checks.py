"""The checks that a candidate must pass before it is promoted."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from posefleet.data.evaluation.bootstrap import CONFIDENCE, difference
from posefleet.data.evaluation.evaluate import Evaluation
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.structures import Poses
from posefleet.platform.checkpoints.format import read_weights
from posefleet.platform.inference.agreement import Agreement
from posefleet.platform.inference.latency import predict_times
from posefleet.platform.inference.predictor import Predictor
from posefleet.platform.inference.split import Split
from posefleet.platform.promotion.shadow import Shadowing
from posefleet.platform.promotion.thresholds import ExportThresholds, GateThresholds

MOST_PIXELS, MOST_SCORE = 0.01, 1e-4
"""Largest difference between a served pose and the evaluated one: of keypoints in pixels of the image, of scores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """Outcome of one check: the measured value and the bound that it must keep."""

    name: str
    value: str
    bound: str
    passed: bool

    def __str__(self) -> str:
        return f"{'pass' if self.passed else 'FAIL'}  {self.name:10}  {self.value}  [{self.bound}]"


def finite(checkpoint: str) -> Check:
    """Check that all weights are finite."""
    weights = read_weights(checkpoint)
    bad = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    count = sum(tensor.numel() for tensor in weights.values())
    value = f"{count:,} numbers" if not bad else f"{len(bad)} of {len(weights)} tensors are not finite, {bad[0]} first"
    return Check(name="weights", value=value, bound="all finite", passed=not bad)


def clean(split: Split, schema: KeypointSchema) -> Check:
    """Check that the images and annotations of the split have no faults."""
    faults = split.faults(schema)
    return Check(name="split", value="; ".join(faults) or str(split), bound="no faults", passed=not faults)


def ap(candidate: Evaluation, champion: Evaluation | None, tolerance: float, *, against: str = "the champion") -> Check:
    """Check that the candidate's AP is not below that of ``champion`` by more than ``tolerance``.

    The whole interval of the difference over draws of images must lie above ``-tolerance``, so a candidate does not
    pass where the images are too few to be sure.
    """
    if champion is None:
        value = f"{candidate.ap:.4f}, no champion to compare with"
        return Check(name="AP", value=value, bound="a number", passed=math.isfinite(candidate.ap))
    assert candidate.matches is not None and champion.matches is not None, "the gate scores with pycocotools"
    found = difference(candidate.matches, champion.matches)
    return Check(
        name="AP",
        value=f"{candidate.ap:.4f}, {against}'s {champion.ap:.4f}: {found}",
        bound=f"{CONFIDENCE:.0%} interval above {-tolerance:+.3f}",
        passed=found.low >= -tolerance,
    )


def keypoints(candidate: Evaluation, floor: float) -> Check:
    """Check that the AP of no keypoint is below ``floor``; keypoints without labels do not count."""
    bound = f"at least {floor:.3f}"
    if np.isnan(candidate.keypoint_ap).all():
        return Check(name="keypoints", value="none is labelled", bound=bound, passed=False)
    worst = int(np.nanargmin(candidate.keypoint_ap))
    value = float(candidate.keypoint_ap[worst])
    shown = f"lowest AP {value:.4f}, {candidate.keypoints[worst]}"
    return Check(name="keypoints", value=shown, bound=bound, passed=value >= floor)


def agreement(found: Agreement, bounds: ExportThresholds) -> Check:
    """Check that an exported network finds the same poses as PyTorch."""
    passed = found.poses > 0 and found.within(bounds.pixels, bounds.scores)
    value = str(found) if found.poses else "no pose was found, so nothing could be compared"
    return Check(name="poses", value=value, bound=f"at most {bounds.pixels:g} px and {bounds.scores:g}", passed=passed)


def keypoints_kept(candidate: Evaluation, reference: Evaluation, most: float) -> Check:
    """Check that no keypoint's AP is below that of ``reference`` by more than ``most``; keypoints without labels do not
    count."""
    bound = f"no keypoint loses more than {most:.3f}"
    losses = reference.keypoint_ap - candidate.keypoint_ap
    if np.isnan(losses).all():
        return Check(name="keypoints", value="none is labelled", bound=bound, passed=False)
    worst, over = int(np.nanargmax(losses)), int((losses > most).sum())
    value = (
        f"{candidate.keypoints[worst]} from AP {reference.keypoint_ap[worst]:.4f} to "
        f"{candidate.keypoint_ap[worst]:.4f}, {-losses[worst]:+.4f}"
    )
    value += f"; {over} of {len(losses)} keypoints lose too much" if over > 1 else ""
    return Check(name="keypoints", value=value, bound=bound, passed=not over)


def slower(exported: Predictor, torch_predictor: Predictor, bounds: ExportThresholds) -> Check:
    """Check how long an exported network takes for an image with people, in turns with PyTorch."""
    times = predict_times({"": exported, "torch": torch_predictor}, bounds.people)
    ratio = times[""].ms / times["torch"].ms
    value = f"{times['']} an image with {bounds.people} people, PyTorch {times['torch']}: {ratio:.2f} times as long"
    return Check(
        name="latency",
        value="; ".join(filter(None, (value, times[""].warning))),
        bound=f"at most {bounds.slower:g} times" if bounds.slower else "no bound given",
        passed=not bounds.slower or ratio <= bounds.slower,
    )


def latency(predictor: Predictor, bounds: GateThresholds) -> Check:
    """Check how long an image with people takes on this machine."""
    timing = predict_times({"": predictor}, bounds.latency_people)[""]
    value = f"{timing} an image with {bounds.latency_people} people, on {predictor.device}"
    return Check(
        name="latency",
        value=f"{value}; {timing.warning}" if timing.warning else value,
        bound=f"at most {bounds.latency_ms:g} ms" if bounds.latency_ms else "no budget given",
        passed=not bounds.latency_ms or timing.ms <= bounds.latency_ms,
    )


def served_as_evaluated(predictor: Predictor, split: Split, evaluated: Mapping[int, Poses], images: int) -> Check:
    """Check that the copy to be served, given decoded images, finds the poses that were scored.

    Args:
        predictor: Predictor of the copy.
        split: The images.
        evaluated: Image id -> poses that were scored.
        images: Images to compare; rounded up to whole batches, since padding depends on the others in a batch.
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


def shadow_checks(seen: Shadowing, champion: str, challenger: str, bounds: GateThresholds) -> tuple[Check, ...]:
    """Check what a server measured of a challenger beside the champion on live images.

    Args:
        seen: The server's answer.
        champion: Version with the alias champion now, as ``models:/NAME/VERSION``; empty: none has it.
        challenger: Version that is to be promoted, likewise.
        bounds: The bounds.
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
        bound=f"at least {bounds.shadow_images:,} with {bounds.shadow_people:,}",
        passed=seen.images >= bounds.shadow_images and people >= bounds.shadow_people,
    )
    alike = Check(
        name="agreement",
        value="nobody was found by both" if seen.mean_oks is None else f"mean OKS {seen.mean_oks:.3f}",
        bound=f"at least {bounds.shadow_oks:.3f}",
        passed=seen.mean_oks is not None and seen.mean_oks >= bounds.shadow_oks,
    )
    missed = Check(
        name="missed",
        value=f"{seen.only_champion or 0:,} of {people:,} people, {seen.missed:.1%}; "
        f"{seen.only_challenger or 0:,} were found by the challenger alone",
        bound=f"at most {bounds.shadow_missed:.1%}",
        passed=seen.missed <= bounds.shadow_missed,
    )
    slower = Check(
        name="slower",
        value=f"{seen.challenger_ms or 0:.1f} ms an image, the champion's {seen.champion_ms or 0:.1f}",
        bound=f"at most {bounds.shadow_slower:g} times as long" if bounds.shadow_slower else "no bound given",
        passed=not bounds.shadow_slower or seen.slower <= bounds.shadow_slower,
    )
    return pair, enough, alike, missed, slower
