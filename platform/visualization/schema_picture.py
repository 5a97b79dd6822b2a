"""Draws a keypoint schema: its skeleton, the number of every keypoint, and a list of the names."""

import cv2
import numpy as np
import torch

from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.structures import People
from posefleet.platform.visualization.drawing import INK, LEFT, PAPER, RIGHT, Colour, draw_people

SIDE = 720
"""Pixels of the side of the drawing."""
LINE, COLUMN = 18, 300
"""Pixels of a line and of a column of the list."""
MARGIN = 40


def draw_schema(schema: KeypointSchema, keypoints: np.ndarray, image: np.ndarray | None = None) -> np.ndarray:
    """Draw the keypoints of one person or thing, and name them.

    Args:
        schema: The keypoints.
        keypoints: (K, 2), pixels of ``image``, or any unit without an image; NaN: not drawn.
        image: (H, W, 3) uint8 RGB that shows it. None: a plain ground.

    Returns:
        (H, W, 3) uint8.
    """
    here = np.isfinite(keypoints).all(1)
    low, high = keypoints[here].min(0), keypoints[here].max(0)
    scale = (SIDE - 2 * MARGIN) / max(float((high - low).max()), 1e-6)
    move = np.array([SIDE / 2, SIDE / 2]) - scale * (low + high) / 2
    canvas: np.ndarray = np.full((SIDE, SIDE, 3), PAPER, np.uint8)
    if image is not None:
        matrix = np.array([[scale, 0, move[0]], [0, scale, move[1]]])
        canvas = cv2.warpAffine(image, matrix, (SIDE, SIDE), borderValue=PAPER)
    places = np.where(here[:, None], keypoints * scale + move, 0.0)
    figure = People(
        torch.from_numpy(places[None].astype(np.float32)),
        torch.from_numpy(np.where(here, 2, 0)[None].astype(np.uint8)),
        torch.full((1, 4), -99.0),  # the box lies outside the picture
        torch.ones(1),
        torch.zeros(1, dtype=torch.bool),
    )
    canvas = draw_people(canvas, figure, schema)
    for index in np.flatnonzero(here):
        x, y = places[index]
        _text(canvas, str(index), (int(x) + 6, int(y) - 6), INK)
    return np.concatenate([canvas, _names(schema)], 1)


def _names(schema: KeypointSchema) -> np.ndarray:
    """The list of the keypoints, as high as the drawing."""
    rows = (SIDE - 2 * LINE) // LINE
    columns = -(-len(schema) // rows)
    sheet = np.full((SIDE, columns * COLUMN, 3), PAPER, np.uint8)
    for index, (name, side) in enumerate(zip(schema.keypoints, schema.sides, strict=True)):
        place = (12 + index // rows * COLUMN, LINE * (index % rows + 2))
        _text(sheet, f"{index:3d}  {name[:28]}", place, {"left": LEFT, "right": RIGHT}.get(side, INK))
    return sheet


def _text(canvas: np.ndarray, text: str, place: tuple[int, int], colour: Colour) -> None:
    plain = text.encode("ascii", "replace").decode()  # OpenCV's letters
    x, y = place
    # An outline of the same thickness: OpenCV 5 spaces thick letters more widely than thin ones.
    for dx, dy, ink in (*((dx, dy, (0, 0, 0)) for dx in (-1, 0, 1) for dy in (-1, 0, 1)), (0, 0, colour)):
        cv2.putText(canvas, plain, (x + dx, y + dy), cv2.FONT_HERSHEY_SIMPLEX, 0.45, ink, 1, cv2.LINE_AA)
