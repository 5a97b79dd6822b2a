"""Which cell answers for which person: fixtures with hand-computed cells."""

from dataclasses import replace

import pytest
import torch

from posefleet.data.structures import People
from posefleet.models.parts.ops.assign import (
    assign_people,
    ignored_cells,
    pad_people,
    positive_cells,
    positives_bound,
    pseudo_boxes,
    reppoints_level,
    thin_out,
)
from posefleet.models.parts.ops.cells import Cells, level_sizes, pyramid_cells

STRIDES = (8, 16, 32, 64, 128)
CPU = torch.device("cpu")


def grid(size: int = 512) -> Cells:
    return pyramid_cells(level_sizes(size, size, STRIDES), STRIDES, CPU)


def people(*boxes: tuple[float, float, float, float]) -> People:
    """People whose pseudo boxes are ``boxes``: two labelled keypoints at the corners, one unlabelled."""
    corners = torch.tensor(boxes).view(-1, 2, 2)
    keypoints = torch.cat([corners, torch.zeros(len(boxes), 1, 2)], 1)
    visibility = torch.tensor([[2, 1, 0]], dtype=torch.uint8).expand(len(boxes), -1)
    flat = corners.flatten(1)
    return People(keypoints, visibility, flat, torch.ones(len(boxes)), torch.zeros(len(boxes), dtype=torch.bool))


def found(boxes: tuple[float, float, float, float], **rules: object) -> dict[int, list[tuple[int, int]]]:
    """Positive points of one person, by level (3 is P3)."""
    cells = grid()
    assignment = assign_people(cells, pad_people([people(boxes)], CPU), **rules)[0]
    result: dict[int, list[tuple[int, int]]] = {}
    for i in (assignment >= 0).nonzero()[:, 0].tolist():
        x, y = cells.points[i].int().tolist()
        result.setdefault(int(cells.levels[i]) + 3, []).append((x, y))
    return result


def product(xs: list[int], ys: list[int]) -> list[tuple[int, int]]:
    return [(x, y) for y in ys for x in xs]


def test_a_person_on_two_levels() -> None:
    last_four = [(144, 208), (176, 208), (144, 240), (176, 240)]
    wide = {4: [(152, 216), (168, 216)], 5: [(144, 176), (176, 176), *last_four]}
    assert found((100, 100, 220, 340)) == wide
    assert found((100, 100, 220, 340), center_half_side=0.75) == {4: wide[4], 5: last_four}
    assert found((100, 100, 220, 340), level_rule="reppoints", center_half_side=0.75) == {5: last_four}


def test_people_on_one_level() -> None:
    assert found((100, 100, 160, 150)) == {3: product([124, 132, 140], [116, 124, 132])}
    assert found((100, 100, 230, 230)) == {4: product([152, 168, 184], [152, 168, 184])}


def test_a_small_person_without_a_cell_gets_one_by_force() -> None:
    assert found((101, 101, 105, 106)) == {}
    assert found((101, 101, 105, 106), force_one=True) == {3: [(100, 100)]}
    assert found((101, 101, 121, 131), center_half_side=0.75) == {3: [(108, 116), (116, 116)]}


def test_the_whole_pseudo_box_can_be_the_region() -> None:
    assert found((100, 100, 160, 150), region="pseudo") == {
        3: product([108, 116, 124, 132, 140, 148, 156], [108, 116, 124, 132, 140, 148])
    }


@pytest.mark.parametrize(
    ("width", "height", "level"),
    [(40, 80, 3), (63, 63, 3), (64, 64, 4), (100, 200, 5), (300, 600, 6), (500, 900, 7), (20, 30, 3), (0, 0, 3)],
)
def test_reppoints_levels(width: int, height: int, level: int) -> None:
    assert reppoints_level(torch.tensor([0.0, 0.0, width, height])).item() == level - 3


