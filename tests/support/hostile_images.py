"""Image files that ask for far more work than their pixels: one generator for each trick, over all formats."""

import io
import struct
import zlib
from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image

SIDE = 7_000
"""Pixels of the sides of large images; a server accepts 50 megapixels."""


def encoded(kind: str, size: tuple[int, int] = (16, 16), mode: str = "RGB", **options: object) -> bytes:
    """A plain image of one colour."""
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind, **options)  # type: ignore[arg-type]
    return file.getvalue()


# ---------------------------------------------------------------------------------------------------- JPEG


def segment(kind: int, content: bytes) -> bytes:
    return bytes([0xFF, kind]) + (len(content) + 2).to_bytes(2, "big") + content


def after_start(image: bytes, inserted: bytes) -> bytes:
    """A JPEG with segments before all others."""
    return image[:2] + inserted + image[2:]


def empty_scans(count: int, side: int = SIDE) -> bytes:
    """A progressive JPEG with scans that change nothing: each tells with a few bytes that all blocks are empty."""
    image = encoded("JPEG", mode="L", progressive=True)
    frame = image.find(b"\xff\xc2")
    image = image[: frame + 5] + struct.pack(">HH", side, side) + image[frame + 9 :]
    tables = image[: image.find(b"\xff\xda")]
    run = segment(0xC4, bytes([0x10, 1, *[0] * 15, 0xE0]))  # one code, "0": 2^14 and 14 more bits of empty blocks
    blocks, bits = (-(-side // 8)) ** 2, ""
    while blocks > 0:
        length = max(min(blocks, 2**15 - 1), 2**14)
        bits += f"0{length - 2**14:014b}"
        blocks -= length
    bits += "1" * (-len(bits) % 8)
    pixels = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    scan = segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + pixels
    first = segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + bytes(10)
    return tables + first + run + scan * count + b"\xff\xd9"


def repeated_scan(count: int) -> bytes:
    """A baseline JPEG whose scan comes again and again."""
    image = encoded("JPEG", (SIDE, SIDE))
    start = image.find(b"\xff\xda")
    return image[:start] + image[start : start + 20] * count + b"\xff\xd9"


def arithmetic(count: int) -> bytes:
    """A progressive JPEG with arithmetic coding, which computes pixels also when there are no bytes left."""
    return empty_scans(count).replace(b"\xff\xc2", b"\xff\xca", 1)


def hidden_scans() -> bytes:
    """Scans behind a comment that looks like the end of the image."""
    image = empty_scans(2_000)
    first = image.find(b"\xff\xda")
    second = image.find(b"\xff\xc4", first)
    return image[:second] + segment(0xFE, b"\xff\xd9") + image[second:]


# ---------------------------------------------------------------------------------------------------- PNG


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(*, before: bytes = b"", after: bytes = b"", pixels: bytes = b"", size: tuple[int, int] = (16, 16)) -> bytes:
    """A grey PNG with chunks before and after its pixels."""
    header = struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)
    pixels = pixels or chunk(b"IDAT", zlib.compress(bytes((size[0] + 1) * size[1])))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + pixels + after + chunk(b"IEND")


def many_texts(kind: bytes = b"zTXt", head: bytes = b"a\0\0") -> bytes:
    """Six megabytes of compressed texts, which are six gigabytes of zeros; behind the pixels, where Pillow stops."""
    return png(after=chunk(kind, head + zlib.compress(bytes(7_000_000), 9)) * 900)


def one_text(kind: bytes, head: bytes) -> bytes:
    return png(after=chunk(kind, head + zlib.compress(bytes(100_000_000), 9)))


def broken_texts() -> bytes:
    """As :func:`many_texts`, each with a wrong checksum at its end."""
    text = zlib.compress(bytes(7_000_000), 9)
    return png(after=chunk(b"zTXt", b"a\0\0" + text[:-1] + b"?") * 900)


def many_pixels_chunks() -> bytes:
    pixels = zlib.compress(bytes(17 * 16))
    return png(pixels=chunk(b"IDAT") * 300_000 + chunk(b"IDAT", pixels))


def apng(frames: int, side: int = 1_000) -> bytes:
    """An animated PNG whose frames are all in the file."""
    pixels = zlib.compress(bytes((side + 1) * side))
    control = struct.pack(">IIIIIHHBB", 0, side, side, 0, 0, 1, 10, 0, 0)
    first = chunk(b"acTL", struct.pack(">II", frames, 0)) + chunk(b"fcTL", control)
    others = (chunk(b"fcTL", control) + chunk(b"fdAT", bytes(4) + pixels)) * (frames - 1)
    return png(before=first, after=others, size=(side, side))


# ---------------------------------------------------------------------------------------------------- GIF and WebP


def gif(before: bytes = b"", frames: int = 1) -> bytes:
    image = encoded("GIF", (64, 64))
    start = image.find(b"\x2c", 13)
    return image[:start] + before + image[start:-1] * frames + b";"


def webp(frames: int, side: int = 1_000) -> bytes:
    """An animated WebP."""
    still = encoded("WEBP", (side, side))[12:]
    place = bytes(6) + (side - 1).to_bytes(3, "little") * 2 + bytes([10, 0, 0, 0])
    frame = b"ANMF" + struct.pack("<I", len(place + still)) + place + still
    canvas = bytes([2, 0, 0, 0]) + (side - 1).to_bytes(3, "little") * 2
    return riff(b"VP8X" + struct.pack("<I", 10) + canvas + b"ANIM" + struct.pack("<I", 6) + bytes(6) + frame * frames)


def riff(content: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", len(content) + 4) + b"WEBP" + content


def webp_junk() -> bytes:
    return riff(b"JUNK\0\0\0\0" * 500_000 + encoded("WEBP")[12:])


# ---------------------------------------------------------------------------------------------------- tags

Tag = tuple[int, int, int, int]
"""Tag, type, count, and value or offset."""


def directory(tags: Iterable[Tag], following: int = 0) -> bytes:
    """One directory (IFD) of TIFF, little-endian."""
    rows = [struct.pack("<HHII", *tag) for tag in tags]
    return struct.pack("<H", len(rows)) + b"".join(rows) + struct.pack("<I", following)


TIFF = b"II*\0"


def tags_that_show_everything(count: int = 60_000, size: int = 1_000_000) -> bytes:
    """Tags that each show the whole of what is stored."""
    return TIFF + struct.pack("<I", 8) + directory((0x9000, 7, size, 8) for _ in range(count)) + bytes(size)


def nested(depth: int) -> bytes:
    """Directories in directories, as EXIF has one."""
    parts = []
    for level in range(depth):
        parts.append(directory([(0x8769, 4, 1, 8 + 18 * (level + 1))]))
    return TIFF + struct.pack("<I", 8) + b"".join(parts) + directory([])


def exif_jpeg(exif: bytes) -> bytes:
    """A JPEG with EXIF of any length, in as many segments as it needs; Pillow joins them."""
    pieces = [exif[at : at + 65_000] for at in range(0, len(exif), 65_000)]
    return after_start(encoded("JPEG"), b"".join(segment(0xE1, b"Exif\0\0" + piece) for piece in pieces))


def tiff(pages: int, *, circle: bool = False) -> bytes:
    """A grey TIFF of one pixel with many pages, or one that is followed by itself."""

    def page(number: int) -> bytes:
        at = 8 + number * 114
        last = number == pages - 1
        following = 8 if last and circle else 0 if last else at + 114
        tags = [(0x100, 3, 1, 1), (0x101, 3, 1, 1), (0x102, 3, 1, 8), (0x103, 3, 1, 1), (0x106, 3, 1, 1)]
        tags += [(0x111, 4, 1, 8), (0x115, 3, 1, 1), (0x116, 3, 1, 1), (0x117, 4, 1, 1)]
        return directory(tags, following)

    return TIFF + struct.pack("<I", 8) + b"".join(page(number) for number in range(pages))


def tiff_tiles(count: int) -> bytes:
    tags = [(0x100, 4, 1, SIDE), (0x101, 4, 1, SIDE), (0x142, 3, 1, 16), (0x143, 3, 1, 16), (0x144, 4, count, 8)]
    return TIFF + struct.pack("<I", 8) + directory(tags) + bytes(4 * count)


# ---------------------------------------------------------------------------------------------------- JPEG 2000, HEIF


def jpeg2000(tile: int, channels: int = 3) -> bytes:
    """The header of a JPEG 2000 of small tiles, or of many channels."""
    sides = struct.pack(">8IH", SIDE, SIDE, 0, 0, tile, tile, 0, 0, channels)
    return b"\xff\x4f" + segment(0x51, bytes(2) + sides + bytes([7, 1, 1]) * channels) + bytes(100)


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content) + 8) + kind + content


