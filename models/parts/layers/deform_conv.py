"""Deformable convolution v1, 3x3, stride 1, padding 1: each tap reads where its offset points (Dai et al.).

Offsets are (B, G * 18, H, W) in cells: for each of the G offset groups 9 taps, row-major from the top left, and
for each tap (dy, dx), added to the tap's regular position. Reads outside the map are 0.

Three implementations compute the same: ``grid_sample`` (one call for all taps and groups, then one matrix product;
several times faster than torchvision's kernel on a CPU, and exportable), ``gather`` (adds up rows of channels; faster
for predictions, where it also computes several levels and layers at once, and slower for gradients of narrow maps) and
torchvision's kernel (for GPUs: less memory).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TAPS = 9
WIDE = 16
"""Channels of an offset group from which ``gather`` is faster than ``grid_sample``."""
_TOGETHER = 4096
"""Cells of a batch up to which the levels of a pyramid are computed together; more take too much memory at once."""
Kernel = Literal["auto", "grid_sample", "gather", "torchvision"]
_as_operators = ContextVar("_as_operators", default=False)


@contextmanager
def as_operators() -> Iterator[None]:
    """Exports meanwhile keep a deformable convolution as one operator, for languages that have it."""
    token = _as_operators.set(True)
    try:
        yield
    finally:
        _as_operators.reset(token)


class DeformConv2d(nn.Module):
    """3x3 deformable convolution without bias.

    Args:
        offset_groups: Groups of input channels that share offsets; must divide ``in_channels``.
        kernel: Implementation. ``auto`` takes torchvision's on a GPU, and for ONNX and in ``as_operators``;
            ``grid_sample`` for any other export; on a CPU, ``gather`` for predictions from wide maps and
            ``grid_sample`` otherwise.
    """

    def __init__(self, in_channels: int, out_channels: int, offset_groups: int = 1, kernel: Kernel = "auto") -> None:
        super().__init__()
        if in_channels % offset_groups:
            raise ValueError(f"{in_channels} channels cannot be split into {offset_groups} offset groups")
        self.offset_groups, self.kernel = offset_groups, kernel
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        """(B, C, H, W) features and (B, G * 18, H, W) offsets in cells -> (B, O, H, W)."""
        return deform_conv2d(x, offset, self.weight, kernel=self.kernel)


def deform_conv2d(x: Tensor, offset: Tensor, weight: Tensor, *, kernel: Kernel = "auto") -> Tensor:
    """Deformable 3x3 convolution. The top of this file defines the layout of the offsets.

    Args:
        x: (B, C, H, W).
        offset: (B, G * 18, H, W); the number of groups G follows from its shape.
        weight: (O, C, 3, 3).

    Returns:
        (B, O, H, W).
    """
    if kernel == "auto" or torch.compiler.is_exporting():
        kernel = _fastest(x, offset)
    if kernel == "torchvision":
        from torchvision.ops import deform_conv2d as torchvision_deform_conv2d  # seconds to import

        with torch.autocast(x.device.type, enabled=False):  # not every device's kernel supports bfloat16
            out: Tensor = torchvision_deform_conv2d(x.float(), offset.float(), weight.float(), padding=1)
        return out
    if kernel == "gather":
        return deform_levels([[x]], [offset], [weight])[0][0]
    batch, _, height, width = x.shape
    columns = _sample_taps(x, offset).flatten(2)  # (B, C * 9, H * W)
    # bmm, because matmul would fold the batch into one product, which copies the (large) columns.
    return torch.bmm(weight.flatten(1).expand(batch, -1, -1), columns).view(batch, -1, height, width)


def _fastest(x: Tensor, offset: Tensor) -> Kernel:
    if torch.compiler.is_exporting():
        return "torchvision" if torch.onnx.is_in_onnx_export() or _as_operators.get() else "grid_sample"
    if x.device.type != "cpu":
        return "torchvision"
    wide = x.shape[1] // (offset.shape[1] // (2 * TAPS)) >= WIDE
    return "gather" if wide and not torch.is_grad_enabled() else "grid_sample"


def subtract_base_grid(offset: Tensor) -> Tensor:
    """Turn tap positions relative to the cell's centre into offsets from the regular 3x3 taps (RepPoints).

    Args:
        offset: (B, G * 18, H, W) positions (y, x) in cells; all zero means that every tap reads the centre.
    """
    build = _regular_taps if torch.compiler.is_compiling() else _cached_taps
    return offset - build(offset.shape[1] // (2 * TAPS), offset.dtype, offset.device)


def _regular_taps(groups: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(1, G * 18, 1, 1) places (dy, dx) of the regular taps, cells."""
    steps = torch.arange(-1, 2, device=device, dtype=dtype)
    base = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1).flatten()
    return base.repeat(groups).view(1, -1, 1, 1)


