"""AP and AR of predicted poses by COCO's own protocol, with what is needed to read them.

The statistics come from pycocotools, or from faster-coco-eval, which gives the same numbers in less time. The result
also holds the score rule, the number of images, people and poses, and notes on everything that makes the AP misleading.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from posefleet.data.evaluation.accumulate import ImageStats, check_schema, collect_stats, match_images
from posefleet.data.evaluation.bootstrap import Matches
from posefleet.data.evaluation.boxes import BoxEvaluation
from posefleet.data.evaluation.error_analysis import ERROR_KINDS, ErrorSplit, split_errors
from posefleet.data.evaluation.ground_truth import GroundTruth, PoseTable
from posefleet.data.evaluation.matching import backend_version, faster_curves
from posefleet.data.evaluation.parts import parts_of, people_part, poses_part, schema_part, with_body_areas
from posefleet.data.evaluation.precision_recall import RECALL_POINTS, THRESHOLDS, Curves, mean_of_known
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.structures import Poses

STATISTICS = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")
"""The ten numbers of COCO's keypoint evaluation, in its order."""

EASY_BELOW, HARD_FROM = 0.2, 0.8
"""CrowdPose's bands of ``crowdIndex``: easy, medium from 0.2 on, hard from 0.8 on. These are the bounds of its
evaluation code, which the published numbers come from. (The paper's text has the lower one at 0.1.)"""

OUTSIDE = 0.5
"""If more than this share of the keypoints lies outside their images, they are probably not in original pixels."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """How the numbers of an evaluation were computed."""

    schema: str
    """Name of the keypoint schema."""
    score_rule: str
    """How the predictor scores a pose; under another rule the same poses give a very different AP."""
    max_detections: int
    """Maximum number of poses of an image that count."""
    images: int
    """Evaluated images."""
    images_without_people: int
    """Evaluated images without people: every pose there is a false positive."""
    people: int
    """Keypoint people: those to be found."""
    ignored_people: int
    """Crowds and people without labelled keypoints; a pose on one is neither right nor wrong."""
    poses: int
    """Poses that were scored: the best ``max_detections`` of each image."""
    backend: str
    """Package and version."""

    def __str__(self) -> str:
        return (
            f"{self.backend}, {self.schema}, {self.images} images, at most {self.max_detections} poses each; "
            f"score: {self.score_rule}"
        )


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of :func:`evaluate`; ``str()`` is a table for the terminal."""

    statistics: dict[str, float]
    """``STATISTICS``; AP_easy, AP_medium, AP_hard on CrowdPose; AP and AR of each of ``parts.PARTS``, such as AP_face
    and AR_face, for a schema of whole bodies. NaN where there is no such person to find."""
    precision: np.ndarray
    """(T, R) precision at OKS ``thresholds`` and ``recall_points``, over all areas; NaN with nobody to find."""
    thresholds: np.ndarray
    """(T,) 0.50, 0.55, ... 0.95."""
    recall_points: np.ndarray
    """(R,) 0.00, 0.01, ... 1.00."""
    keypoints: tuple[str, ...]
    """Names of the K keypoints, in the order of the per-keypoint results."""
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
    """Sentences on what makes the numbers misleading; often none."""
    boxes: BoxEvaluation | None = None
    """The boxes in which a top-down method predicted the poses; None for other methods."""
    matches: Matches | None = None
    """The matches behind the AP, for :mod:`posefleet.data.evaluation.bootstrap`; None unless pycocotools matched."""
    sources: Mapping[str, "Evaluation"] = field(default_factory=dict)
    """Of several sources that were evaluated together, each by its own keypoints and sigmas; empty for one."""

    @property
    def image_oks(self) -> dict[int, float]:
        """``oks`` by image id, for the images with keypoint people."""
        known = ~np.isnan(self.oks)
        return dict(zip(self.image_ids[known].tolist(), self.oks[known].tolist(), strict=True))

    @property
    def ap(self) -> float:
        """AP over OKS 0.50 to 0.95; NaN when there is nobody to find."""
        return self.statistics["AP"]

    def as_dict(self) -> dict[str, float]:
        """Every number under the name of its metric: ``AP``, ``AP_keypoint/nose``, ``errors/jitter``.

        Error kinds are shares of the labelled keypoints of matched people, missed people a share of the people,
        background and duplicate poses a share of the poses.
        """
        errors = self.errors
        return {
            **self._own_scores(),
            **{f"OKS_keypoint/{n}": v for n, v in zip(self.keypoints, self.keypoint_oks.tolist(), strict=True)},
            **{f"errors/{kind}": share for kind, share in errors.shares().items()},
            "errors/missed_people": _share(errors.missed_people, errors.people),
            "errors/background_poses": _share(errors.background_poses, errors.poses),
            "errors/duplicate_poses": _share(errors.duplicate_poses, errors.poses),
            **(self.boxes.as_dict() if self.boxes else {}),
            **{
                f"{name}/{metric}": v
                for name, found in self.sources.items()
                for metric, v in found._own_scores().items()
            },
        }

    def _own_scores(self) -> dict[str, float]:
        """The statistics, and the AP of each keypoint."""
        by_keypoint = zip(self.keypoints, self.keypoint_ap.tolist(), strict=True)
        return {**self.statistics, **{f"AP_keypoint/{name}": value for name, value in by_keypoint}}

    @property
    def brief(self) -> str:
        """AP, AP50, AP75 and AR in one line."""
        return "  ".join(f"{name} {self.statistics[name]:.4f}" for name in ("AP", "AP50", "AP75", "AR"))

    def __str__(self) -> str:
        return _table(self)