def test_the_smaller_person_wins_shared_cells_and_ties_go_to_the_first() -> None:
    wide, narrow = (100, 100, 300, 300), (130, 100, 270, 300)
    alone = [assign_people(grid(), pad_people([people(box)], CPU)) == 0 for box in (wide, narrow)]
    both = assign_people(grid(), pad_people([people(wide, narrow, narrow)], CPU))
    shared = alone[0] & alone[1]
    assert shared.any()
    assert (both[shared] == 1).all()
    assert (both[alone[0] & ~alone[1]] == 0).all()


def test_images_of_a_batch_are_assigned_like_alone() -> None:
    cells = grid()
    parts = [people((100, 100, 160, 150), (300, 300, 420, 460)), people((1, 1, 1, 1))[:0], people((9, 9, 90, 99))]
    together = assign_people(cells, pad_people(parts, CPU))
    for row, part in zip(together, parts, strict=True):
        torch.testing.assert_close(row, assign_people(cells, pad_people([part], CPU))[0])
    assert (together[1] == -1).all()


def test_crowds_and_people_without_keypoints_get_no_cell() -> None:
    everyone = people((100, 100, 160, 150), (100, 100, 160, 150), (300, 300, 380, 380))
    everyone = People(
        everyone.keypoints,
        torch.tensor([[2, 2, 0], [0, 0, 0], [2, 2, 0]], dtype=torch.uint8),
        everyone.boxes,
        everyone.areas,
        torch.tensor([False, False, True]),
    )
    padded = pad_people([everyone], CPU)
    assert padded.valid.tolist() == [[True, False, False]]
    assert set(assign_people(grid(), padded).unique().tolist()) == {-1, 0}
    ignored = ignored_cells(grid().points, padded, torch.zeros(1, len(grid()), dtype=torch.bool))[0]
    points = grid().points[ignored]
    assert ((points > 100) & (points < 160)).all(1).any() and (points > 300).all(1).any()
    assert (points > 100).all() and (points < 380).all()


def crowds(*boxes: tuple[float, float, float, float], outlined: tuple[bool, ...], mask: torch.Tensor | None) -> People:
    group = people(*boxes)
    return replace(group, crowd=torch.ones(len(boxes), dtype=torch.bool), outlined=torch.tensor(outlined), mask=mask)


def test_a_segmentation_is_ignored_instead_of_its_box_and_hides_drawn_cells_too() -> None:
    """Of three crowds one has no segmentation; a labelled person is drawn in the left halves of all boxes."""
    mask = torch.zeros(128, 128, dtype=torch.bool)
    mask[50:100, 50:60] = True  # pixels 200 to 400 and 200 to 240
    boxes = (200, 200, 400, 400), (0, 0, 100, 100), (400, 0, 500, 100)
    cells = grid()
    x, y = cells.points.unbind(1)
    padded = pad_people([crowds(*boxes, outlined=(True, False, False), mask=mask)], CPU)
    left = (x < 300) & (y >= 150) | (x < 50) & (y < 150)
    ignored = ignored_cells(cells.points, padded, left[None])[0]
    first = (x >= 200) & (x < 240) & (y >= 200) & (y < 400)
    second, third = (x >= 50) & (x < 100) & (y > 0) & (y < 100), (x > 400) & (x < 500) & (y > 0) & (y < 100)
    assert first.any() and second.any() and third.any()
    assert torch.equal(ignored, first | second | third)


def test_masks_are_read_at_the_cells_of_every_level_and_end_with_the_image() -> None:
    """Cells of coarse levels beyond the image are known."""
    size = (96, 160)
    cells = pyramid_cells(level_sizes(*size, STRIDES), STRIDES, CPU)
    beyond = (cells.points >= torch.tensor([160.0, 96.0])).any(1)
    assert beyond.any()
    nobody = torch.zeros(2, len(cells), dtype=torch.bool)
    whole = torch.ones(24, 40, dtype=torch.bool)
    padded = pad_people([crowds((0, 0, 160, 96), outlined=(True,), mask=whole), people((0, 0, 9, 9))], CPU)
    ignored = ignored_cells(cells.points, padded, nobody)
    assert torch.equal(ignored[0], ~beyond) and not ignored[1].any()
    for cell in (0, 7, 300, len(cells) - 3):
        one = torch.zeros(24, 40, dtype=torch.bool)
        column, row = (cells.points[cell] / 4).long().tolist()
        if row < 24 and column < 40:
            one[row, column] = True
            padded = pad_people([crowds((0, 0, 160, 96), outlined=(True,), mask=one)], CPU)
            assert bool(ignored_cells(cells.points, padded, nobody[:1])[0, cell])


