"""AP and AR of predicted poses by COCO's own protocol, with the facts that make the number mean something.

The statistics are pycocotools' (or faster-coco-eval's, which gives the same, sooner). Beside them stand the score
rule, the number of images, people and poses, and a note on everything that makes an AP easy to misread.
"""

import contextlib
import io
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from posefleet.data.diagnosis import ERROR_KINDS, ErrorSplit, diagnose
from posefleet.data.errors import DataError
from posefleet.data.keypoints import KeypointSchema
from posefleet.data.significance import Matches
from posefleet.data.structures import Poses
from posefleet.data.truth import GroundTruth, PoseTable

STATISTICS = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")
"""The ten numbers of COCO's keypoint evaluation, in its order."""

EASY_BELOW, HARD_ABOVE = 0.1, 0.8
"""CrowdPose's bands of ``crowdIndex``: easy, medium (both ends included), hard."""

BACKENDS = {"pycocotools": "pycocotools", "faster": "faster-coco-eval"}
"""The package behind each backend."""

IMAGES_AT_A_TIME = 2000
"""That pycocotools matches; this bounds its memory."""

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
    image_oks: dict[int, float]
    """Image id -> mean OKS of its keypoint people with the poses matched to them, 0 for a missed one; images without
    keypoint people are not there."""
    errors: ErrorSplit
    protocol: Protocol
    notes: tuple[str, ...]
    """What a reader of the numbers must know: sentences, often none."""
    matches: Matches | None = None
    """What the AP was made of, for :mod:`posefleet.data.significance`; only pycocotools tells."""

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
    truth = truth if image_ids is None else truth.select(image_ids)
    truth = _with_keypoints_of(schema, truth)
    poses = PoseTable.pack(predictions, truth, schema, max_detections)
    coco = _Coco(schema, max_detections, backend)
    curves = coco.evaluate(truth, poses)
    statistics = dict(zip(STATISTICS, curves.statistics(), strict=True)) | _crowd_bands(truth, poses, coco)
    found = diagnose(truth, poses, schema, curves.thresholds, curves.recall_points)
    protocol = Protocol(
        schema=schema.name,
        score_rule=score_rule,
        max_detections=max_detections,
        images=len(truth.image_ids),
        images_without_people=len(truth.image_ids) - len(np.unique(truth.image)),
        people=int((~truth.ignored).sum()),
        ignored_people=int(truth.ignored.sum()),
        poses=len(poses.image),
        backend=coco.name,
    )
    return Evaluation(
        statistics=statistics,
        precision=np.where(curves.precision[..., 0] < 0, np.nan, curves.precision[..., 0]),
        thresholds=curves.thresholds,
        recall_points=curves.recall_points,
        keypoints=schema.keypoints,
        keypoint_ap=found.keypoint_ap,
        keypoint_oks=found.keypoint_similarity,
        image_oks=_by_image(truth, found.person_oks),
        errors=found.errors,
        protocol=protocol,
        notes=tuple(_notes(truth, poses, predictions, max_detections)),
        matches=curves.matches,
    )


def _with_keypoints_of(schema: KeypointSchema, truth: GroundTruth) -> GroundTruth:
    count = truth.keypoints.shape[1]
    if count == len(schema):
        return truth
    if count == 0:  # not one annotation has keypoints
        shape = (len(truth.image), len(schema))
        return replace(truth, keypoints=np.zeros((*shape, 2)), visibility=np.zeros(shape))
    raise DataError(f"the ground truth has {count} keypoints, {schema.name} has {len(schema)}")


# --------------------------------------------------------------------------------------------------- COCO's code


@dataclass(frozen=True, slots=True)
class _Curves:
    """What COCOeval accumulates, for the areas all, medium and large; -1 where there is no such ground truth."""

    precision: np.ndarray
    """(T, R, 3)."""
    recall: np.ndarray
    """(T, 3)."""
    thresholds: np.ndarray
    recall_points: np.ndarray
    matches: Matches | None

    def statistics(self) -> list[float]:
        """The ten numbers in the order of ``STATISTICS``, as COCOeval.summarize computes them."""
        at50, at75 = self.thresholds == 0.5, self.thresholds == 0.75
        return [
            _mean(curve)
            for values in (self.precision, self.recall)
            for curve in (values[..., 0], values[at50, ..., 0], values[at75, ..., 0], values[..., 1], values[..., 2])
        ]


