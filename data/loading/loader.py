"""Loads batches of a sample source, which loader processes read and decode in the background."""

import multiprocessing
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from posefleet.data.errors import DataError
from posefleet.data.loading.order import step_positions
from posefleet.data.loading.shared_memory import BufferPool, SharedBatch
from posefleet.data.loading.source import SampleSource
from posefleet.data.structures import Batch, collate
from posefleet.memory import collect_garbage_rarely, keep_freed_memory


class Batches(Iterator[Batch]):
    """An iterator over loaded batches; :meth:`close`, or the end of its ``with`` block, ends the loader processes."""

    def __init__(
        self, dataset: SampleSource, positions: Iterator[list[int]], *, workers: int, prefetch: int, pin_memory: bool
    ) -> None:
        loader = DataLoader(
            _Loading(dataset, buffers=prefetch + 2),
            batch_sampler=positions,
            collate_fn=_identity,
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            multiprocessing_context=_start_method() if workers else None,
            pin_memory=pin_memory,
            worker_init_fn=_begin_worker,
            # With torch's global generator, each new loader would change the random numbers of the training.
            generator=torch.Generator(),
        )
        self._batches: Iterator[Batch | SharedBatch | DataError] = iter(loader)

    def __next__(self) -> Batch:
        batch = next(self._batches)
        if isinstance(batch, DataError):
            self.close()
            raise batch
        return batch.unpack() if isinstance(batch, SharedBatch) else batch

    def close(self) -> None:
        """End the loader processes; the iterator then has no more batches."""
        self._batches = iter(())  # torch ends its workers when their iterator goes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def training_batches(
    dataset: SampleSource,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    per_step: int = 0,
    position: int = 0,
    workers: int = 0,
    prefetch: int = 2,
    pin_memory: bool = False,
) -> Batches:
    """Endless batches of one rank; after k steps the run's position is ``position + k * per_step * batch_size``.

    Args:
        dataset: Source of the samples.
        batch_size: Samples of each batch.
        rank: This rank, from 0.
        world_size: Number of ranks.
        per_step: Batches of a step over all ranks, at least ``world_size``; 0: one for each rank. If it is no multiple
            of ``world_size``, the first ranks get one more in every step.
        position: Samples that the run has seen on all ranks, a whole number of steps.
        workers: Loader processes that read and decode; 0: this process does. More load faster and take more memory.
        prefetch: Batches that each loader process keeps ready. More smooth out slow reads and take more memory.
        pin_memory: Put batches into page-locked memory, from where a copy to a GPU need not wait.
    """
    positions = step_positions(
        batch_size=batch_size, rank=rank, world_size=world_size, per_step=per_step, position=position
    )
    return Batches(dataset, positions, workers=workers, prefetch=prefetch, pin_memory=pin_memory)


def evaluation_batches(
    dataset: SampleSource,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    prefetch: int = 2,
    pin_memory: bool = False,
) -> Batches:
    """Batches of every ``world_size``-th sample of one epoch, from sample ``rank`` on, each exactly once.

    The last batch may be smaller, and ranks may differ by one sample. Build the data set with ``seed=None`` to
    read in the stored order. Arguments as for :func:`training_batches`.
    """
    mine = range(rank, len(dataset), world_size)
    positions = (list(mine[start : start + batch_size]) for start in range(0, len(mine), batch_size))
    return Batches(dataset, positions, workers=workers, prefetch=prefetch, pin_memory=pin_memory)


class _Loading(Dataset):
    """Reads and collates a batch in a loader process.

    A DataError is returned instead of raised, because torch would bury its message in a traceback.
    """

    def __init__(self, source: SampleSource, buffers: int) -> None:
        self.source = source
        self.buffers = BufferPool(buffers)

    def __getitems__(self, positions: list[int]) -> Batch | SharedBatch | DataError:
        try:
            samples = self.source.samples(positions)
        except DataError as error:
            return error
        return (
            collate(samples) if get_worker_info() is None else SharedBatch.pack(collate(samples, self.buffers.allocate))
        )


def _begin_worker(_: int) -> None:
    collect_garbage_rarely()
    keep_freed_memory()  # decoding takes and frees megabytes for every image


def _identity(batch: Any) -> Any:
    return batch


def _start_method() -> str:
    """Start method of the loader processes: not fork, which copies the held locks of this process's threads."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return "spawn"
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])  # imports torch once for all workers
    return "forkserver"
