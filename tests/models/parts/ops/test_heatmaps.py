"""Keypoint maps: which cell, which class, how wide a Gaussian."""

import math

import pytest
import torch

from posefleet.models.parts.ops.heatmaps import (
    cell_class_targets,
    draw_gaussians,
    drawn_cells,
    gaussian_radius,
    gaussian_targets,
)


def test_each_labelled_keypoint_marks_its_cell() -> None:
    keypoints = torch.tensor([[[[3.0, 3.0], [17.0, 9.0], [50.0, 1.0]]]])  # the last lies outside a 4 x 3 map
    labelled = torch.tensor([[[True, True, True]]])
    for kind in ("multihot", "one_class"):
        marks = cell_class_targets(keypoints, labelled, (3, 4), 8, kind)
        assert marks.nonzero().tolist() == [[0, 0, 0, 0], [0, 1, 1, 2], [0, 2, 0, 3]]
    assert cell_class_targets(keypoints, ~labelled, (3, 4), 8, "multihot").sum() == 0
    assert cell_class_targets(keypoints, ~labelled, (3, 4), 8, "one_class").sum() == 0


def test_keypoints_that_share_a_cell() -> None:
    keypoints = torch.tensor([[[[3.0, 3.0], [4.0, 2.0]], [[2.0, 5.0], [30.0, 3.0]]]])  # two people, two keypoints
    labelled = torch.ones(1, 2, 2, dtype=torch.bool)
    both = cell_class_targets(keypoints, labelled, (2, 4), 8, "multihot")
    assert both[0, :, 0, 0].tolist() == [1, 1]
    last = cell_class_targets(keypoints, labelled, (2, 4), 8, "one_class")
    assert last[0, :, 0, 0].tolist() == [1, 0]  # the second person's first keypoint was written last
    assert last.sum() == 2
    largest = cell_class_targets(keypoints, labelled, (2, 4), 8, "index")
    assert largest[0, :, 0, 0].tolist() == [0, 1]  # whoever it is, the later keypoint of the schema
    assert largest.sum() == 2


def test_a_border_belongs_to_the_cell_that_it_opens() -> None:
    keypoints, labelled = torch.tensor([[[[17.9, 8.0]]]]), torch.ones(1, 1, 1, dtype=torch.bool)
    for kind in ("multihot", "index"):
        assert cell_class_targets(keypoints, labelled, (3, 4), 8, kind).nonzero().tolist() == [[0, 0, 1, 2]]


def test_a_batch_without_people_marks_nothing() -> None:
    empty = cell_class_targets(torch.zeros(2, 1, 17, 2), torch.zeros(2, 1, 17, dtype=torch.bool), (2, 2), 8)
    assert empty.shape == (2, 17, 2, 2)
    assert empty.sum() == 0


# ------------------------------------------------------------------------------------------------ Gaussians


@pytest.mark.parametrize(
    ("height", "width", "radius"), [(8, 8, 0.779), (16, 8, 1.042), (25, 25, 2.434), (50, 25, 3.255), (100, 50, 6.510)]
)
def test_radius_of_a_box(height: float, width: float, radius: float) -> None:
    found = gaussian_radius(torch.tensor(float(height)), torch.tensor(float(width)), 0.9)
    assert found.item() == pytest.approx(radius, abs=1e-3)


@pytest.mark.parametrize("overlap", [0.1, 0.5, 0.7, 0.9])
def test_the_radius_is_the_least_of_the_three_bounds(overlap: float) -> None:
    h, w = torch.rand(2, 100, generator=torch.Generator().manual_seed(0)) * 100
    total, area = h + w, h * w
    one_in_one_out = (total + (total**2 - 4 * area * (1 - overlap) / (1 + overlap)).sqrt()) / 2
    outside = (2 * total + (4 * total**2 - 16 * (1 - overlap) * area).sqrt()) / 2
    inside = (-2 * overlap * total + (4 * overlap**2 * total**2 + 16 * overlap * (1 - overlap) * area).sqrt()) / 2
    least = torch.stack([one_in_one_out, outside, inside]).amin(0)
    torch.testing.assert_close(gaussian_radius(h, w, overlap), least, atol=1e-3, rtol=1e-4)