def evaluate(
    ground_truth: GroundTruth,
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
        ground_truth: The people of the data set.
        predictions: Poses by image id, in pixels of the original images; images may be missing.
        schema: The keypoints of both.
        image_ids: The images to evaluate; all of ``ground_truth`` by default. Include images without poses or without
            people: leaving them out raises AP.
        max_detections: How many poses of an image count, best first. COCO's number is 20.
        backend: ``pycocotools``, or ``faster`` for faster-coco-eval: the same numbers in less time.
        score_rule: How the predictor scores a pose, for the protocol.

    Raises:
        DataError: Ground truth or predictions do not fit the schema, a prediction is not finite, or ``image_ids`` has
            unknown images.
        ValueError: The backend is unknown or not installed.
    """
    version = backend_version(backend)
    ground_truth = ground_truth if image_ids is None else ground_truth.select(image_ids)
    if backend == "pycocotools":
        parts = [match_images(ground_truth, predictions, schema, max_poses=max_detections)]
        return summarize(parts, schema, max_detections=max_detections, score_rule=score_rule)
    ground_truth = check_schema(ground_truth, schema)
    poses = with_body_areas(PoseTable.pack(predictions, ground_truth, schema, max_detections), schema)
    curves = faster_curves(ground_truth, poses, schema)
    statistics = _statistics(curves)
    for band, inside in _crowd_bands(ground_truth.crowd_index).items():
        in_band = ground_truth.select(ground_truth.image_ids[inside])
        statistics[band] = faster_curves(in_band, poses.among(inside), schema).average_precision()
    for part, rows in parts_of(schema).items():
        of_part = faster_curves(people_part(ground_truth, rows), poses_part(poses, rows), schema_part(schema, part))
        statistics |= _part_statistics(part, of_part)
    return _evaluation(
        ImageStats.merge([collect_stats(ground_truth, poses, predictions.keys(), schema, None)]),
        schema,
        version,
        curves,
        statistics,
        max_detections=max_detections,
        score_rule=score_rule,
    )


def summarize(
    parts: Sequence[ImageStats], schema: KeypointSchema, *, max_detections: int = 20, score_rule: str = "not stated"
) -> Evaluation:
    """Score a data set whose parts were matched apart.

    Args:
        parts: The results of :func:`match_images` for each part.
        schema: The keypoints of the parts.
        max_detections: The number that the parts were matched with.
        score_rule: How the predictor scores a pose, for the protocol.

    Raises:
        DataError: Two parts share an image.
    """
    found = ImageStats.merge(parts)
    assert found.areas is not None
    curves = Curves.from_flags(found.areas)
    statistics = _statistics(curves)
    for band, inside in _crowd_bands(found.crowd_index).items():
        in_band = replace(found.areas, positives=np.array([found.people[inside].sum(), 0, 0]))  # of all areas
        statistics[band] = Curves.from_flags(in_band, among=inside[found.image]).average_precision()
    for part, flags in found.parts.items():
        statistics |= _part_statistics(part, Curves.from_flags(flags))
    return _evaluation(
        found,
        schema,
        backend_version("pycocotools"),
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
    keypoints = Curves.from_flags(found.keypoints)
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
            images_without_people=found.images_without_people,
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


def _part_statistics(part: str, curves: Curves) -> dict[str, float]:
    """AP and AR of one part of the body."""
    return {f"AP_{part}": curves.average_precision(), f"AR_{part}": mean_of_known(curves.recall[:, 0])}


def _crowd_bands(crowd_index: np.ndarray) -> dict[str, np.ndarray]:
    """Which of the images are in each band of ``crowdIndex``; empty when no image has one."""
    if np.isnan(crowd_index).all():
        return {}
    return {
        "AP_easy": crowd_index < EASY_BELOW,
        "AP_medium": (crowd_index >= EASY_BELOW) & (crowd_index < HARD_FROM),
        "AP_hard": crowd_index >= HARD_FROM,
    }


# --------------------------------------------------------------------------------------------------------- text


def _notes(found: ImageStats, max_detections: int) -> Iterator[str]:
    if not found.people.any():
        yield "nobody has a labelled keypoint in these images, so there is nothing to score"
    crowded = int((found.people > max_detections).sum())
    if crowded:
        yield (
            f"{crowded} images have more than {max_detections} people (up to {found.people.max()}), but only "
            f"{max_detections} poses of an image count: recall cannot reach 1 there"
        )
    if unknown := found.unknown_images:
        yield f"{len(unknown)} predicted images, such as {min(unknown)}, are not evaluated: their poses are left out"
    if found.images_without_predictions:
        yield f"{found.images_without_predictions} evaluated images have no prediction: their people count as missed"
    if len(found.scores) > 1 and np.ptp(found.scores) == 0:
        yield f"all {len(found.scores)} poses have the score {found.scores[0]:g}: without a ranking AP is arbitrary"
    if found.keypoints_outside > OUTSIDE * found.framed_keypoints:
        share = found.keypoints_outside / found.framed_keypoints
        yield f"{share:.0%} of the keypoints lie outside their images; poses must be in pixels of the original images"


def _table(evaluation: Evaluation) -> str:
    errors, protocol = evaluation.errors, evaluation.protocol
    lines = [
        "".join(f"{name:>{max(10, len(name) + 2)}}" for name in evaluation.statistics),
        "".join(f"{_number(value):>{max(10, len(name) + 2)}}" for name, value in evaluation.statistics.items()),
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
        *([f"boxes    {evaluation.boxes}"] if evaluation.boxes else []),
        f"images   {protocol.images}: {protocol.images_without_people} without people, also evaluated",
        f"protocol {protocol}",
        *_source_lines(evaluation),
        *(f"note     {note}" for note in evaluation.notes),
    ]
    if any(np.isnan(value) for value in evaluation.as_dict().values()):
        lines.append("-        the ground truth has nothing of this kind to find (COCO prints -1)")
    return "\n".join(lines)


def _source_lines(evaluation: Evaluation) -> Iterator[str]:
    """AP, AP50, AP75 and AR of each source, and of all together."""
    if not evaluation.sources:
        return
    shown = ("AP", "AP50", "AP75", "AR")
    yield f"\n{'source':<24}{'keypoints':>10}{'images':>8}" + "".join(f"{name:>9}" for name in shown)
    for name, found in (*evaluation.sources.items(), ("all, as the model", evaluation)):
        numbers = "".join(f"{_number(found.statistics[each]):>9}" for each in shown)
        yield f"{name:<24}{len(found.keypoints):>10}{found.protocol.images:>8}{numbers}"


def _percentages(counts: np.ndarray) -> str:
    total = counts.sum()
    return "".join(f"{f'{count / total:.1%}' if total else '-':>11}" for count in counts)


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.4f}"


def _share(part: int, whole: int) -> float:
    return part / whole if whole else np.nan
