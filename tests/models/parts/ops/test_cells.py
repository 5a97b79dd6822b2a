"""Cells and where they sit."""

import torch

from posefleet.models.parts.ops.cells import (
    decode_offsets,
    encode_offsets,
    flatten_levels,
    level_sizes,
    map_sizes,
    pyramid_cells,
)

STRIDES = (8, 16, 32, 64, 128)
CPU = torch.device("cpu")


def test_cells_of_an_800_by_1088_image() -> None:
    sizes = level_sizes(800, 1088, STRIDES)
    cells = pyramid_cells(sizes, STRIDES, CPU)
    assert sizes == [(100, 136), (50, 68), (25, 34), (13, 17), (7, 9)]
    assert len(cells) == 18_134
    assert cells.points[:3].tolist() == [[4, 4], [12, 4], [20, 4]]
    assert cells.points[136].tolist() == [4, 12]
    assert cells.points[cells.levels == 2][:2].tolist() == [[16, 16], [48, 16]]
    assert cells.points[cells.levels == 4][:2].tolist() == [[64, 64], [192, 64]]
    assert cells.strides[cells.levels == 4].unique().tolist() == [128]


def test_flat_order_is_the_order_of_cells() -> None:
    sizes = [(2, 3), (1, 2)]
    cells = pyramid_cells(sizes, (8, 16), CPU)
    maps = []
    for level, (h, w) in enumerate(sizes):
        maps.append(cells.points[cells.levels == level].view(1, h, w, 2).permute(0, 3, 1, 2))
    torch.testing.assert_close(flatten_levels(maps)[0], cells.points)


def test_offsets_decode_to_what_they_encode() -> None:
    cells = pyramid_cells(level_sizes(256, 320, STRIDES), STRIDES, CPU)
    keypoints = torch.rand(len(cells), 17, 2) * 256
    offsets = encode_offsets(cells.points, cells.strides, keypoints)
    torch.testing.assert_close(decode_offsets(cells.points, cells.strides, offsets), keypoints, atol=1e-4, rtol=0)
    one = torch.tensor([1.0, -2.0])
    assert decode_offsets(torch.tensor([12.0, 4.0]), torch.tensor(8.0), one).tolist() == [[20, -12]]


def test_a_grid_made_while_predicting_can_be_trained_on() -> None:
    with torch.inference_mode():
        first = pyramid_cells([(3, 5)], (8,), CPU)
    again = pyramid_cells([(3, 5)], (8,), CPU)
    assert again is first
    weight = torch.ones(15, 2, requires_grad=True)
    (again.points * weight).sum().backward()
    assert weight.grad is not None


def test_sizes_of_maps() -> None:
    assert map_sizes([torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 1, 2)]) == [(3, 4), (1, 2)]
