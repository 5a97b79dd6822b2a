"""Writes the suspects of a data set as one HTML page: every doubtful label beside what the model sees there."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import cv2
import numpy as np
import torch

from posefleet.data.coco.annotations import people_of
from posefleet.data.coco.records import Record
from posefleet.data.images import encode_jpeg
from posefleet.data.loading.source import SampleSource
from posefleet.data.review.suspects import KINDS, Suspect
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.structures import Poses
from posefleet.platform.visualization.drawing import draw_people, draw_poses, mark_points
from posefleet.platform.visualization.html import environment

SIDE = 320
"""Long side of a picture, pixels."""
ROOM = 0.3
"""Room around the person, in sides of the box."""
QUALITY = 82
"""JPEG quality; a page holds many pictures."""


Place = tuple[SampleSource, int, Record]
"""A part of the data set, the image's position in it, and the image's record."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A suspect with its pictures."""

    rank: int
    suspect: Suspect
    file_name: str
    labels: bytes
    """JPEG of the labels; rings are around the doubtful keypoints."""
    prediction: bytes
    """JPEG of the pose that says so."""


def draw(
    suspects: Sequence[Suspect],
    places: Mapping[int, Place],
    poses: Mapping[int, Poses],
    schema: KeypointSchema,
) -> Iterator[Shown]:
    """The suspects with their pictures.

    Args:
        suspects: In the order of the page.
        places: Where each image is, by id.
        poses: By image id.
        schema: The keypoints.

    Raises:
        DataError: An image cannot be read.
    """
    for rank, suspect in enumerate(suspects, start=1):
        part, row, record = places[suspect.image_id]
        (sample,) = part.stored([row])
        labels, prediction = _pictures(sample.image, record, suspect, poses[suspect.image_id], schema)
        yield Shown(rank, suspect, record["file_name"], encode_jpeg(labels, QUALITY), encode_jpeg(prediction, QUALITY))


def _pictures(
    image: np.ndarray, record: Record, suspect: Suspect, poses: Poses, schema: KeypointSchema
) -> tuple[np.ndarray, np.ndarray]:
    people = people_of(record["people"], schema)
    own = [row for row, person in enumerate(record["people"]) if person["id"] == suspect.annotation_id]
    pose = poses[[suspect.pose]]
    boxes = np.concatenate([people.boxes[own].numpy(), pose.boxes.numpy()])
    left, top, right, bottom = _with_room(boxes, image.shape[1], image.shape[0])
    zoom = SIDE / max(right - left, bottom - top)
    size = (max(1, round((right - left) * zoom)), max(1, round((bottom - top) * zoom)))
    how = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
    # Labels move into the view, so that their lines have the same width in every picture.
    view = cv2.resize(image[top:bottom, left:right], size, interpolation=how)
    corner = torch.tensor([left, top], dtype=torch.float32)
    moved = replace(
        people, keypoints=(people.keypoints - corner) * zoom, boxes=(people.boxes - corner.repeat(2)) * zoom
    )
    doubtful = [moved.keypoints[row, schema.keypoints.index(name)] for row in own for name in suspect.keypoints]
    labels = mark_points(draw_people(view, moved, schema), [point.numpy() for point in doubtful])
    prediction = replace(pose, keypoints=(pose.keypoints - corner) * zoom)
    return labels, draw_poses(view, prediction, schema)


def _with_room(boxes: np.ndarray, width: int, height: int) -> tuple[int, int, int, int]:
    """The part (left, top, right, bottom) of an image around boxes (N, 4) xyxy; at least a pixel."""
    low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    room = ROOM * max((high - low).max(), 1.0)
    left, top = (low - room).clip(0, [width - 1, height - 1]).astype(int).tolist()
    right, bottom = np.ceil(high + room).clip([left + 1, top + 1], [width, height]).astype(int).tolist()
    return left, top, right, bottom


def render(shown: Sequence[Shown], suspects: Sequence[Suspect], *, images: int, about: str) -> str:
    """The page as text.

    Args:
        shown: The suspects that the page shows, in order.
        suspects: All, for the counts.
        images: Images that were looked at.
        about: A sentence on where the predictions come from.
    """
    counts = Counter(suspect.kind for suspect in suspects)
    text: str = (
        environment(Path(__file__).parent / "pages")
        .get_template("review.html")
        .render(
            shown=shown,
            kinds={kind: (meaning, counts[kind]) for kind, meaning in KINDS.items()},
            total=len(suspects),
            images=images,
            about=about,
            written=f"{datetime.now():%Y-%m-%d %H:%M}",
        )
    )
    return text
