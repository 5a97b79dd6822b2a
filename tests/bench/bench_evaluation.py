"""How long evaluation takes: COCOeval alone, by both backends, and with everything posefleet adds.

python tests/bench/bench_evaluation.py --images 5000 --poses 30000
"""

import argparse
import contextlib
import io
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from posefleet.data.evaluation.error_analysis import analyse_errors
from posefleet.data.evaluation.evaluate import evaluate
from posefleet.data.evaluation.ground_truth import GroundTruth, PoseTable
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.structures import Poses

PEOPLE_PER_IMAGE = 2.2
"""val2017: 11,004 person annotations in 5,000 images, of whom 6,352 have keypoints."""


def scene(images: int, poses: int, seed: int = 0) -> tuple[dict[str, Any], dict[int, Poses]]:
    """Random people, a tenth of them crowds or without keypoints, and noisy poses of them among false ones."""
    rng = np.random.default_rng(seed)
    annotations, predictions = [], {}
    for image_id in range(1, images + 1):
        found = []
        for _ in range(min(rng.geometric(1 / (PEOPLE_PER_IMAGE + 1)) - 1, 20)):
            left, top, width, height = *rng.uniform(0, 300, 2), *rng.uniform(30, 300, 2)
            points = np.stack([left + width * rng.random(17), top + height * rng.random(17)], 1).round()
            found.append(points + rng.normal(0, 0.03 * width, points.shape))
            visible = (rng.random(17) < 0.7) * 2 * (rng.random() < 0.6)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "keypoints": np.column_stack([points * (visible > 0)[:, None], visible]).ravel().tolist(),
                    "bbox": [left, top, width, height],
                    "area": 0.5 * width * height,
                    "iscrowd": int(rng.random() < 0.03 and not visible.any()),
                    "num_keypoints": int((visible > 0).sum()),
                }
            )
        while len(found) < poses / images:
            found.append(rng.uniform(0, 600, (17, 2)))
        scores = torch.from_numpy(rng.random(len(found)).astype(np.float32)).sort(descending=True).values
        keypoints = torch.from_numpy(np.array(found, np.float32))
        predictions[image_id] = Poses(keypoints, torch.ones(keypoints.shape[:2]), scores)
    dataset = {
        "images": [{"id": i, "width": 640, "height": 640} for i in range(1, images + 1)],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": annotations,
    }
    return dataset, predictions


def plain_pycocotools(dataset: dict[str, Any], results: list[dict[str, Any]]) -> np.ndarray:
    """The statistics as the COCO tutorial computes them."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dataset
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.asarray(evaluation.stats)


def plain_faster(dataset: dict[str, Any], results: list[dict[str, Any]]) -> np.ndarray:
    """The same by faster-coco-eval."""
    import faster_coco_eval

    truth = faster_coco_eval.COCO(dataset)
    evaluation = faster_coco_eval.COCOeval_faster(truth, truth.loadRes(results), "keypoints", print_function=str)
    evaluation.run()
    return np.asarray(evaluation.stats)[:10]


def results_of(predictions: dict[int, Poses]) -> list[dict[str, Any]]:
    """COCO result records."""
    return [
        {
            "image_id": image_id,
            "category_id": 1,
            "keypoints": torch.cat([points, torch.ones(len(points), 1)], 1).flatten().tolist(),
            "score": score,
        }
        for image_id, poses in predictions.items()
        for points, score in zip(poses.keypoints, poses.scores.tolist(), strict=True)
    ]


def timed(what: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result."""
    start = time.perf_counter()
    result = what()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--poses", type=int, default=30000)
    arguments = parser.parse_args()
    dataset, predictions = scene(arguments.images, arguments.poses)
    total = sum(len(poses) for poses in predictions.values())
    print(f"{arguments.images} images, {len(dataset['annotations'])} people, {total} poses")

    reference, stats = timed(lambda: plain_pycocotools(dataset, results_of(predictions)))
    fast, fast_stats = timed(lambda: plain_faster(dataset, results_of(predictions)))
    truth = GroundTruth.from_coco(dataset)
    poses = PoseTable.pack(predictions, truth, COCO17, 20)
    extra, _ = timed(lambda: analyse_errors(truth, poses, COCO17))
    whole, result = timed(lambda: evaluate(truth, predictions, COCO17))
    whole_fast, result_fast = timed(lambda: evaluate(truth, predictions, COCO17, backend="faster"))

    for name, seconds in (
        ("pycocotools, plain", reference),
        ("faster-coco-eval, plain", fast),
        ("keypoints and error split alone", extra),
        ("evaluate(backend='pycocotools')", whole),
        ("evaluate(backend='faster')", whole_fast),
    ):
        print(f"{name:<40}{seconds:7.2f} s  {seconds / reference:5.2f} x pycocotools  {seconds / fast:5.2f} x faster")
    ours, ours_fast = list(result.statistics.values()), list(result_fast.statistics.values())
    print(f"largest difference to pycocotools: {np.abs(ours - stats).max():g}, with faster: "
          f"{np.abs(ours_fast - stats).max():g} (faster alone: {np.abs(fast_stats - stats).max():g})")  # fmt: skip
    print(result)


if __name__ == "__main__":
    main()
