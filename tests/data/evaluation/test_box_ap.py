"""AP of boxes: by hand, and against pycocotools' own summary."""

import contextlib
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from posefleet.data.errors import DataError
from posefleet.data.evaluation.boxes import evaluate_boxes
from posefleet.data.evaluation.ground_truth import GroundTruth
from posefleet.data.structures import Detections


def person(left: float, top: float, width: float, height: float, *, crowd: bool = False, labelled: bool = True) -> Any:
    keypoints = [left, top, 2] * 17 if labelled else [0] * 51
    box = {"bbox": [left, top, width, height], "area": width * height, "iscrowd": int(crowd)}
    return {"keypoints": keypoints, "num_keypoints": 17 * labelled, **box}


def detected(*rows: tuple[float, float, float, float, float]) -> Detections:
    """From left, top, right, bottom, score."""
    table = torch.tensor(rows).view(-1, 5)
    return Detections(table[:, :4], table[:, 4])


def truth_of(*images: list[Any]) -> GroundTruth:
    return GroundTruth.from_records([(number, (500, 500), people) for number, people in enumerate(images, start=1)])


def test_ap_of_boxes_by_hand() -> None:
    """A person is found exactly, another, without keypoints, with an IoU of .613; one box is wrong, one in a crowd."""
    truth = truth_of(
        [person(0, 0, 100, 100), person(200, 0, 100, 100, labelled=False), person(0, 300, 200, 200, crowd=True)], []
    )
    boxes = {
        1: detected((10, 310, 60, 360, 0.95), (0, 0, 100, 100, 0.9), (224, 0, 324, 100, 0.8)),
        2: detected((0, 0, 50, 50, 0.85)),
    }
    found = evaluate_boxes(truth, boxes)
    both, one = (51 + 50 * 2 / 3) / 101, 51 / 101  # precision 1 up to recall .5, then 2/3 or nothing
    assert found.ap50 == pytest.approx(both)
    assert found.ap75 == pytest.approx(one)
    assert found.ap == pytest.approx(0.3 * both + 0.7 * one)  # .50, .55 and .60 are below .613
    assert (found.boxes, found.per_person) == (4, 4.0)
    assert str(found) == "4 refined, 4.00 a person; as detections (IoU, at most 100 an image): " + (
        f"AP {found.ap:.4f}, AP50 {found.ap50:.4f}, AP75 {found.ap75:.4f}"
    )


@pytest.mark.parametrize("seed", range(3))
def test_ap_of_boxes_is_that_of_pycocotools(seed: int) -> None:
    random = np.random.default_rng(seed)
    images, boxes, results = [], {}, []
    for image_id in range(1, 21):
        low, size = random.uniform(0, 300, (4, 2)), random.uniform(10, 200, (4, 2))
        images.append([person(*low[i], *size[i], crowd=bool(i == 3 and image_id % 3 == 0)) for i in range(4)])
        low, size = (values.repeat(3, 0) * random.normal(1, 0.1, (12, 2)) for values in (low, size))
        rows = np.concatenate([low, low + size, random.random((12, 1)).round(3)], 1).astype(np.float32)
        boxes[image_id] = detected(*map(tuple, rows.tolist()))
        results += [
            {"image_id": image_id, "category_id": 1, "bbox": [x, y, right - x, bottom - y], "score": score}
            for x, y, right, bottom, score in rows.astype(float).tolist()
        ]
    people = [{**p, "image_id": i, "category_id": 1} for i, found in enumerate(images, start=1) for p in found]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": image_id} for image_id in boxes],
            "categories": [{"id": 1}],
            "annotations": [{"id": number, **one} for number, one in enumerate(people, start=1)],
        }
        truth.createIndex()
        expected = COCOeval(truth, truth.loadRes(results), "bbox")
        expected.evaluate()
        expected.accumulate()
        expected.summarize()
    found = evaluate_boxes(truth_of(*images), boxes)
    assert [found.ap, found.ap50, found.ap75] == pytest.approx(expected.stats[:3].tolist(), abs=1e-12)
    assert 0.05 < found.ap < 0.95


def test_no_boxes_and_nobody_to_find() -> None:
    none = evaluate_boxes(truth_of([person(0, 0, 10, 10)]), {})
    assert (none.ap, none.boxes, none.per_person) == (0.0, 0, 0.0)
    nobody = evaluate_boxes(truth_of([]), {1: detected((0, 0, 5, 5, 0.5))})
    assert math.isnan(nobody.ap) and math.isnan(nobody.per_person)
    assert str(nobody).startswith("1 refined; as detections") and "AP -" in str(nobody)


def test_boxes_that_are_not_finite_are_named() -> None:
    with pytest.raises(DataError, match="image 1: a detected box or score is not finite"):
        evaluate_boxes(truth_of([]), {1: detected((0, 0, float("nan"), 5, 0.5))})
