"""Defines the interfaces of a data set that can be loaded: the source of its samples and the transform of each."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Protocol, cast

import numpy as np

from posefleet.data.coco.records import Record
from posefleet.data.errors import DataError
from posefleet.data.structures import Batch, Sample, collate

Transform = Callable[[Sample, np.random.Generator], Sample]
"""Turns a stored sample into an input, with random numbers from the caller: ``TrainTransform`` or ``EvalTransform``."""


class Composing(Protocol):
    """A ``Transform`` that makes some inputs of several stored samples: ``TrainTransform`` with a mosaic.

    Both methods get the generator of the position; :meth:`partners` draws from it first.
    """

    def partners(self, position: int, rng: np.random.Generator) -> tuple[int, ...]:
        """Positions of the other samples of the input at ``position``, a function of position and ``rng`` only.

        They are positions of the same endless order, so a source reads them as any others. Empty: the sample alone is
        transformed.
        """
        ...

    def compose(self, samples: Sequence[Sample], rng: np.random.Generator) -> Sample:
        """The input of the stored samples at the position and at its partners, in this order."""
        ...


class SampleSource(ABC):
    """A data set whose samples are read by position, to make batches of them."""

    transform: Transform
    notes: tuple[str, ...] = ()
    """Sentences on what is read of the data set and what is left out, to be shown beside its scores."""

    @abstractmethod
    def __len__(self) -> int:
        """Samples of an epoch."""

    @abstractmethod
    def stored(self, positions: Sequence[int]) -> Iterator[Sample]:
        """The samples at ``positions`` as they are stored, one after the other; each is decoded when it is asked for.

        Raises:
            DataError: One of them cannot be read.
        """

    @abstractmethod
    def random_numbers(self, position: int) -> np.random.Generator:
        """A new generator for the augmentation at a position."""

    @abstractmethod
    def broken(self, position: int, error: DataError) -> DataError:
        """The error about the content of the sample at a position, with the place where it is stored."""

    @abstractmethod
    def records(self, rank: int = 0, world_size: int = 1) -> Iterator[Record]:
        """The records (image size, people as annotated) of every ``world_size``-th sample from sample ``rank`` on.

        They come in the stored order, and are those of the samples of :func:`evaluation_batches`.
        """

    def samples(self, positions: Sequence[int]) -> list[Sample]:
        """The inputs at ``positions`` (at least one), in that order.

        What is at a position does not depend on the other positions. A stored sample that several inputs need is
        decoded once, and kept only until the last of them is made.

        Raises:
            DataError: A sample cannot be read or transformed.
        """
        plans = [self._plan(position) for position in positions]
        last_use = {part: index for index, (parts, _) in enumerate(plans) for part in parts}
        stored = self.stored(list(last_use))
        kept: dict[int, Sample] = {}
        made = []
        for index, (parts, rng) in enumerate(plans):
            for part in parts:
                if part not in kept:
                    kept[part] = next(stored)
            made.append(self._transformed(parts, kept, rng))
            kept = {part: sample for part, sample in kept.items() if last_use[part] > index}
        return made

    def batch(self, positions: Sequence[int]) -> Batch:
        """The inputs at ``positions`` (at least one) as one batch."""
        return collate(self.samples(positions))

    def _plan(self, position: int) -> tuple[list[int], np.random.Generator]:
        """The positions of the stored samples that make an input, and the generator for the rest of it."""
        rng = self.random_numbers(position)
        partners = (
            cast(Composing, self.transform).partners(position, rng) if hasattr(self.transform, "partners") else ()
        )
        return [position, *partners], rng

    def _transformed(self, parts: Sequence[int], kept: dict[int, Sample], rng: np.random.Generator) -> Sample:
        try:
            if len(parts) == 1:
                return self.transform(kept[parts[0]], rng)
            return cast(Composing, self.transform).compose([kept[part] for part in parts], rng)
        except DataError as error:
            for part in parts if len(parts) > 1 else ():  # which of them is it?
                try:
                    self.transform(kept[part], self.random_numbers(part))
                except DataError as own:
                    raise self.broken(part, own) from own
            raise self.broken(parts[0], error) from error


class FirstSamples(SampleSource):
    """The first samples of another source, in its order."""

    def __init__(self, source: SampleSource, count: int) -> None:
        """
        Args:
            source: At least one sample.
            count: How many of them; all if it has fewer.
        """
        self.transform, self.notes = source.transform, source.notes
        self._source, self._count = source, min(count, len(source))

    def __len__(self) -> int:
        return self._count

    def stored(self, positions: Sequence[int]) -> Iterator[Sample]:
        return self._source.stored(positions)

    def random_numbers(self, position: int) -> np.random.Generator:
        return self._source.random_numbers(position)

    def broken(self, position: int, error: DataError) -> DataError:
        return self._source.broken(position, error)

    def records(self, rank: int = 0, world_size: int = 1) -> Iterator[Record]:
        return islice(self._source.records(rank, world_size), len(range(rank, self._count, world_size)))
