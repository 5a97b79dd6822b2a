"""Reads a split in COCO's own layout as a data set: for evaluation without shards."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np

from posefleet.data.coco.annotations import people_of
from posefleet.data.coco.image_files import file_sizes, read_image
from posefleet.data.coco.reader import left_out_sentences
from posefleet.data.coco.records import Record, outlines_in
from posefleet.data.coco.source import Source, image_path
from posefleet.data.coco.split import read_coco
from posefleet.data.errors import DataError
from posefleet.data.images import decode_image
from posefleet.data.loading.source import SampleSource, Transform
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.structures import Sample

MOST_NAMED = 5
"""Missing images that a message names."""


class FolderDataset(SampleSource):
    """Annotation file and image folder as a data set; position p is the p-th image by id, without missing ones.

    Args:
        source: From :func:`posefleet.data.coco.source.find_source`.
        schema: Keypoints of the annotations.
        transform: Turns an image with its people into an input.
        category: Names of the categories that are read; empty: the only one that can be meant.
        allow_errors: Leave out the records of the annotation file that have errors, and images that cannot be read or
            do not fit their records; for these every image is read first.
        allow_missing: Leave out images whose files are missing. Their people stay in :meth:`records`, as in COCO's
            evaluation, where they count as not found.

    Raises:
        DataError: The annotations cannot be used, or have errors that are not allowed; or files of images are missing.
    """

    def __init__(
        self,
        source: Source,
        schema: KeypointSchema,
        transform: Transform,
        *,
        category: Sequence[str] = (),
        allow_errors: bool = False,
        allow_missing: bool = False,
    ) -> None:
        self.source = source
        self.schema = schema
        self.transform = transform
        self._split = read_coco(source.annotation_file, schema, category=category, allow_errors=allow_errors)
        self._fs, _ = fsspec.core.url_to_fs(source.image_folder)
        size_of = file_sizes(source)
        there = np.array([size_of(record["file_name"]) >= 0 for record in self._split.records()], bool)
        self._rows, self._missing = np.flatnonzero(there), np.flatnonzero(~there)
        missing = self._named_missing()
        if missing and not (allow_missing and len(self._rows)):
            raise DataError(
                f"{missing}; correct the names, give the folder with --images, or leave these images out with "
                "--allow-missing: their people count as missed"
            )
        faults = self._leave_out_images() if allow_errors else {}
        self.notes = (
            f"categories: {self._split.categories}",
            *left_out_sentences(self._split.left_out.as_dict()),
            *left_out_sentences({"images": faults}),
            *([f"{missing}: their people count as missed"] if missing else []),
        )

    def __len__(self) -> int:
        return len(self._rows)

    def stored(self, positions: Sequence[int]) -> Iterator[Sample]:
        return map(self._sample, positions)

    def random_numbers(self, position: int) -> np.random.Generator:
        return np.random.default_rng(position)

    def broken(self, position: int, error: DataError) -> DataError:
        return DataError(f"{image_path(self.source, self._record(position)['file_name'])}: {error}")

    def records(self, rank: int = 0, world_size: int = 1) -> Iterator[Record]:
        rows = [*self._rows[rank::world_size].tolist(), *self._missing[rank::world_size].tolist()]
        return map(self._split.record, rows)

    def _record(self, position: int) -> Record:
        return self._split.record(int(self._rows[position]))

    def _leave_out_images(self) -> dict[str, list[int | None]]:
        """Leave out the images that cannot be read or do not fit their records; returns their ids by kind of fault."""

        def fault_of(row: int) -> str:
            _, fault = read_image(self._fs, self.source, self._split.record(row))
            return fault[0] if fault else ""

        with ThreadPoolExecutor() as pool:
            codes = list(pool.map(fault_of, self._rows.tolist()))
        found: dict[str, list[int | None]] = {}
        for row, code in zip(self._rows.tolist(), codes, strict=True):
            if code:
                found.setdefault(code, []).append(int(self._split.image_ids[row]))
        self._rows = self._rows[[not code for code in codes]]
        if found and not len(self._rows):
            raise DataError(f"{self.source.image_folder}: no image can be used: {', '.join(sorted(found))}")
        return found

    def _named_missing(self) -> str:
        """How many files are missing, and the first of them; empty if none is."""
        names = [self._split.record(row)["file_name"] for row in self._missing[:MOST_NAMED].tolist()]
        if not names:
            return ""
        more = ", ..." if len(self._missing) > len(names) else ""
        what = f"{len(self._missing):,} of {len(self._split):,} images are not in {self.source.image_folder}"
        return f"{what}: {', '.join(map(self._why_missing, names))}{more}"

    def _why_missing(self, name: str) -> str:
        try:
            image_path(self.source, name)
        except DataError:
            return f"{name} (leads out of the folder)"
        return name

    def _sample(self, position: int) -> Sample:
        record = self._record(position)
        path = image_path(self.source, record["file_name"])
        try:
            data, fault = read_image(self._fs, self.source, record)
        except OSError as error:
            raise DataError(f"{path}: cannot read the image: {error}") from None
        if fault:
            raise DataError(f"{fault[0]}: {fault[1]}; posefleet doctor names all such images")
        pixels = decode_image(data, what=path)
        people = people_of(record["people"], self.schema)
        size = (pixels.shape[1], pixels.shape[0])
        return Sample(pixels, people, record["image_id"], np.eye(2, 3), size, outlines_in(record))
