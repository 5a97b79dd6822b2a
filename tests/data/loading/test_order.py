"""Sample order: every sample once an epoch, the same for any batches and ranks, in little memory."""

import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posefleet.data.loading.order import Interleaving, Order

shard_counts = st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(sum)


@given(
    counts=shard_counts,
    seed=st.one_of(st.none(), st.integers(0, 99)),
    window=st.integers(1, 30),
    epoch=st.integers(0, 5),
)
def test_an_epoch_visits_every_sample_exactly_once(
    counts: list[int], seed: int | None, window: int, epoch: int
) -> None:
    total = sum(counts)
    shards, samples = Order(counts, seed, window).locate(range(epoch * total, (epoch + 1) * total))
    expected = [(shard, sample) for shard, count in enumerate(counts) for sample in range(count)]
    assert sorted(zip(shards.tolist(), samples.tolist(), strict=True)) == expected


@given(counts=shard_counts, seed=st.integers(0, 99), window=st.integers(1, 30), data=st.data())
def test_a_position_means_the_same_sample_however_it_is_asked_for(
    counts: list[int], seed: int, window: int, data: st.DataObject
) -> None:
    order = Order(counts, seed, window)
    shards, samples = order.locate(range(4 * sum(counts)))
    asked = data.draw(st.lists(st.integers(0, 4 * sum(counts) - 1), max_size=20))
    fresh_shards, fresh_samples = pickle.loads(pickle.dumps(order)).locate(np.array(asked, np.int64))
    assert fresh_shards.tolist() == [shards[i] for i in asked]
    assert fresh_samples.tolist() == [samples[i] for i in asked]


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    counts=shard_counts,
    window=st.integers(1, 30),
    resume=st.integers(0, 60),
    before=st.tuples(st.integers(1, 5), st.integers(1, 7)),
    after=st.tuples(st.integers(1, 5), st.integers(1, 7)),
)
def test_a_run_resumed_on_other_ranks_sees_what_the_undisturbed_one_would(
    counts: list[int], window: int, resume: int, before: tuple[int, int], after: tuple[int, int]
) -> None:
    order = Order(counts, 3, window)
    seen: list[int] = []
    position = 0
    for (world_size, batch_size), steps in ((before, resume // (before[0] * before[1])), (after, 8)):
        for _ in range(steps):
            for rank in range(world_size):
                start = position + rank * batch_size
                shards, samples = order.locate(range(start, start + batch_size))
                seen += (100 * shards + samples).tolist()
            position += world_size * batch_size
    shards, samples = order.locate(range(position))
    assert seen == (100 * shards + samples).tolist()


def test_epochs_differ_and_the_seed_decides() -> None:
    def epoch(seed: int, number: int) -> list[tuple[int, int]]:
        shards, samples = Order([50, 50, 50], seed, 40).locate(range(number * 150, (number + 1) * 150))
        return list(zip(shards.tolist(), samples.tolist(), strict=True))

    assert epoch(0, 0) == epoch(0, 0)
    assert epoch(0, 0) != epoch(0, 1)
    assert epoch(0, 0) != epoch(1, 0)


def test_neighbours_in_a_shard_are_not_neighbours_in_the_stream() -> None:
    shards, samples = Order([1000] * 8, 0, 2000).locate(range(8000))
    place = 1000 * shards + samples
    # In a random order two neighbours of 2000 stay neighbours with probability 2 / 2000: 8 of 8000 are expected.
    assert (np.abs(np.diff(place)) == 1).sum() < 30
    distance = np.abs(np.diff(np.argsort(place)))  # in the stream, between neighbours of a shard
    assert np.median(distance) > 400


def test_windows_are_cut_elsewhere_in_each_epoch_so_that_one_shard_mixes_too() -> None:
    order = Order([100], 0, 50)
    first_halves = {frozenset(order.locate(range(e * 100, e * 100 + 50))[1].tolist()) for e in range(10)}
    assert len(first_halves) == 10


def test_a_hundred_million_samples_cost_no_memory() -> None:
    order = Order(np.full(100_000, 1000), 0, 8192)
    shards, samples = order.locate(range(250_000_000, 250_000_064))
    assert len(set(zip(shards.tolist(), samples.tolist(), strict=True))) == 64
    assert order._epoch.cache_info().currsize == 1
    assert order._window.cache_info().currsize <= 2


def test_without_a_seed_the_order_is_the_stored_one() -> None:
    shards, samples = Order([2, 0, 1], None, 8).locate(range(6))
    assert shards.tolist() == [0, 0, 2, 0, 0, 2]
    assert samples.tolist() == [0, 1, 0, 0, 1, 0]


def test_a_window_of_zero_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="window 0: must be at least 1"):
        Order([3], 0, 0)


# ---------------------------------------------------------------------------------------------------- several sources

source_weights = st.lists(st.sampled_from([0.1, 0.25, 0.5, 1, 2, 3, 7, 11.5, 57_000, 200]), min_size=1, max_size=5)


@given(weights=source_weights, seed=st.one_of(st.none(), st.integers(0, 99)), start=st.integers(0, 3 * 10**9))
def test_sources_come_in_the_proportion_of_their_weights(weights: list[float], seed: int | None, start: int) -> None:
    order = Interleaving(weights, seed)
    sources, places = order.locate(range(start, start + 200))
    for source, weight in enumerate(weights):
        mine = places[sources == source]
        assert (np.diff(mine) == 1).all()  # every place of a source once, in order
        if len(mine):  # and as many before as its share
            first = start + int(np.flatnonzero(sources == source)[0])
            assert abs(mine[0] - first * weight / sum(weights)) < len(weights)


@given(weights=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 99), block=st.integers(0, 50))
def test_a_block_of_all_weights_has_exactly_each_share(weights: list[int], seed: int, block: int) -> None:
    order = Interleaving(weights, seed)
    total = sum(order.weights)
    sources, _ = order.locate(range(block * total, (block + 1) * total))
    assert np.bincount(sources, minlength=len(weights)).tolist() == order.weights


@given(weights=source_weights, seed=st.integers(0, 99), data=st.data())
def test_a_position_means_the_same_source_however_it_is_asked_for(
    weights: list[float], seed: int, data: st.DataObject
) -> None:
    sources, places = Interleaving(weights, seed).locate(range(300))
    asked = data.draw(st.lists(st.integers(0, 299), max_size=20))
    fresh_sources, fresh_places = pickle.loads(pickle.dumps(Interleaving(weights, seed))).locate(asked)
    assert fresh_sources.tolist() == [sources[i] for i in asked]
    assert fresh_places.tolist() == [places[i] for i in asked]


def test_weights_are_the_decimal_numbers_that_are_written() -> None:
    assert Interleaving([0.7, 0.2, 0.1], 0).weights == [7, 2, 1]
    assert Interleaving([64_115, 10_000], 0).weights == [12_823, 2_000]


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_a_weight_must_be_above_zero(weight: float) -> None:
    with pytest.raises(ValueError, match="of a source must be a number above 0"):
        Interleaving([1, weight], 0)
