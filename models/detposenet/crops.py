"""Square crops around boxes, cut from images on their device, and the conversion of points into crops and back."""

import torch
from torch import Tensor


def square_boxes(boxes: Tensor, padding: float | Tensor) -> Tensor:
    """Squares (N, 4) around the centres of boxes (N, 4); the side is ``padding`` (a number or (N,)) times the longer
    side of the box.

    A square is never smaller than a pixel.
    """
    low, high = boxes[:, :2], boxes[:, 2:]
    half = ((high - low).amax(1) * padding).clamp(min=1.0)[:, None] / 2
    centre = (low + high) / 2
    return torch.cat([centre - half, centre + half], dim=1)


def crop_images(pixels: Tensor, image: Tensor, squares: Tensor, size: int) -> Tensor:
    """Cut squares out of images and resample them. Pixels outside an image are 0, the mean of normalised images.

    Args:
        pixels: (B, 3, H, W) normalised.
        image: (N,) int64, the image of each crop.
        squares: (N, 4) xyxy.
        size: Side of the crops, pixels.

    Returns:
        (N, 3, size, size). Where a square has more pixels, they are averaged.
    """
    from torchvision.ops import roi_align  # seconds to import

    with torch.autocast(pixels.device.type, enabled=False):
        rois = torch.cat([image[:, None].float(), squares.float()], dim=1)
        crops: Tensor = roi_align(pixels.float().contiguous(), rois, size, aligned=True)
    return crops.to(memory_format=torch.channels_last)


def into_crops(points: Tensor, squares: Tensor, size: int) -> Tensor:
    """Points (N, K, 2), pixels of the image -> pixels of crops of ``size``."""
    return (points - squares[:, None, :2]) * (size / (squares[:, 2] - squares[:, 0]))[:, None, None]


def out_of_crops(points: Tensor, squares: Tensor, size: int) -> Tensor:
    """Inverse of :func:`into_crops`: pixels of crops -> pixels of the image."""
    return points * ((squares[:, 2] - squares[:, 0]) / size)[:, None, None] + squares[:, None, :2]
