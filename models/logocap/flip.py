"""Flip averaging: dense predictions of an image and of its mirror image are averaged before decoding.

Cell j of a map of stride s is at pixel s * j, and a mirrored image of width W has pixel x at W - x. Flipping the map
takes cell j from cell W / s - 1 - j, which is at pixel W - s - s * j: s pixels off. So the mirrored image is moved by
s pixels first.

The released network needs no such move. Its training mirrored pixels, x -> W - 1 - x, and cells, j -> W / s - 1 - j, so
a keypoint at x trained the column x / s of an image and the column x / s - (s - 1) / s of its mirror image. The network
learned the middle, x / s - (s - 1) / (2 s), which flipping a map moves to the right place.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

FlipConvention = Literal["own", "released"]
"""What a network learned of mirrored images: columns that are where :func:`posefleet.data.transforms.mirror` moves
them, or those of the released code."""


def mirror_images(images: Tensor, move: int) -> Tensor:
    """(B, C, H, W) images, mirrored and moved left by ``move`` pixels; the last column is repeated."""
    mirrored = images.flip(-1)
    return torch.cat([mirrored[..., move:], mirrored[..., -1:].expand(*images.shape[:-1], move)], dim=-1)


def unmirror_map(maps: Tensor, flip_index: Sequence[int]) -> Tensor:
    """Turn maps (B, C, h, w) of mirrored images into maps of the images.

    Args:
        flip_index: For each channel, the channel of its mirror image, e.g. the left keypoint for the right one.
    """
    return maps.flip(-1)[:, list(flip_index)]


def unmirror_offsets(offsets: Tensor, flip_index: Sequence[int]) -> Tensor:
    """Turn offsets (B, 2K, h, w), x before y, of mirrored images into offsets of the images."""
    swapped = unmirror_map(offsets, [2 * k + axis for k in flip_index for axis in (0, 1)])
    x, y = swapped.unflatten(1, (-1, 2)).unbind(2)
    return torch.stack([-x, y], dim=2).flatten(1, 2)
