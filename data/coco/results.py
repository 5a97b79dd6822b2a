"""Writes predicted poses as a COCO results file."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from posefleet.data.io.files import create
from posefleet.data.structures import Poses


def write_results(path: str, poses_by_image: Mapping[int, Poses] | Iterable[tuple[int, Poses]]) -> int:
    """Write predictions as COCO keypoint results, which pycocotools and the COCO server read.

    Args:
        path: Any fsspec path; ``*.json``.
        poses_by_image: Poses by image id, in pixels of the original images. Pairs are written one by one, so they may
            be more than fit into memory.

    Returns:
        How many poses were written.

    Raises:
        ValueError: A coordinate or score is not finite.
    """
    pairs = poses_by_image.items() if isinstance(poses_by_image, Mapping) else poses_by_image
    count = 0
    with create(path) as file:
        file.write(b"[")
        for image_id, poses in pairs:
            for result in _results(image_id, poses):
                file.write((", " * (count > 0) + json.dumps(result)).encode())
                count += 1
        file.write(b"]")
    return count


def _results(image_id: int, poses: Poses) -> Iterator[dict[str, Any]]:
    rows: list[list[float]] = torch.cat([poses.keypoints, poses.keypoint_scores[..., None]], 2).flatten(1).tolist()
    for keypoints, score in zip(rows, poses.scores.tolist(), strict=True):
        if not all(map(math.isfinite, [*keypoints, score])):
            raise ValueError(f"image {image_id}: a predicted pose is not finite: score {score}, {keypoints}")
        keypoints = [round(value, 3) for value in keypoints]
        yield {"image_id": image_id, "category_id": 1, "keypoints": keypoints, "score": score}
