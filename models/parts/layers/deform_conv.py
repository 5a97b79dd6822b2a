"""Deformable convolution v1, 3x3, stride 1, padding 1: each tap reads where its offset points (Dai et al.).

Offsets are (B, G * 18, H, W) in cells: for each of the G offset groups 9 taps, row-major from the top left, and
for each tap (dy, dx), added to the tap's regular position. Reads outside the map are 0.

Three implementations compute the same: ``grid_sample`` (one call for all taps and groups, then one matrix product;
several times faster than torchvision's kernel on a CPU, and exportable), ``gather`` (adds up rows of channels; faster
for predictions from wide maps, slower for gradients of narrow ones) and torchvision's kernel (for GPUs: less memory).
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TAPS = 9
WIDE = 64
"""Channels of an offset group from which ``gather`` is faster than ``grid_sample``."""
Kernel = Literal["auto", "grid_sample", "gather", "torchvision"]


class DeformConv2d(nn.Module):
    """3x3 deformable convolution without bias.

    Args:
        offset_groups: Groups of input channels that share offsets; must divide ``in_channels``.
        kernel: Implementation. ``auto`` takes torchvision's on a GPU, and for ONNX, which has such an operator;
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
        # A 1x1 convolution reads channels_last memory without a copy.
        return F.conv2d(_gather_taps(x, offset), weight.permute(0, 2, 3, 1).reshape(len(weight), -1, 1, 1))
    batch, _, height, width = x.shape
    columns = _sample_taps(x, offset).flatten(2)  # (B, C * 9, H * W)
    # bmm, because matmul would fold the batch into one product, which copies the (large) columns.
    return torch.bmm(weight.flatten(1).expand(batch, -1, -1), columns).view(batch, -1, height, width)


def _fastest(x: Tensor, offset: Tensor) -> Kernel:
    if torch.compiler.is_exporting():
        return "torchvision" if torch.onnx.is_in_onnx_export() else "grid_sample"
    if x.device.type != "cpu":
        return "torchvision"
    wide = x.shape[1] // (offset.shape[1] // (2 * TAPS)) >= WIDE
    return "gather" if wide and not torch.is_grad_enabled() else "grid_sample"


def subtract_base_grid(offset: Tensor) -> Tensor:
    """Turn tap positions relative to the cell's centre into offsets from the regular 3x3 taps (RepPoints).

    Args:
        offset: (B, G * 18, H, W) positions (y, x) in cells; all zero means that every tap reads the centre.
    """
    steps = torch.arange(-1, 2, device=offset.device, dtype=offset.dtype)
    base = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1).flatten()  # (18,) dy, dx per tap
    return offset - base.repeat(offset.shape[1] // base.numel()).view(1, -1, 1, 1)


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


def _gather_taps(x: Tensor, offset: Tensor) -> Tensor:
    """Values under every tap: (B, 9 * C, H, W), tap-major, in channels_last memory. In float32.

    A value is the weighted sum of the same channels of four cells: an embedding bag whose table has a row for each
    cell and group.
    """
    batch, channels, height, width = x.shape
    groups = offset.shape[1] // (2 * TAPS)
    taps = torch.arange(TAPS, device=x.device)
    offset = offset.float().permute(0, 2, 3, 1).reshape(batch, height, width, groups, TAPS, 2).transpose(3, 4)
    rows = torch.arange(height, device=x.device)[:, None] + taps // 3 - 1  # (H, 9)
    columns = torch.arange(width, device=x.device)[:, None] + taps % 3 - 1  # (W, 9)
    row, row_weight = _neighbours(offset[..., 0] + rows.view(height, 1, TAPS, 1), height)  # (B, H, W, 9, G, 2)
    column, column_weight = _neighbours(offset[..., 1] + columns.view(width, TAPS, 1), width)
    image = torch.arange(batch, device=x.device, dtype=torch.int32).view(batch, 1, 1, 1, 1, 1, 1) * (height * width)
    group = torch.arange(groups, device=x.device, dtype=torch.int32).view(groups, 1, 1)
    index = (image + row[..., :, None] * width + column[..., None, :]) * groups + group  # (B, H, W, 9, G, 2, 2)
    weight = row_weight[..., :, None] * column_weight[..., None, :]
    table = x.float().permute(0, 2, 3, 1).reshape(-1, channels // groups)
    values = F.embedding_bag(index.view(-1, 4), table, per_sample_weights=weight.view(-1, 4), mode="sum")
    return values.view(batch, height, width, TAPS * channels).permute(0, 3, 1, 2)


def _neighbours(position: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The two whole positions (..., 2), int32, around each position, and their linear weights; 0 outside the map."""
    low = position.floor()
    both = torch.stack([low, low + 1], dim=-1)
    weight = (1 - (position[..., None] - both).abs()).where((both >= 0) & (both < size), 0.0)
    return both.int().clamp(0, size - 1), weight
