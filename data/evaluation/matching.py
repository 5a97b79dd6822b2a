"""Runs COCO's own evaluation code: which pose matches which person, for the areas all, medium and large."""

import contextlib
import io
from importlib.metadata import version
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from posefleet.data.evaluation.ground_truth import GroundTruth, PoseTable
from posefleet.data.evaluation.precision_recall import AREAS, THRESHOLDS, Curves, MatchFlags
from posefleet.data.schemas.schema import KeypointSchema

PACKAGES = {"pycocotools": "pycocotools", "faster": "faster-coco-eval"}
"""The package of each backend. pycocotools gives its matches, so parts of a data set can be scored apart;
faster-coco-eval scores only a whole data set, with the same numbers in less time."""

IMAGES_AT_A_TIME = 2000
"""Images that pycocotools matches at once; this bounds its memory."""


def backend_version(backend: str) -> str:
    """Package and version of a backend, such as ``pycocotools 2.0.8``.

    Raises:
        ValueError: There is no such backend, or it is not installed.
    """
    if backend not in PACKAGES:
        raise ValueError(f"unknown evaluation backend {backend!r}; use {' or '.join(PACKAGES)}")
    if backend == "faster":
        _faster()
    return f"{PACKAGES[backend]} {version(PACKAGES[backend])}"


def match(ground_truth: GroundTruth, poses: PoseTable, schema: KeypointSchema) -> MatchFlags:
    """Match flags of every pose by pycocotools, one criterion for each of ``AREAS``.

    Images are matched some at a time, because pycocotools keeps tens of kilobytes of Python objects for each.
    """
    true, false = (np.zeros((len(AREAS), len(THRESHOLDS), len(poses.image)), bool) for _ in range(2))
    positives = np.zeros(len(AREAS), np.int64)
    done = 0
    for start in range(0, len(ground_truth.image_ids), IMAGES_AT_A_TIME):
        rows = slice(start, start + IMAGES_AT_A_TIME)
        some = poses.part(rows)
        columns = slice(done, done := done + len(some.image))
        evaluation = _evaluated(COCO, COCOeval, ground_truth.part(rows), some, schema)
        for area, found in enumerate(np.array(evaluation.evalImgs, object).reshape(len(AREAS), -1)):
            images = [image for image in found if image is not None]  # None: neither people nor poses
            if images:
                matched, ignored = (
                    np.concatenate([image[key] for image in images], axis=1).astype(bool)
                    for key in ("dtMatches", "dtIgnore")
                )
                true[area, :, columns], false[area, :, columns] = matched & ~ignored, ~matched & ~ignored
                positives[area] += sum(np.count_nonzero(np.asarray(image["gtIgnore"]) == 0) for image in images)
    return MatchFlags.pack(true, false, positives)


def faster_curves(ground_truth: GroundTruth, poses: PoseTable, schema: KeypointSchema) -> Curves:
    """Precision and recall by faster-coco-eval, one criterion for each of ``AREAS``.

    Raises:
        ValueError: faster-coco-eval is not installed.
    """
    package = _faster()
    evaluation = _evaluated(package.COCO, package.COCOeval_faster, ground_truth, poses, schema)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    found = evaluation.eval
    return Curves(np.asarray(found["precision"])[:, :, 0, :, 0], np.asarray(found["recall"])[:, 0, :, 0])


