"""Keypoint expansion maps (LOGO-CAP): a local mesh of candidates around a rough keypoint, a global window of the
keypoint map around it, and the convolution of the two.

Both are grids of columns and rows, so most computations factor: a candidate's OKS term, the Gaussian prior of the
window and its bilinear sampling are products of one factor for each axis. Letters: K keypoints, D channels,
S candidates along a side, W pixels along the side of a window, (h, w) cells; leading dimensions (B, T) are images and
instances.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

_WIDEST = 5.0
"""Largest ratio of the sides of two meshes. COCO's sigmas differ by 4.3 times. Those of faces and bodies differ by
more, and the cost of a mesh grows with its square."""


def mesh_stretch(sigmas: Tensor) -> Tensor:
    """(K,) widths of the meshes of keypoints with deviations (K,), from 1 to ``_WIDEST``; in proportion to the
    deviations, except where they are smaller than that."""
    return (sigmas / torch.maximum(sigmas.amin(), sigmas.amax() / _WIDEST)).clamp(min=1)


def candidate_axes(poses: Tensor, sigmas: Tensor, size: int, step: float = 1.0) -> Tensor:
    """Columns and rows of the mesh of candidates around every keypoint (Algorithm 1).

    Args:
        poses: (..., K, 2) xy, pixels.
        sigmas: (K,) deviations of the schema; :func:`mesh_stretch` says how a mesh stretches with them.
        size: S, odd.
        step: Pixels between candidates of the keypoint with the smallest sigma.

    Returns:
        (..., K, S, 2) pixels: candidate (i, j) has x from entry j and y from entry i.
    """
    steps = torch.arange(-(size // 2), size // 2 + 1, device=poses.device) * step
    spread = steps * mesh_stretch(sigmas)[:, None]  # (K, S)
    return poses[..., None, :] + spread[..., None]


def candidate_mesh(axes: Tensor) -> Tensor:
    """(..., S, 2) columns and rows -> (..., S, S, 2) xy, row-major."""
    size = axes.shape[-2]
    x = axes[..., None, :, 0].expand(*axes.shape[:-2], size, size)
    return torch.stack([x, axes[..., :, None, 1].expand_as(x)], dim=-1)


def axis_similarity(axes: Tensor, keypoints: Tensor, areas: Tensor, sigmas: Tensor) -> Tensor:
    """OKS terms along each axis: the OKS term of candidate (i, j) is entry (j, x) times entry (i, y).

    Args:
        axes: (..., K, S, 2) pixels; leading dimensions broadcast with those of ``keypoints`` and ``areas``.
        keypoints: (..., K, 2) annotated xy, pixels.
        areas: (...) square pixels.
        sigmas: (K,) deviations of the schema.

    Returns:
        (..., K, S, 2) in [0, 1].
    """
    variance = (2 * sigmas).square() * areas.clamp(min=1e-9)[..., None]  # (..., K)
    return torch.exp(-(axes - keypoints[..., None, :]).square() / (2 * variance[..., None, None]))


def outer(axes: Tensor) -> Tensor:
    """(..., S, 2) factors of columns (x) and rows (y) -> their products (..., S, S), rows first."""
    return axes[..., :, None, 1] * axes[..., None, :, 0]


def fading(positions: Tensor, cells: int) -> Tensor:
    """Factors (...) of values sampled at ``positions`` (...) of an axis of ``cells`` cells, as in the released code.

    Its bilinear sampling takes the last cell twice where the right or lower neighbour is missing, with weights that
    should sum to 1 and sum to the distance from the last cell: 0 there, 1 from one cell beyond on.
    """
    beyond = positions - (cells - 1)
    return beyond.clamp(max=1).where(beyond >= 0, 1.0)


def mesh_span(sigmas: Sequence[float], size: int, step: float, stride: int) -> int:
    """Cells along a side that are read for the widest mesh of :func:`candidate_axes`."""
    return math.ceil((size - 1) * step * min(max(sigmas) / min(sigmas), _WIDEST) / stride) + 2


def sample_candidates(features: Tensor, axes: Tensor, stride: int, span: int, *, fade: bool = False) -> Tensor:
    """Features at every candidate, by bilinear interpolation; outside the map the border is repeated.

    Without gradients, the cells under a mesh are gathered once, and its rows and columns are interpolated one after the
    other, because several candidates lie in each cell.

    Args:
        features: (B, D, h, w); cell j is at pixel stride * j.
        axes: (B, T, K, S, 2) pixels.
        span: See :func:`mesh_span`.
        fade: Multiply by :func:`fading`.

    Returns:
        (B * T, K * D, S, S), the channels of one keypoint after the other, in channels_last memory.
    """
    batch, instances, keypoints, size, _ = axes.shape
    height, width = features.shape[-2:]
    if features.requires_grad:  # the gradient of a gather is slow
        x, y = axes.unbind(-1)
        scaled = torch.stack([x * (2 / (stride * (width - 1))), y * (2 / (stride * (height - 1)))], dim=-1)
        grid = candidate_mesh(scaled - 1).view(batch, instances * keypoints, size * size, 2)
        values = F.grid_sample(features.float(), grid, mode="bilinear", padding_mode="border", align_corners=True)
        values = values.view(batch, -1, instances, keypoints, size, size).permute(0, 2, 4, 5, 3, 1)
        if fade:
            factors = outer(torch.stack([fading(x / stride, width), fading(y / stride, height)], dim=-1))
            values = values * factors.permute(0, 1, 3, 4, 2)[..., None]
    else:
        x, y = (axes / stride).unbind(-1)
        (columns, across), (rows, down) = _under(x, width, span, fade), _under(y, height, span, fade)
        image = torch.arange(batch, device=axes.device).view(-1, 1, 1, 1, 1) * (height * width)
        cells = image + rows[..., :, None] * width + columns[..., None, :]  # (B, T, K, n, n)
        flat = features.float().permute(0, 2, 3, 1).flatten(0, 2)  # (B * h * w, D)
        patches = flat.index_select(0, cells.flatten()).view(*cells.shape[:4], -1)  # (B, T, K, n, n * D)
        lines = (down @ patches).view(*axes.shape[:4], cells.shape[-1], -1)  # (B, T, K, S, n, D)
        values = (across[..., None, :, :] @ lines).permute(0, 1, 3, 4, 2, 5)
    return values.reshape(batch * instances, size, size, -1).permute(0, 3, 1, 2)  # from (B, T, S, S, K, D)


def _under(positions: Tensor, cells: int, span: int, fade: bool) -> tuple[Tensor, Tensor]:
    """Cells (..., n) under ascending ``positions`` (..., S) of an axis, and their weights (..., S, n) in each."""
    inside = positions.clamp(0, cells - 1)
    span = min(span, cells)
    start = inside[..., :1].floor().long().clamp(max=cells - span)
    under = start + torch.arange(span, device=positions.device)
    weights = (1 - (inside[..., None] - under[..., None, :]).abs()).clamp(min=0)
    return under, weights * fading(positions, cells)[..., None] if fade else weights


def sample_windows(
    maps: Tensor, poses: Tensor, window: int, stride: int, *, shift: float, sigma: float, fade: bool = False
) -> Tensor:
    """Windows of the keypoint maps around every keypoint, multiplied by a Gaussian (global KEM).

    The maps are upsampled to pixels and sampled at whole steps from each keypoint, both bilinear. Both factor into
    axes, so a window is two small matrix products with the cells under it; the upsampled map is never built.

    Args:
        maps: (B, K, h, w).
        poses: (B, T, K, 2) xy, pixels.
        window: W, odd.
        stride: Pixels per cell.
        shift: Pixel x is read at index x + shift of the upsampled map; outside, the border is repeated.
        sigma: Standard deviation of the Gaussian, pixels.
        fade: Multiply by :func:`fading` of the upsampled map.

    Returns:
        (B, T, K, W, W).
    """
    reach = window // 2
    steps = torch.arange(-reach, reach + 2, device=poses.device)
    gaussian = torch.exp(-steps[:-1].square() / (2 * sigma**2))[:, None]  # (W, 1)

    def reader(position: Tensor, cells: int) -> tuple[Tensor, Tensor]:
        """The n cells (B, T, K, n) under a window along one axis, and their weights in each step (B, T, K, W, n)."""
        first = position.floor()
        index = (first[..., None] + steps).clamp(0, cells * stride - 1)  # of the upsampled map, W + 1 of them
        read = ((index + 0.5) / stride - 0.5).clamp(0, cells - 1)  # in cells
        span = min(cells, window // stride + 3)
        start = read[..., :1].floor().long().clamp(0, cells - span)
        under = start + torch.arange(span, device=poses.device)
        rows = (1 - (read[..., None] - under[..., None, :]).abs()).clamp(min=0)  # (B, T, K, W + 1, n)
        rows = gaussian * torch.lerp(rows[..., :-1, :], rows[..., 1:, :], (position - first)[..., None, None])
        if fade:
            rows = rows * fading(position[..., None] + steps[:-1], cells * stride)[..., None]
        return under, rows

    x, y = (poses + shift).unbind(-1)
    (rows, down), (columns, across) = reader(y, maps.shape[-2]), reader(x, maps.shape[-1])
    image = torch.arange(len(maps), device=maps.device).view(-1, 1, 1, 1, 1)
    channel = torch.arange(maps.shape[1], device=maps.device).view(-1, 1, 1)
    patches = maps[image, channel, rows[..., :, None], columns[..., None, :]]  # (B, T, K, n, n)
    return down @ patches @ across.transpose(-1, -2)


def window_axes(poses: Tensor, window: int) -> Tensor:
    """Columns and rows (..., K, W, 2), pixels, of the windows around keypoints (..., K, 2)."""
    reach = window // 2
    return poses[..., None, :] + torch.arange(-reach, reach + 1, device=poses.device)[:, None]


def convolve_windows(windows: Tensor, kernels: Tensor) -> Tensor:
    """True convolution, zero padding, of every window with its own kernel, divided by the kernel's size.

    Fourier transforms do this for thousands of small windows several times faster than a grouped convolution.

    Args:
        windows: (..., W, W).
        kernels: (..., S, S), S odd.

    Returns:
        (..., W, W): cell p is the sum over u of kernel(u) / S^2 * window(p - u), u from the kernel's centre.
    """
    window, size = windows.shape[-1], kernels.shape[-1]
    reach = size // 2
    length = _fast_length(window + reach)  # values that wrap around land on the rim that is cut off
    lengths = (length, length)
    down, across = _waves(size, length, kernels.device)
    kernel = down @ (kernels.to(down.dtype) @ across)  # small kernels need no fast transform
    full: Tensor = torch.fft.irfft2(torch.fft.rfft2(windows, s=lengths) * kernel, s=lengths)
    return full[..., reach : reach + window, reach : reach + window]


@lru_cache(maxsize=16)
def _waves(size: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Factors (length, size) of rows and (size, length // 2 + 1) of columns that transform a kernel of ``size`` cells,
    padded to ``length``, and divide it by its number of cells."""
    with torch.inference_mode(False):
        frequencies, cells = torch.arange(length).double(), torch.arange(size).double()
        turns = torch.outer(frequencies, cells) * (-2 * math.pi / length)
        waves = torch.polar(torch.full_like(turns, 1 / size), turns).to(device, torch.complex64)
        return waves, waves[: length // 2 + 1].T.contiguous()


def top_two(windows: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """Weighted mean of the two largest cells of every window.

    Args:
        windows: (..., W, W).
        weight: Weight of the largest cell, 0.5..1; the second has the rest.

    Returns:
        Its position (..., 2) xy from the centre, in cells, and its value (...).
    """
    side = windows.shape[-1]
    values, index = windows.flatten(-2).topk(2, dim=-1)
    places = torch.stack([index % side - side // 2, index // side - side // 2], dim=-1).to(values.dtype)  # (..., 2, xy)
    mean = torch.lerp(places[..., 1, :], places[..., 0, :], weight)
    return mean, torch.lerp(values[..., 1], values[..., 0], weight)


def _fast_length(least: int) -> int:
    """The smallest length of at least ``least`` that has no prime factor above 5."""
    length = least
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 1
