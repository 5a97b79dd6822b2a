"""Decoding of trusted and untrusted images."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from posefleet.data.errors import DataError, NotAnImage, TooManyPixels
from posefleet.data.images import decode_image, decode_untrusted, encode_image, encode_jpeg

PIXELS = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
MOST = 10_000


def stored(kind: str, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(PIXELS)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    image.save(file, kind, **options)  # type: ignore[arg-type]
    return file.getvalue()


KINDS = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "RGBA", "LA", "P", "I;16", "1"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P",),
    "BMP": ("RGB",),
}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in KINDS.items() for mode in modes])
def test_images_of_every_kind_become_rgb(kind: str, mode: str) -> None:
    image = decode_untrusted(stored(kind, mode), most_pixels=MOST)
    assert (image.shape, image.dtype) == (PIXELS.shape, np.uint8)


def test_an_untrusted_image_has_the_pixels_that_evaluation_sees() -> None:
    data = encode_jpeg(PIXELS)
    buffer = memoryview(data)
    assert np.array_equal(decode_untrusted(data, most_pixels=MOST), decode_image(data))
    assert np.array_equal(decode_untrusted(buffer, most_pixels=MOST), decode_image(data))
    assert np.array_equal(decode_untrusted(encode_image(PIXELS, ".png"), most_pixels=MOST), PIXELS)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation_is_that_of_a_viewer(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_untrusted(stored(kind, exif=exif), most_pixels=MOST).shape == (64, 48, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_an_image_that_ends_too_early_is_refused(kind: str, kept: float) -> None:
    data = stored(kind)
    with pytest.raises(DataError, match=r"cat\.jpg"):
        decode_untrusted(data[: int(kept * len(data))], most_pixels=MOST, what="cat.jpg")


def test_a_thumbnail_is_not_the_end_of_its_jpeg() -> None:
    thumbnail = b"Exif\x00\x00" + encode_jpeg(PIXELS[:8, :8])
    data = stored("JPEG")
    data = data[:2] + b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail + data[2:]
    decode_untrusted(data, most_pixels=MOST)
    decode_untrusted(data + b"behind the end", most_pixels=MOST)
    with pytest.raises(DataError, match="ends too early"):
        decode_untrusted(data[:-40], most_pixels=MOST)


@pytest.mark.parametrize("data", [b"", b"no image", b"\x80\x04pickle", b"%PDF-1.4", b"<svg/>", stored("TIFF")])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(NotAnImage):
        decode_untrusted(data, most_pixels=MOST)


@pytest.mark.parametrize("side", [200, 20_000, 100_000])
def test_a_header_that_announces_too_much_is_enough_to_refuse(side: int) -> None:
    header = bytearray(stored("PNG"))
    header[16:24] = side.to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    with pytest.raises(TooManyPixels):
        decode_untrusted(bytes(header), most_pixels=MOST)