@dataclass(frozen=True, slots=True)
class _Coco:
    """The door to COCO's evaluation code."""

    schema: KeypointSchema
    max_detections: int
    backend: str

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"unknown evaluation backend {self.backend!r}; known: {', '.join(BACKENDS)}")

    @property
    def name(self) -> str:
        """Package and version."""
        package = BACKENDS[self.backend]
        return f"{package} {version(package)}"

    def evaluate(self, truth: GroundTruth, poses: PoseTable) -> _Curves:
        """Match and accumulate; what summarize would print is left to the curves."""
        # Both libraries talk on stdout.
        with contextlib.redirect_stdout(io.StringIO()):
            if self.backend == "pycocotools":
                evaluation, matches = self._match_in_groups(truth, poses)
            else:
                evaluation, matches = self._match(truth, poses), None
            evaluation.accumulate()
        params, accumulated = evaluation.params, evaluation.eval
        precision, recall = np.asarray(accumulated["precision"]), np.asarray(accumulated["recall"])
        return _Curves(precision[:, :, 0, :, 0], recall[:, 0, :, 0], params.iouThrs, params.recThrs, matches)

    def _match(self, truth: GroundTruth, poses: PoseTable) -> Any:
        """A COCOeval that has evaluated."""
        coco_class, eval_class = self._classes()
        people_set, pose_set = coco_class(), coco_class()
        people_set.dataset = _dataset(truth, _annotations(truth))
        pose_set.dataset = _dataset(truth, _results(truth, poses))
        people_set.createIndex()
        pose_set.createIndex()
        evaluation = eval_class(people_set, pose_set, "keypoints")
        evaluation.params.catIds = [1]
        evaluation.params.maxDets = [self.max_detections]
        evaluation.params.kpt_oks_sigmas = np.array(self.schema.sigmas)
        evaluation.evaluate()
        return evaluation

    def _match_in_groups(self, truth: GroundTruth, poses: PoseTable) -> tuple[Any, Matches]:
        """The same, some images after the other: COCO's code keeps tens of kilobytes of Python objects for each.

        The COCOeval that comes back takes each group for one image with many poses, which accumulates to the same
        numbers: it only ever strings the images together.
        """
        groups, people = [], []
        for start in range(0, max(len(truth.image_ids), 1), IMAGES_AT_A_TIME):
            rows = slice(start, start + IMAGES_AT_A_TIME)
            evaluation = self._match(truth.part(rows), poses.part(rows))
            areas, images = len(evaluation.params.areaRng), len(evaluation.params.imgIds)
            found = [evaluation.evalImgs[area * images : (area + 1) * images] for area in range(areas)]
            groups.append([_strung_together(one, len(evaluation.params.iouThrs)) for one in found])
            everybody = found[0]  # the first area range is "all"
            people += [np.count_nonzero(np.asarray(e["gtIgnore"]) == 0) if e else 0 for e in everybody]
        evaluation.params.imgIds = list(range(len(groups)))
        evaluation.params.maxDets = [sys.maxsize]  # of a group; every image has its own limit behind it
        evaluation._paramsEval = evaluation.params
        evaluation.evalImgs = [group[area] for area in range(areas) for group in groups]
        matched, ignored = (
            np.concatenate([group[0][key] for group in groups], axis=1) for key in ("dtMatches", "dtIgnore")
        )
        matches = Matches.of_poses(truth.image_ids, np.array(people), poses.image, poses.scores, matched, ignored)
        return evaluation, matches

    def _classes(self) -> tuple[Any, Any]:
        if self.backend == "pycocotools":
            return COCO, COCOeval
        try:
            import faster_coco_eval
        except ModuleNotFoundError as error:
            raise ValueError("backend 'faster' needs the package faster-coco-eval; it is not installed") from error
        return faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster


def _strung_together(images: list[dict[str, Any] | None], thresholds: int) -> dict[str, np.ndarray]:
    """What COCOeval found in some images, as if they were one."""
    found = [image for image in images if image is not None]
    nothing = np.zeros((thresholds, 0), bool)
    return {
        "dtScores": np.concatenate([[], *(image["dtScores"] for image in found)]),
        "dtMatches": np.concatenate([nothing, *(image["dtMatches"] > 0 for image in found)], axis=1),
        "dtIgnore": np.concatenate([nothing, *(image["dtIgnore"].astype(bool) for image in found)], axis=1),
        "gtIgnore": np.concatenate([[], *(image["gtIgnore"] for image in found)]),
    }


def _dataset(truth: GroundTruth, annotations: list[dict[str, Any]]) -> dict[str, Any]:
    images = [{"id": image_id} for image_id in truth.image_ids.tolist()]
    return {"images": images, "categories": [{"id": 1, "name": "person"}], "annotations": annotations}


