"""Reads a split of a data set in COCO's layout into encoded records, one an image, in a temporary file.

As Python objects the annotations of a million images take gigabytes; this keeps two numbers an image in memory.
"""

import json
import os
import tempfile
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any, Self

import numpy as np

from posefleet.data.coco.annotations import (
    check_annotation,
    check_image,
    check_person,
    is_category,
    is_integer,
    is_keypoint_person,
    person_category_ids,
    require_lists,
)
from posefleet.data.coco.file_schema import names_differ
from posefleet.data.coco.records import Record, encode_record, make_person, make_record, outline_of
from posefleet.data.errors import DataError
from posefleet.data.io.json_stream import read_lists
from posefleet.data.schemas.schema import KeypointSchema


class CocoSplit:
    """The records of a split in the order of their image ids. Build it with :func:`read_coco`.

    When it is pickled, the copy gets its own temporary file.
    """

    def __init__(
        self, image_ids: np.ndarray, pieces: "_Pieces", dropped: np.ndarray, bad_segmentations: np.ndarray
    ) -> None:
        self.image_ids = image_ids
        """(I,) int64, ascending."""
        self.dropped = dropped
        """(I,) int64, annotations of each image that are left out because they have a number that is not finite."""
        self.bad_segmentations = bad_segmentations
        """(I,) int64, crowds and people without keypoints of each image whose segmentation cannot be used."""
        self._pieces = pieces

    def __reduce__(self) -> tuple[type[Self], tuple[Any, ...]]:
        return type(self), (self.image_ids, self._pieces, self.dropped, self.bad_segmentations)

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


def read_coco(annotation_file: str, schema: KeypointSchema) -> CocoSplit:
    """Read an annotation file, and check that every person can become a row of ``People``; the doctor checks more.

    The file is read twice, because COCO's lists its categories, which say who is a person, at its end.

    Raises:
        DataError: The file is no json, lacks keys, has ids that are no integers, names other keypoints than ``schema``,
            has people with another number of keypoints, or has no keypoint person.
    """
    packing = _Packing(annotation_file, schema)
    takers = {"images": packing.add_image, "categories": packing.add_category}
    require_lists(annotation_file, read_lists(annotation_file, takers), "images", "annotations")
    packing.sort_images()
    read_lists(annotation_file, {"annotations": packing.add_annotation})
    return packing.finish()


class _Packing:
    """Builds a :class:`CocoSplit` from records: first the images, then the people."""

    def __init__(self, annotation_file: str, schema: KeypointSchema) -> None:
        self._file = annotation_file
        self._schema = schema
        self._categories: list[dict[str, Any]] = []
        self._pieces = _Pieces()
        self._owners = array("q")  # image id of each piece
        self._images = array("q")  # image ids, each once, ascending
        self._dropped = array("q")  # image id of each annotation that was left out
        self._bad_segmentations = array("q")  # image id of each segmentation that was left out
        self._widths, self._heights = array("q"), array("q")  # of each of ``_images``
        self._person_categories: set[int] = set()
        self._people_from = 0  # number of the first piece that is a person
        self._labelled = False

    def add_category(self, category: Any) -> None:
        if is_category(category):
            self._categories.append(category)

    def add_image(self, image: Any) -> None:
        check_image(image, self._file)
        self._widths.append(image["width"])
        self._heights.append(image["height"])
        self._add(image["id"], encode_record(make_record(image, [])).removesuffix(b"]}"))

    def sort_images(self) -> None:
        """Call this after the last image and before the first annotation."""
        # Backwards, because of images with the same id the last counts.
        ids, last = np.unique(np.array(self._owners, np.int64)[::-1], return_index=True)
        self._images = array("q", ids.tobytes())
        for sides in (self._widths, self._heights):
            sides[:] = array("q", np.array(sides, np.int64)[::-1][last].tobytes())
        self._person_categories = person_category_ids(self._categories)
        if text := names_differ(self._file, self._categories, self._schema):
            raise DataError(f"{self._file}: {text}")
        self._people_from = len(self._owners)

    def add_annotation(self, annotation: Any) -> None:
        check_annotation(annotation, self._file)
        image_id, category = annotation["image_id"], annotation.get("category_id", 1)
        place = self._find(image_id)
        if place is None or not (is_integer(category) and category in self._person_categories):
            return
        check_person(annotation, self._schema, self._file)
        self._labelled = self._labelled or is_keypoint_person(annotation)
        size = self._widths[place], self._heights[place]
        outline, fault = outline_of(annotation, size)
        try:
            self._add(image_id, encode_record(make_person(annotation, outline, size)))
        except ValueError:  # json cannot hold NaN and infinity
            self._dropped.append(image_id)
            return
        if fault:
            self._bad_segmentations.append(image_id)

    def finish(self) -> CocoSplit:
        if not self._labelled:
            raise DataError(f"{self._file}: not one person with a labelled keypoint among {len(self._images)} images")
        owners, image_ids = np.array(self._owners, np.int64), np.array(self._images, np.int64)
        order = np.argsort(owners, kind="stable")  # each image, then its people in the order of the file
        records, starts = _Pieces(), np.searchsorted(owners[order], image_ids)
        for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(order)], strict=True):
            rows = order[start:end]
            people = rows[rows >= self._people_from].tolist()
            image = rows[len(rows) - len(people) - 1]  # of images with the same id the last counts
            records.add(b"%b%b]}" % (self._pieces.read(image), b",".join(map(self._pieces.read, people))))
        dropped, bad_segmentations = (
            np.bincount(np.searchsorted(image_ids, np.array(found, np.int64)), minlength=len(image_ids))
            for found in (self._dropped, self._bad_segmentations)
        )
        return CocoSplit(image_ids, records, dropped, bad_segmentations)

    def _find(self, image_id: int) -> int | None:
        """Index of an image in ``_images``; None if the file has no such image."""
        place = bisect_left(self._images, image_id)
        return place if place < len(self._images) and self._images[place] == image_id else None

    def _add(self, owner: int, piece: bytes) -> None:
        self._pieces.add(piece)
        self._owners.append(owner)


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