def box_precision(
    ground_truth: GroundTruth, image: np.ndarray, boxes: np.ndarray, scores: np.ndarray, limit: int
) -> np.ndarray:
    """Precision (T, R) of boxes at ``THRESHOLDS`` of IoU and ``RECALL_POINTS``, over all areas, by pycocotools.

    Args:
        ground_truth: Crowds are ignored, everybody else is to be found.
        image: (N,) int64, each box's image as a row of ``ground_truth.image_ids``.
        boxes: (N, 4) xyxy, pixels.
        scores: (N,).
        limit: How many boxes of an image count, best first.
    """
    sizes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    found = zip(ground_truth.image_ids[image].tolist(), sizes.tolist(), scores.tolist(), strict=True)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        people_set, box_set = COCO(), COCO()
        people_set.dataset = _dataset(ground_truth, _annotations(ground_truth))
        box_set.dataset = _dataset(
            ground_truth,
            [
                {"id": number, "image_id": i, "category_id": 1, "iscrowd": 0, "bbox": box, "area": box[2] * box[3]}
                | {"score": score}
                for number, (i, box, score) in enumerate(found, start=1)
            ],
        )
        people_set.createIndex()
        box_set.createIndex()
        evaluation = COCOeval(people_set, box_set, "bbox")
        evaluation.params.catIds = [1]
        evaluation.params.maxDets = [limit]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"])[:, :, 0, 0, 0]


def _faster() -> Any:
    try:
        import faster_coco_eval
    except ModuleNotFoundError as error:
        raise ValueError("backend 'faster' needs faster-coco-eval: pip install faster-coco-eval") from error
    return faster_coco_eval


def _evaluated(coco: Any, evaluator: Any, ground_truth: GroundTruth, poses: PoseTable, schema: KeypointSchema) -> Any:
    """An evaluator of either package after its matching; all poses count."""
    with contextlib.redirect_stdout(io.StringIO()):  # both packages print
        people_set, pose_set = coco(), coco()
        people_set.dataset = _dataset(ground_truth, _annotations(ground_truth))
        pose_set.dataset = _dataset(ground_truth, _results(ground_truth, poses))
        people_set.createIndex()
        pose_set.createIndex()
        evaluation = evaluator(people_set, pose_set, "keypoints")
        evaluation.params.catIds = [1]
        evaluation.params.maxDets = [int(np.bincount(poses.image, minlength=1).max())]
        evaluation.params.kpt_oks_sigmas = np.array(schema.sigmas)
        evaluation.evaluate()
    return evaluation


def _dataset(ground_truth: GroundTruth, annotations: list[dict[str, Any]]) -> dict[str, Any]:
    images = [{"id": image_id} for image_id in ground_truth.image_ids.tolist()]
    return {"images": images, "categories": [{"id": 1, "name": "person"}], "annotations": annotations}


def _annotations(ground_truth: GroundTruth) -> list[dict[str, Any]]:
    """People as COCO annotations; numbered from 1, because COCOeval takes the id 0 for no match."""
    keypoints = np.concatenate([ground_truth.keypoints, ground_truth.visibility[..., None]], axis=2)
    columns = zip(
        ground_truth.image_ids[ground_truth.image].tolist(),
        keypoints.reshape(len(keypoints), 3 * keypoints.shape[1]),
        ground_truth.corners_and_sizes.tolist(),
        ground_truth.areas.tolist(),
        ground_truth.crowd.astype(int).tolist(),
        ground_truth.num_keypoints.tolist(),
        strict=True,
    )
    names = ("image_id", "keypoints", "bbox", "area", "iscrowd", "num_keypoints")
    return [
        {"id": number, "category_id": 1, **dict(zip(names, values, strict=True))}
        for number, values in enumerate(columns, start=1)
    ]


def _results(ground_truth: GroundTruth, poses: PoseTable) -> list[dict[str, Any]]:
    """Poses as COCO results; a pose's area is that of a tight box of its keypoints, as in ``COCO.loadRes``."""
    keypoints = np.concatenate([poses.keypoints, np.zeros((*poses.keypoints.shape[:2], 1))], axis=2)
    columns = zip(
        ground_truth.image_ids[poses.image].tolist(),
        keypoints.reshape(len(keypoints), 3 * keypoints.shape[1]),
        poses.areas.tolist(),
        poses.scores.tolist(),
        strict=True,
    )
    names = ("image_id", "keypoints", "area", "score")
    return [
        {"id": number, "category_id": 1, "iscrowd": 0, **dict(zip(names, values, strict=True))}
        for number, values in enumerate(columns, start=1)
    ]
