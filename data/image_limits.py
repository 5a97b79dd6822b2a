"""Bounds the work that an image file asks of its decoder, by its structure, before anything is decoded.

A file of a megabyte can ask for minutes: thousands of empty scans over all pixels, texts that grow a thousandfold, tags
that each show the whole file. :func:`check_structure` reads the skeleton of a file (segments, chunks, boxes,
directories), which takes well under a millisecond for usual files, and refuses what is beyond :class:`ImageLimits`.
"""

import struct
import zlib
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from posefleet.data.errors import TooCostly

Buffer: TypeAlias = bytes | memoryview


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageLimits:
    """What the structure of an image file may ask for. Encoders stay far below; raise a limit for files that do not."""

    scans: int = 100
    """Scans of a JPEG. Encoders write at most 20; each one goes over all pixels again, also if it is empty."""
    scanned_pixels: int = 2_000_000_000
    """Pixels times scans of a JPEG. 1e9 take about 0.13 CPU seconds more; 20 scans of 100 megapixels are allowed."""
    parts: int = 4_000
    """Segments, chunks, boxes or blocks of a file, and one more for each KiB of it. PNG encoders write chunks of 8 KiB.
    Pillow takes microseconds for each."""
    padding: int = 4_096
    """Bytes between the segments of a JPEG that belong to none. Pillow reads them one by one."""
    unpacked_text: int = 8 * 2**20
    """Bytes of the compressed texts and colour profiles of a PNG after decompression. The largest profiles in use have
    4 MiB; 6 MB of zeros unpack to 6 GB."""
    directories: int = 64
    """Directories (IFD) of tags in EXIF, of pages in a TIFF: pages after the first are not read, but are counted."""
    shown_tags: int = 4
    """How often the tags of a directory may show the bytes of their file, together. In files of cameras they show each
    byte once; 65,000 tags that each show 20 MB are 1.3 TB to copy."""
    tiles: int = 65_536
    """Tiles or strips of an image (TIFF, JPEG 2000, AVIF, HEIC). A tile of 256 px is usual, a strip may be a row."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  # of settings that hold these limits

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")


LIMITS = ImageLimits()


@dataclass(frozen=True, slots=True)
class Structure:
    """What the skeleton of a file says."""

    kind: str
    """``JPEG``, ``PNG``, ``GIF``, ``WEBP``, ``BMP``, ``TIFF``, ``JPEG2000``, ``HEIF`` (also AVIF); empty: another."""
    width: int = 0
    """Of the stored image, before EXIF orientation; 0 where the skeleton does not say it."""
    height: int = 0
    plain: bool = False
    """Whether decoding takes a bounded time for each byte and pixel: a JPEG of the scans that encoders write, and a
    PNG, WebP, GIF or BMP, unless PNG or WebP are animated. The cost of others also depends on what is inside."""

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self.width * self.height


def check_structure(data: Buffer, *, what: str = "image", limits: ImageLimits = LIMITS) -> Structure:
    """The format and size of an image file, by its skeleton alone.

    A damaged file has a structure, too: that of the parts that can be read. Decoders find the damage.

    Args:
        data: The file's bytes.
        what: Name of the image in errors.
        limits: What is allowed.

    Raises:
        TooCostly: The file is beyond a limit; the message has the value and the limit.
    """
    return _Skeleton(data, what, limits).read()


def read_size(data: Buffer) -> int:
    """Width times height of an image by its header, without a look at what follows; 0 where it is not found.

    Raises:
        TooCostly: The header is hidden behind more parts than a file may have.
    """
    return _Skeleton(data, "image", LIMITS, header_only=True).read().pixels


_TYPE_BYTES = np.array([0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8], np.int64)
"""Bytes of a value of each type of TIFF's tags."""

_POINTERS = (0x8769, 0x8825, 0xA005, 0x014A)
"""Tags that hold offsets of further directories: EXIF, GPS, interoperability, sub-images."""

_PIECES = (0x0111, 0x0144)
"""Tags that hold the offsets of strips and of tiles."""

_IS_MARKER = np.ones(256, bool)
"""Which bytes after 0xFF make a marker of a JPEG; inside scans, 0 escapes a pixel byte and 0xD0..0xD7 count blocks."""
_IS_MARKER[[0x00, *range(0xD0, 0xD8), 0xFF]] = False

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of the header of a JPEG's frame."""

_MOST_ARITHMETIC_SCANS = 4
"""One for each channel. An arithmetic decoder computes pixels for ever, also after the last byte of a scan."""