def avif_items(count: int) -> bytes:
    sizes = box(b"ispe", bytes(4) + struct.pack(">II", SIDE, SIDE)) * count
    return box(b"ftyp", b"avif\0\0\0\0avif") + box(b"meta", bytes(4) + box(b"iprp", box(b"ipco", sizes)))


# ---------------------------------------------------------------------------------------------------- the kit

REFUSED: dict[str, Callable[[], bytes]] = {
    "progressive JPEG of empty scans": lambda: empty_scans(13_000),
    "fewer scans of more pixels": lambda: empty_scans(90),
    "scans behind a comment that ends the image": hidden_scans,
    "baseline JPEG of repeated scans": lambda: repeated_scan(5_000),
    "JPEG of arithmetic scans": lambda: arithmetic(40),
    "JPEG of a million comments": lambda: after_start(encoded("JPEG"), segment(0xFE, b"") * 1_000_000),
    "JPEG of padding": lambda: after_start(encoded("JPEG"), b"\xff" * 5_000_000),
    "JPEG of Photoshop resources": lambda: after_start(
        encoded("JPEG"), segment(0xED, b"Photoshop 3.0\0" + b"8BIM\0\1\0\0\0\0\0\0" * 5_400) * 200
    ),
    "EXIF whose tags show everything": lambda: exif_jpeg(tags_that_show_everything(5_000)),
    "EXIF nested deeply": lambda: exif_jpeg(nested(3_000)),
    "EXIF of a PNG": lambda: png(before=chunk(b"eXIf", tags_that_show_everything())),
    "EXIF of a WebP": lambda: riff(encoded("WEBP")[12:] + b"EXIF" + _sized(tags_that_show_everything())),
    "PNG of many texts": many_texts,
    "PNG of many international texts": lambda: many_texts(b"iTXt", b"a\0\1\0\0\0"),
    "PNG of texts that end wrongly": broken_texts,
    "PNG of a large text": lambda: one_text(b"zTXt", b"a\0\0"),
    "PNG of a large profile": lambda: one_text(b"iCCP", b"a\0\0"),
    "PNG of many IDATs": many_pixels_chunks,
    "PNG of many short texts": lambda: png(before=chunk(b"tEXt", b"a\0b") * 300_000),
    "GIF of a long comment": lambda: gif(b"\x21\xfe" + b"\1a" * 2_000_000 + b"\0"),
    "GIF of many comments": lambda: gif(b"\x21\xfe\1a\0" * 500_000),
    "WebP of empty chunks": webp_junk,
    "TIFF of many pages": lambda: tiff(5_000),
    "TIFF that is followed by itself": lambda: tiff(1, circle=True),
    "TIFF of small tiles": lambda: tiff_tiles(200_000),
    "TIFF whose tags show everything": tags_that_show_everything,
    "JPEG 2000 of small tiles": lambda: jpeg2000(8),
    "JPEG 2000 of many channels": lambda: jpeg2000(256, 16_000),
    "AVIF of many images": lambda: avif_items(100_000),
}
"""Files whose structure is refused."""

BOUNDED: dict[str, Callable[[], bytes]] = {
    "animated PNG": lambda: apng(500),
    "animated WebP": lambda: webp(500),
    "animated GIF": lambda: gif(frames=2_000),
    "JPEG without pixels": lambda: _without_pixels(encoded("JPEG", (SIDE, SIDE))),
    "JPEG with a profile of noise": lambda: encoded("JPEG", icc_profile=_noise(1_000_000)),
    "PNG with a profile of noise": lambda: encoded("PNG", icc_profile=_noise(1_000_000)),
    "decompression bomb": lambda: png(size=(SIDE, SIDE)),
    "JPEG of 20 empty scans": lambda: empty_scans(20),
    "TIFF of 20 pages": lambda: tiff(20),
}
"""Files whose structure is allowed: decoding them, or finding that it is damaged, takes a bounded time."""


def _sized(content: bytes) -> bytes:
    return struct.pack("<I", len(content)) + content


def _noise(size: int) -> bytes:
    return np.random.default_rng(0).integers(0, 255, size, np.uint8).tobytes()


def _without_pixels(image: bytes) -> bytes:
    scan = image.find(b"\xff\xda")
    return image[: scan + 14] + b"\xff\xd9"
