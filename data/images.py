"""Decodes, checks and encodes images."""

import importlib
import io
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import cache

import cv2
import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from posefleet.data.errors import DataError, NotAnImage, TooManyPixels
from posefleet.data.image_limits import LIMITS, Buffer, ImageLimits, check_structure

# Ray and torch run many decoding processes; OpenCV's own threads would compete with them for cores.
cv2.setNumThreads(0)

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""Formats that :func:`decode_untrusted` accepts if it is not told otherwise, as Pillow names them."""

FILE_FORMATS = (*FORMATS, "TIFF", "JPEG2000", "AVIF", "HEIF")
"""Formats of image files that are read from folders; HEIF needs one of ``HEIF_PLUGINS``."""

IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp"),
    *(".tif", ".tiff", ".jp2", ".j2k", ".avif", ".heic", ".heif"),
)
"""File name extensions of ``FILE_FORMATS``."""

HEIF_PLUGINS = ("pi_heif", "pillow_heif")
"""Packages that teach Pillow to read HEIC; the first that is installed is used."""

_TIFF = (b"II*\0", b"MM\0*")
_EIGHT_BITS = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB")  # Pillow's modes that become RGB unscaled


def decode_image(data: Buffer, *, what: str = "image") -> np.ndarray:
    """Decode an image of any of ``FILE_FORMATS`` with EXIF orientation applied, to RGB.

    Grey and CMYK images become RGB, and 16 bits become 8. Of several pages or frames this is the first. The missing
    part of a truncated JPEG becomes grey; the doctor and the sharding job find such files with
    :func:`posefleet.data.images.verify_image`.

    Args:
        data: The file's bytes, or a buffer of them.
        what: Name of the image in the error.

    Returns:
        (H, W, 3) uint8.

    Raises:
        DataError: The bytes are not an image, or it is HEIC and no plug-in is installed; the message names one.
    """
    if bytes(data[4:8]) == b"ftyp":  # AVIF and HEIC: OpenCV reads no HEIC, and does not turn AVIF
        return _decode_with_pillow(data, what)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) if len(data) else None
    except cv2.error as error:  # more pixels than OpenCV reads, or than fit into memory
        raise DataError(f"{what}: cannot decode {len(data)} bytes as an image: {error.err}") from None
    if image is None and bytes(data[:4]) in _TIFF:  # OpenCV lacks some of its compressions
        image = _decode_with_pillow(data, what)
    if image is None:
        raise DataError(f"{what}: cannot decode {len(data)} bytes as an image")
    return image


def _decode_with_pillow(data: Buffer, what: str) -> np.ndarray:
    _add_heif(data, what)
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=_known(FILE_FORMATS)) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if image.mode not in _EIGHT_BITS:
                raise DataError(
                    f"{what}: {image.format} with pixels of the kind {image.mode}, expected 8 bits a channel"
                )
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except DataError:
        raise
    except Exception as error:  # Pillow raises many kinds of error for damaged files
        raise DataError(f"{what}: cannot decode {len(data)} bytes as an image: {error}") from None


def _add_heif(data: Buffer, what: str) -> None:
    """Teach Pillow to read HEIC, if ``data`` may be HEIC.

    Raises:
        DataError: It is HEIC, and no plug-in is installed.
    """
    if bytes(data[4:8]) == b"ftyp" and not bytes(data[8:12]).startswith(b"avi") and not _heif_added():
        raise DataError(f"{what}: this is HEIC, which needs a plug-in: pip install pi-heif")


@cache
def _heif_added() -> bool:
    for name in HEIF_PLUGINS:
        with suppress(ImportError):
            importlib.import_module(name).register_heif_opener()
            return True
    return False


def _known(formats: Sequence[str]) -> list[str]:
    """Those that this Pillow can read: HEIF needs a plug-in, AVIF a recent Pillow."""
    Image.init()
    return [name for name in formats if name in Image.OPEN]


def decode_untrusted(
    data: Buffer,
    *,
    most_pixels: int,
    what: str = "image",
    formats: Sequence[str] = FORMATS,
    limits: ImageLimits | None = LIMITS,
) -> np.ndarray:
    """:func:`decode_image` for untrusted bytes: checks structure, format and size before it allocates the pixels.

    Args:
        data: The file's bytes, or a buffer of them; the format is found from them, not from a file name.
        most_pixels: Maximum width x height of an image that is decoded.
        what: Name of the image in errors.
        formats: Accepted formats, of ``FILE_FORMATS``.
        limits: What the structure of the file may ask for. None: it was checked before.

    Returns:
        (H, W, 3) uint8.

    Raises:
        TooCostly: The structure of the file asks for more work than ``limits`` allow.
        NotAnImage: The bytes are none of ``formats``.
        TooManyPixels: The header announces more than ``most_pixels``.
        DataError: The image is damaged, or ends too early.
    """
    if limits is not None:
        check_structure(data, what=what, limits=limits)
    kind, width, height = _read_header(data, what, formats)
    if width * height > most_pixels:
        raise TooManyPixels(f"{what}: {width} x {height} pixels are more than the {most_pixels:,} that are allowed")
    if kind in ("JPEG", "MPO") and not _jpeg_ends(data):
        raise DataError(f"{what}: the JPEG ends too early after {len(data):,} bytes; send all of it")
    return decode_image(data, what=what)


def _read_header(data: Buffer, what: str, formats: Sequence[str]) -> tuple[str, int, int]:
    """Format, width and height of the stored image, before EXIF orientation."""
    size = len(data)
    if not size:
        raise NotAnImage(f"{what}: no bytes at all")
    if "HEIF" in formats:
        _add_heif(data, what)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the caller has its own bound
            with Image.open(io.BytesIO(data), formats=_known(formats)) as image:
                return str(image.format), *image.size
    except Image.DecompressionBombError as error:
        raise TooManyPixels(f"{what}: {error}") from None
    except UnidentifiedImageError:
        raise NotAnImage(f"{what}: {size:,} bytes that are none of {', '.join(formats)}") from None
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
        TooCostly: The structure of the file asks for more work than it may.
        DataError: The bytes are not an image, or a part of it is missing or damaged.
    """
    if not data:
        raise DataError(f"{what}: the file is empty")
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    check_structure(data, what=what)
    _add_heif(data, what)
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            width, height = image.size
            if image.format not in ("JPEG", "PNG") or _has_exif(image):
                height, width, _ = decode_image(data, what=what).shape  # decoders differ in what they read and turn
                return width, height
    except UnidentifiedImageError as error:
        raise DataError(f"{what}: {len(data)} bytes that are not an image") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{what}: damaged image: {error}") from error
    return width, height


def _has_exif(image: Image.Image) -> bool:
    """Whether an image has EXIF, also broken EXIF, which decoders read differently."""
    try:
        return bool(image.getexif())
    except (SyntaxError, ValueError, TypeError):
        return True


def exif_orientation(data: bytes) -> int:
    """EXIF orientation of an image, 1 (not turned) to 8; reads only the header."""
    with Image.open(io.BytesIO(data)) as image:
        try:
            return int(image.getexif().get(EXIF_ORIENTATION, 1))
        except (SyntaxError, ValueError, TypeError):
            return 1  # broken EXIF: viewers and OpenCV do not turn the image