@lru_cache(maxsize=32)
def _cached_taps(groups: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # training may reuse what a prediction made first
        return _regular_taps(groups, dtype, device)


@torch.no_grad()
def read_keypoints(layer: nn.Conv2d, keypoints: int) -> None:
    """Set a 1x1 convolution from a pose (B, 2K, H, W; dx before dy, cells) to positions of taps (B, G * 18, H, W).

    Tap i, counted over all groups, reads keypoint i modulo K. :func:`subtract_base_grid` turns positions into offsets.
    """
    layer.weight.zero_()
    for tap in range(layer.out_channels // 2):
        x = 2 * (tap % keypoints)
        layer.weight[2 * tap, x + 1] = 1  # dy
        layer.weight[2 * tap + 1, x] = 1  # dx


def _sample_taps(x: Tensor, offset: Tensor) -> Tensor:
    """Values under every tap: (B, C * 9, H, W), channel-major like ``weight.flatten(1)``. In float32."""
    batch, channels, height, width = x.shape
    groups = offset.shape[1] // (2 * TAPS)
    # Tap t of cell (y, x) reads row y + dy + t // 3 - 1; grid_sample wants (2 * index + 1) / size - 1, x before y.
    taps = torch.arange(TAPS, device=x.device)
    rows = torch.arange(height, device=x.device) + (taps // 3 - 1)[:, None]  # (9, H)
    columns = torch.arange(width, device=x.device) + (taps % 3 - 1)[:, None]  # (9, W)
    dy, dx = offset.float().reshape(batch * groups, TAPS, 2, height, width).unbind(2)  # (B * G, 9, H, W)
    grid_y = (dy + rows[:, :, None]) * (2 / height) + (1 / height - 1)
    grid_x = (dx + columns[:, None, :]) * (2 / width) + (1 / width - 1)
    grid = torch.stack([grid_x, grid_y], dim=-1).view(batch * groups, TAPS * height, width, 2)
    source = x.float().reshape(batch * groups, channels // groups, height, width)
    with torch.autocast(x.device.type, enabled=False):
        values = F.grid_sample(source, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return values.reshape(batch, channels * TAPS, height, width)


def deform_levels(
    pyramids: Sequence[Sequence[Tensor]], offsets: Sequence[Tensor], weights: Sequence[Tensor]
) -> list[list[Tensor]]:
    """Deformable 3x3 convolutions of several pyramids that share offsets, by ``gather``.

    Small maps cost mostly the calls of operations, so the levels of small pyramids are computed together.

    Args:
        pyramids: For each pyramid its levels (B, C, h, w).
        offsets: (B, G * 18, h, w) of each level, cells.
        weights: (O, C, 3, 3) of each pyramid.

    Returns:
        For each pyramid its levels (B, O, h, w).
    """
    if len(offsets) > 1 and sum(len(o) * o.shape[-2] * o.shape[-1] for o in offsets) > _TOGETHER:
        alone = [
            deform_levels([[m] for m in level], [o], weights) for *level, o in zip(*pyramids, offsets, strict=True)
        ]
        return [[level[index][0] for level in alone] for index in range(len(pyramids))]
    sizes = tuple((o.shape[-2], o.shape[-1]) for o in offsets)
    index, shares = _four_cells(sizes, offsets)
    result = []
    for pyramid, weight in zip(pyramids, weights, strict=True):
        table = _padded_rows(sizes, pyramid, groups=offsets[0].shape[1] // (2 * TAPS))
        values = F.embedding_bag(index, table, per_sample_weights=shares, mode="sum")
        columns = values.view(len(offsets[0]), -1, weight[0].numel())  # (B, P, 9 * C), tap-major
        out = F.linear(columns, weight.permute(0, 2, 3, 1).reshape(len(weight), -1))
        levels = out.split([height * width for height, width in sizes], dim=1)
        result.append([m.unflatten(1, size).permute(0, 3, 1, 2) for m, size in zip(levels, sizes, strict=True)])
    return result


def gathers(x: Tensor, offset: Tensor, kernel: Kernel) -> bool:
    """Whether :func:`deform_conv2d` computes its result by ``gather``."""
    return (_fastest(x, offset) if kernel == "auto" or torch.compiler.is_exporting() else kernel) == "gather"


# A tap's value is the weighted sum of the same channels of four cells: an embedding bag whose table has a row for each
# cell and group. Maps have borders of zeros in the table, one cell wide and two at the bottom, so that a tap anywhere
# has four cells there; those to the right of the last column continue in the next row and have no weight.


def _padded_rows(sizes: Sequence[tuple[int, int]], levels: Sequence[Tensor], groups: int) -> Tensor:
    """Levels (B, C, h, w) with their borders as one table (B * R * G, C / G), float32."""
    batch, channels = levels[0].shape[:2]
    rows = sum((height + 3) * (width + 2) for height, width in sizes) + 1
    table, start = levels[0].new_zeros(batch, rows, channels, dtype=torch.float32), 0
    for level, (height, width) in zip(levels, sizes, strict=True):
        end = start + (height + 3) * (width + 2)
        part = table[:, start:end].unflatten(1, (height + 3, width + 2))
        part[:, 1 : height + 1, 1 : width + 1] = level.permute(0, 2, 3, 1)
        start = end
    return table.view(-1, channels // groups)


def _four_cells(sizes: tuple[tuple[int, int], ...], offsets: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of the table under every tap, and their weights: (N, 4) int32 and float32, N = B * P * 9 * G."""
    batch, groups = len(offsets[0]), offsets[0].shape[1] // (2 * TAPS)
    places = _tap_places(sizes, groups, offsets[0].device)
    flat = torch.cat([o.permute(0, 2, 3, 1).flatten(1, 2) for o in offsets], dim=1).float()  # (B, P, G * 18)
    moved = flat.view(batch, -1, groups, TAPS, 2).permute(4, 0, 1, 3, 2).contiguous()  # (2, B, P, 9, G)
    point = (moved + places.taps).nan_to_num_().clamp_(places.zero, places.last)  # a NaN could be anywhere in memory
    low = point.floor()
    down, right = point.sub_(low).unbind()
    top, left = low.int().unbind()
    first = torch.add(top * places.step, left, alpha=groups) + places.first  # (B, P, 9, G)
    if batch > 1:
        images = torch.arange(batch, device=flat.device, dtype=torch.int32)
        first = first + images.view(-1, 1, 1, 1) * (places.rows * groups)
    both = down * right
    beside = right - both
    shares = torch.stack([1 - down - beside, beside, down - both, both], dim=-1)
    return (first[..., None] + places.four).view(-1, 4), shares.view(-1, 4)


class _Places(NamedTuple):
    """Where the taps of P cells are in the table of their levels without offsets."""

    taps: Tensor
    """(2, 1, P, 9, 1) row and column of each tap in its level, borders counted."""
    zero: Tensor
    last: Tensor
    """(2, 1, P, 1, 1) row and column of the last border."""
    step: Tensor
    """(P, 1, 1) int32, rows of the table from a cell to the one below it."""
    first: Tensor
    """(P, 1, G) int32, row of the table where the cell's level starts."""
    four: Tensor
    """(P, 1, 1, 4) int32, rows of the table from a cell to itself, to the right, below, and to the right of that."""
    rows: int
    """Rows of an image in the table, groups not counted."""


@lru_cache(maxsize=32)
def _tap_places(sizes: tuple[tuple[int, int], ...], groups: int, device: torch.device) -> _Places:
    with torch.inference_mode(False):  # training may reuse what a prediction made first
        steps = torch.arange(3)
        taps, last, step, first, start = [], [], [], [], 0
        for height, width in sizes:
            count = height * width
            cells = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")).flatten(1)
            own = torch.stack(torch.meshgrid(steps, steps, indexing="ij")).flatten(1)
            taps.append(cells[:, :, None] + own[:, None])  # (2, P, 9)
            last.append(torch.tensor([height + 1, width + 1])[:, None].expand(2, count))
            step.append(torch.full((count,), (width + 2) * groups))
            first.append(torch.full((count,), start * groups))
            start += (height + 3) * (width + 2)
        below = torch.cat(step)
        group = torch.arange(groups)
        right = torch.full_like(below, groups)
        four = torch.stack([torch.zeros_like(below), right, below, below + right], dim=-1)
        return _Places(
            torch.cat(taps, dim=1)[:, None, :, :, None].float().to(device),
            torch.zeros((), device=device),
            torch.cat(last, dim=1)[:, None, :, None, None].float().to(device),
            below[:, None, None].int().to(device),
            (torch.cat(first)[:, None, None] + group).int().to(device),
            four[:, None, None].int().to(device),
            start + 1,
        )