def _annotations(truth: GroundTruth) -> list[dict[str, Any]]:
    """People as COCO annotations; numbered from 1, because COCOeval takes the id 0 for no match."""
    keypoints = np.concatenate([truth.keypoints, truth.visibility[..., None]], axis=2)
    columns = zip(
        truth.image_ids[truth.image].tolist(),
        keypoints.reshape(len(keypoints), 3 * keypoints.shape[1]),
        truth.corners_and_sizes.tolist(),
        truth.areas.tolist(),
        truth.crowd.astype(int).tolist(),
        truth.num_keypoints.tolist(),
        strict=True,
    )
    names = ("image_id", "keypoints", "bbox", "area", "iscrowd", "num_keypoints")
    return [
        {"id": number, "category_id": 1, **dict(zip(names, values, strict=True))}
        for number, values in enumerate(columns, start=1)
    ]


def _results(truth: GroundTruth, poses: PoseTable) -> list[dict[str, Any]]:
    """Poses as COCO results; a pose's area is that of the tight box of its keypoints, as in ``COCO.loadRes``."""
    keypoints = np.concatenate([poses.keypoints, np.zeros((*poses.keypoints.shape[:2], 1))], axis=2)
    extent = np.ptp(poses.keypoints, axis=1)
    columns = zip(
        truth.image_ids[poses.image].tolist(),
        keypoints.reshape(len(keypoints), 3 * keypoints.shape[1]),
        (extent[:, 0] * extent[:, 1]).tolist(),
        poses.scores.tolist(),
        strict=True,
    )
    names = ("image_id", "keypoints", "area", "score")
    return [
        {"id": number, "category_id": 1, "iscrowd": 0, **dict(zip(names, values, strict=True))}
        for number, values in enumerate(columns, start=1)
    ]


def _crowd_bands(truth: GroundTruth, poses: PoseTable, coco: _Coco) -> dict[str, float]:
    """AP of the images in each band of ``crowdIndex``; empty when no image has one."""
    if np.isnan(truth.crowd_index).all():
        return {}
    bands = {
        "AP_easy": truth.crowd_index < EASY_BELOW,
        "AP_medium": (truth.crowd_index >= EASY_BELOW) & (truth.crowd_index <= HARD_ABOVE),
        "AP_hard": truth.crowd_index > HARD_ABOVE,
    }
    return {name: _crowd_band(truth, poses, coco, inside) for name, inside in bands.items()}


def _crowd_band(truth: GroundTruth, poses: PoseTable, coco: _Coco, inside: np.ndarray) -> float:
    kept = inside[poses.image]
    rows = np.cumsum(inside)[poses.image[kept]] - 1
    part = PoseTable(rows, poses.keypoints[kept], poses.scores[kept])
    return coco.evaluate(truth.select(truth.image_ids[inside]), part).statistics()[0]


def _by_image(truth: GroundTruth, person_oks: np.ndarray) -> dict[int, float]:
    """Mean over the keypoint people of each image that has some."""
    counts = ~truth.ignored
    people = np.bincount(truth.image[counts], minlength=len(truth.image_ids))
    total = np.bincount(truth.image[counts], person_oks[counts], minlength=len(truth.image_ids))
    return {int(truth.image_ids[row]): float(total[row] / people[row]) for row in np.nonzero(people)[0]}


def _mean(values: np.ndarray) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else np.nan


# --------------------------------------------------------------------------------------------------------- words


def _notes(
    truth: GroundTruth, poses: PoseTable, predictions: Mapping[int, Poses], max_detections: int
) -> Iterator[str]:
    labelled = np.bincount(truth.image[~truth.ignored], minlength=len(truth.image_ids))
    if not labelled.any():
        yield "nobody has a labelled keypoint in these images: there is nothing to score"
    crowded = int((labelled > max_detections).sum())
    if crowded:
        yield (
            f"{crowded} images have more than {max_detections} people (up to {labelled.max()}), but only "
            f"{max_detections} poses of an image count: recall cannot reach 1 there"
        )
    evaluated = set(truth.image_ids.tolist())
    strangers = predictions.keys() - evaluated
    if strangers:
        yield f"{len(strangers)} predicted images, such as {min(strangers)}, are not among the evaluated: left out"
    lacking = len(evaluated - predictions.keys())
    if lacking:
        yield f"{lacking} evaluated images have no prediction: their people count as missed"
    if len(poses.scores) > 1 and np.ptp(poses.scores) == 0:
        yield f"all {len(poses.scores)} poses have the score {poses.scores[0]:g}: without a ranking AP is arbitrary"
    sizes = truth.sizes[poses.image]
    sized = (sizes > 0).all(1)
    outside = ((poses.keypoints < 0) | (poses.keypoints > sizes[:, None])).any(2)[sized]
    if outside.size and outside.mean() > OUTSIDE:
        yield f"{outside.mean():.0%} of the keypoints lie outside their images: are they in original pixels?"


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
