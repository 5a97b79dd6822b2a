"""Image bytes to pixels."""

import io
import warnings
from collections.abc import Sequence
from typing import TypeAlias

import cv2
import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from posefleet.data.errors import DataError, NotAnImage, TooManyPixels

# Ray and torch run many decoding processes; OpenCV's own threads would only make them fight.
cv2.setNumThreads(0)

Buffer: TypeAlias = bytes | memoryview

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""What strangers may send."""


def decode_image(data: Buffer, *, what: str = "image") -> np.ndarray:
    """Decode JPEG, PNG or any format OpenCV knows, as a person sees it: EXIF orientation applied, always RGB.

    Grey and CMYK images become RGB. A truncated JPEG decodes as far as it goes; the doctor and the sharding
    job find those (:func:`posefleet.data.images.verify_image`).

    Args:
        data: The file's bytes, or a buffer of them.
        what: Names the image in the error.

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
    """:func:`decode_image` for bytes from strangers: looked at before anything large is made of them.

    Args:
        data: The file's bytes, or a buffer of them; they decide what it is, not its name.
        most_pixels: An image with more in its header is not decoded.
        what: Names the image in errors.

    Returns:
        (H, W, 3) uint8.

    Raises:
        NotAnImage: It is none of ``FORMATS``.
        TooManyPixels: It is too large.
        DataError: It is damaged, or ends too early.
    """
    kind, width, height = _read_header(data, what)
    if width * height > most_pixels:
        raise TooManyPixels(f"{what}: {width} x {height} pixels are more than the {most_pixels:,} that are allowed")
    if kind in ("JPEG", "MPO") and not _jpeg_ends(data):
        raise DataError(f"{what}: the JPEG ends too early after {len(data):,} bytes; send all of it")
    return decode_image(data, what=what)


def _read_header(data: Buffer, what: str) -> tuple[str, int, int]:
    """Format, width and height, before any orientation."""
    size = len(data)
    if not size:
        raise NotAnImage(f"{what}: no bytes at all")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the caller has a bound of its own
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return str(image.format), *image.size
    except Image.DecompressionBombError as error:
        raise TooManyPixels(f"{what}: {error}") from None
    except UnidentifiedImageError:
        raise NotAnImage(f"{what}: {size:,} bytes that are none of {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow's readers of damaged headers raise whatever they stumble over
        raise DataError(f"{what}: damaged header: {error}") from None


def _jpeg_ends(data: Buffer) -> bool:
    """Whether the end marker of a JPEG follows its pixels; OpenCV would fill what is missing with grey."""
    content = bytes(data)
    position = 2
    while position + 4 <= len(content) and content[position] == 0xFF:
        if content[position + 1] == 0xFF:  # padding
            position += 1
            continue
        if content[position + 1] == 0xDA:  # start of scan: thumbnails, which have end markers too, lie before it
            return content.find(b"\xff\xd9", position) >= 0
        position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
    return False


def encode_jpeg(image: np.ndarray, quality: int = 92) -> bytes:
    """JPEG bytes of an (H, W, 3) uint8 RGB image."""
    return encode_image(image, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, quality])


def encode_image(image: np.ndarray, ending: str, options: Sequence[int] = ()) -> bytes:
    """The bytes of a file of an (H, W, 3) uint8 RGB image.

    Args:
        ending: ``.jpg``, ``.png`` or any that OpenCV knows.
        options: OpenCV's ``IMWRITE_...`` and their values.

    Raises:
        ValueError: There is no such format.
    """
    try:
        ok, data = cv2.imencode(ending, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), list(options))
    except cv2.error:
        ok = False
    if not ok:
        raise ValueError(f"no image format has the ending {ending!r}; use .jpg or .png")
    return data.tobytes()


EXIF_ORIENTATION = 0x0112


TURNED_ORIENTATIONS = range(5, 9)
"""EXIF orientations that swap width and height."""


def verify_image(data: bytes, what: str = "image") -> tuple[int, int]:
    """Decode every pixel of an image, strictly.

    Returns:
        (width, height) as a person sees it, EXIF orientation applied: the size that ``decode_image`` gives.

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
                decode_image(data, what=what)  # Pillow reads formats that OpenCV, which training uses, does not
    except UnidentifiedImageError as error:
        raise DataError(f"{what}: {len(data)} bytes that are not an image") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{what}: damaged image: {error}") from error
    return (height, width) if exif_orientation(data) in TURNED_ORIENTATIONS else (width, height)


def exif_orientation(data: bytes) -> int:
    """How a viewer turns the image, 1 (not at all) to 8; reads the header only."""
    with Image.open(io.BytesIO(data)) as image:
        try:
            return int(image.getexif().get(EXIF_ORIENTATION, 1))
        except (SyntaxError, ValueError, TypeError):
            return 1  # broken EXIF: viewers and OpenCV leave the image as it is
