"""Which cells answer for whom where every positive cell predicts a network of its own (see ``instance_head``).

Nothing here depends on predictions, so it is settled before the network runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from posefleet.data.structures import People
from posefleet.models.parts.ops.assign import PaddedPeople, assign_people, pad_people, thin_out, unlabelled_cells
from posefleet.models.parts.ops.cells import Cells


@dataclass(frozen=True, kw_only=True, slots=True)
class AssignConfig:
    """Which cells answer for whom."""

    center_half_side: float = 1.5
    """Half the side of the square round a person's centre, strides, in (0, 3]."""
    min_side: float = 1.0
    """Pixels of the input image: people whose pseudo box is thinner count as unlabelled."""
    unlabelled: Literal["ignore", "negative", "weak_positive"] = "ignore"
    """Cells in the box of a person without keypoints: no loss, background, or positives of low quality at its centre.
    Crowds are never positive."""
    max_positives: int = 0
    """Positive cells of one image that train a network, evenly spread; 0: all. Bounds time, not memory."""

    def __post_init__(self) -> None:
        if not 0 < self.center_half_side <= 3:
            raise ValueError(f"center_half_side must be in (0, 3] strides, not {self.center_half_side}")
        if self.min_side < 0 or self.max_positives < 0:
            raise ValueError(
                f"min_side and max_positives must not be negative, but are {self.min_side} and {self.max_positives}"
            )


class Assigned(NamedTuple):
    """Which of P cells of B images answer for whom."""

    cells: Cells
    people: PaddedPeople
    """People who are too thin are not ``valid``."""
    person: Tensor
    """(B, P) int64, -1 for nobody."""
    trained: Tensor
    """(B, P) int64, the same for cells that train a network, else -1."""
    trained_count: Callable[[], int]
    """Number of these cells; waits for the device."""


@torch.no_grad()
def assign_instances(
    cells: Cells, people: Sequence[People], config: AssignConfig, *, annotated_boxes: bool = False
) -> Assigned:
    """Who answers for whom.

    Args:
        cells: P cells; everything goes to their device.
        people: Of each image.
        annotated_boxes: People are as large as their annotated box instead of their pseudo box.
    """
    padded = pad_people(people, cells.points.device)
    thinnest = (padded.boxes[..., 2:] - padded.boxes[..., :2]).amin(-1)
    padded = replace(padded, valid=padded.valid & (thinnest >= config.min_side))
    answering = replace(padded, boxes=padded.annotated_boxes) if annotated_boxes else padded
    if config.unlabelled == "weak_positive":
        weak = padded.counted & ~padded.valid & (padded.annotated_boxes[..., 2] > padded.annotated_boxes[..., 0])
        boxes = padded.annotated_boxes.where(weak[..., None], answering.boxes)
        answering = replace(answering, boxes=boxes, valid=padded.valid | weak)
    person = assign_people(cells, answering, center_half_side=config.center_half_side)
    trained = thin_out(person, config.max_positives) if config.max_positives else person
    return Assigned(cells, padded, person, trained, send_to_host((trained >= 0).sum()))


def outside_unlabelled(cells: Cells, people: PaddedPeople, config: AssignConfig) -> Tensor:
    """(B, P) bool, False for cells about whose people nothing is said: positive ones in such a box too, unlike
    ``positives.known_cells``."""
    unknown = unlabelled_cells(cells, people)
    return ~unknown if config.unlabelled == "ignore" else torch.ones_like(unknown)


def send_to_host(number: Tensor) -> Callable[[], int]:
    """Start to copy a 0-dim tensor; what is returned waits for the copy and gives the number.

    The wait ends once the device has got as far as this call. Ask before the network and read after it has been
    queued, and the device never runs dry.
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
