"""Hostile image files are refused, or decoded within a bounded CPU time; the files of cameras and encoders are not."""

import contextlib
import io
import time
from collections.abc import Callable

import hostile_images
import numpy as np
import pytest
from PIL import Image

from posefleet.data.coco.image_files import image_fault
from posefleet.data.errors import DataError, TooCostly
from posefleet.data.image_limits import ImageLimits, check_structure
from posefleet.data.images import FILE_FORMATS, decode_untrusted, verify_image

REFUSAL_S, DECODING_S = 0.25, 3.0
"""CPU seconds to refuse a structure, and to decode an image of 49 megapixels: 0.2 to 1 s, and more on busy machines."""

MOST = 50_000_000


def cpu_seconds(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


@pytest.mark.parametrize("name", hostile_images.REFUSED)
def test_a_hostile_structure_is_refused_at_once(name: str) -> None:
    data = hostile_images.REFUSED[name]()

    def refuse() -> None:
        with pytest.raises(TooCostly, match=r"evil\.jpg: .*(are more than the [\d,]+ that are allowed|reached again)"):
            decode_untrusted(data, most_pixels=MOST, what="evil.jpg", formats=FILE_FORMATS)

    assert cpu_seconds(refuse) < REFUSAL_S
    with pytest.raises(TooCostly):
        verify_image(data)


@pytest.mark.parametrize("name", hostile_images.BOUNDED)
@pytest.mark.parametrize(
    "decode", [lambda data: decode_untrusted(data, most_pixels=MOST, formats=FILE_FORMATS), verify_image]
)
def test_what_is_not_refused_takes_a_bounded_time(name: str, decode: Callable[[bytes], object]) -> None:
    data = hostile_images.BOUNDED[name]()

    def bounded() -> None:
        try:
            decode(data)
        except DataError as error:
            assert not isinstance(error, TooCostly)

    assert cpu_seconds(bounded) < DECODING_S


@pytest.mark.parametrize(
    "name", ["progressive JPEG of empty scans", "PNG of many texts", "TIFF that is followed by itself"]
)
def test_the_doctor_names_a_hostile_file(name: str) -> None:
    record = {"file_name": "evil.png", "width": 16, "height": 16}
    fault = image_fault(hostile_images.REFUSED[name](), record)
    assert fault and fault[0] == "costly_image" and "evil.png: " in fault[1]


def photograph(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (600, 800, 3), np.uint8)
    Image.fromarray(pixels).save(file, kind, **options)  # type: ignore[arg-type]
    return file.getvalue()


EXIF = Image.Exif()
EXIF[0x0112] = 6
EXIF[0x010F] = "A camera " * 100
EXIF.get_ifd(0x8769)[0x9286] = "a comment " * 1_000

USUAL = {
    "JPEG": ("JPEG", (800, 600), True, {"quality": 95, "exif": EXIF, "icc_profile": bytes(200_000)}),
    "progressive JPEG": ("JPEG", (800, 600), True, {"progressive": True, "exif": EXIF}),
    "JPEG with restarts": ("JPEG", (800, 600), True, {"restart_marker_blocks": 1}),
    "PNG": ("PNG", (800, 600), True, {"exif": EXIF, "icc_profile": bytes(200_000)}),
    "WebP": ("WEBP", (800, 600), True, {"exif": EXIF, "icc_profile": bytes(200_000)}),
    "lossless WebP": ("WEBP", (800, 600), True, {"lossless": True}),
    "GIF": ("GIF", (800, 600), True, {"comment": b"a comment " * 100}),
    "BMP": ("BMP", (800, 600), True, {}),
    "TIFF": ("TIFF", (800, 600), False, {"compression": "tiff_lzw", "exif": EXIF}),
    "JPEG 2000": ("JPEG2000", (800, 600), False, {"tile_size": (256, 256)}),
    "AVIF": ("AVIF", (800, 600), False, {}),
}


@pytest.mark.parametrize("name", USUAL)
def test_usual_files_pass_with_the_size_in_their_header(name: str) -> None:
    kind, size, plain, options = USUAL[name]
    data = photograph(kind, **options)
    structure = check_structure(data)
    assert (structure.width, structure.height, structure.plain) == (*size, plain)
    assert structure.kind == {"AVIF": "HEIF"}.get(kind, kind)
    assert check_structure(memoryview(data)) == structure
    decode_untrusted(data, most_pixels=MOST, formats=FILE_FORMATS)


@pytest.mark.parametrize("name", USUAL)
def test_damaged_files_have_a_structure_or_are_refused(name: str) -> None:
    kind, _, _, options = USUAL[name]
    data = bytearray(photograph(kind, **options))
    random = np.random.default_rng(1)
    for _ in range(200):
        place = int(random.integers(0, min(len(data), 2_000)))
        before, data[place] = data[place], int(random.integers(0, 256))
        for kept in (data, data[: int(random.integers(0, len(data)))]):
            with contextlib.suppress(TooCostly):
                check_structure(bytes(kept))
        data[place] = before


@pytest.mark.parametrize("name", ["animated PNG", "animated WebP", "TIFF of 20 pages"])
def test_what_only_a_process_should_decode(name: str) -> None:
    assert not check_structure(hostile_images.BOUNDED[name]()).plain
    assert not check_structure(hostile_images.empty_scans(21, 64)).plain


def test_limits_are_settings() -> None:
    data = photograph("JPEG", progressive=True)
    with pytest.raises(TooCostly, match=r"scans are more than the 3 that are allowed \(scans\)"):
        check_structure(data, limits=ImageLimits(scans=3))
    with pytest.raises(TooCostly, match="scanned_pixels"):
        check_structure(data, limits=ImageLimits(scanned_pixels=1_000_000))
    check_structure(hostile_images.empty_scans(2_000, 64), limits=ImageLimits(scans=3_000))
