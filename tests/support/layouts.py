"""Small data sets in the layouts of label tools, as files."""

import json
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from posefleet.data.images import encode_jpeg

POINTS = ["nose", "left_ear", "right_ear"]


def annotations(names: list[str], order: tuple[str, ...] = ("images", "annotations", "categories")) -> bytes:
    """COCO's json with one person in each image."""
    content: dict[str, Any] = {
        "images": [{"id": n, "file_name": name, "width": 16, "height": 8} for n, name in enumerate(names, 1)],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 6, 6], "area": 30, "keypoints": [2, 2, 2] * 3}
            for n in range(1, len(names) + 1)
        ],
        "categories": [{"id": 1, "name": "dog", "keypoints": POINTS, "skeleton": []}],
    }
    return json.dumps({key: content[key] for key in order}).encode()


def write(root: Path, files: Mapping[str, bytes | int]) -> Path:
    """Files by path; a number is an image of that grey."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_jpeg(np.full((8, 16, 3), content, np.uint8)) if isinstance(content, int) else content)
    return root


LAYOUTS: dict[str, tuple[dict[str, bytes | int], str, list[str]]] = {
    "COCO": (
        {
            "annotations/person_keypoints_val2017.json": annotations(["a.jpg", "b.jpg"]),
            "annotations/instances_val2017.json": annotations(["a.jpg", "b.jpg"]),
            "val2017/a.jpg": 10,
            "val2017/b.jpg": 20,
        },
        "",
        ["val2017"],
    ),
    "CVAT": (
        {
            "annotations/person_keypoints_default.json": annotations(["a.jpg", "sub/b.jpg"]),
            "images/default/a.jpg": 10,
            "images/default/sub/b.jpg": 20,
        },
        "",
        ["default"],
    ),
    "CVAT, images in one folder": (
        {
            "annotations/person_keypoints_default.json": annotations(["a.jpg", "b.jpg"]),
            "images/a.jpg": 10,
            "images/b.jpg": 20,
        },
        "",
        ["default"],
    ),
    "Roboflow": (
        {
            "train/_annotations.coco.json": annotations(["a_jpg.rf.1f.jpg", "b_jpg.rf.2f.jpg"]),
            "train/a_jpg.rf.1f.jpg": 99,
            "train/b_jpg.rf.2f.jpg": 99,
            "valid/_annotations.coco.json": annotations(["a_jpg.rf.1f.jpg", "b_jpg.rf.2f.jpg"]),
            "valid/a_jpg.rf.1f.jpg": 10,
            "valid/b_jpg.rf.2f.jpg": 20,
            "README.roboflow.txt": b"Exported",
        },
        "valid",
        ["train", "valid"],
    ),
    "Label Studio": (
        {
            "result.json": annotations(["images/1a2b3c4d-a.jpg", "images/5e6f7a8b-b.jpg"]),
            "images/1a2b3c4d-a.jpg": 10,
            "images/5e6f7a8b-b.jpg": 20,
        },
        "",
        [],
    ),
    "Label Studio on Windows": (
        {
            "result.json": annotations(["images\\1a2b3c4d-a.jpg", "images\\5e6f7a8b-b.jpg"]),
            "images/1a2b3c4d-a.jpg": 10,
            "images/5e6f7a8b-b.jpg": 20,
        },
        "",
        [],
    ),
    "Label Studio, json with uploads, own images": (
        {
            "result.json": annotations(["/data/upload/1/ab12-a%20a.jpg", "/data/upload/1/5e6f7a8b-b.jpg"]),
            "images/a a.jpg": 10,
            "images/b.jpg": 20,
        },
        "",
        [],
    ),
    "Label Studio, json with local files": (
        {
            "result.json": annotations(
                ["/data/local-files/?d=photos/a%20a.jpg", "/data/local-files/?d=photos%2Fb.jpg"]
            ),
            "photos/a a.jpg": 10,
            "photos/b.jpg": 20,
        },
        "",
        [],
    ),
    "FiftyOne": (
        {"labels.json": annotations(["a.jpg", "b.jpg"]), "data/a.jpg": 10, "data/b.jpg": 20},
        "",
        [],
    ),
    "labelme2coco": (
        {
            "dataset.json": annotations(["../pictures/a.jpg", "../pictures/b.jpg"]),
            "a.jpg": 10,
            "b.jpg": 20,
            "a.json": b'{"version": "5.4.1", "shapes": []}',
        },
        "",
        [],
    ),
    "labelme's own script": (
        {
            "annotations.json": annotations(["JPEGImages/a.jpg", "JPEGImages/b.jpg"]),
            "JPEGImages/a.jpg": 10,
            "JPEGImages/b.jpg": 20,
        },
        "",
        [],
    ),
    "VIA": (
        {
            "via_project_29Nov2026_coco.json": annotations(["a.jpg", "b.jpg"], ("annotations", "categories", "images")),
            "a.jpg": 10,
            "b.jpg": 20,
        },
        "",
        [],
    ),
    "absolute paths of two other machines": (
        {
            "train.json": annotations(["/content/set/a.jpg", "C:\\data\\b.jpg", "./c.jpg", "https://host/x/d.jpg?v=1"]),
            **{f"train/{name}.jpg": grey for name, grey in zip("abcd", (10, 20, 30, 40), strict=True)},
        },
        "train",
        ["train"],
    ),
    "absolute paths with folders": (
        {
            "train.json": annotations(["/content/set/one/a.jpg", "/content/set/two/a.jpg"]),
            "images/one/a.jpg": 10,
            "images/two/a.jpg": 20,
        },
        "",
        ["train"],
    ),
    "names from macOS": (
        {
            "train.json": annotations(["é.jpg", "b.jpg"]),
            f"train/{unicodedata.normalize('NFD', 'é')}.jpg": 10,
            "train/b.jpg": 20,
        },
        "",
        ["train"],
    ),
}
"""Name -> files, a split, and all splits."""

YOLO: dict[str, bytes | int] = {
    "data.yaml": b"train: images/train\nnames: [dog]\nkpt_shape: [3, 3]\nkpt_names: {0: [nose, left_ear, right_ear]}\n",
    "images/train/a.jpg": 10,
    "labels/train/a.txt": b"0 0.5 0.5 0.5 0.5 0.4 0.4 2 0.5 0.5 1 0 0 0\n",
}
"""A data set in YOLO's format."""
