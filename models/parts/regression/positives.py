"""Positive cells of a pyramid as rows, and their targets: the person to whom each cell is assigned.

Letters: B images, M people of an image (padded), P cells of all levels, N rows, K keypoints, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from posefleet.data.structures import People, TargetPoints
from posefleet.models.parts.ops.assign import (
    LevelRule,
    PaddedPeople,
    Positives,
    assign_people,
    ignored_cells,
    pad_people,
    positive_cells,
    positives_bound,
    rows_of_cells,
)
from posefleet.models.parts.ops.cells import Cells, flatten_levels


@dataclass(frozen=True, kw_only=True, slots=True)
class PositivesConfig:
    """Which cells are assigned to a person."""

    level_rule: LevelRule = "fcos"
    """How the size of a person chooses pyramid levels: ``fcos`` by ranges, so that a person may have several levels;
    ``reppoints`` one level for each person."""
    region: Literal["center", "pseudo", "bbox"] = "center"
    """Region of a person's cells: a square around the centre, the whole pseudo box (tight around the labelled
    keypoints), or the whole annotated box, which then replaces the pseudo box in every rule. Whole boxes give far more
    positives, and training waits for the device to count them."""
    center_half_side: float = 1.5
    """Half the side of the centre region, strides, in (0, 3], usually 0.5..3. Raised, a person gets more cells, also
    less central ones; a literal reading of the papers' text gives 0.75."""
    force_one: bool = False
    """Give a person without any cell the nearest cell of a suitable level, so that small people train, too."""

    def __post_init__(self) -> None:
        if not 0 < self.center_half_side <= 3:
            raise ValueError(f"center_half_side must be in (0, 3] strides, not {self.center_half_side}")


@dataclass(frozen=True, slots=True)
class CellTargets:
    """The assigned person of each of N rows, and the position of its cell."""

    keypoints: Tensor
    """(N, K, 2) xy, pixels."""
    labelled: Tensor
    """(N, K) bool."""
    areas: Tensor
    """(N,) square pixels."""
    boxes: Tensor
    """(N, 4) xyxy pixels, the box of the person that chose the cells."""
    points: Tensor
    """(N, 2) xy of the cell, pixels."""
    strides: Tensor
    """(N,) pixels per cell."""


def pad_for(people: Sequence[People], device: torch.device, config: PositivesConfig) -> PaddedPeople:
    """Pack the people of all images into padded tensors, with the boxes that ``config.region`` needs."""
    return pad_people(people, device, boxes="annotated" if config.region == "bbox" else "pseudo")


def assign(cells: Cells, people: PaddedPeople, config: PositivesConfig) -> Tensor:
    """The person assigned to every cell: (B, P) int64 in [-1, M); -1 for none."""
    return assign_people(
        cells,
        people,
        level_rule=config.level_rule,
        region="center" if config.region == "center" else "pseudo",
        center_half_side=config.center_half_side,
        force_one=config.force_one,
    )


def positives_of(assignment: Tensor, people: PaddedPeople, config: PositivesConfig) -> Positives:
    """The positive cells of an assignment (B, P) as rows.

    For centre regions the number of rows is a bound computed on the host, so nothing waits for the device. Whole boxes
    have no useful bound: there the exact number is read from the device.
    """
    if config.region != "center":
        return positive_cells(assignment, int((assignment >= 0).sum()))
    bound = positives_bound(
        assignment.numel(), people.count, level_rule=config.level_rule, center_half_side=config.center_half_side
    )
    return positive_cells(assignment, bound)


def every_cell(assignment: Tensor, people: PaddedPeople) -> Positives:
    """All cells of an assignment (B, P) as rows; ``used`` in images that have people with keypoints."""
    index = torch.arange(assignment.numel(), device=assignment.device)
    return rows_of_cells(assignment, index, people.valid.any(1).repeat_interleave(assignment.shape[1]))


def random_negatives(assignment: Tensor, count: int) -> Positives:
    """``count`` random cells of each image as rows; ``used`` where the cell is not positive."""
    images, cells = assignment.shape
    start = torch.arange(images, device=assignment.device)[:, None] * cells
    index = (start + torch.randint(cells, (images, count), device=assignment.device)).flatten()
    return rows_of_cells(assignment, index, assignment.flatten()[index] < 0)


def gather_rows(levels: Sequence[Tensor], rows: Positives) -> Tensor:
    """Maps (B, C, h, w) of all levels -> (N, C) float32 at the rows' cells."""
    return flatten_levels(levels).flatten(0, 1).index_select(0, rows.index)


def targets_at(rows: Positives, cells: Cells, people: PaddedPeople, person: Tensor | None = None) -> CellTargets:
    """Targets of every row.

    Args:
        person: (N,) int64 in [0, M), the person of each row; default: the person to whom the cell is assigned.
    """
    who = rows.image, rows.person if person is None else person
    return CellTargets(
        people.keypoints[who],
        people.labelled[who],
        people.areas[who],
        people.boxes[who],
        cells.points[rows.cell],
        cells.strides[rows.cell],
    )


def known_cells(cells: Cells, people: PaddedPeople, positive: Tensor) -> Tensor:
    """(B, P) bool, True for ``positive`` (B, P) cells and for all cells outside crowds and people without keypoints:
    cells whose class is known."""
    return ~ignored_cells(cells.points, people, positive) | positive


def assigned_points(cells: Cells, assignment: Tensor) -> list[list[TargetPoints]]:
    """The positive cells of each image of an assignment (B, P), to be drawn."""
    result = []
    for row in assignment:
        chosen = row >= 0
        result.append([TargetPoints("assigned cells", cells.points[chosen], row[chosen], cells.strides[chosen])])
    return result
