"""Draws segmentations, stored as COCO's compressed run lengths, into the coarse mask of an input image.

COCO counts the pixels of an image column by column: first a run of zeros, then a run of ones, and so on. Its strings
hold each length as the difference to the one before the last, in digits of five bits.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from posefleet.data.errors import DataError
from posefleet.data.structures import MASK_STRIDE, mask_shape

_MOST_DIGITS = 7
"""Digits of a run length: 35 bits, more than COCO's own code, which has 32."""


def run_lengths(outlines: Sequence[str], size: tuple[int, int]) -> list[np.ndarray]:
    """The run lengths of segmentations of an image, zeros first.

    Args:
        outlines: COCO's compressed strings.
        size: (width, height) of the image.

    Returns:
        For each string (R,) int64, pixels; their sum is width * height.

    Raises:
        DataError: A string is damaged, or belongs to an image of another size.
    """
    text = "".join(outlines)
    try:
        digits = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        raise DataError(f"run lengths {_brief(text)} have characters that COCO's code does not use") from None
    bounds = np.cumsum([len(outline) for outline in outlines], dtype=np.int64)
    if not all(outlines) or ((digits < 0) | (digits > 63)).any() or (digits[bounds - 1] & 32).any():
        raise DataError(f"run lengths {_brief(text)} are not a string of COCO's code")
    ends = np.flatnonzero((digits & 32) == 0)  # last digit of each number
    count = np.diff(ends, prepend=-1)
    if len(count) and count.max() > _MOST_DIGITS:
        raise DataError(f"run lengths {_brief(text)} have a number of {count.max()} digits, at most {_MOST_DIGITS} fit")
    place = np.arange(len(digits)) - np.repeat(ends + 1 - count, count)
    numbers = np.add.reduceat((digits & 31) << (5 * place), ends + 1 - count) if len(ends) else digits
    numbers -= ((digits[ends] & 16) > 0) << (5 * count)  # the highest bit is the sign
    found = np.split(numbers, np.searchsorted(ends, bounds[:-1])) if outlines else []
    for lengths, outline in zip(found, outlines, strict=True):
        lengths[1::2], lengths[2::2] = lengths[1::2].cumsum(), lengths[2::2].cumsum()
        width, height = size
        if lengths.min() < 0 or lengths.sum() != width * height:
            raise DataError(
                f"run lengths {_brief(outline)} cover {lengths.sum()} pixels, the image has {width} x {height}; "
                "is the segmentation that of another image?"
            )
    return found


def draw_mask(
    outlines: Sequence[str], size: tuple[int, int], matrix: np.ndarray, input_size: tuple[int, int]
) -> np.ndarray:
    """The mask of an input image: the union of segmentations of the original image, moved to the input image.

    Args:
        outlines: COCO's compressed run lengths, in the original image.
        size: (width, height) of the original image.
        matrix: (2, 3), original image -> input image, see :mod:`posefleet.data.transforms`.
        input_size: (width, height) of the input image.

    Returns:
        (h, w) bool, see ``People.mask``: whether the segmentations cover the pixel at which a cell is.

    Raises:
        DataError: Run lengths are damaged, or of an image of another size.
    """
    height, width = mask_shape(input_size[1], input_size[0])
    # Image column by column: (columns, rows) in memory, as in COCO's code. Only columns that hold ones are filled.
    runs = [_ones(lengths) for lengths in run_lengths(outlines, size)]
    starts, stops = (np.concatenate(ends) for ends in zip(*runs, strict=True)) if runs else (np.zeros(0), np.zeros(0))
    if not len(starts):
        return np.zeros((height, width), bool)
    first, last = int(starts.min()) // size[1], -(-int(stops.max()) // size[1])
    pixels = np.zeros((last - first) * size[1], np.uint8)
    offset = first * size[1]
    for start, stop in zip((starts - offset).tolist(), (stops - offset).tolist(), strict=True):
        pixels[start:stop] = 255
    # Pixel i is at i + 0.5. The image is transposed, so x and y of the original change places.
    (xx, xy, x), (yx, yy, y) = (np.asarray(matrix) / MASK_STRIDE).tolist()
    left = first + 0.5
    to_cells = np.array([[xy, xx, xx * left + xy / 2 + x], [yy, yx, yx * left + yy / 2 + y]])
    cells = cv2.warpAffine(pixels.reshape(-1, size[1]), to_cells, (width, height), flags=cv2.INTER_LINEAR)
    covered: np.ndarray = cells > 127
    return covered


def _ones(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First pixel, and pixel after the last, of each run of ones that is not empty."""
    ends = lengths.cumsum()
    starts, stops = ends[:-1:2], ends[1::2]
    filled = stops > starts
    return starts[filled], stops[filled]


def _brief(counts: str) -> str:
    return repr(counts if len(counts) <= 40 else counts[:37] + "...")
