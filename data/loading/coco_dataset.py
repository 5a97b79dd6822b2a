"""Reads a split in COCO's own layout as a data set: for evaluation without shards."""

from collections.abc import Iterator, Sequence

import fsspec
import numpy as np

from posefleet.data.coco.annotations import people_of
from posefleet.data.coco.records import Record, outlines_in
from posefleet.data.coco.source import Source, image_path
from posefleet.data.coco.split import read_coco
from posefleet.data.errors import DataError
from posefleet.data.images import decode_image
from posefleet.data.loading.source import SampleSource, Transform
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.structures import Sample


class FolderDataset(SampleSource):
    """Annotation file and image folder as a data set; position p is the p-th image by id.

    Args:
        source: From :func:`posefleet.data.coco.source.find_source`.
        schema: Keypoints of the annotations.
        transform: Turns an image with its people into an input.

    Raises:
        DataError: The annotations cannot be used.
    """

    def __init__(self, source: Source, schema: KeypointSchema, transform: Transform) -> None:
        self.source = source
        self.schema = schema
        self.transform = transform
        self._split = read_coco(source.annotation_file, schema)

    def __len__(self) -> int:
        return len(self._split)

    def stored(self, positions: Sequence[int]) -> Iterator[Sample]:
        return map(self._sample, positions)

    def random_numbers(self, position: int) -> np.random.Generator:
        return np.random.default_rng(position)

    def broken(self, position: int, error: DataError) -> DataError:
        return DataError(f"{image_path(self.source, self._split.record(position)['file_name'])}: {error}")

    def records(self, rank: int = 0, world_size: int = 1) -> Iterator[Record]:
        return map(self._split.record, range(rank, len(self._split), world_size))

    def _sample(self, position: int) -> Sample:
        record = self._split.record(position)
        path = image_path(self.source, record["file_name"])
        try:
            with fsspec.open(path, "rb") as stream:
                pixels = decode_image(stream.read(), what=path)
        except OSError as error:
            raise DataError(f"{path}: cannot read the image: {error}") from None
        people = people_of(record["people"], self.schema)
        size = (pixels.shape[1], pixels.shape[0])
        return Sample(pixels, people, record["image_id"], np.eye(2, 3), size, outlines_in(record))