def one_person(*keypoints: tuple[float, float]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([[keypoints]], dtype=torch.float32), torch.ones(1, 1, len(keypoints), dtype=torch.bool)


def test_a_gaussian_falls_to_the_edge_of_its_square_and_ends_there() -> None:
    """Radius 3: deviation 7 / 6, profile 1, .6926, .2301, .0367."""
    box = torch.tensor([[[0.0, 0.0, 25 * 8, 50 * 8]]])  # radius 3.255
    maps = gaussian_targets(*one_person((47.9, 40.0)), box, (12, 11), 8)
    profile = [0, 0, 0.0367, 0.2301, 0.6926, 1, 0.6926, 0.2301, 0.0367, 0, 0]
    assert maps.shape == (1, 1, 12, 11)
    assert maps[0, 0, 5].tolist() == pytest.approx(profile, abs=1e-4)  # row floor(40 / 8), round column floor(5.99)
    assert maps[0, 0, :, 5].tolist() == pytest.approx([*profile, 0], abs=1e-4)
    assert maps[0, 0, 4, 4].item() == pytest.approx(0.6926**2, abs=1e-4)
    assert maps[0, 0, 5, 5] == 1


def test_small_people_get_single_cells_and_large_ones_no_more_than_the_limit() -> None:
    small, large = torch.tensor([[[0.0, 0, 40, 40]]]), torch.tensor([[[0.0, 0, 800, 800]]])
    point = one_person((44.0, 44.0))
    assert gaussian_targets(*point, small, (11, 11), 8).sum() == 1
    assert (gaussian_targets(*point, large, (11, 11), 8, max_radius=2) > 0).sum() == 25
    assert gaussian_targets(*point, large, (11, 11), 8, max_radius=0).sum() == 1


def test_gaussians_of_several_people_keep_the_largest_value_and_their_channel() -> None:
    keypoints = torch.tensor([[[[4.0, 4.0], [20.0, 4.0]], [[20.0, 4.0], [0.0, 0.0]]]])  # two people, two keypoints
    labelled = torch.tensor([[[True, False], [True, False]]])
    boxes = torch.tensor([[[0.0, 0, 128, 64], [0, 0, 128, 64]]])  # radius 1, deviation 1 / 2
    maps = gaussian_targets(keypoints, labelled, boxes, (2, 4), 8)
    near, corner = math.exp(-2), math.exp(-4)
    first = [[1, near, 1, near], [near, corner, near, corner]]
    torch.testing.assert_close(maps, torch.tensor([[first, [[0.0] * 4] * 2]]))


def test_keypoints_on_the_far_border_go_to_the_last_cell() -> None:
    box = torch.tensor([[[0.0, 0, 32, 16]]])
    maps = gaussian_targets(*one_person((32.0, 16.0), (0.0, 0.0)), box, (2, 4), 8)
    assert maps.nonzero().tolist() == [[0, 0, 1, 3], [0, 1, 0, 0]]


def test_gaussians_between_cells_equal_the_formula_everywhere() -> None:
    random = torch.Generator().manual_seed(0)
    centres = torch.rand(2, 3, 4, 2, generator=random) * torch.tensor([13.0, 9.0]) - 2  # some outside a 6 x 9 map
    drawn = torch.rand(2, 3, 4, generator=random) < 0.7
    deviations = 1 + torch.rand(2, 3, 1, generator=random)
    maps = draw_gaussians(centres, drawn, deviations, torch.tensor(20), (6, 9), reach=20)
    y, x = torch.meshgrid(torch.arange(6), torch.arange(9), indexing="ij")
    distance = (x - centres[..., :1, None]).square() + (y - centres[..., 1:, None]).square()  # (2, 3, 4, 6, 9)
    values = torch.exp(-distance / (2 * deviations[..., None, None].square())).where(drawn[..., None, None], 0.0)
    torch.testing.assert_close(maps, values.amax(1))


def test_squares_of_gaussians_are_open_and_their_union_is_known() -> None:
    """Radius 8 round 20 and round 20.5: cells nearer than 8."""
    size, radius = (40, 50), torch.tensor([8.0])
    centres = torch.tensor([[[[20.0, 20.0]], [[20.5, 20.0]]]])
    drawn = torch.tensor([[[True], [False]]])
    for which, columns in ((drawn, range(13, 28)), (~drawn, range(13, 29))):
        maps = draw_gaussians(centres, which, torch.tensor([2.0]), radius, size, reach=8, within=True)[0, 0]
        assert (maps > 0).any(0).nonzero().flatten().tolist() == list(columns)
        assert (maps > 0).any(1).nonzero().flatten().tolist() == list(range(13, 28))
        near = drawn_cells(centres.flatten(1, 2), which.flatten(1), radius, size)[0]
        assert torch.equal(near, maps > 0)
    assert not drawn_cells(centres.flatten(1, 2), torch.zeros(1, 2, dtype=torch.bool), radius, size).any()