def test_without_masks_nobody_is_outlined() -> None:
    padded = pad_people([people((0, 0, 9, 9)), People.empty(3)], CPU)
    assert padded.masks is None and not padded.outlined.any()


def test_pseudo_boxes_are_tight_around_labelled_keypoints() -> None:
    keypoints = torch.tensor([[[5.0, 9.0], [1.0, 20.0], [100.0, 100.0]]])
    labelled = torch.tensor([[True, True, False]])
    assert pseudo_boxes(keypoints, labelled).tolist() == [[1, 9, 5, 20]]
    assert pseudo_boxes(keypoints, ~labelled & False).tolist() == [[0, 0, 0, 0]]


def test_rows_list_the_positive_cells_and_the_rest_is_unused() -> None:
    assignment = torch.tensor([[-1, 2, -1], [0, -1, 1]])
    rows = positive_cells(assignment, capacity=5)
    assert rows.used.tolist() == [True, True, True, False, False]
    assert rows.image[:3].tolist() == [0, 1, 1]
    assert rows.cell[:3].tolist() == [1, 0, 2]
    assert rows.person[:3].tolist() == [2, 0, 1]
    assert (rows.person >= 0).all()


@pytest.mark.parametrize("level_rule", ["fcos", "reppoints"])
@pytest.mark.parametrize("half_side", [0.5, 0.75, 1.0, 1.5, 2.0])
def test_no_person_has_more_cells_than_the_bound(level_rule: str, half_side: float) -> None:
    random = torch.Generator().manual_seed(0)
    cells = grid(1024)
    size = 2 ** (2 + 8 * torch.rand(100, 2, generator=random))
    centre = 200 + 600 * torch.rand(100, 2, generator=random)
    boxes = torch.cat([centre - size / 2, centre + size / 2], 1)
    each = [people(tuple(box)) for box in boxes.tolist()]
    padded = pad_people(each, CPU)
    counts = (assign_people(cells, padded, level_rule=level_rule, center_half_side=half_side, force_one=True) >= 0).sum(
        1
    )
    bound = positives_bound(10**9, 1, level_rule=level_rule, center_half_side=half_side)
    assert counts.max() <= bound


def test_the_annotated_box_can_choose_the_cells() -> None:
    someone = people((100, 100, 160, 150), (0, 0, 10, 10))
    someone = replace(someone, boxes=torch.tensor([[90.0, 90, 170, 160], [0, 0, 20, 20]]))
    someone = replace(someone, visibility=torch.tensor([[2, 1, 0], [0, 0, 0]], dtype=torch.uint8))
    for boxes, expected in (("pseudo", [100, 100, 160, 150]), ("annotated", [90, 90, 170, 160])):
        padded = pad_people([someone], CPU, boxes=boxes)
        assert padded.boxes[0].tolist() == [expected, [0, 0, 0, 0]]
        assert padded.unlabelled_boxes[0].tolist() == [[0, 0, 0, 0], [0, 0, 20, 20]]


def test_at_most_so_many_positives_of_each_image_stay_evenly_spread() -> None:
    assignment = torch.tensor([[0, -1, 0, 1, 1, -1, 2, 2], [-1, -1, -1, 5, -1, -1, -1, -1]])
    assert thin_out(assignment, 3).tolist() == [[-1, -1, 0, -1, 1, -1, -1, 2], [-1, -1, -1, 5, -1, -1, -1, -1]]
    assert (thin_out(assignment, 6) == assignment).all()
