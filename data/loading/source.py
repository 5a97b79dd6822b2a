"""The interfaces of a data set that can be loaded: where samples come from and what is done to them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from posefleet.data.coco.records import Record
from posefleet.data.structures import Batch, Sample, collate

Transform = Callable[[Sample, np.random.Generator], Sample]
"""What makes an input of a stored sample: ``TrainTransform`` or ``EvalTransform``."""


class SampleSource(ABC):
    """Samples by position: what batches are made of."""

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
        """The record, image size and people as annotated, of every ``world_size``-th sample from the ``rank``-th on, in
        the stored order: those of :func:`evaluation_batches`."""

    def batch(self, positions: Sequence[int]) -> Batch:
        """The same samples as one batch."""
        return collate(self.samples(positions))
