"""COCO result files: detections that are read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from posefleet.data.coco.results import read_detections
from posefleet.data.errors import DataError


def written(folder: Path, content: Any) -> str:
    path = folder / "detections.json"
    path.write_text(json.dumps(content))
    return str(path)


def test_people_are_read_best_first_as_corners(tmp_path: Path) -> None:
    content = [
        {"image_id": 7, "category_id": 1, "bbox": [10, 20, 30, 40], "score": 0.3},
        {"image_id": 7, "category_id": 62, "bbox": [0, 0, 9, 9], "score": 0.99},  # a chair
        {"image_id": 9, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1},
        {"image_id": 7, "bbox": [0.5, 0, 1, 2], "score": 0.8},
    ]
    found = read_detections(written(tmp_path, content))
    assert sorted(found) == [7, 9]
    torch.testing.assert_close(found[7].boxes, torch.tensor([[0.5, 0, 1.5, 2], [10, 20, 40, 60]]))
    torch.testing.assert_close(found[7].scores, torch.tensor([0.8, 0.3]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"annotations": []}, "expected a list of detections, found a dict"),
        ([], "no people .* among 0 detections"),
        ([{"image_id": 1, "bbox": [0, 0, 1, 1]}], "detection 0 is .*expected an object with image_id, bbox and score"),
        ([{"image_id": "1", "bbox": [0, 0, 1, 1], "score": 0.5}], "detection 0 has image_id '1'"),
        ([{"image_id": 1, "bbox": [0, 0, 1], "score": 0.5}], r"bbox \[0, 0, 1\]"),
        ([{"image_id": 1, "bbox": [0, 0, 1, float("nan")], "score": 0.5}], "four finite numbers"),
        ([{"image_id": 1, "bbox": [0, 0, -1, 1], "score": 0.5}], "a width and height from 0 on"),
        ([{"image_id": 1, "bbox": [0, 0, 1, 1], "score": 50}], "score 50"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_detections(written(tmp_path, content))


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_detections(str(tmp_path / "nowhere.json"))
    path = tmp_path / "broken.json"
    path.write_text("[{")
    with pytest.raises(DataError, match="not json"):
        read_detections(str(path))
