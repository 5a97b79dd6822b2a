"""Assignment of cells to people for InsPose, where every positive cell predicts a network of its own (see ``head``).

Nothing here depends on predictions, so it runs before the network.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from posefleet.data.structures import People
from posefleet.models.parts.ops.assign import PaddedPeople, assign_people, ignored_cells, pad_people, thin_out
from posefleet.models.parts.ops.cells import Cells


@dataclass(frozen=True, kw_only=True, slots=True)
class AssignConfig:
    """Which cells are assigned to which people."""

    center_half_side: float = 1.5
    """Half the side of the square around a person's centre whose cells are positive, strides, in (0, 3]. Raised, a
    person gets more cells, and training costs more."""
    min_side: float = 1.0
    """Pixels of the input image: people whose pseudo box is thinner train nothing, and ``unlabelled`` says what the
    cells in their box learn. Of a schema with a single keypoint it is the annotated box. Raised, more small people
    are left out."""
    unlabelled: Literal["ignore", "negative", "weak_positive"] = "ignore"
    """Cells of a person without keypoints: no loss; or negatives; or positives of low quality at the centre of the box.
    Crowds and people thinner than ``min_side`` are never positive."""
    max_positives: int = 0
    """Largest number of positive cells of one image that train a network, evenly spread; 0: all. It limits time, not
    memory."""

    def __post_init__(self) -> None:
        if not 0 < self.center_half_side <= 3:
            raise ValueError(f"center_half_side must be in (0, 3] strides, not {self.center_half_side}")
        if self.min_side < 0 or self.max_positives < 0:
            raise ValueError(
                f"min_side and max_positives must not be negative, but are {self.min_side} and {self.max_positives}"
            )


class Assigned(NamedTuple):
    """The people to whom P cells of B images are assigned."""

    cells: Cells
    people: PaddedPeople
    """People of the images; those who are too thin are not ``valid`` and have no labelled keypoints."""
    person: Tensor
    """(B, P) int64, the person of each cell; -1 for none."""
    trained: Tensor
    """(B, P) int64, the person of each cell that trains a network; -1 for other cells."""
    trained_count: Callable[[], int]
    """Returns the number of cells that train a network; waits for the device."""


@torch.no_grad()
def assign_instances(
    cells: Cells, people: Sequence[People], config: AssignConfig, *, annotated_boxes: bool = False
) -> Assigned:
    """Assign cells to people.

    Args:
        cells: P cells; everything is computed on their device.
        people: People of each image.
        annotated_boxes: Choose cells by the annotated box of a person instead of the pseudo box.
    """
    padded = pad_people(people, cells.points.device)
    weak = padded.counted & ~padded.valid & (_sides(padded.annotated_boxes) >= config.min_side)
    valid = padded.valid & (_sides(padded.boxes) >= config.min_side)
    padded = replace(padded, valid=valid, labelled=padded.labelled & valid[..., None])
    answering = replace(padded, boxes=padded.annotated_boxes) if annotated_boxes else padded
    if config.unlabelled == "weak_positive":
        boxes = padded.annotated_boxes.where(weak[..., None], answering.boxes)
        answering = replace(answering, boxes=boxes, valid=padded.valid | weak)
    person = assign_people(cells, answering, center_half_side=config.center_half_side)
    trained = thin_out(person, config.max_positives) if config.max_positives else person
    return Assigned(cells, padded, person, trained, send_to_host((trained >= 0).sum()))


def _sides(boxes: Tensor) -> Tensor:
    """The shorter side (...) of boxes (..., 4) xyxy."""
    return (boxes[..., 2:] - boxes[..., :2]).amin(-1)


def outside_unlabelled(cells: Cells, people: PaddedPeople, config: AssignConfig, drawn: Tensor) -> Tensor:
    """(B, P) bool, False for cells in a person without keypoints or in a crowd, if ``config.unlabelled`` is ``ignore``.

    Args:
        drawn: (B, P) bool, cells of labelled people, which no box hides; but segmentations do, see ``ignored_cells``.
    """
    return ~ignored_cells(cells.points, people, drawn) if config.unlabelled == "ignore" else torch.ones_like(drawn)


def send_to_host(number: Tensor) -> Callable[[], int]:
    """Start to copy a 0-dim tensor to the host. The returned function waits for the copy and returns the number.

    The wait ends when the device has reached this call. Call it before the network and read the number after the
    network is queued, so that the device never idles.
    """
    if number.device.type == "cpu":
        return lambda: int(number)
    copy = number.to("cpu", non_blocking=True)
    arrived = torch.Event(number.device)
    arrived.record()

    def read() -> int:
        arrived.synchronize()
        return int(copy)

    return read
