"""Flip averaging: dense predictions of an image and of its mirror image, averaged before anything is decoded.

Cell j of a map of stride s stands for pixel s * j, and a mirrored image of width W has pixel x at W - x. Mirroring the
map would take cell j from cell W / s - 1 - j, which stands for pixel W - s - s * j: s pixels off. So the mirrored image
is moved by s pixels first.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def mirror_images(images: Tensor, stride: int) -> Tensor:
    """(B, C, H, W) images, mirrored and moved left by ``stride`` pixels; the last columns repeat."""
    mirrored = images.flip(-1)
    return torch.cat([mirrored[..., stride:], mirrored[..., -1:].expand(*images.shape[:-1], stride)], dim=-1)


def unmirror_map(maps: Tensor, flip_index: Sequence[int]) -> Tensor:
    """Maps (B, C, h, w) of mirrored images as maps of the images.

    Args:
        flip_index: The channel that each channel trades places with, e.g. left and right keypoints.
    """
    return maps.flip(-1)[:, list(flip_index)]


def unmirror_offsets(offsets: Tensor, flip_index: Sequence[int]) -> Tensor:
    """Offsets (B, 2K, h, w), x before y, of mirrored images as offsets of the images."""
    swapped = unmirror_map(offsets, [2 * k + axis for k in flip_index for axis in (0, 1)])
    x, y = swapped.unflatten(1, (-1, 2)).unbind(2)
    return torch.stack([-x, y], dim=2).flatten(1, 2)
