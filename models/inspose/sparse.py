"""Reading and convolving a pyramid at a few cells only, for layers whose output is needed only there.

Rows identify cells of a batch: ``image`` (N,) in [0, B) and ``cell`` (N,), an index into ``Cells``.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from posefleet.models.parts.ops.cells import Cells


def read_at(levels: Sequence[Tensor], image: Tensor, cell: Tensor, cells: Cells) -> Tensor:
    """Values (N, C), float32, of maps (B, C, h, w) at N cells."""
    return _patches(levels, image, cell, cells, reach=0)[:, 0]


def conv_at(layer: nn.Conv2d, levels: Sequence[Tensor], image: Tensor, cell: Tensor, cells: Cells) -> Tensor:
    """The output (N, O), float32, of a size-preserving, square convolution at N cells.

    It equals :func:`read_at` of the convolved maps, but other cells are never computed.
    """
    patches = _patches(levels, image, cell, cells, reach=layer.kernel_size[0] // 2)
    weight = layer.weight.float().permute(0, 2, 3, 1).flatten(1)  # (O, k * k * C)
    bias = None if layer.bias is None else layer.bias.float()
    return nn.functional.linear(patches.flatten(1), weight, bias)


def _patches(levels: Sequence[Tensor], image: Tensor, cell: Tensor, cells: Cells, *, reach: int) -> Tensor:
    """(N, (2 reach + 1)^2, C) values around each cell on its own level, row-major; 0 outside the map."""
    level = cells.levels[cell][:, None, None]
    x, y = (cells.points[cell] / cells.strides[cell][:, None]).floor().long().unbind(1)
    steps = torch.arange(-reach, reach + 1, device=cell.device)
    rows = y[:, None, None] + steps[:, None]  # (N, k, 1)
    columns = x[:, None, None] + steps  # (N, 1, k)
    total = None
    for i, values in enumerate(levels):
        height, width = values.shape[-2:]
        inside = (level == i) & (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)  # (N, k, k)
        index = ((image[:, None, None] * height + rows) * width + columns).where(inside, 0)
        flat = values.permute(0, 2, 3, 1).flatten(0, 2)  # (B * h * w, C), a view in channels_last memory
        found = flat.index_select(0, index.flatten()).float().where(inside.flatten()[:, None], 0.0)
        total = found if total is None else total + found
    assert total is not None
    return total.view(len(cell), (2 * reach + 1) ** 2, total.shape[1])


def in_chunks(run: Callable[..., tuple[Tensor, ...]], rows: Sequence[Tensor], size: int) -> tuple[Tensor, ...]:
    """Apply ``run`` to N rows, at most ``size`` at a time, and concatenate the results. Rows must be independent.

    If there are several chunks, they store nothing for the backward pass, which runs them again, one after the other.

    Args:
        run: (n, ...) tensors, one for each of ``rows``, -> (n, ...) tensors.
        rows: (N, ...) tensors; N may be 0.
    """
    parts = list(zip(*(values.split(size) for values in rows), strict=True))
    if len(parts) == 1:
        return run(*parts[0])
    if torch.is_grad_enabled():
        found = [checkpoint(run, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    else:
        found = [run(*part) for part in parts]
    return tuple(torch.cat(values) for values in zip(*found, strict=True))
