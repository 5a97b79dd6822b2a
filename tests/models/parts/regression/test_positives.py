"""Cells that answer for people, as rows."""

import pytest
import torch

from posefleet.data.structures import People
from posefleet.models.parts.ops.cells import Cells, pyramid_cells
from posefleet.models.parts.regression.positives import (
    PositivesConfig,
    assign,
    assigned_points,
    every_cell,
    gather_rows,
    known_cells,
    pad_for,
    positives_of,
    random_negatives,
    targets_at,
)

CPU = torch.device("cpu")
CELLS: Cells = pyramid_cells([(4, 4)], (8,), CPU)  # points 4, 12, 20, 28 in both directions; one level fits everybody
PAIR = People(
    torch.tensor([[[8.0, 8.0], [16.0, 16.0]], [[0.0, 0.0], [0.0, 0.0]]]),
    torch.tensor([[2, 2], [0, 0]], dtype=torch.uint8),
    torch.tensor([[0.0, 0.0, 24.0, 24.0], [18.0, 0.0, 32.0, 32.0]]),
    torch.tensor([64.0, 64.0]),
    torch.zeros(2, dtype=torch.bool),
)
"""A person of two keypoints round the cell (12, 12) whose annotated box holds nine cells, and one without keypoints."""


def found(config: PositivesConfig) -> tuple[torch.Tensor, list[int]]:
    """The assignment of one image, and its positive cells."""
    people = pad_for([PAIR], CPU, config)
    assignment = assign(CELLS, people, config)
    rows = positives_of(assignment, people, config)
    return assignment, rows.cell[rows.used].tolist()


def test_regions() -> None:
    assert found(PositivesConfig(region="center"))[1] == [5]
    assert found(PositivesConfig(region="pseudo"))[1] == [5]
    assert found(PositivesConfig(region="bbox"))[1] == [0, 1, 2, 4, 5, 6, 8, 9, 10]


def test_the_annotated_box_stands_for_the_pseudo_box_everywhere() -> None:
    people = pad_for([PAIR], CPU, PositivesConfig(region="bbox"))
    assert people.boxes[0].tolist() == [[0, 0, 24, 24], [0, 0, 0, 0]]
    assert people.unlabelled_boxes[0].tolist() == [[0, 0, 0, 0], [18, 0, 32, 32]]


def test_rows_outnumber_positives_only_for_centre_regions() -> None:
    for region, rows in (("center", 16), ("pseudo", 1)):
        config = PositivesConfig(region=region)
        people = pad_for([PAIR], CPU, config)
        assert len(positives_of(assign(CELLS, people, config), people, config).used) == rows


def test_truth_of_the_assigned_or_of_another_person() -> None:
    two = People.cat([PAIR, PAIR])
    two.keypoints[2] += 4
    config = PositivesConfig(region="pseudo")
    people = pad_for([two], CPU, config)
    rows = positives_of(assign(CELLS, people, config), people, config)
    targets = targets_at(rows, CELLS, people)
    assert rows.cell.tolist() == [5] and targets.points.tolist() == [[12, 12]] and targets.strides.tolist() == [8]
    assert targets.keypoints.tolist() == [[[8, 8], [16, 16]]] and targets.boxes.tolist() == [[8, 8, 16, 16]]
    other = targets_at(rows, CELLS, people, torch.tensor([2]))
    assert other.keypoints.tolist() == [[[12, 12], [20, 20]]] and other.points.tolist() == [[12, 12]]


def test_every_cell_is_used_where_there_are_people() -> None:
    config = PositivesConfig()
    people = pad_for([PAIR, PAIR[torch.tensor([1])]], CPU, config)
    rows = every_cell(assign(CELLS, people, config), people)
    assert rows.index.tolist() == list(range(32)) and rows.used.tolist() == [True] * 16 + [False] * 16
    assert rows.image.tolist() == [0] * 16 + [1] * 16 and rows.cell.tolist() == [*range(16), *range(16)]


def test_random_negatives_are_no_positives() -> None:
    assignment = torch.zeros(2, 16, dtype=torch.int64)
    assignment[1, 3] = -1
    torch.manual_seed(0)
    rows = random_negatives(assignment, 400)
    assert len(rows.used) == 800 and rows.image.tolist() == [0] * 400 + [1] * 400
    assert rows.used.any() and (rows.index[rows.used] == 16 + 3).all()
    assert rows.cell.unique().tolist() == list(range(16))


def test_predictions_at_rows() -> None:
    maps = torch.arange(64.0).view(2, 2, 4, 4)  # 2 images, 2 channels
    assignment = torch.full((2, 16), -1)
    assignment[1, 6] = 0
    config = PositivesConfig(region="pseudo")
    rows = positives_of(assignment, pad_for([PAIR, PAIR], CPU, config), config)
    assert gather_rows([maps], rows).tolist() == [[38, 54]]


def test_cells_of_people_without_keypoints_are_unknown_unless_positive() -> None:
    people = pad_for([PAIR], CPU, PositivesConfig())
    positive = torch.zeros(1, 16, dtype=torch.bool)
    positive[0, 2] = True
    known = known_cells(CELLS, people, positive)
    assert (~known[0]).nonzero()[:, 0].tolist() == [3, 6, 7, 10, 11, 14, 15]


def test_assigned_points_name_the_person() -> None:
    assignment, _ = found(PositivesConfig())
    ((points,),) = assigned_points(CELLS, assignment)
    assert (points.points.tolist(), points.person.tolist(), points.stride.tolist()) == ([[12, 12]], [0], [8])


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"center_half_side must be in \(0, 3\] strides, not 4"):
        PositivesConfig(center_half_side=4)
