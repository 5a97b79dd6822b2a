"""Offsets round keypoints."""

import pytest
import torch

from posefleet.models.inspose.disks import Disks, disk_radii, disk_targets, read_disks


def targets(*positions: tuple[float, float], radius: int = 0, **options: str) -> Disks:
    """Of one image of 64 x 32 cells of 8 pixels; each person has one keypoint, given in pixels."""
    keypoints = torch.tensor(positions).view(1, -1, 1, 2)
    radii = torch.full((1, len(positions)), float(radius))
    return disk_targets(keypoints, torch.ones(1, len(positions), 1, dtype=torch.bool), radii, (32, 64), 8, **options)


@pytest.mark.parametrize(
    ("width", "height", "radius"), [(80, 200, 1), (160, 400, 2), (64, 64, 0), (2000, 3000, 3), (0, 0, 0)]
)
def test_the_radius_grows_with_the_person(width: int, height: int, radius: int) -> None:
    box = torch.tensor([[100.0, 50.0, 100.0 + width, 50.0 + height]])
    assert disk_radii(box, 8).tolist() == [radius]
    assert disk_radii(box, 8, 2).tolist() == [2]


def test_a_keypoint_gives_its_own_cell_the_remainder_and_its_neighbours_more() -> None:
    disks = targets((203.7, 95.2), radius=2)
    torch.testing.assert_close(disks.offsets[0, :, 11, 25], torch.tensor([0.4625, 0.9]))
    torch.testing.assert_close(disks.offsets[0, :, 11, 26], torch.tensor([-0.5375, 0.9]))
    assert (targets((203.7, 95.2)).owner >= 0).nonzero().tolist() == [[0, 0, 11, 25]]


def test_a_disk_is_round_and_a_square_is_not() -> None:
    """P = (10.5, 10.5) cells: of the 5 x 5 window 12 cells lie within 2 of it, and none in row or column 8."""
    disk = (targets((84, 84), radius=2).owner[0, 0] >= 0).nonzero()
    assert len(disk) == 12 and disk.amin().item() == 9 and disk.amax().item() == 12
    square = (targets((84, 84), radius=2, shape="square").owner[0, 0] >= 0).nonzero()
    assert len(square) == 25 and square.amin().item() == 8


def test_two_keypoints_share_cells_by_distance() -> None:
    """1.2 cells apart, at columns 10.1 and 11.3: cell 10 is nearer to the first, 11 to the second."""
    owner = targets((80.8, 80), (90.4, 80), radius=2).owner[0, 0, 10]
    assert owner[8:14].tolist() == [-1, 0, 0, 1, 1, 1]
    assert targets((90.4, 80), (80.8, 80), radius=2).owner[0, 0, 10, 8:14].tolist() == [-1, 1, 1, 0, 0, 0]
    tied = targets((84, 84), (84, 84), radius=1).owner
    assert tied.amax() == 0  # the first of equals


def test_a_keypoint_on_the_border_belongs_to_the_last_cell_and_its_disk_is_cut() -> None:
    disks = targets((512.0, 256.0), radius=1)
    assert (disks.owner[0, 0] >= 0).nonzero().tolist() == [[31, 63]]
    assert disks.offsets[0, :, 31, 63].tolist() == [1, 1]


def test_unlabelled_keypoints_have_no_disk() -> None:
    nobody = torch.zeros(1, 2, 3, dtype=torch.bool)
    disks = disk_targets(torch.rand(1, 2, 3, 2) * 200, nobody, torch.ones(1, 2), (32, 64), 8)
    assert (disks.owner == -1).all() and torch.isfinite(disks.offsets).all()


def test_offsets_are_read_in_the_channels_of_their_keypoint() -> None:
    offsets = torch.arange(2.0 * 4 * 2 * 3).view(2, 4, 2, 3)
    found = read_disks(offsets, torch.tensor([1]), torch.tensor([[2, 0]]), torch.tensor([[0, 1]]))
    assert found.tolist() == [[[offsets[1, 0, 0, 2], offsets[1, 1, 0, 2]], [offsets[1, 2, 1, 0], offsets[1, 3, 1, 0]]]]
