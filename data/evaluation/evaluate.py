"""AP and AR of predicted poses by COCO's own protocol, with the facts that make the number mean something.

The statistics are pycocotools' (or faster-coco-eval's, which gives the same, sooner). Beside them stand the score
rule, the number of images, people and poses, and a note on everything that makes an AP easy to misread.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from posefleet.data.evaluation.accumulate import ImageStats, collect_stats, match_images, with_keypoints_of
from posefleet.data.evaluation.bootstrap import Matches
from posefleet.data.evaluation.error_analysis import ERROR_KINDS, ErrorSplit, split_errors
from posefleet.data.evaluation.ground_truth import GroundTruth, PoseTable
from posefleet.data.evaluation.matching import faster_curves, named
from posefleet.data.evaluation.precision_recall import RECALL_POINTS, THRESHOLDS, Curves, mean_of_known
from posefleet.data.keypoints import KeypointSchema
from posefleet.data.structures import Poses

STATISTICS = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")
"""The ten numbers of COCO's keypoint evaluation, in its order."""

EASY_BELOW, HARD_ABOVE = 0.1, 0.8
"""CrowdPose's bands of ``crowdIndex``: easy, medium (both ends included), hard."""

OUTSIDE = 0.5
"""More than this share of keypoints outside their images looks like a wrong frame."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """How the numbers were made."""

    schema: str
    score_rule: str
    """How the predictor made a pose's score; the same poses score very differently under another rule."""
    max_detections: int
    images: int
    images_without_people: int
    """Evaluated too: every pose there is a false positive."""
    people: int
    """Keypoint people: those to be found."""
    ignored_people: int
    """Crowds and people without labelled keypoints: poses on them count neither way."""
    poses: int
    """Poses that were scored: the best ``max_detections`` of each image."""
    backend: str

    def __str__(self) -> str:
        return (
            f"{self.backend}, {self.schema}, {self.images} images, at most {self.max_detections} poses each; "
            f"score: {self.score_rule}"
        )


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of :func:`evaluate`; ``str()`` is a table for the terminal."""

    statistics: dict[str, float]
    """``STATISTICS``, and AP_easy, AP_medium, AP_hard on CrowdPose; NaN where there is no such ground truth."""
    precision: np.ndarray
    """(T, R) precision at OKS ``thresholds`` and ``recall_points``, over all areas; NaN without ground truth."""
    thresholds: np.ndarray
    """(T,) 0.50, 0.55, ... 0.95."""
    recall_points: np.ndarray
    """(R,) 0.00, 0.01, ... 1.00."""
    keypoints: tuple[str, ...]
    """The K names that the per-keypoint results go by."""
    keypoint_ap: np.ndarray
    """(K,) AP of the data set reduced to one keypoint; NaN where nobody has it labelled."""
    keypoint_oks: np.ndarray
    """(K,) mean similarity of one keypoint over matched people."""
    image_ids: np.ndarray
    """(I,) int64, ascending."""
    oks: np.ndarray
    """(I,) mean OKS of each image's keypoint people with the poses matched to them, 0 for a missed one; NaN where there
    are none."""
    errors: ErrorSplit
    protocol: Protocol
    notes: tuple[str, ...]
    """What a reader of the numbers must know: sentences, often none."""
    matches: Matches | None = None
    """What the AP was made of, for :mod:`posefleet.data.evaluation.bootstrap`; only pycocotools tells."""

    @property
    def image_oks(self) -> dict[int, float]:
        """``oks`` by image id, of the images with keypoint people."""
        known = ~np.isnan(self.oks)
        return dict(zip(self.image_ids[known].tolist(), self.oks[known].tolist(), strict=True))

    @property
    def ap(self) -> float:
        """The one number: AP over OKS 0.50 to 0.95; NaN when there is nobody to find."""
        return self.statistics["AP"]

    def as_dict(self) -> dict[str, float]:
        """Every number under a flat name, for a tracker: ``AP``, ``AP_keypoint/nose``, ``errors/jitter``.

        Error kinds are shares of the labelled keypoints of matched people, missed people a share of the people,
        background and duplicate poses a share of the poses.
        """
        errors = self.errors
        return {
            **self.statistics,
            **{f"AP_keypoint/{n}": v for n, v in zip(self.keypoints, self.keypoint_ap.tolist(), strict=True)},
            **{f"OKS_keypoint/{n}": v for n, v in zip(self.keypoints, self.keypoint_oks.tolist(), strict=True)},
            **{f"errors/{kind}": share for kind, share in errors.shares().items()},
            "errors/missed_people": _share(errors.missed_people, errors.people),
            "errors/background_poses": _share(errors.background_poses, errors.poses),
            "errors/duplicate_poses": _share(errors.duplicate_poses, errors.poses),
        }

    def __str__(self) -> str:
        return _table(self)


def evaluate(
    truth: GroundTruth,
    predictions: Mapping[int, Poses],
    schema: KeypointSchema,
    *,
    image_ids: Iterable[int] | None = None,
    max_detections: int = 20,
    backend: str = "pycocotools",
    score_rule: str = "not stated",
) -> Evaluation:
    """Score predicted poses against annotated people.

    Args:
        truth: The people of the data set.
        predictions: Poses by image id, in pixels of the original images; an image may lack.
        schema: The keypoints of both.
        image_ids: The images to evaluate; all of ``truth`` by default. Images without poses or without people
            belong to it: leaving them out raises AP.
        max_detections: How many poses of an image count, best first. COCO's number is 20.
        backend: ``pycocotools``, or ``faster`` for faster-coco-eval: the same numbers in less time.
        score_rule: How the predictor made the scores, for the protocol.

    Raises:
        DataError: Truth or predictions do not fit the schema, are not finite, or ``image_ids`` has unknown images.
        ValueError: Unknown backend, or one that is not installed.
    """
    name = named(backend)
    truth = truth if image_ids is None else truth.select(image_ids)
    if backend == "pycocotools":
        parts = [match_images(truth, predictions, schema, max_poses=max_detections)]
        return summarize(parts, schema, max_detections=max_detections, score_rule=score_rule)
    truth = with_keypoints_of(schema, truth)
    poses = PoseTable.pack(predictions, truth, schema, max_detections)
    curves = faster_curves(truth, poses, schema)
    statistics = _statistics(curves)
    for band, inside in _crowd_bands(truth.crowd_index).items():
        there = truth.select(truth.image_ids[inside])
        statistics[band] = faster_curves(there, poses.among(inside), schema).average_precision()
    return _evaluation(
        ImageStats.join([collect_stats(truth, poses, predictions.keys(), schema, None)]),
        schema,
        name,
        curves,
        statistics,
        max_detections=max_detections,
        score_rule=score_rule,
    )


def summarize(
    tallies: Sequence[ImageStats], schema: KeypointSchema, *, max_detections: int = 20, score_rule: str = "not stated"
) -> Evaluation:
    """Score a data set whose parts were matched apart; arguments as for :func:`evaluate`.

    Raises:
        DataError: Two parts share an image.
    """
    found = ImageStats.join(tallies)
    assert found.areas is not None
    curves = Curves.of(found.areas)
    statistics = _statistics(curves)
    for band, inside in _crowd_bands(found.crowd_index).items():
        there = replace(found.areas, positives=np.array([found.people[inside].sum(), 0, 0]))  # of all areas
        statistics[band] = Curves.of(there, among=inside[found.image]).average_precision()
    return _evaluation(
        found,
        schema,
        named("pycocotools"),
        curves,
        statistics,
        max_detections=max_detections,
        score_rule=score_rule,
        matches=Matches(found.image_ids, found.people, found.image, found.areas),
    )


def _evaluation(
    found: ImageStats,
    schema: KeypointSchema,
    backend: str,
    curves: Curves,
    statistics: dict[str, float],
    *,
    max_detections: int,
    score_rule: str,
    matches: Matches | None = None,
) -> Evaluation:
    keypoints = Curves.of(found.keypoints)
    seen = found.errors.sum(1)
    people = int(found.people.sum())
    return Evaluation(
        statistics=statistics,
        precision=np.where(curves.precision[..., 0] < 0, np.nan, curves.precision[..., 0]),
        thresholds=THRESHOLDS,
        recall_points=RECALL_POINTS,
        keypoints=schema.keypoints,
        keypoint_ap=np.array([keypoints.average_precision(index) for index in range(len(schema))]),
        keypoint_oks=np.divide(found.similarity, seen, out=np.full(len(schema), np.nan), where=seen > 0),
        image_ids=found.image_ids,
        oks=found.oks,
        errors=split_errors(found.errors, people, found.pose_kinds, found.scores),
        protocol=Protocol(
            schema=schema.name,
            score_rule=score_rule,
            max_detections=max_detections,
            images=len(found.image_ids),
            images_without_people=found.empty_images,
            people=people,
            ignored_people=found.ignored_people,
            poses=len(found.image),
            backend=backend,
        ),
        notes=tuple(_notes(found, max_detections)),
        matches=matches,
    )


def _statistics(curves: Curves) -> dict[str, float]:
    """The ten numbers of ``STATISTICS``, as COCOeval.summarize computes them."""
    at50, at75 = THRESHOLDS == 0.5, THRESHOLDS == 0.75
    values = [
        mean_of_known(curve)
        for found in (curves.precision, curves.recall)
        for curve in (found[..., 0], found[at50, ..., 0], found[at75, ..., 0], found[..., 1], found[..., 2])
    ]
    return dict(zip(STATISTICS, values, strict=True))


def _crowd_bands(crowd_index: np.ndarray) -> dict[str, np.ndarray]:
    """Which of the images are in each band of ``crowdIndex``; empty when no image has one."""
    if np.isnan(crowd_index).all():
        return {}
    return {
        "AP_easy": crowd_index < EASY_BELOW,
        "AP_medium": (crowd_index >= EASY_BELOW) & (crowd_index <= HARD_ABOVE),
        "AP_hard": crowd_index > HARD_ABOVE,
    }


# --------------------------------------------------------------------------------------------------------- words


def _notes(found: ImageStats, max_detections: int) -> Iterator[str]:
    if not found.people.any():
        yield "nobody has a labelled keypoint in these images: there is nothing to score"
    crowded = int((found.people > max_detections).sum())
    if crowded:
        yield (
            f"{crowded} images have more than {max_detections} people (up to {found.people.max()}), but only "
            f"{max_detections} poses of an image count: recall cannot reach 1 there"
        )
    if strangers := found.strangers:
        yield f"{len(strangers)} predicted images, such as {min(strangers)}, are not among the evaluated: left out"
    if found.unpredicted:
        yield f"{found.unpredicted} evaluated images have no prediction: their people count as missed"
    if len(found.scores) > 1 and np.ptp(found.scores) == 0:
        yield f"all {len(found.scores)} poses have the score {found.scores[0]:g}: without a ranking AP is arbitrary"
    if found.outside > OUTSIDE * found.placed:
        share = found.outside / found.placed
        yield f"{share:.0%} of the keypoints lie outside their images: are they in original pixels?"


def _table(evaluation: Evaluation) -> str:
    errors, protocol = evaluation.errors, evaluation.protocol
    lines = [
        "".join(f"{name:>10}" for name in evaluation.statistics),
        "".join(f"{_number(value):>10}" for value in evaluation.statistics.values()),
        "",
        f"{'keypoint':<16}{'AP':>8}{'OKS':>8}" + "".join(f"{kind:>11}" for kind in ERROR_KINDS),
        *(
            f"{name:<16}{_number(ap):>8}{_number(oks):>8}{_percentages(counts)}"
            for name, ap, oks, counts in zip(
                evaluation.keypoints, evaluation.keypoint_ap, evaluation.keypoint_oks, errors.keypoints, strict=True
            )
        ),
        f"{'all':<32}{_percentages(errors.keypoints.sum(0))}",
        "",
        f"people   {protocol.people}: {errors.missed_people} missed; {protocol.ignored_people} more are ignored",
        f"poses    {protocol.poses}: {errors.duplicate_poses} duplicates, {errors.background_poses} on background "
        f"({errors.high_background_poses} of them score above the median match)",
        f"images   {protocol.images}: {protocol.images_without_people} without people, also evaluated",
        f"protocol {protocol}",
        *(f"note     {note}" for note in evaluation.notes),
    ]
    if any(np.isnan(value) for value in evaluation.as_dict().values()):
        lines.append("-        nothing of the kind to be found in this ground truth (COCO prints -1)")
    return "\n".join(lines)


def _percentages(counts: np.ndarray) -> str:
    total = counts.sum()
    return "".join(f"{f'{count / total:.1%}' if total else '-':>11}" for count in counts)


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.4f}"


def _share(part: int, whole: int) -> float:
    return part / whole if whole else np.nan
