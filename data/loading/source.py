"""Defines the interfaces of a data set that can be loaded: the source of its samples and the transform of each."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from posefleet.data.coco.records import Record
from posefleet.data.structures import Batch, Sample, collate

Transform = Callable[[Sample, np.random.Generator], Sample]
"""Turns a stored sample into an input, with random numbers from the caller: ``TrainTransform`` or ``EvalTransform``."""


class SampleSource(ABC):
    """A data set whose samples are read by position, to make batches of them."""

    @abstractmethod
    def __len__(self) -> int:
        """Samples of an epoch."""

    @abstractmethod
    def samples(self, positions: Sequence[int]) -> list[Sample]:
        """The samples at ``positions`` (at least one), in that order.

        Raises:
            DataError: One of them cannot be read.
        """

    @abstractmethod
    def records(self, rank: int = 0, world_size: int = 1) -> Iterator[Record]:
        """The records (image size, people as annotated) of every ``world_size``-th sample from sample ``rank`` on.

        They come in the stored order, and are those of the samples of :func:`evaluation_batches`.
        """

    def batch(self, positions: Sequence[int]) -> Batch:
        """The samples at ``positions`` (at least one) as one batch."""
        return collate(self.samples(positions))
