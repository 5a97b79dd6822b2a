"""A small COCO data set that tests damage on purpose."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from posefleet.data.coco.source import Source
from posefleet.data.schemas.shipped import COCO17

WIDTH, HEIGHT = 64, 48

FRONTAL = (
    (30, 6), (32, 4), (28, 4), (34, 5), (26, 5),
    (38, 12), (22, 12), (42, 20), (18, 20), (43, 27), (17, 27),
    (34, 26), (26, 26), (34, 34), (26, 34), (34, 42), (26, 42),
)  # fmt: skip
"""A standing person who faces the camera: left is at the right in the image."""


class TinyCoco:
    """Six images of noise with one standing person each; change ``content`` or the files, then ``save``."""

    split = "train2017"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / self.split
        self.folder.mkdir(parents=True)
        (root / "annotations").mkdir()
        self.content: dict[str, Any] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 1, "name": "person", "keypoints": list(COCO17.keypoints)}],
        }
        for number in range(1, 7):
            self.add_image(number, noise(number))
            self.add_person(number, shift=(number, number % 3))
        self.save()

    @property
    def images(self) -> list[dict[str, Any]]:
        return self.content["images"]

    @property
    def people(self) -> list[dict[str, Any]]:
        return self.content["annotations"]

    @property
    def annotation_file(self) -> Path:
        return self.root / "annotations" / f"person_keypoints_{self.split}.json"

    @property
    def source(self) -> Source:
        return Source(str(self.annotation_file), str(self.folder), self.split)

    def add_image(
        self, image_id: int, data: bytes, size: tuple[int, int] = (WIDTH, HEIGHT), suffix: str = "jpg"
    ) -> None:
        name = f"{image_id:012d}.{suffix}"
        (self.folder / name).write_bytes(data)
        self.images.append({"id": image_id, "file_name": name, "width": size[0], "height": size[1]})

    def add_person(self, image_id: int, shift: tuple[int, int] = (0, 0), **changes: Any) -> None:
        keypoints = [value for x, y in FRONTAL for value in (x + shift[0], y + shift[1], 2)]
        person = {
            "id": 100 + len(self.people),
            "image_id": image_id,
            "category_id": 1,
            "bbox": [16.0 + shift[0], 3.0 + shift[1], 28.0, 40.0],
            "area": 700.0,
            "iscrowd": 0,
            "keypoints": keypoints,
            "num_keypoints": 17,
        }
        self.people.append({**person, **changes})

    def save(self) -> "TinyCoco":
        self.annotation_file.write_text(json.dumps(self.content))
        return self


def noise(seed: int, size: tuple[int, int] = (WIDTH, HEIGHT), mode: str = "RGB", **save: Any) -> bytes:
    """JPEG bytes of noise, which compress badly: about 3 KB for 64 x 48."""
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.frombytes(mode, size, pixels.tobytes()).save(buffer, "JPEG", **save)
    return buffer.getvalue()


@pytest.fixture
def tiny_coco(tmp_path: Path) -> TinyCoco:
    return TinyCoco(tmp_path / "coco")


@pytest.fixture
def noise_jpeg() -> Callable[..., bytes]:
    return noise
