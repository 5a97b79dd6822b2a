"""Places the score labels of poses where they cover neither heads nor each other, as labels.js of the page does."""

import math
from collections.abc import Sequence

import numpy as np

from posefleet.data.schemas.schema import KeypointSchema

MARGIN = 5.0
"""Pixels between a pose and its label."""
HEAD = 2.0
"""Half the side of the square that a head covers, in distances from the middle of its keypoints to the outermost."""
SMALLEST_HEAD = 0.07
"""Smallest half side of that square, in diagonals of the whole pose: one eye says nothing of the size of a head."""
HEADS_WEIGHT = 3.0
"""A covered pixel of a head costs as much as so many of another label."""


def head_box(keypoints: np.ndarray, shown: np.ndarray, schema: KeypointSchema) -> np.ndarray | None:
    """Square around a head.

    Args:
        keypoints: (K, 2), pixels.
        shown: (K,) which of them are drawn.
        schema: Its group ``head``, or ``face``, are the keypoints of a head.

    Returns:
        (4,) x1, y1, x2, y2; None if no keypoint of a head is shown.
    """
    rows = [row for row in schema.group("head") or schema.group("face") if shown[row]]
    if not rows:
        return None
    points = keypoints[rows]
    middle = (points.min(0) + points.max(0)) / 2
    reach = float(np.linalg.norm(points - middle, axis=1).max())
    half = max(HEAD * reach, SMALLEST_HEAD * math.hypot(*np.ptp(keypoints[shown], axis=0)))
    return np.concatenate([middle - half, middle + half])


def whole_box(keypoints: np.ndarray, head: np.ndarray | None) -> np.ndarray:
    """(4,) box x1, y1, x2, y2 around the (N, 2) keypoints that are drawn and the head, if it is known."""
    corners = keypoints if head is None else np.concatenate([keypoints, head.reshape(2, 2)])
    return np.concatenate([corners.min(0), corners.max(0)])


def place_labels(
    poses: Sequence[np.ndarray],
    sizes: Sequence[tuple[float, float]],
    heads: Sequence[np.ndarray],
    canvas: tuple[float, float],
) -> list[tuple[float, float]]:
    """Upper left corners of the labels, one for each pose; the first pose chooses first.

    Args:
        poses: (4,) boxes x1, y1, x2, y2 of what is drawn of each pose and of its head, pixels.
        sizes: (width, height) of each label.
        heads: Boxes of all heads, which labels leave free.
        canvas: (width, height) of the image, which labels do not leave.
    """
    placed = list[np.ndarray]()
    for box, (width, height) in zip(poses, sizes, strict=True):
        x1, y1, x2, y2 = (float(value) for value in box)
        middle_x, middle_y = (x1 + x2 - width) / 2, (y1 + y2 - height) / 2
        above, below = y1 - MARGIN - height, y2 + MARGIN
        left, right = x1 - MARGIN - width, x2 + MARGIN
        corners = np.array(
            [
                *((middle_x, above), (x1, above), (x2 - width, above)),
                *((right, y1), (left, y1), (right, middle_y), (left, middle_y)),
                *((middle_x, below), (x1, below), (x2 - width, below)),
                *((right, y2 - height), (left, y2 - height), (middle_x, middle_y)),
            ]
        )
        corners = np.clip(corners, 0.0, np.maximum(np.array(canvas) - (width, height), 0.0))
        labels = np.concatenate([corners, corners + np.array([width, height])], axis=1)
        costs = HEADS_WEIGHT * _overlaps(labels, heads) + _overlaps(labels, placed)
        placed.append(labels[int(np.argmin(costs))])
    return [(float(label[0]), float(label[1])) for label in placed]


def _overlaps(labels: np.ndarray, boxes: Sequence[np.ndarray]) -> np.ndarray:
    """(L,) pixels of each label (L, 4) that the boxes cover."""
    if not len(boxes):
        return np.zeros(len(labels))
    others = np.stack(list(boxes))[None]  # (1, B, 4)
    low, high = np.maximum(labels[:, None, :2], others[..., :2]), np.minimum(labels[:, None, 2:], others[..., 2:])
    covered: np.ndarray = np.prod(np.clip(high - low, 0.0, None), axis=-1).sum(-1)
    return covered
