"""Decoding of trusted and untrusted images."""

import base64
import io
import zlib
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from PIL import Image

from posefleet.data import images
from posefleet.data.errors import DataError, NotAnImage, TooManyPixels
from posefleet.data.images import (
    FILE_FORMATS,
    HEIF_PLUGINS,
    decode_image,
    decode_untrusted,
    encode_image,
    encode_jpeg,
    verify_image,
)

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
    if data != stored("TIFF"):
        with pytest.raises(NotAnImage):
            decode_untrusted(data, most_pixels=MOST, formats=FILE_FORMATS)


@pytest.mark.parametrize("side", [200, 20_000, 100_000])
def test_a_header_that_announces_too_much_is_enough_to_refuse(side: int) -> None:
    header = bytearray(stored("PNG"))
    header[16:24] = side.to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    with pytest.raises(TooManyPixels):
        decode_untrusted(bytes(header), most_pixels=MOST)


# ------------------------------------------------------------------------------------------------------- files

CORNERS = np.zeros((32, 48, 3), np.uint8)
CORNERS[:16, :24], CORNERS[16:, 24:] = (250, 10, 10), (10, 10, 250)
HEIC = base64.b64decode(  # CORNERS, as pillow-heif writes it
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAb5tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAA"
    "ADRpbG9jAAAAAERAAAIAAQAAAAAB4gABAAAAAAAAADoAAgAAAAACHAABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAA"
    "AAABAABodmMxAAAAABVpbmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAAA/WlwcnAAAADdaXBjbwAAAHZodmNDAQNwAAAA"
    "kAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq"
    "5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xh"
    "cAAAADAAAAABAAAAIAAAAAH////wAAAAAv///+AAAAACAAAAEHBpeGkAAAAAAwgICAAAABhpcG1hAAAAAAAAAAEAAQWBAgMFhAAA"
    "ABppcmVmAAAAAAAAAA5jZHNjAAIAAQABAAAAZm1kYXQAAAA2KAGvGYD3hEl/45z+XZfvQa+1/ctaDb7Sj16W/6V6Ath9q4L9+WOR"
    "FLAFxPs9s8c2new+pP3gAAAABkV4aWYAAE1NACoAAAAIAAEBEgADAAAAAQAGAAAAAAAA"
)
IN_FOLDERS = {
    "TIFF": ("RGB", "L", "CMYK", "RGBA", "I;16", "P", "1"),
    "AVIF": ("RGB", "RGBA", "L"),
    "JPEG2000": ("RGB", "L", "RGBA"),
}


def corner_colours(image: np.ndarray) -> list[str]:
    """The colour of the upper left, upper right, lower left and lower right corner."""
    names = {(True, False): "red", (False, True): "blue", (False, False): "black"}
    corners = (image[y, x].astype(int) for y, x in ((3, 3), (3, -4), (-4, 3), (-4, -4)))
    return [names[bool(red > 150), bool(blue > 150)] for red, _, blue in corners]


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in IN_FOLDERS.items() for mode in modes])
def test_files_of_a_folder_have_more_formats_than_requests(kind: str, mode: str) -> None:
    data = stored(kind, mode)
    image = decode_untrusted(data, most_pixels=MOST, formats=FILE_FORMATS)
    assert (image.shape, image.dtype) == (PIXELS.shape, np.uint8)
    assert verify_image(data) == (64, 48)
    with pytest.raises(NotAnImage):
        decode_untrusted(data, most_pixels=MOST)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_reader_turns_an_image_and_says_its_size_as_a_viewer(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(CORNERS).save(file, kind, exif=exif, quality=95)
    image = decode_image(file.getvalue())
    assert corner_colours(image) == ["black", "red", "blue", "black"]
    assert verify_image(file.getvalue()) == image.shape[1::-1] == (32, 48)


def test_of_16_bits_the_high_ones_are_kept() -> None:
    grey = np.asarray(Image.fromarray(PIXELS).convert("L"))
    assert np.abs(decode_image(stored("TIFF", "I;16"))[..., 0].astype(int) - grey).max() <= 1


def test_of_several_pages_the_first_is_read() -> None:
    file = io.BytesIO()
    Image.fromarray(CORNERS).save(file, "TIFF", save_all=True, append_images=[Image.fromarray(PIXELS)])
    assert np.array_equal(decode_image(file.getvalue()), CORNERS)


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg", "zstd", "lzma"])
def test_compressions_of_tiff_that_opencv_lacks_are_read_too(compression: str) -> None:
    file = io.BytesIO()
    Image.fromarray(CORNERS).save(file, "TIFF", compression=compression)
    assert corner_colours(decode_image(file.getvalue())) == ["red", "black", "black", "blue"]
    assert verify_image(file.getvalue()) == (48, 32)


def test_tiffs_of_floats_are_refused_with_the_reason() -> None:
    with pytest.raises(DataError, match=r"map\.tif: TIFF with pixels of the kind F, expected 8 bits"):
        decode_image(stored("TIFF", "F"), what="map.tif")


@pytest.mark.parametrize("kind", ["TIFF", "AVIF", "JPEG2000"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_a_file_that_ends_too_early_is_refused(kind: str, kept: float) -> None:
    data = stored(kind)
    with pytest.raises(DataError, match=r"cat\.jpg"):
        decode_untrusted(data[: int(kept * len(data))], most_pixels=MOST, what="cat.jpg", formats=FILE_FORMATS)


def test_heic_is_read_with_a_plugin() -> None:
    if not images._heif_added():
        pytest.skip(f"needs one of {', '.join(HEIF_PLUGINS)}")
    image = decode_untrusted(HEIC, most_pixels=MOST, formats=FILE_FORMATS)
    assert corner_colours(image) == ["red", "black", "black", "blue"]
    assert verify_image(HEIC) == (48, 32)
    with pytest.raises(NotAnImage):
        decode_untrusted(HEIC, most_pixels=MOST)


@pytest.mark.parametrize(
    "read", [decode_image, verify_image, partial(decode_untrusted, most_pixels=MOST, formats=FILE_FORMATS)]
)
def test_heic_without_a_plugin_says_what_to_install(
    read: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_heif_added", lambda: False)
    with pytest.raises(DataError, match=r"me\.heic: this is HEIC, which needs a plug-in: pip install pi-heif"):
        read(HEIC, what="me.heic")
