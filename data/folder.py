"""A split in COCO's own layout, read where it lies: what evaluation takes when there are no shards."""

from collections.abc import Iterator, Sequence

import fsspec
import numpy as np

from posefleet.data.coco import Source, image_path, people_of, read_coco
from posefleet.data.errors import DataError
from posefleet.data.images import decode_image
from posefleet.data.keypoints import KeypointSchema
from posefleet.data.shards import Record, make_record
from posefleet.data.stream import SampleSource, Transform
from posefleet.data.structures import Sample


class FolderDataset(SampleSource):
    """Annotation file and image folder as a data set; position p is the p-th image by id.

    Args:
        source: From :func:`posefleet.data.coco.find_source`.
        schema: Keypoints of the annotations.
        transform: What makes an input of an image.

    Raises:
        DataError: The annotations cannot be used.
    """

    def __init__(self, source: Source, schema: KeypointSchema, transform: Transform) -> None:
        self.source = source
        self.schema = schema
        self.transform = transform
        split = read_coco(source.annotation_file, schema)
        self._images = [split.images[image_id] for image_id in sorted(split.images)]
        self._annotations = split.annotations

    def __len__(self) -> int:
        return len(self._images)

    def samples(self, positions: Sequence[int]) -> list[Sample]:
        """The images at ``positions``, in that order.

        Raises:
            DataError: An image is missing or cannot be decoded.
        """
        return [self._sample(position) for position in positions]

    def records(self) -> Iterator[Record]:
        for image in self._images:
            yield make_record(image, self._annotations[image["id"]])

    def _sample(self, position: int) -> Sample:
        image = self._images[position]
        path = image_path(self.source, image["file_name"])
        try:
            with fsspec.open(path, "rb") as stream:
                pixels = decode_image(stream.read(), what=path)
        except OSError as error:
            raise DataError(f"{path}: cannot read the image: {error}") from None
        people = people_of(self._annotations[image["id"]], self.schema)
        size = (pixels.shape[1], pixels.shape[0])
        return self.transform(Sample(pixels, people, image["id"], np.eye(2, 3), size), np.random.default_rng(position))
