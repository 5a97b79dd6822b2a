"""Centres and offsets: the way there and back, windows, who owns a cell."""

import pytest
import torch

from posefleet.models.logocap.centres import offset_targets, rough_poses, top_centres
from posefleet.models.parts.ops.cells import read_cells
from posefleet.models.parts.ops.heatmaps import draw_gaussians

SIZE = (60, 80)


def centre_map(*centres: tuple[float, float], sigma: float = 2.0) -> torch.Tensor:
    """(1, 1, h, w) Gaussians at centres in cells."""
    points = torch.tensor([[[centre] for centre in centres]])
    drawn = torch.ones(points.shape[:3], dtype=torch.bool)
    return draw_gaussians(points, drawn, torch.tensor([sigma]), torch.tensor([20.0]), SIZE, reach=20)


def test_a_gaussian_on_a_cell_has_two_equal_maxima_once_upsampled() -> None:
    found = top_centres(centre_map((40, 30)), 4, 4, pool=3, half_pixel_fix=False)
    torch.testing.assert_close(found.scores, found.scores[:, :1].expand(1, 4))
    assert sorted(map(tuple, found.points[0].tolist())) == [(161, 121), (161, 122), (162, 121), (162, 122)]
    assert (found.cells[0] == torch.tensor([40, 30])).all()
    fixed = top_centres(centre_map((40, 30)), 4, 4, pool=3, half_pixel_fix=True)
    assert (fixed.points[0] == torch.tensor([160.0, 120])).all()


def test_missing_maxima_score_zero() -> None:
    found = top_centres(torch.full((1, 1, 8, 8), -1.0), 3, 4, pool=3, half_pixel_fix=False)
    assert (found.scores == 0).all()


@pytest.mark.parametrize("fix", [False, True])
def test_encoded_people_are_decoded_again(fix: bool) -> None:
    """Off by the centre's remainder in its cell, at most 3 px; exactly with the fix."""
    keypoints = torch.tensor([[[[150.0, 100.0], [171.0, 133.0], [162.0, 121.0]]]]) / 4
    labelled = torch.ones(1, 1, 3, dtype=torch.bool)
    centre = keypoints.mean(2)
    torch.testing.assert_close(centre, torch.tensor([[[161.0, 118.0]]]) / 4)
    targets = offset_targets(centre, labelled[..., 0], keypoints, labelled, torch.ones(1, 1), SIZE, 4)
    maps = centre_map(tuple(centre[0, 0].tolist()))
    centres = top_centres(maps, 1, 4, pool=3, half_pixel_fix=fix)
    poses = rough_poses(read_cells(targets.offsets, centres.cells), centres, 4)
    error = centres.points - 4 * centres.cells
    assert ((error >= 0) & (error <= 3)).all() and bool((error > 0).any()) != fix
    torch.testing.assert_close(poses[0, 0], 4 * keypoints[0, 0] + error[0, 0], atol=1e-4, rtol=0)


def test_a_window_is_half_open_and_covers_64_cells() -> None:
    keypoints = torch.rand(1, 1, 17, 2) * 30 + 20
    labelled = torch.ones(1, 1, 17, dtype=torch.bool)
    centre = torch.tensor([[[40.7, 50.2]]])
    targets = offset_targets(centre, labelled[..., 0], keypoints, labelled, torch.ones(1, 1), SIZE, 4)
    owned = targets.person >= 0
    assert owned.sum() == 17 * 64
    assert owned[0, 0].any(0).nonzero().flatten().tolist() == list(range(36, 44))
    assert owned[0, 0].any(1).nonzero().flatten().tolist() == list(range(46, 54))
    assert targets.offsets[0, 6, 46, 36].item() == pytest.approx(36 - keypoints[0, 0, 3, 0].item(), abs=1e-4)
    assert targets.offsets[0, 7, 46, 36].item() == pytest.approx(46 - keypoints[0, 0, 3, 1].item(), abs=1e-4)


@pytest.mark.parametrize(("areas", "owner"), [((100.0, 400.0), 0), ((400.0, 100.0), 1), ((100.0, 100.0), 1)])
def test_the_smaller_person_owns_shared_cells(areas: tuple[float, float], owner: int) -> None:
    keypoints = torch.full((1, 2, 2, 2), 30.0)
    labelled = torch.tensor([[[True, True], [True, False]]])  # the second person lacks the second keypoint
    centres = torch.tensor([[[30.0, 30.0], [32.0, 30.0]]])
    drawn = torch.ones(1, 2, dtype=torch.bool)
    person = offset_targets(centres, drawn, keypoints, labelled, torch.tensor([areas]), SIZE, 4).person
    assert person[0, 0, 30, 30] == owner
    assert person[0, 1, 30, 30] == 0
    assert (person[0, 0, 30, 26].item(), person[0, 0, 30, 35].item(), person[0, 0, 30, 36].item()) == (0, 1, -1)


def test_what_is_off_the_map_or_without_centre_owns_nothing() -> None:
    keypoints = torch.tensor([[[[10.0, 10.0], [-1.0, 10.0], [10.0, 60.0]]]])
    labelled = torch.ones(1, 1, 3, dtype=torch.bool)
    centre, area = torch.tensor([[[1.0, 1.0]]]), torch.ones(1, 1)
    owned = offset_targets(centre, labelled[..., 0], keypoints, labelled, area, SIZE, 4).person >= 0
    assert owned.sum((2, 3)).tolist() == [[25, 0, 0]]  # cells 0..4 of a clipped window
    nobody = offset_targets(centre, ~labelled[..., 0], keypoints, labelled, area, SIZE, 4).person
    assert (nobody == -1).all()
    outside = offset_targets(centre - 2, labelled[..., 0], keypoints, labelled, area, SIZE, 4).person
    assert (outside == -1).all()
