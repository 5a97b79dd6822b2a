"""Samples of several sources, each with its own keypoints, as samples of one schema.

What a source does not label is marked in its samples (``People.supervised``), so that no loss asks for it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from posefleet.data.coco.records import Record
from posefleet.data.errors import DataError
from posefleet.data.loading.order import Interleaving, augmentation_rng
from posefleet.data.loading.source import SampleSource, Transform
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.schemas.union import places_in
from posefleet.data.structures import People, Sample


@dataclass(frozen=True, slots=True)
class Supervision:
    """Which keypoints of a schema a source labels, and where they are among its own."""

    places: tuple[int | None, ...]
    """(K,) index of each keypoint in the source's own schema; None: it is not labelled."""

    @classmethod
    def of(cls, schema: KeypointSchema, own: KeypointSchema) -> "Supervision":
        """How a source of the schema ``own`` supervises ``schema``."""
        return cls(places_in(schema, own))

    @property
    def complete(self) -> bool:
        """Whether the source labels all keypoints."""
        return None not in self.places

    def spread(self, people: People, *, marked: bool = True) -> People:
        """People of the source, as people of the schema; ``marked`` with the keypoints that the source labels.

        Without all keypoints, the mean of a person's keypoints says which the source labels, and not where the person
        is. So the centre is then that of the box.
        """
        known = torch.tensor([place is not None for place in self.places])
        index = torch.tensor([place or 0 for place in self.places])
        visibility = people.visibility[:, index].where(known, 0)
        keypoints = people.keypoints[:, index].where((visibility > 0)[..., None], 0.0)
        return People(
            keypoints,
            visibility,
            people.boxes,
            people.areas,
            people.crowd,
            outlined=people.outlined,
            centres=people.centres if self.complete else (people.boxes[:, :2] + people.boxes[:, 2:]) / 2,
            mask=people.mask,
            supervised=known.expand(len(people), -1) if marked else None,
            supervised_maps=known.expand(2, 2, -1) if marked else None,
            seam=torch.full((2,), torch.inf) if marked else None,
        )


class SpreadSource(SampleSource):
    """One source with its own keypoints, whose samples have the keypoints of another schema; records stay its own.

    Args:
        source: Its ``transform`` is not used.
        supervision: Of the schema of ``transform``.
        transform: Turns a sample of the other schema into an input.
        marked: Mark which keypoints are supervised. All sources of a batch must do it, or none.
    """

    def __init__(
        self, source: SampleSource, supervision: Supervision, transform: Transform, *, marked: bool = True
    ) -> None:
        self.source = source
        self.supervision = supervision
        self.transform = transform
        self.marked = marked
        self.notes = source.notes

    def __len__(self) -> int:
        return len(self.source)

    def stored(self, positions: Sequence[int]) -> Iterator[Sample]:
        for sample in self.source.stored(positions):
            yield replace(sample, people=self.supervision.spread(sample.people, marked=self.marked))

    def random_numbers(self, position: int) -> np.random.Generator:
        return self.source.random_numbers(position)

    def broken(self, position: int, error: DataError) -> DataError:
        return self.source.broken(position, error)

    def records(self, rank: int = 0, world_size: int = 1) -> Iterator[Record]:
        return self.source.records(rank, world_size)


class UnionSource(SampleSource):
    """The samples of several sources, interleaved in the proportion of their weights.

    Each source is read in its own endless order, so each of its samples comes once before any comes again. The source
    and the sample at a position, and the random numbers of its augmentation, are pure functions of (seed, position). An
    epoch has as many samples as all sources together.

    Args:
        sources: At least one.
        weights: Of each source, see :class:`Interleaving`.
        transform: Turns a stored sample into an input.
        seed: Of the interleaving and of augmentation; the sources have their own orders.
    """

    def __init__(
        self, sources: Sequence[SpreadSource], weights: Sequence[float], transform: Transform, *, seed: int
    ) -> None:
        self.sources = list(sources)
        self.transform = transform
        self.seed = seed
        self.interleaving = Interleaving(weights, seed)

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def stored(self, positions: Sequence[int]) -> Iterator[Sample]:
        sources, places = self.interleaving.locate(positions)
        parts = {
            int(source): self.sources[source].stored(places[sources == source].tolist())
            for source in np.unique(sources)
        }
        return (next(parts[source]) for source in sources.tolist())

    def random_numbers(self, position: int) -> np.random.Generator:
        return augmentation_rng(self.seed, position)

    def broken(self, position: int, error: DataError) -> DataError:
        sources, places = self.interleaving.locate([position])
        return self.sources[int(sources[0])].broken(int(places[0]), error)

    def records(self, rank: int = 0, world_size: int = 1) -> Iterator[Record]:
        """The records of every source in turn, each in its stored order and with its own keypoints."""
        for source in self.sources:
            yield from source.records(rank, world_size)
