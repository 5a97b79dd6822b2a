"""The cells of a pyramid that answer for people, as rows, and what is true there.

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
    pad_people,
    positive_cells,
    positives_bound,
    rows_of_cells,
    unlabelled_cells,
)
from posefleet.models.parts.ops.cells import Cells, flatten_levels


@dataclass(frozen=True, kw_only=True, slots=True)
class PositivesConfig:
    """Which cells answer for a person."""

    level_rule: LevelRule = "fcos"
    """How the size of a person chooses the pyramid level."""
    region: Literal["center", "pseudo", "bbox"] = "center"
    """Cells near the centre of a person, or all cells of the pseudo box, or all cells of the annotated box, which
    then stands for the pseudo box in every rule."""
    center_half_side: float = 1.5
    """Half the side of the centre region, strides, 0.5..3; a literal reading of the papers' text gives 0.75."""
    force_one: bool = False
    """Give a person without any cell the nearest one."""

    def __post_init__(self) -> None:
        if not 0 < self.center_half_side <= 3:
            raise ValueError(f"center_half_side must be in (0, 3] strides, not {self.center_half_side}")


@dataclass(frozen=True, slots=True)
class CellTargets:
    """The person of each of N rows, and where the cell is."""

    keypoints: Tensor
    """(N, K, 2) xy, pixels."""
    labelled: Tensor
    """(N, K) bool."""
    areas: Tensor
    """(N,) square pixels."""
    boxes: Tensor
    """(N, 4) xyxy pixels, the box by which cells are chosen."""
    points: Tensor
    """(N, 2) xy of the cell, pixels."""
    strides: Tensor
    """(N,) pixels per cell."""


def pad_for(people: Sequence[People], device: torch.device, config: PositivesConfig) -> PaddedPeople:
    """Pack the people of all images, with the boxes that ``config`` goes by."""
    return pad_people(people, device, boxes="annotated" if config.region == "bbox" else "pseudo")


def assign(cells: Cells, people: PaddedPeople, config: PositivesConfig) -> Tensor:
    """The person of every cell: (B, P) int64 in [-1, M); -1 for nobody."""
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

    The number of rows is bounded on the host, so this does not wait for the device, but where whole boxes are
    positive: as many cells as the people are large, and the exact number is worth the wait.
    """
    if config.region != "center":
        return positive_cells(assignment, int((assignment >= 0).sum()))
    bound = positives_bound(
        assignment.numel(), people.count, level_rule=config.level_rule, center_half_side=config.center_half_side
    )
    return positive_cells(assignment, bound)


def every_cell(assignment: Tensor, people: PaddedPeople) -> Positives:
    """All cells of an assignment (B, P) as rows, used where the image has keypoint people."""
    index = torch.arange(assignment.numel(), device=assignment.device)
    return rows_of_cells(assignment, index, people.valid.any(1).repeat_interleave(assignment.shape[1]))


def random_negatives(assignment: Tensor, count: int) -> Positives:
    """``count`` random cells of each image as rows, used where they are not positive."""
    images, cells = assignment.shape
    start = torch.arange(images, device=assignment.device)[:, None] * cells
    index = (start + torch.randint(cells, (images, count), device=assignment.device)).flatten()
    return rows_of_cells(assignment, index, assignment.flatten()[index] < 0)


def gather_rows(levels: Sequence[Tensor], rows: Positives) -> Tensor:
    """Maps (B, C, h, w) of all levels -> (N, C) float32 at the rows' cells."""
    return flatten_levels(levels).flatten(0, 1).index_select(0, rows.index)


def truth_at(rows: Positives, cells: Cells, people: PaddedPeople, person: Tensor | None = None) -> CellTargets:
    """What is true at every row.

    Args:
        person: (N,) int64 in [0, M), instead of the persons to whom the cells are assigned.
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
    """(B, P) bool: ``positive`` (B, P) cells and all outside the boxes of people without keypoints."""
    return ~unlabelled_cells(cells, people) | positive


def assigned_points(cells: Cells, assignment: Tensor) -> list[list[TargetPoints]]:
    """For each image of an assignment (B, P), its positive cells, for drawing."""
    result = []
    for row in assignment:
        chosen = row >= 0
        result.append([TargetPoints("assigned cells", cells.points[chosen], row[chosen], cells.strides[chosen])])
    return result
