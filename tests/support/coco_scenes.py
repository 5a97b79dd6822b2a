"""Annotated people and predicted poses for tests of the evaluation, and what pycocotools says about them."""

import contextlib
import io
import json
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from posefleet.data.evaluation.ground_truth import GroundTruth
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.structures import Poses

AREA = 10_000.0


def standing(x: float = 0.0, y: float = 0.0) -> np.ndarray:
    """(17, 2) keypoints of a made-up person, at least 40 px from one to the next, so none is near another's place."""
    index = np.arange(17)
    return np.stack([x + 60.0 * (index % 4), y + 60.0 * (index // 4)], axis=1)


def person(
    keypoints: np.ndarray, *, visibility: np.ndarray | int = 2, crowd: bool = False, area: float = AREA
) -> dict[str, Any]:
    visible = np.broadcast_to(visibility, len(keypoints))
    low, high = keypoints.min(0), keypoints.max(0).clip(keypoints.min(0) + 1)
    return {
        "keypoints": np.column_stack([keypoints * (visible > 0)[:, None], visible]).ravel().tolist(),
        "bbox": [*low.tolist(), *(high - low).tolist()],
        "area": area,
        "iscrowd": int(crowd),
        "num_keypoints": int((visible > 0).sum()),
    }


def truth_of(*images: list[dict[str, Any]]) -> GroundTruth:
    """Ground truth of images 1, 2, ..."""
    return GroundTruth.from_records([(number, (1000, 1000), people) for number, people in enumerate(images, start=1)])


def poses_of(*keypoints: np.ndarray, scores: list[float] | None = None) -> Poses:
    points = torch.from_numpy(np.array(keypoints, np.float32))
    return Poses(points, torch.ones(points.shape[:2]), torch.tensor(scores or [0.9] * len(points)))


def random_scene(seed: int, schema: KeypointSchema = COCO17) -> tuple[dict[str, Any], dict[int, Poses]]:
    """A COCO data set with crowds, unlabelled people and empty images, and poses from good to senseless."""
    rng = np.random.default_rng(seed)
    count = len(schema)
    annotations: list[dict[str, Any]] = []
    predictions = {}
    for image_id in rng.permutation(np.arange(1, 61)).tolist():
        candidates = []
        for _ in range(rng.integers(0, 7)):
            corner, size = rng.uniform(0, 300, 2), rng.uniform(20, 200, 2)
            points = (corner + size * rng.random((count, 2))).round()
            unlabelled = rng.random() < 0.25
            visibility = np.zeros(count, int) if unlabelled else rng.choice([0, 1, 2], count)
            one = person(
                points, visibility=visibility, crowd=unlabelled and rng.random() < 0.4, area=float(0.6 * size.prod())
            )
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, "category_id": 1, **one})
            candidates += [
                points + rng.normal(0, rng.choice([0.5, 3, 20]), points.shape) for _ in range(rng.integers(4))
            ]
        candidates += [rng.uniform(0, 500, (count, 2)) for _ in range(rng.integers(0, 4))]
        if candidates:
            scores = np.sort(rng.integers(1, 12, len(candidates)) / 12)[::-1]  # with ties
            predictions[image_id] = poses_of(*candidates, scores=scores.tolist())
    dataset = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 500, "height": 500} for i in range(1, 61)],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": annotations,
    }
    return dataset, predictions


def pycocotools_statistics(
    dataset: dict[str, Any], predictions: dict[int, Poses], sigmas: np.ndarray | None = None
) -> np.ndarray:
    """What the tutorial of pycocotools prints, by loadRes and summarize."""
    results = [
        {
            "image_id": i,
            "category_id": 1,
            "score": score,
            "keypoints": np.column_stack([pose, pose[:, 0]]).ravel().tolist(),
        }
        for i, poses in predictions.items()
        for pose, score in zip(poses.keypoints.double().numpy(), poses.scores.tolist(), strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = json.loads(json.dumps(dataset))
        ground_truth.createIndex()
        evaluation = COCOeval(ground_truth, ground_truth.loadRes(results), "keypoints")
        if sigmas is not None:
            evaluation.params.kpt_oks_sigmas = sigmas
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.asarray(evaluation.stats)
