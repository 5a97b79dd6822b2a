"""Evaluation of a split in the files of CrowdPose and of OCHuman, from the images to the numbers, by hand."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from posefleet.data.coco.records import make_record
from posefleet.data.coco.source import find_source
from posefleet.data.evaluation.evaluate import Evaluation
from posefleet.data.images import encode_image
from posefleet.data.loading.coco_dataset import FolderDataset
from posefleet.data.schemas.shipped import load_schema
from posefleet.data.shards.build import shard_coco
from posefleet.data.structures import Detections, Poses
from posefleet.platform.config.loading import build_experiment
from posefleet.platform.inference.evaluate import evaluate
from posefleet.platform.runtime.worker import LocalWorker

SIDE = 200
STEP = 40
"""Grey value of image 1; image i has i times as much, which tells the model which image it sees."""
BOTH = (51 + 50 * 2 / 3) / 101
"""AP of two people of whom the second is found after a false pose: precision 1 up to recall .5, then 2/3."""


@dataclass
class Found:
    """What a model finds in an image: keypoints (N, K, 2) in its pixels, scores and boxes."""

    keypoints: np.ndarray
    scores: list[float]


class Knowing(nn.Module):
    """A model that knows what to find in the image of each grey value. It sees images of half the size."""

    def __init__(self, found: dict[int, Found]) -> None:
        super().__init__()
        self.found, self.refined = found, []
        self.parameter = nn.Parameter(torch.zeros(1))

    def predict(self, images: torch.Tensor) -> list[Poses]:
        known = [self.found[round(image[:, :8, :8].float().mean().item() / STEP)] for image in images]
        keypoints = [torch.from_numpy(found.keypoints).float() / 2 for found in known]
        scores = [torch.tensor(found.scores) for found in known]
        boxes = [torch.cat([points.amin(1), points.amax(1)], 1) for points in keypoints]
        self.refined = [Detections(*pair) for pair in zip(boxes, scores, strict=True)]
        return [Poses(k, s[:, None].expand(-1, k.shape[1]), s) for k, s in zip(keypoints, scores, strict=True)]


def standing(count: int, x: float = 20.0) -> np.ndarray:
    """(count, 2) keypoints whose tight box is 100 px wide and 150 px high."""
    index = np.arange(count)
    return np.stack([x + 100.0 * (index % 2), 20 + 150.0 * index / (count - 1)], 1)


def annotated(image_id: int, keypoints: np.ndarray, *, labelled: bool = True, **more: Any) -> dict[str, Any]:
    low, size = keypoints.min(0), np.ptp(keypoints, axis=0)
    points = np.column_stack([keypoints * labelled, np.full(len(keypoints), 2 * labelled)])
    return {
        "image_id": image_id,
        "category_id": 1,
        "keypoints": points.ravel().tolist(),
        "num_keypoints": len(keypoints) * labelled,
        "bbox": [*low.tolist(), *size.tolist()],
        "iscrowd": 0,
        **more,
    }


def write(file: Path, images: list[dict[str, Any]], people: list[dict[str, Any]]) -> None:
    """An annotation file, and plain images of 200 px in the folder ``images`` beside it or beside its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    folder = (file.parent if file.parent.name != "json" else file.parent.parent) / "images"
    folder.mkdir()
    for image in images:
        image |= {"file_name": f"{image['id']}.png", "width": SIDE, "height": SIDE}
        pixels = np.full((SIDE, SIDE, 3), STEP * image["id"], np.uint8)
        (folder / image["file_name"]).write_bytes(encode_image(pixels, ".png"))
    numbered = [{"id": number, **person} for number, person in enumerate(people, start=1)]
    categories = [{"id": 1, "name": "person"}]
    file.write_text(json.dumps({"images": images, "annotations": numbered, "categories": categories}))


