"""Mirrored images and their maps."""

import torch

from posefleet.models.logocap.flip import mirror_images, unmirror_map, unmirror_offsets

FLIP = [0, 2, 1]


def cells(images: torch.Tensor) -> torch.Tensor:
    """A network without convolutions: three maps whose cell j is pixel 4 j (where cell j is meant to look)."""
    shade = images[:, :1, ::4, ::4].float()
    return torch.cat([shade, shade, shade], 1)


def test_maps_of_a_mirrored_image_fall_on_those_of_the_image() -> None:
    """A keypoint on pixel border x = 4 j is on W - x in a mirror, and moved by 4 px on the cell that flips to j."""
    width = 32
    x = torch.arange(width) + 0.5
    for j in (1, 3, 6):
        spot = torch.exp(-(x - 4 * j).square() / 8).expand(1, 1, 8, width)
        between = (cells(spot) + cells(spot.roll(1, -1))) / 2  # a pixel border is between two pixels
        mirrored = mirror_images(spot, 4)
        seen = (cells(mirrored) + cells(mirrored.roll(1, -1))) / 2
        torch.testing.assert_close(unmirror_map(seen, FLIP)[..., 1:-1], between[..., 1:-1])


def test_doing_it_twice_is_the_identity_and_x_changes_sign() -> None:
    maps, offsets = torch.randn(2, 3, 4, 5), torch.randn(2, 6, 4, 5)
    torch.testing.assert_close(unmirror_map(unmirror_map(maps, FLIP), FLIP), maps)
    torch.testing.assert_close(unmirror_offsets(unmirror_offsets(offsets, FLIP), FLIP), offsets)
    once = unmirror_offsets(offsets, FLIP)
    torch.testing.assert_close(once[:, 2], -offsets[:, 4].flip(-1))  # x of keypoint 1 comes from keypoint 2
    torch.testing.assert_close(once[:, 3], offsets[:, 5].flip(-1))


def test_an_image_mirrored_and_moved_keeps_its_size() -> None:
    image = torch.arange(8, dtype=torch.uint8).expand(1, 1, 1, 8)
    assert mirror_images(image, 4).flatten().tolist() == [3, 2, 1, 0, 0, 0, 0, 0]
