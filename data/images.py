"""Decodes, checks and encodes images."""

import io
import warnings
from collections.abc import Sequence
from typing import TypeAlias

import cv2
import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from posefleet.data.errors import DataError, NotAnImage, TooManyPixels

# Ray and torch run many decoding processes; OpenCV's own threads would compete with them for cores.
cv2.setNumThreads(0)

Buffer: TypeAlias = bytes | memoryview

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""Formats that :func:`decode_untrusted` accepts, as Pillow names them."""


def decode_image(data: Buffer, *, what: str = "image") -> np.ndarray:
    """Decode JPEG, PNG or any format that OpenCV reads, with EXIF orientation applied, to RGB.

    Grey and CMYK images become RGB. The missing part of a truncated JPEG becomes grey; the doctor and the sharding
    job find such files with :func:`posefleet.data.images.verify_image`.

    Args:
        data: The file's bytes, or a buffer of them.
        what: Name of the image in the error.

    Returns:
        (H, W, 3) uint8.

    Raises:
        DataError: The bytes are not an image.
    """
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) if len(data) else None
    if image is None:
        raise DataError(f"{what}: cannot decode {len(data)} bytes as an image")
    return image


def decode_untrusted(data: Buffer, *, most_pixels: int, what: str = "image") -> np.ndarray:
    """:func:`decode_image` for untrusted bytes: checks format and size before it allocates the pixels.

    Args:
        data: The file's bytes, or a buffer of them; the format is found from them, not from a file name.
        most_pixels: Maximum width x height of an image that is decoded.
        what: Name of the image in errors.

    Returns:
        (H, W, 3) uint8.

    Raises:
        NotAnImage: The bytes are none of ``FORMATS``.
        TooManyPixels: The header announces more than ``most_pixels``.
        DataError: The image is damaged, or ends too early.
    """
    kind, width, height = _read_header(data, what)
    if width * height > most_pixels:
        raise TooManyPixels(f"{what}: {width} x {height} pixels are more than the {most_pixels:,} that are allowed")
    if kind in ("JPEG", "MPO") and not _jpeg_ends(data):
        raise DataError(f"{what}: the JPEG ends too early after {len(data):,} bytes; send all of it")
    return decode_image(data, what=what)


def _read_header(data: Buffer, what: str) -> tuple[str, int, int]:
    """Format, width and height of the stored image, before EXIF orientation."""
    size = len(data)
    if not size:
        raise NotAnImage(f"{what}: no bytes at all")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the caller has its own bound
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return str(image.format), *image.size
    except Image.DecompressionBombError as error:
        raise TooManyPixels(f"{what}: {error}") from None
    except UnidentifiedImageError:
        raise NotAnImage(f"{what}: {size:,} bytes that are none of {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow raises many kinds of error for damaged headers
        raise DataError(f"{what}: damaged header: {error}") from None


def _jpeg_ends(data: Buffer) -> bool:
    """Whether the end marker of a JPEG follows its pixels; otherwise OpenCV fills the missing part with grey."""
    content = bytes(data)
    position = 2
    while position + 4 <= len(content) and content[position] == 0xFF:
        if content[position + 1] == 0xFF:  # padding
            position += 1
            continue
        if content[position + 1] == 0xDA:  # start of scan; thumbnails, which have end markers too, are before it
            return content.find(b"\xff\xd9", position) >= 0
        position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
    return False


def encode_jpeg(image: np.ndarray, quality: int = 92) -> bytes:
    """JPEG bytes of an (H, W, 3) uint8 RGB image."""
    return encode_image(image, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, quality])


def encode_image(image: np.ndarray, ending: str, options: Sequence[int] = ()) -> bytes:
    """Encode an image as the bytes of an image file.

    Args:
        image: (H, W, 3) uint8 RGB.
        ending: File name extension: ``.jpg``, ``.png`` or any other that OpenCV writes.
        options: OpenCV's ``IMWRITE_...`` flags, each followed by its value.

    Raises:
        ValueError: OpenCV writes no format with this extension.
    """
    try:
        ok, data = cv2.imencode(ending, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), list(options))
    except cv2.error:
        ok = False
    if not ok:
        raise ValueError(f"no image format has the ending {ending!r}; use .jpg or .png")
    return data.tobytes()


EXIF_ORIENTATION = 0x0112
"""EXIF tag of the orientation."""

TURNED_ORIENTATIONS = range(5, 9)
"""EXIF orientations that swap width and height."""


def verify_image(data: bytes, what: str = "image") -> tuple[int, int]:
    """Decode every pixel of an image, and accept no missing or damaged part.

    Returns:
        (width, height) with EXIF orientation applied: the size that ``decode_image`` gives.

    Raises:
        DataError: The bytes are not an image, or a part of it is missing or damaged.
    """
    if not data:
        raise DataError(f"{what}: the file is empty")
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            width, height = image.size
            if image.format not in ("JPEG", "PNG"):
                decode_image(data, what=what)  # training decodes with OpenCV, which reads fewer formats than Pillow
    except UnidentifiedImageError as error:
        raise DataError(f"{what}: {len(data)} bytes that are not an image") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{what}: damaged image: {error}") from error
    return (height, width) if exif_orientation(data) in TURNED_ORIENTATIONS else (width, height)


def exif_orientation(data: bytes) -> int:
    """EXIF orientation of an image, 1 (not turned) to 8; reads only the header."""
    with Image.open(io.BytesIO(data)) as image:
        try:
            return int(image.getexif().get(EXIF_ORIENTATION, 1))
        except (SyntaxError, ValueError, TypeError):
            return 1  # broken EXIF: viewers and OpenCV do not turn the image
