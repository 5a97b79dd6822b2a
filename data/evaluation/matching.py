"""The door to COCO's own evaluation code: who matches whom, for the areas all, medium and large."""

import contextlib
import io
from importlib.metadata import version
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from posefleet.data.evaluation.ground_truth import GroundTruth, PoseTable
from posefleet.data.evaluation.precision_recall import AREAS, THRESHOLDS, Curves, MatchFlags
from posefleet.data.keypoints import KeypointSchema

PACKAGES = {"pycocotools": "pycocotools", "faster": "faster-coco-eval"}
"""The package behind each backend. pycocotools tells what it matched, so that parts of a data set can be scored apart;
faster-coco-eval scores a whole one, to the same numbers and sooner."""

IMAGES_AT_A_TIME = 2000
"""That pycocotools matches; this bounds its memory."""


def named(backend: str) -> str:
    """Package and version.

    Raises:
        ValueError: There is no such backend, or it is not installed.
    """
    if backend not in PACKAGES:
        raise ValueError(f"unknown evaluation backend {backend!r}; known: {', '.join(PACKAGES)}")
    if backend == "faster":
        _faster()
    return f"{PACKAGES[backend]} {version(PACKAGES[backend])}"


def match(truth: GroundTruth, poses: PoseTable, schema: KeypointSchema) -> MatchFlags:
    """What pycocotools says of every pose in each of ``AREAS``.

    Some images after the other: it keeps tens of kilobytes of Python objects for each.
    """
    true, false = (np.zeros((len(AREAS), len(THRESHOLDS), len(poses.image)), bool) for _ in range(2))
    positives = np.zeros(len(AREAS), np.int64)
    done = 0
    for start in range(0, len(truth.image_ids), IMAGES_AT_A_TIME):
        rows = slice(start, start + IMAGES_AT_A_TIME)
        some = poses.part(rows)
        columns = slice(done, done := done + len(some.image))
        evaluation = _evaluated(COCO, COCOeval, truth.part(rows), some, schema)
        for area, found in enumerate(np.array(evaluation.evalImgs, object).reshape(len(AREAS), -1)):
            images = [image for image in found if image is not None]  # without people and poses there is nothing
            if images:
                matched, ignored = (
                    np.concatenate([image[key] for image in images], axis=1).astype(bool)
                    for key in ("dtMatches", "dtIgnore")
                )
                true[area, :, columns], false[area, :, columns] = matched & ~ignored, ~matched & ~ignored
                positives[area] += sum(np.count_nonzero(np.asarray(image["gtIgnore"]) == 0) for image in images)
    return MatchFlags.pack(true, false, positives)


def faster_curves(truth: GroundTruth, poses: PoseTable, schema: KeypointSchema) -> Curves:
    """Precision and recall in each of ``AREAS``, by faster-coco-eval.

    Raises:
        ValueError: It is not installed.
    """
    package = _faster()
    evaluation = _evaluated(package.COCO, package.COCOeval_faster, truth, poses, schema)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    found = evaluation.eval
    return Curves(np.asarray(found["precision"])[:, :, 0, :, 0], np.asarray(found["recall"])[:, 0, :, 0])


def _faster() -> Any:
    try:
        import faster_coco_eval
    except ModuleNotFoundError as error:
        raise ValueError("backend 'faster' needs the package faster-coco-eval; it is not installed") from error
    return faster_coco_eval


def _evaluated(coco: Any, evaluator: Any, truth: GroundTruth, poses: PoseTable, schema: KeypointSchema) -> Any:
    """An evaluator of either package that has matched; all poses count."""
    with contextlib.redirect_stdout(io.StringIO()):  # both packages talk
        people_set, pose_set = coco(), coco()
        people_set.dataset = _dataset(truth, _annotations(truth))
        pose_set.dataset = _dataset(truth, _results(truth, poses))
        people_set.createIndex()
        pose_set.createIndex()
        evaluation = evaluator(people_set, pose_set, "keypoints")
        evaluation.params.catIds = [1]
        evaluation.params.maxDets = [int(np.bincount(poses.image, minlength=1).max())]
        evaluation.params.kpt_oks_sigmas = np.array(schema.sigmas)
        evaluation.evaluate()
    return evaluation


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
