"""A convolution of upsampled levels, computed before the upsampling."""

import torch
import torch.nn.functional as F

from posefleet.models.parts.layers.fusion import ConcatConv, mixing


def test_convolving_first_equals_upsampling_first() -> None:
    torch.manual_seed(0)
    levels = [torch.randn(2, c, 16 // s, 24 // s) for c, s in ((3, 1), (4, 2), (5, 4), (6, 8))]
    fuse = ConcatConv([3, 4, 5, 6], 7)
    up = [F.interpolate(x, size=(16, 24), mode="bilinear", align_corners=False) for x in levels]
    torch.testing.assert_close(fuse(levels), fuse.conv(torch.cat(up, 1)), atol=1e-5, rtol=1e-4)


def test_a_part_at_a_few_cells_equals_the_whole_map_there() -> None:
    torch.manual_seed(0)
    levels = [torch.randn(2, c, 16 // s, 24 // s) for c, s in ((3, 1), (4, 2), (5, 4), (6, 8))]
    fuse, part = ConcatConv([3, 4, 5, 6], 7), slice(2, 5)
    cells = torch.tensor([[[0, 0], [23, 15], [7, 9]], [[1, 14], [22, 0], [12, 8]]])
    image = torch.arange(2)[:, None]
    expected = fuse(levels)[image, part, cells[..., 1], cells[..., 0]].transpose(1, 2)
    torch.testing.assert_close(fuse.at(levels, cells, part)[..., 0], expected, atol=1e-5, rtol=1e-4)


def test_mixing_gives_one_map_of_the_finest_size() -> None:
    levels = [torch.randn(2, c, 16 // s, 24 // s) for c, s in ((3, 1), (4, 2))]
    layers = mixing([3, 4], 8, 2, "group")
    assert layers(levels).shape == (2, 8, 16, 24)
    assert sum(p.numel() for p in layers.parameters()) == 7 * 8 + 2 * 8 * 8 * 9 + 3 * 16