_USUAL_SCANS = 20
"""Scans that encoders write for a progressive JPEG, at most."""

_ANIMATED = 2
"""Flag of an animation in the header of a WebP."""


class _Skeleton:
    """One file; each method reads one format."""

    def __init__(self, data: Buffer, what: str, limits: ImageLimits, *, header_only: bool = False) -> None:
        self._header_only = header_only
        self._bytes = data if isinstance(data, bytes) else bytes(data)
        self._data, self._what, self._limits = memoryview(self._bytes), what, limits
        self._parts, self._most_parts = 0, limits.parts + len(data) // 1024
        self._unpacked = 0

    def read(self) -> Structure:
        head = bytes(self._data[:16])
        if head.startswith(b"\xff\xd8"):
            return self._jpeg()
        if head.startswith(b"\x89PNG\r\n\x1a\n"):
            return self._png()
        if head.startswith((b"GIF87a", b"GIF89a")):
            return self._gif()
        if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
            return self._webp()
        if head.startswith(b"BM"):
            return self._bmp()
        if head.startswith((b"II*\0", b"MM\0*")):
            width, height = self._directories(self._data)
            return Structure("TIFF", width, height)
        if head.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")):
            return self._jpeg2000()
        if head[4:8] == b"ftyp":
            return self._heif()
        return Structure("")

    def _refuse(self, value: int, what: str, limit: int, name: str) -> TooCostly:
        return TooCostly(
            f"{self._what}: {value:,} {what} are more than the {limit:,} that are allowed ({name}); "
            "save the image again with an ordinary encoder"
        )

    def _count_part(self) -> None:
        self._parts += 1
        if self._parts > self._most_parts:
            raise self._refuse(self._parts, "segments, chunks or blocks", self._most_parts, "parts")

    def _number(self, at: int, size: int, order: Literal["big", "little"]) -> int:
        return int.from_bytes(self._data[at : at + size], order)

    # ---------------------------------------------------------------------------------------------------- JPEG

    def _jpeg(self) -> Structure:
        data, limits, array = self._data, self._limits, np.frombuffer(self._data, np.uint8)
        position, padding, scans, resources = 2, 0, 0, 0
        width = height = 0
        coding = 0xC0
        exif = bytearray()
        while (mark := _next_marker(array, position)) is not None:
            self._count_part()
            if not scans:
                padding += mark - position
                if padding > limits.padding:
                    raise self._refuse(padding, "bytes between the segments", limits.padding, "padding")
            kind, position = data[mark + 1], mark + 2
            if kind == 0xD9:
                break
            if kind in (0x01, 0xD8):
                continue
            length = self._number(position, 2, "big")
            if kind in _FRAMES and position + 8 <= len(data):
                height = max(height, self._number(position + 3, 2, "big"))
                width = max(width, self._number(position + 5, 2, "big"))
                coding = kind
                if self._header_only:
                    break
            elif kind == 0xE1 and bytes(data[position + 2 : position + 8]) == b"Exif\0\0":
                exif += data[position + 8 : position + length]  # Pillow joins several
            elif kind == 0xED:
                resources += self._bytes.count(b"8BIM", position, position + length)
                if resources > self._most_parts:
                    raise self._refuse(resources, "Photoshop resources", self._most_parts, "parts")
            elif kind == 0xDA:
                scans += 1
                most = _MOST_ARITHMETIC_SCANS if coding >= 0xC9 else limits.scans
                if scans > most:
                    raise self._refuse(scans, "scans", most, "scans")
                if scans * width * height > limits.scanned_pixels:
                    text = f"pixels in {scans} scans"
                    raise self._refuse(scans * width * height, text, limits.scanned_pixels, "scanned_pixels")
                if scans == 1 and not _has_pair(array[position:], 0xFF, 0xDA):
                    break  # no other scan: the pixels of most files need not be searched
            position += length
        if exif and not self._header_only:
            self._directories(memoryview(exif))
        return Structure("JPEG", width, height, plain=coding < 0xC9 and scans <= _USUAL_SCANS)

    # ---------------------------------------------------------------------------------------------------- PNG

    def _png(self) -> Structure:
        data, position, frames = self._data, 8, 0
        width = height = 0
        while position + 8 <= len(data):
            self._count_part()
            length, kind = self._number(position, 4, "big"), bytes(data[position + 4 : position + 8])
            body = data[position + 8 : position + 8 + length]
            if kind == b"IHDR":
                width, height = max(width, _big(body[:4])), max(height, _big(body[4:8]))
                if self._header_only:
                    break
            elif kind in (b"zTXt", b"iCCP", b"iTXt"):
                self._unpack(kind, bytes(body))
            elif kind == b"eXIf":
                self._directories(body)
            elif kind == b"fcTL":
                frames += 1
            elif kind == b"IEND":
                break
            position += 12 + length
        return Structure("PNG", width, height, plain=not frames)

    def _unpack(self, kind: bytes, body: bytes) -> None:
        """Decompress a text or a profile, up to the limit."""
        packed = body.partition(b"\0")[2][1:]
        if kind == b"iTXt":
            flag, packed = body.partition(b"\0")[2][:1], packed[1:].partition(b"\0")[2].partition(b"\0")[2]
            if flag != b"\1":
                return
        stream, most = zlib.decompressobj(), self._limits.unpacked_text
        try:
            while packed and not stream.eof:
                self._unpacked += len(stream.decompress(packed, 2**16))
                packed = stream.unconsumed_tail
                if self._unpacked > most:
                    raise self._refuse(self._unpacked, "bytes of unpacked text", most, "unpacked_text")
        except zlib.error:
            return

    # ---------------------------------------------------------------------------------------------------- others

    def _gif(self) -> Structure:
        data, end = self._data, len(self._data)
        width, height = self._number(6, 2, "little"), self._number(8, 2, "little")
        position = 13 + _colours(data[10] if end > 10 else 0)
        while position < end:
            self._count_part()
            kind = data[position]
            if kind == 0x2C and position + 10 <= end:  # the first image, and the only one that is decoded
                x, y, w, h = struct.unpack_from("<HHHH", data, position + 1)
                return Structure("GIF", max(width, x + w), max(height, y + h), plain=True)
            if kind != 0x21:
                break
            position += 2
            while position < end and data[position]:
                self._count_part()
                position += 1 + data[position]
            position += 1
        return Structure("GIF", width, height)

    def _webp(self) -> Structure:
        data, position, found = self._data, 12, Structure("WEBP")
        while position + 8 <= len(data):
            self._count_part()
            kind, length = bytes(data[position : position + 4]), self._number(position + 4, 4, "little")
            start = position + 8
            if kind == b"VP8X":
                width, height = (self._number(start + at, 3, "little") + 1 for at in (4, 7))
                found = Structure("WEBP", width, height, plain=not self._number(start, 1, "little") & _ANIMATED)
            elif kind == b"VP8 " and not found.width:
                width, height = (self._number(start + at, 2, "little") & 0x3FFF for at in (6, 8))
                found = Structure("WEBP", width, height, plain=True)
            elif kind == b"VP8L" and not found.width:
                bits = self._number(start + 1, 4, "little")
                found = Structure("WEBP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, plain=True)
            if found.width and self._header_only:
                break
            if kind == b"EXIF":
                body = data[start : start + length]
                self._directories(body[6:] if bytes(body[:6]) == b"Exif\0\0" else body)
            position = start + length + (length & 1)
        return found

    def _bmp(self) -> Structure:
        if self._number(14, 4, "little") == 12:
            width, height = self._number(18, 2, "little"), self._number(20, 2, "little")
        else:
            width, height = (abs(int.from_bytes(self._data[at : at + 4], "little", signed=True)) for at in (18, 22))
        return Structure("BMP", width, height, plain=True)

    def _jpeg2000(self) -> Structure:
        start = self._bytes.find(b"\xff\x4f\xff\x51")
        if start < 0 or start + 42 > len(self._data):
            return Structure("JPEG2000")
        *sides, channels = struct.unpack_from(">8IH", self._data, start + 8)
        right, bottom, left, top, tile_width, tile_height, tile_left, tile_top = sides
        columns, rows = (
            -(-(end - first) // max(size, 1))
            for end, first, size in ((right, tile_left, tile_width), (bottom, tile_top, tile_height))
        )
        if (tiles := columns * rows * max(channels, 1)) > self._limits.tiles:
            raise self._refuse(tiles, "tiles of all channels", self._limits.tiles, "tiles")
        return Structure("JPEG2000", max(right - left, 0), max(bottom - top, 0))

    def _heif(self) -> Structure:
        sizes: list[tuple[int, int]] = []
        self._boxes(0, len(self._data), sizes, 0)
        width, height = max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))
        return Structure("HEIF", width, height)

    def _boxes(self, position: int, end: int, sizes: list[tuple[int, int]], depth: int) -> None:
        """Read the boxes in a part of a file (ISO 14496-12) that may hold sizes of images."""
        while position + 8 <= end:
            self._count_part()
            length, kind = self._number(position, 4, "big"), bytes(self._data[position + 4 : position + 8])
            start = position + 8
            if length == 1:
                length, start = self._number(start, 8, "big"), start + 8
            stop = min(position + length, end) if length else end
            if kind == b"ispe" and start + 12 <= stop:
                sizes.append((self._number(start + 4, 4, "big"), self._number(start + 8, 4, "big")))
                if len(sizes) > self._limits.tiles:
                    raise self._refuse(len(sizes), "images", self._limits.tiles, "tiles")
            elif kind in (b"meta", b"iprp", b"ipco") and depth < 4:
                self._boxes(start + (4 if kind == b"meta" else 0), stop, sizes, depth + 1)
            if stop <= position:
                return
            position = stop

    # ---------------------------------------------------------------------------------------------------- tags

    def _directories(self, data: memoryview) -> tuple[int, int]:
        """Read the directories of TIFF or EXIF; returns the width and height that the first one holds."""
        order: Literal["big", "little"] = "little" if bytes(data[:2]) == b"II" else "big"
        kind = np.dtype([("tag", "u2"), ("type", "u2"), ("count", "u4"), ("value", "u4")])
        kind = kind.newbyteorder("<" if order == "little" else ">")
        waiting, seen, size = [int.from_bytes(data[4:8], order)], set[int](), (0, 0)
        while waiting:
            at = waiting.pop(0)
            if not at or at + 2 > len(data):
                continue
            if at in seen:
                raise TooCostly(f"{self._what}: its directory of tags at byte {at:,} is reached again from itself")
            seen.add(at)
            if len(seen) > self._limits.directories:
                raise self._refuse(len(seen), "directories of tags", self._limits.directories, "directories")
            count = min(int.from_bytes(data[at : at + 2], order), (len(data) - at - 2) // kind.itemsize)
            tags = np.frombuffer(data, kind, count, at + 2)
            bytes_each = tags["count"].astype(np.int64) * _TYPE_BYTES[np.minimum(tags["type"], 18)]
            shown = int(np.minimum(bytes_each, len(data)).sum())
            if shown > (most := self._limits.shown_tags * len(data) + 2**16):
                raise self._refuse(shown, "bytes in its tags", most, "shown_tags")
            if (pieces := int(tags["count"][np.isin(tags["tag"], _PIECES)].max(initial=0))) > self._limits.tiles:
                raise self._refuse(pieces, "strips or tiles", self._limits.tiles, "tiles")
            if len(seen) == 1:
                size = _tag(tags, 0x0100, order), _tag(tags, 0x0101, order)
            waiting += [int(value) for value in tags["value"][np.isin(tags["tag"], _POINTERS)]]
            waiting.append(int.from_bytes(data[at + 2 + 12 * count : at + 6 + 12 * count], order))
        return size


def _tag(tags: np.ndarray, tag: int, order: str) -> int:
    """The first value of a tag whose values are whole numbers; 0 if there is no such tag."""
    found = tags[tags["tag"] == tag]
    if not len(found):
        return 0
    value = int(found["value"][0])
    return (
        value >> 16 if found["type"][0] == 3 and order == "big" else value & 0xFFFF if found["type"][0] == 3 else value
    )


def _big(number: memoryview) -> int:
    return int.from_bytes(number, "big")


def _colours(flags: int) -> int:
    """Bytes of the colour table that a GIF's flags announce."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _has_pair(array: np.ndarray, first: int, second: int) -> bool:
    """Whether two bytes follow each other anywhere; both alignments are compared as 16-bit numbers, which is fast."""
    pair = np.uint16(first | second << 8)
    for offset in (0, 1):
        even = array[offset : offset + (len(array) - offset) // 2 * 2].view("<u2")
        if any((even[start : start + 2**18] == pair).any() for start in range(0, len(even), 2**18)):
            return True
    return False


def _next_marker(array: np.ndarray, position: int) -> int | None:
    """Index of the next marker of a JPEG at or after ``position``; None if there is none."""
    if position + 1 < len(array) and array[position] == 0xFF and _IS_MARKER[array[position + 1]]:
        return position  # as it should be between segments
    size = 1 << 12
    while position + 1 < len(array):
        window = array[position : position + size + 1]
        candidates = np.flatnonzero(window[:-1] == 0xFF)
        found = candidates[_IS_MARKER[window[candidates + 1]]]
        if len(found):
            return position + int(found[0])
        position += size
        size = min(4 * size, 1 << 20)
    return None
