"""Encodes COCO's segmentations, polygons or run lengths, as compressed run lengths; refuses what cannot be drawn."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from posefleet.data.coco.annotations import are_numbers, is_integer
from posefleet.data.errors import DataError
from posefleet.data.masks import run_lengths

MOST_PIXELS = 1 << 31
"""Pixels of an image whose segmentations are encoded; COCO's code counts with 32 bits."""

MOST_PERIMETER = 1 << 20
"""Pixels along the outline of all polygons of a segmentation. COCO's code needs about 200 bytes for each."""


def encode_segmentation(segmentation: Any, size: tuple[int, int]) -> str | None:
    """The segmentation of an annotation as COCO's compressed run lengths.

    Args:
        segmentation: A list of polygons, each [x, y, x, y, ...] in pixels; or an object with the ``size`` [height,
            width] and the ``counts`` of run lengths, as numbers or compressed.
        size: (width, height) of the image.

    Returns:
        The compressed run lengths; None if there is no segmentation, or it covers no pixel.

    Raises:
        DataError: It is damaged, belongs to an image of another size, or is too large to draw.
    """
    width, height = size
    if segmentation is None or segmentation == []:
        return None
    if not (width > 0 and height > 0 and width * height < MOST_PIXELS):
        raise DataError(f"segmentation of an image of {width} x {height} pixels, expected 1 to {MOST_PIXELS:,}")
    if isinstance(segmentation, Mapping):
        counts = _compressed(segmentation, size)
    elif isinstance(segmentation, list):
        polygons = _polygons(segmentation, size)
        merged = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
        counts = merged["counts"].decode()
    else:
        raise DataError(f"segmentation is a {type(segmentation).__name__}, expected polygons or run lengths")
    (lengths,) = run_lengths([counts], size)
    return counts if lengths[1::2].any() else None


def _compressed(segmentation: Mapping[str, Any], size: tuple[int, int]) -> str:
    width, height = size
    found, counts = segmentation.get("size"), segmentation.get("counts")
    if found != [height, width]:
        raise DataError(f"segmentation has size {found!r}, the image has [{height}, {width}]")
    if isinstance(counts, str):
        return counts  # the caller decodes it, which checks it
    if not isinstance(counts, list) or not all(is_integer(run) and run >= 0 for run in counts):
        raise DataError("segmentation has counts that are neither a string nor whole numbers from 0")
    if sum(counts) != width * height:
        raise DataError(f"segmentation covers {sum(counts)} pixels, the image has {width} x {height}")
    compressed = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return str(compressed["counts"].decode())


def _polygons(segmentation: list[Any], size: tuple[int, int]) -> list[list[float]]:
    """The polygons that have an area: those of at least three points."""
    longest, perimeter = max(size), 0.0
    for polygon in segmentation:
        if not are_numbers(polygon) or len(polygon) % 2:
            raise DataError("segmentation has a polygon that is not a list of x, y, x, y, ...")
        points = np.array(polygon, float).reshape(-1, 2)
        # This also finds NaN and infinity.
        if not (np.abs(points) <= 2 * longest).all():
            raise DataError(f"segmentation has a point far outside the image of {size[0]} x {size[1]} pixels")
        perimeter += float(np.abs(points - np.roll(points, 1, axis=0)).sum())
    if perimeter > MOST_PERIMETER:
        raise DataError(f"segmentation has an outline of {perimeter:,.0f} pixels, at most {MOST_PERIMETER:,} are drawn")
    areas: list[list[float]] = [polygon for polygon in segmentation if len(polygon) >= 6]
    if not areas:
        raise DataError("segmentation has no polygon of three or more points")
    return areas