def scored(root: Path, split: str, schema: str, found: dict[int, Found], shards: Path | None = None) -> Evaluation:
    """The evaluation of a split, read from its own files or from shards of them."""
    resize = {"short_side": SIDE // 2, "long_side": SIDE // 2}
    data = {"train": "-", "eval": str(shards or ""), "resize": resize, "loaders": 0, "eval_batch_size": 2}
    experiment = build_experiment({"method": "smpr", "schema": schema, "data": data, "evaluate": {"overlays": 0}})
    source = find_source(str(root), split)
    opened = None
    if shards:
        shard_coco(source, str(shards), load_schema(schema), parallel=False)
    else:
        opened = lambda view: FolderDataset(source, experiment.keypoints, view)  # noqa: E731
    result = evaluate(Knowing(found), experiment, LocalWorker(device="cpu"), open_split=opened)
    assert result is not None
    return result


@pytest.mark.parametrize("sharded", [False, True])
def test_crowdpose_by_hand(tmp_path: Path, sharded: bool) -> None:
    """Three images, one person each. Their crowd indices are bounds of the bands of CrowdPose's evaluation code.

    In the first every keypoint is exact. In the second nobody is found. In the third every keypoint has a similarity
    of .72 for an area of .53 times the box, whatever its sigma: true at half of the thresholds.
    """
    schema = load_schema("crowdpose14")
    person = standing(14)
    images = [{"id": 1, "crowdIndex": 0.1999}, {"id": 2, "crowdIndex": 0.2}, {"id": 3, "crowdIndex": 0.8}]
    write(tmp_path / "json/crowdpose_test.json", images, [annotated(i, person) for i in (1, 2, 3)])
    area = 0.53 * 100 * 150
    right = np.sqrt(-2 * area * (2 * np.array(schema.sigmas)) ** 2 * np.log(0.72))
    moved = person + np.stack([right, np.zeros(14)], 1)
    nobody = Found(np.zeros((0, 14, 2)), [])
    found = {1: Found(person[None], [0.9]), 2: nobody, 3: Found(moved[None], [0.8])}
    result = scored(tmp_path, "test", "crowdpose14", found, tmp_path / "shards" if sharded else None)
    statistics = result.statistics
    assert [statistics[f"AP_{band}"] for band in ("easy", "medium", "hard")] == pytest.approx([1.0, 0.0, 0.5])
    # Two of three people at half of the thresholds (67 of 101 points of recall), one of three (34) at the others.
    assert result.ap == pytest.approx((67 + 34) / 2 / 101)
    assert result.protocol.max_detections == 20
    assert "AP_hard" in str(result)


@pytest.mark.parametrize("index", ["0.3", None, float("nan"), True])
def test_a_crowd_index_that_is_no_number_is_left_out(index: Any) -> None:
    image = {"id": 1, "file_name": "1.png", "width": SIDE, "height": SIDE}
    assert "crowdIndex" not in make_record({**image, "crowdIndex": index}, [])
    assert make_record({**image, "crowdIndex": 0.3}, [])["crowdIndex"] == 0.3


def test_ochuman_by_hand(tmp_path: Path) -> None:
    """OCHuman is scored as COCO. It annotates boxes of more people than it gives keypoints: those are ignored.

    Two people overlap by an IoU of 1/3; both are found exactly, and between them in score comes a second pose of the
    first. The person without keypoints is detected, too: as a pose that counts neither way, as a box that is right.
    """
    one, other, third = standing(17, 20.0), standing(17, 70.0), standing(17, 95.0)
    area = {"area": 9000.0}
    people = [annotated(1, one, **area), annotated(1, other, **area), annotated(1, third, labelled=False, **area)]
    people[2]["bbox"] = [95, 20, 100, 150]
    write(tmp_path / "ochuman_coco_format_val_range_0.00_1.00.json", [{"id": 1}], people)
    found = {1: Found(np.stack([third, one, one + 1e-3, other]), [0.95, 0.9, 0.85, 0.8])}
    result = scored(tmp_path, "val", "coco17", found)
    assert result.ap == pytest.approx(BOTH)
    assert result.statistics["AP75"] == pytest.approx(BOTH)
    assert (result.protocol.people, result.protocol.ignored_people) == (2, 1)
    assert "AP_hard" not in result.statistics
    # As boxes, three people: true, true, false, true. Precision 1 up to recall 2/3 (67 of 101 points), then 3/4.
    assert result.boxes is not None
    assert result.boxes.ap == pytest.approx((67 + 34 * 0.75) / 101)
    assert (result.boxes.boxes, result.boxes.per_person) == (4, 2.0)
    assert "boxes    4 refined, 2.00 a person" in str(result)
    assert result.as_dict()["box_AP75"] == result.boxes.ap75
