"""Layers at a few cells give what they give everywhere."""

import torch

from posefleet.models.inspose.sparse import conv_at, read_at
from posefleet.models.parts.layers.blocks import conv
from posefleet.models.parts.ops.cells import flatten_levels, pyramid_cells

SIZES = [(4, 6), (2, 3), (1, 2)]
CELLS = pyramid_cells(SIZES, (8, 16, 32), torch.device("cpu"))


def pyramid() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 5, *size).to(memory_format=torch.channels_last).requires_grad_() for size in SIZES]


def test_a_layer_at_all_cells_is_the_convolved_pyramid_with_its_gradients() -> None:
    layer, sparse, dense = conv(5, 3, 3, std=1.0, bias=0.5), pyramid(), pyramid()
    image = torch.arange(2).repeat_interleave(len(CELLS))
    cell = torch.arange(len(CELLS)).repeat(2)
    found = conv_at(layer, sparse, image, cell, CELLS)
    expected = flatten_levels([layer(level) for level in dense]).flatten(0, 1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(found)
    for values in (found, expected):
        (values * weight).sum().backward()
    for ours, theirs in zip(sparse, dense, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)


def test_cells_are_read_in_any_order_and_more_than_once() -> None:
    levels = pyramid()
    image, cell = torch.tensor([1, 0, 1]), torch.tensor([31, 0, 31])
    found = read_at(levels, image, cell, CELLS)
    torch.testing.assert_close(found, flatten_levels(levels)[image, cell])


def test_no_cell_gives_no_row_but_a_gradient() -> None:
    levels, layer = pyramid(), conv(5, 3, 3)
    nothing = torch.zeros(0, dtype=torch.int64)
    found = conv_at(layer, levels, nothing, nothing, CELLS)
    assert found.shape == (0, 3)
    found.sum().backward()
    assert (layer.weight.grad == 0).all() and all((level.grad == 0).all() for level in levels)
