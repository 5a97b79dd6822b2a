"""Shared memory of batches is reused once no tensor uses it, and not before."""

import pickle
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler

import numpy as np
import torch

from posefleet.data.loading.shared_memory import BufferPool, SharedBatch
from posefleet.data.structures import Batch, People, Sample, collate
from posefleet.data.transforms import IDENTITY


def batch_of(value: int, buffers: BufferPool, side: int = 32, count: int = 2) -> Batch:
    image = np.full((side, side, 3), value, np.uint8)
    people = People(torch.ones(1, 17, 2), torch.ones(1, 17, dtype=torch.uint8), *map(torch.ones, [(1, 4), (1,), (1,)]))
    return collate([Sample(image, people, value, IDENTITY, (side, side)) for _ in range(count)], buffers.allocate)


def arrived(batch: Batch) -> Batch:
    """The batch as another process receives it."""
    return pickle.loads(ForkingPickler.dumps(SharedBatch.pack(batch))).unpack()


def address(batch: Batch) -> int:
    return batch.images.data_ptr()


def test_a_batch_arrives_as_it_was_sent() -> None:
    sent = batch_of(7, BufferPool(2))
    found = arrived(sent)
    assert found.images.is_contiguous(memory_format=torch.channels_last)
    assert found.images.shape == (2, 3, 32, 32) and (found.images == 7).all()
    assert torch.equal(found.packed_people.boxes, sent.packed_people.boxes)
    assert found.packed_people.visibility.dtype == torch.uint8
    assert torch.equal(found.counts, torch.tensor([1, 1])) and torch.equal(found.image_ids, torch.tensor([7, 7]))
    assert torch.equal(found.matrices, sent.matrices) and found.matrices.dtype == torch.float64


def test_masks_arrive_as_they_were_sent() -> None:
    image, mask = np.zeros((32, 64, 3), np.uint8), torch.rand(8, 16) < 0.5
    people = People(torch.ones(1, 17, 2), torch.zeros(1, 17, dtype=torch.uint8), *map(torch.ones, [(1, 4), (1,), (1,)]))
    people = replace(people, outlined=torch.tensor([True]), mask=mask)
    sent = collate([Sample(image, people, 1, IDENTITY, (64, 32))], BufferPool(2).allocate)
    found = arrived(sent)
    assert found.masks is not None and torch.equal(found.masks[0], mask)
    assert torch.equal(found.people[0].mask, mask) and found.packed_people.outlined.tolist() == [True]


def test_the_memory_of_a_dropped_batch_is_reused() -> None:
    buffers = BufferPool(2)
    first = arrived(batch_of(1, buffers))
    del first
    places = set()
    for value in range(2, 12):
        sent = batch_of(value, buffers)
        places.add(address(sent))
        found = arrived(sent)
        assert (found.images == value).all()
        del found
    assert len(places) == 1


def test_memory_in_use_is_not_reused() -> None:
    buffers = BufferPool(2)
    kept = [arrived(batch_of(value, buffers)) for value in range(6)]
    for value, batch in enumerate(kept):
        assert (batch.images == value).all()


def test_one_row_of_a_batch_keeps_its_memory() -> None:
    buffers = BufferPool(4)
    row = arrived(batch_of(1, buffers)).images[0, 0, :1]
    for value in range(2, 8):
        arrived(batch_of(value, buffers))
    assert (row == 1).all()


def test_a_larger_batch_takes_the_place_of_a_buffer_that_is_too_small() -> None:
    buffers = BufferPool(1)
    arrived(batch_of(1, buffers))
    large = batch_of(2, buffers, side=64)
    place = address(large)
    assert (arrived(large).images == 2).all()
    assert address(batch_of(3, buffers)) == place, "the large buffer holds a small batch too"


def test_no_more_buffers_are_kept_than_asked_for() -> None:
    buffers = BufferPool(2)
    kept = [batch_of(value, buffers) for value in range(5)]
    released = {address(batch) for batch in kept}
    for batch in kept:
        arrived(batch)
    assert {address(batch_of(9, buffers)), address(batch_of(9, buffers))} <= released
    assert address(batch_of(9, buffers)) not in {address(batch) for batch in kept[:2]}
