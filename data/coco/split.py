"""Reads a split of a data set in COCO's layout into encoded records, one an image, in a temporary file.

As Python objects the annotations of a million images take gigabytes; this keeps two numbers an image in memory.
"""

import hashlib
import json
import os
import tempfile
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from posefleet.data.coco.annotations import Annotation
from posefleet.data.coco.reader import LeftOut, Reader
from posefleet.data.coco.records import Record, encode_record, make_person, make_record
from posefleet.data.schemas.schema import KeypointSchema


class CocoSplit:
    """The records of a split in the order of their image ids. Build it with :func:`read_coco`.

    When it is pickled, the copy gets its own temporary file.
    """

    def __init__(
        self,
        image_ids: np.ndarray,
        pieces: "_Pieces",
        bad_segmentations: np.ndarray,
        left_out: LeftOut,
        categories: str,
    ) -> None:
        self.image_ids = image_ids
        """(I,) int64, ascending."""
        self.bad_segmentations = bad_segmentations
        """(I,) int64, crowds and people without keypoints of each image whose segmentation cannot be used."""
        self.left_out = left_out
        """The records of the file that are not here because they have errors."""
        self.categories = categories
        """Which categories of the file are read, and why; a phrase."""
        self._pieces = pieces

    def __reduce__(self) -> tuple[type[Self], tuple[Any, ...]]:
        return type(self), (self.image_ids, self._pieces, self.bad_segmentations, self.left_out, self.categories)

    def __len__(self) -> int:
        return len(self.image_ids)

    def encoded(self, row: int) -> bytes:
        """The record of the image in a row, encoded as in a shard."""
        return self._pieces.read(row)

    def record(self, row: int) -> Record:
        """The record of the image in a row: its size, and the people as annotated."""
        record: Record = json.loads(self.encoded(row))
        return record

    def records(self) -> Iterator[Record]:
        """The records of all images."""
        return map(self.record, range(len(self)))

    def part(self, take: Callable[[str], bool]) -> Self:
        """The records of the images whose file name ``take`` wants."""
        rows = [row for row, record in enumerate(self.records()) if take(record["file_name"])]
        pieces = _Pieces()
        for row in rows:
            pieces.add(self.encoded(row))
        return type(self)(self.image_ids[rows], pieces, self.bad_segmentations[rows], self.left_out, self.categories)


def is_held_out(file_name: str, share: float) -> bool:
    """Whether an image belongs to the ``share`` (0..1) that is held out.

    It depends on the file's own name alone, not on its folder or the other images, so a data set that grows, or is
    exported again, keeps its division.
    """
    return _number(file_name, 0) < share * 2**64


def part_of(file_name: str, parts: int) -> int:
    """The part, from 0 to ``parts`` - 1, that an image belongs to; depends on its own name, as :func:`is_held_out`, but
    not on whether that holds it out."""
    return _number(file_name, 8) * parts >> 64


def _number(file_name: str, start: int) -> int:
    """64 bits of the hash of a file's own name."""
    name = file_name.replace("\\", "/").rpartition("/")[2]
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[start : start + 8], "big")


def read_coco(
    annotation_file: str, schema: KeypointSchema, *, category: Sequence[str] = (), allow_errors: bool = False
) -> CocoSplit:
    """Read and check an annotation file, see :mod:`posefleet.data.coco.reader`.

    Args:
        annotation_file: Any fsspec path.
        schema: Keypoints of the annotations.
        category: Names of the categories that are read; empty: the only one that can be meant.
        allow_errors: Leave out the records that have errors, instead of refusing the file.

    Raises:
        DataError: The file cannot be read, names other keypoints than ``schema``, has no keypoint person, or has
            records with errors.
    """
    packing = _Packing()
    reader = Reader(annotation_file, category=category, take_image=packing.add_image)
    packing.sizes = reader.sizes
    undone = reader.read_people(schema, packing.add_person)
    reader.check(allow_errors=allow_errors)
    return packing.finish(reader, undone)


class _Packing:
    """Builds the records of a :class:`CocoSplit` from pieces: first the images, then the people."""

    def __init__(self) -> None:
        self._pieces = _Pieces()
        self._places = array("q")  # of each piece that is a person, the place of the image
        self._images = 0  # number of pieces that are images
        self.sizes = np.zeros((0, 2), np.int64)
        """(I, 2) width and height of the images; set them before the first person."""

    def add_image(self, image: Mapping[str, Any]) -> None:
        self._pieces.add(encode_record(make_record(image, [])).removesuffix(b"]}"))
        self._images += 1

    def add_person(self, place: int, annotation: Annotation, outline: str | None) -> None:
        size = (0, 0) if outline is None else tuple(self.sizes[place].tolist())
        self._pieces.add(encode_record(make_person(annotation, outline, size)))
        self._places.append(place)

    def finish(self, reader: Reader, undone: Sequence[int]) -> CocoSplit:
        """The records of the images of ``reader``, without the people whose numbers are in ``undone``."""
        places = np.array(self._places, np.int64)
        order = np.argsort(places, kind="stable")  # each image, then its people in the order of the file
        order = order[~np.isin(order, undone)] if undone else order
        numbers = order + self._images  # of their pieces
        records, starts = _Pieces(), np.searchsorted(places[order], np.arange(len(reader.rows) + 1))
        for row, start, end in zip(reader.rows.tolist(), starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            people = numbers[start:end].tolist()
            records.add(b"%b%b]}" % (self._pieces.read(row), b",".join(map(self._pieces.read, people))))
        return CocoSplit(reader.image_ids, records, reader.bad_segmentations, reader.left_out, reader.categories.why)


class _Pieces:
    """Byte strings by number, in a temporary file without a name that is deleted with this object."""

    def __init__(self, content: bytes = b"", ends: bytes = b"") -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed when this object goes)
        self._file.write(content)
        self._ends = array("q", ends)

    def __reduce__(self) -> tuple[type[Self], tuple[bytes, bytes]]:
        self._file.seek(0)
        content = self._file.read()  # which leaves the file at its end
        return type(self), (content, self._ends.tobytes())

    def add(self, piece: bytes) -> None:
        """Append a piece; its number is the number of pieces before it."""
        self._file.write(piece)
        self._ends.append(self._end(len(self._ends)) + len(piece))

    def read(self, number: int) -> bytes:
        """The piece with this number."""
        self._file.flush()
        start = self._end(number)
        return os.pread(self._file.fileno(), self._ends[number] - start, start)

    def _end(self, count: int) -> int:
        return self._ends[count - 1] if count else 0
