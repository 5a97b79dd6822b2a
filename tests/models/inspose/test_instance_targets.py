"""Which cells train networks of people."""

from dataclasses import replace

import pytest
import torch

from posefleet.data.structures import People
from posefleet.models.inspose.targets import AssignConfig, Assigned, assign_instances, outside_unlabelled
from posefleet.models.parts.ops.cells import level_sizes, pyramid_cells

STRIDES = (8, 16, 32, 64, 128)
CELLS = pyramid_cells(level_sizes(512, 512, STRIDES), STRIDES, torch.device("cpu"))
NOTHING = torch.zeros(1, len(CELLS), dtype=torch.bool)


def person(keypoints: tuple[float, ...], box: tuple[float, ...], visible: int = 2, crowd: bool = False) -> People:
    """Two keypoints, at opposite corners of the pseudo box, and an annotated box."""
    return People(
        torch.tensor(keypoints).view(1, 2, 2),
        torch.full((1, 2), visible, dtype=torch.uint8),
        torch.tensor([box], dtype=torch.float32),
        torch.tensor([1000.0]),
        torch.tensor([crowd]),
    )


def assign(*people: People, annotated_boxes: bool = False, **settings: object) -> tuple[Assigned, AssignConfig]:
    config = AssignConfig(**settings)
    return assign_instances(CELLS, [People.cat(people)], config, annotated_boxes=annotated_boxes), config


def points(assigned: Assigned, who: int = 0) -> list[list[float]]:
    return CELLS.points[assigned.person[0] == who].tolist()


ADULT = person((100, 100, 220, 340), (90, 80, 240, 360))
GHOST = person((0, 0, 0, 0), (300, 300, 380, 420), visible=0)
CROWD = person((0, 0, 0, 0), (300, 300, 380, 420), visible=0, crowd=True)


def test_an_adult_has_eight_cells_on_two_levels() -> None:
    assigned, _ = assign(ADULT)
    p5 = [[x, y] for y in (176.0, 208.0, 240.0) for x in (144.0, 176.0)]
    assert points(assigned) == [[152, 216], [168, 216], *p5]
    assert assigned.trained_count() == 8


def test_annotated_boxes_can_decide_instead() -> None:
    """On P4 one side is more than 128 px away from every cell near the centre (165, 220); on P5 nine cells suit."""
    assigned, _ = assign(ADULT, annotated_boxes=True)
    assert points(assigned) == [[x, y] for y in (176, 208, 240) for x in (144, 176, 208)]


THIN = person((100, 100, 100.5, 150), (80, 80, 130, 170))


def test_a_person_thinner_than_a_pixel_is_ignored() -> None:
    assigned, config = assign(THIN)
    assert assigned.trained_count() == 0
    inside = ((CELLS.points > torch.tensor([80.0, 80.0])) & (CELLS.points < torch.tensor([130.0, 170.0]))).all(1)
    torch.testing.assert_close(~outside_unlabelled(CELLS, assigned.people, config, NOTHING)[0], inside)
    assert not assigned.people.labelled.any()  # so that no map, offset or tag learns them either
    assert assign(person((100, 100, 120, 150), (80, 80, 130, 170)))[0].trained_count() > 0


@pytest.mark.parametrize("unlabelled", ["negative", "weak_positive"])
def test_a_person_thinner_than_a_pixel_can_be_background(unlabelled: str) -> None:
    """The released code drops such people, so their cells are negatives."""
    assigned, config = assign(THIN, unlabelled=unlabelled)
    assert (assigned.person == -1).all() and not assigned.people.labelled.any()
    assert outside_unlabelled(CELLS, assigned.people, config, NOTHING).all()


def test_a_person_without_keypoints_in_a_box_thinner_than_a_pixel_is_no_weak_positive() -> None:
    assigned, _ = assign(person((0, 0, 0, 0), (150.5, 100, 152.5, 220), visible=0), unlabelled="weak_positive")
    assert points(assigned)
    assigned, _ = assign(
        person((0, 0, 0, 0), (150.5, 100, 152.5, 220), visible=0), unlabelled="weak_positive", min_side=3
    )
    assert not points(assigned)


@pytest.mark.parametrize(("unlabelled", "ignored", "answers"), [("ignore", True, False), ("negative", False, False)])
def test_people_without_keypoints_are_unknown_or_nobody(unlabelled: str, ignored: bool, answers: bool) -> None:
    assigned, config = assign(ADULT, GHOST, unlabelled=unlabelled)
    assert (~outside_unlabelled(CELLS, assigned.people, config, NOTHING)).any() == ignored
    assert bool(points(assigned, who=1)) == answers


def test_a_segmentation_is_ignored_instead_of_the_box() -> None:
    mask = torch.zeros(128, 128, dtype=torch.bool)
    mask[75:105, 75:80] = True  # pixels 300 to 420 and 300 to 320
    group = replace(People.cat([ADULT, GHOST]), outlined=torch.tensor([False, True]), mask=mask)
    assigned = assign_instances(CELLS, [group], AssignConfig())
    known = outside_unlabelled(CELLS, assigned.people, AssignConfig(), NOTHING)[0]
    x, y = CELLS.points.unbind(1)
    assert torch.equal(~known, (x >= 300) & (x < 320) & (y >= 300) & (y < 420))
    assert not known.all()


def test_a_box_hides_no_cell_of_a_labelled_person() -> None:
    assigned, config = assign(ADULT, GHOST)
    drawn = CELLS.points[:, 0][None] > 340
    known = outside_unlabelled(CELLS, assigned.people, config, drawn)
    assert known[drawn].all() and not known.all()


def test_people_without_keypoints_can_be_positive_but_crowds_are_not() -> None:
    assigned, config = assign(ADULT, GHOST, unlabelled="weak_positive")
    assert points(assigned, who=1) and outside_unlabelled(CELLS, assigned.people, config, NOTHING).all()
    assert not assigned.people.labelled[0, 1].any()
    assert not points(assign(ADULT, CROWD, unlabelled="weak_positive")[0], who=1)


def test_a_limit_spreads_over_the_cells_of_an_image() -> None:
    assigned, _ = assign(ADULT, max_positives=4)
    assert assigned.trained_count() == 4
    assert (assigned.person >= 0).sum() == 8
    kept = (assigned.trained[0] >= 0)[assigned.person[0] >= 0]
    assert kept.tolist() == [False, True] * 4


def test_settings_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="center_half_side must be in"):
        AssignConfig(center_half_side=0)
    with pytest.raises(ValueError, match=r"must not be negative, but are 1\.0 and -1"):
        AssignConfig(max_positives=-1)
