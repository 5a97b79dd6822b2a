"""Computes the sample order: which sample is at each position of an endless, seeded, shuffled sequence of epochs."""

import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Self

import numpy as np

# Second words of the seeds, so that each kind of random number has its own stream.
_SHARD_ORDER, _WINDOW_ORDER, _AUGMENTATION, _SOURCES = 0, 1, 2, 3


class Order:
    """The endless order of positions over (shard, sample).

    In each epoch the shards are permuted and laid end to end, that sequence is cut into windows of ``window`` samples
    (the first window has a random size), and the samples of each window are permuted. Only the windows in use are
    computed: memory is O(shards + window), not O(samples).

    Args:
        counts: Samples of each shard.
        seed: Of the permutations. None: the stored order, the same in every epoch.
        window: Samples that are shuffled together; more mix better. A batch reads about window / (samples per shard)
            shards.

    Raises:
        ValueError: ``window`` is less than 1.
    """

    def __init__(self, counts: Sequence[int] | np.ndarray, seed: int | None, window: int) -> None:
        if window < 1:
            raise ValueError(f"window {window}: must be at least 1 sample")
        self.counts = np.asarray(counts, np.int64)
        self.seed = seed
        self.window = window
        self.samples = int(self.counts.sum())
        self._epoch = lru_cache(maxsize=2)(self._compute_epoch)
        self._window = lru_cache(maxsize=4)(self._compute_window)

    def __reduce__(self) -> tuple[type[Self], tuple[np.ndarray, int | None, int]]:
        return type(self), (self.counts, self.seed, self.window)

    def locate(self, positions: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The shard of each position and the sample's index in that shard, both int64."""
        epochs, places = np.divmod(np.asarray(positions, np.int64), self.samples)
        shards, indices = np.empty_like(places), np.empty_like(places)
        for epoch in np.unique(epochs):
            order, ends, offset = self._epoch(int(epoch))
            in_epoch = np.flatnonzero(epochs == epoch)
            sequence = self._shuffle(int(epoch), places[in_epoch], offset)
            slots = np.searchsorted(ends, sequence, side="right")
            shards[in_epoch] = order[slots]
            indices[in_epoch] = sequence - (ends[slots] - self.counts[order[slots]])
        return shards, indices

    def augmentation_rng(self, position: int) -> np.random.Generator:
        """The random generator for the augmentation of the sample at a position."""
        return augmentation_rng(self.seed, position)

    def _shuffle(self, epoch: int, places: np.ndarray, offset: int) -> np.ndarray:
        if self.seed is None:
            return places
        shuffled = np.empty_like(places)
        windows = (places + offset) // self.window
        for window in np.unique(windows):
            start, permutation = self._window(epoch, int(window), offset)
            in_window = windows == window
            shuffled[in_window] = start + permutation[places[in_window] - start]
        return shuffled

    def _compute_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, int]:
        """The permutation of the shards, the end of each in the sequence, and the samples the first window lacks."""
        if self.seed is None:
            return np.arange(len(self.counts)), np.cumsum(self.counts), 0
        rng = np.random.default_rng((self.seed, _SHARD_ORDER, epoch))
        order = rng.permutation(len(self.counts))
        return order, np.cumsum(self.counts[order]), int(rng.integers(self.window))

    def _compute_window(self, epoch: int, window: int, offset: int) -> tuple[int, np.ndarray]:
        """The first place of a window in the sequence, and the permutation of its samples."""
        assert self.seed is not None
        start = max(0, window * self.window - offset)
        end = min(self.samples, (window + 1) * self.window - offset)
        return start, np.random.default_rng((self.seed, _WINDOW_ORDER, epoch, window)).permutation(end - start)


class Interleaving:
    """The endless order of positions over (source, position in that source), in the proportion of weights.

    Among the first n positions, the number of those of a source differs from n times its share of the weights by less
    than the number of sources, and a block of as many positions as the sum of the smallest whole weights has exactly
    that share. Nothing is drawn but where the pattern starts, so any position is found without those before it.

    Args:
        weights: Of each source, above 0, in any unit; taken as the decimal numbers that they are written as.
        seed: Of where the pattern starts. None: at the first source.

    Raises:
        ValueError: A weight is not a finite number above 0.
    """

    def __init__(self, weights: Sequence[float], seed: int | None) -> None:
        for weight in weights:
            if not (math.isfinite(weight) and weight > 0):
                raise ValueError(f"weight {weight} of a source must be a number above 0")
        exact = [Fraction(str(weight)) for weight in weights]
        unit = math.lcm(*(weight.denominator for weight in exact))
        whole = [int(weight * unit) for weight in exact]
        self.weights = [weight // math.gcd(*whole) for weight in whole]
        rng = None if seed is None else np.random.default_rng((seed, _SOURCES))
        # Each step of the walk in `locate` takes one source, heaviest first, from what the steps before left.
        self._steps: list[tuple[int, int, int, int]] = []  # source, its weight, weight of what is left, phase
        left = sum(self.weights)
        for source in sorted(range(len(weights)), key=lambda source: -self.weights[source]):
            phase = left - 1 if rng is None else int(rng.integers(left))
            self._steps.append((source, self.weights[source], left, phase))
            left -= self.weights[source]

    def locate(self, positions: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source of each position, and the position in that source, both int64."""
        found = [self._locate(int(position)) for position in positions]
        sources, places = np.array(found, np.int64).reshape(-1, 2).T
        return sources, places

    def _locate(self, position: int) -> tuple[int, int]:
        for source, weight, left, phase in self._steps:
            before = (position * weight + phase) // left  # positions of this source among the first `position`
            if ((position + 1) * weight + phase) // left > before:
                return source, before
            position -= before
        raise AssertionError("the last source takes every position that is left")


def step_positions(
    *, batch_size: int, rank: int = 0, world_size: int = 1, per_step: int = 0, position: int = 0
) -> Iterator[list[int]]:
    """Endless batches of positions of one rank; after k steps ``position + k * per_step * batch_size`` were seen.

    Args:
        batch_size: Samples of each batch.
        rank: This rank, from 0.
        world_size: Number of ranks.
        per_step: Batches of a step over all ranks, at least ``world_size``; 0: one for each rank. If it is no multiple
            of ``world_size``, the first ranks get one more in every step.
        position: Samples that all ranks have seen together, a whole number of steps.
    """
    per_step = per_step or world_size
    for step in itertools.count(position, per_step * batch_size):
        for index in range(rank, per_step, world_size):
            start = step + index * batch_size
            yield list(range(start, start + batch_size))


def augmentation_rng(seed: int | None, position: int) -> np.random.Generator:
    """The random generator for the augmentation of the sample at a position."""
    return np.random.default_rng((seed or 0, _AUGMENTATION, position))
