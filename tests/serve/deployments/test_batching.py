"""Which jobs share a batch, and when a batch closes."""

import asyncio
from collections.abc import Sequence

import pytest
from clock import now, run_at_once

from posefleet.serve.deployments.batching import Batcher


class Work:
    """Doubles numbers in ``seconds``; an odd number above 100 fails alone, 1000 fails the whole batch."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.batches: list[list[int]] = []

    async def __call__(self, jobs: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(jobs))
        await asyncio.sleep(self.seconds)
        if 1000 in jobs:
            raise RuntimeError("the network is gone")
        return [ValueError(f"{job}") if job > 100 and job % 2 else 2 * job for job in jobs]


def test_jobs_that_arrive_during_a_batch_join_the_next_one() -> None:
    async def run() -> Work:
        work = Work(0.1)
        batcher = Batcher(work, size=4, wait_s=0.0)
        tasks = [asyncio.create_task(batcher("a", 0))]
        await asyncio.sleep(0.02)
        for job in range(1, 7):
            tasks.append(asyncio.create_task(batcher("a", job)))
            await asyncio.sleep(0.005)
        assert await asyncio.gather(*tasks) == [2 * job for job in range(7)]
        return work

    assert run_at_once(run()).batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_only_jobs_of_one_kind_share_a_batch_and_the_oldest_goes_first() -> None:
    async def run() -> Work:
        work = Work(0.05)
        batcher = Batcher(work, size=8, wait_s=0.0)
        first = asyncio.create_task(batcher("a", 0))
        await asyncio.sleep(0.01)
        kinds = [("b", 1), ("a", 2), ("b", 3), ("a", 4)]
        await asyncio.gather(first, *(batcher(kind, job) for kind, job in kinds))
        return work

    assert run_at_once(run()).batches == [[0], [1, 3], [2, 4]]


def test_a_lone_job_waits_for_others_for_wait_s() -> None:
    async def run(wait_s: float) -> Work:
        work = Work()
        batcher = Batcher(work, size=8, wait_s=wait_s)
        first = asyncio.create_task(batcher("a", 0))
        await asyncio.sleep(0.05)
        await asyncio.gather(first, batcher("a", 1))
        return work

    assert run_at_once(run(0.5)).batches == [[0, 1]]
    assert run_at_once(run(0.0)).batches == [[0], [1]]


def test_a_full_batch_does_not_wait() -> None:
    async def run() -> float:
        batcher = Batcher(Work(), size=2, wait_s=30.0)
        start = now()
        await asyncio.gather(batcher("a", 0), batcher("a", 1))
        return now() - start

    assert run_at_once(run()) == 0


def test_a_job_that_is_cancelled_while_it_waits_is_not_run() -> None:
    async def run() -> Work:
        work = Work(0.05)
        batcher = Batcher(work, size=8, wait_s=0.0)
        first = asyncio.create_task(batcher("a", 0))
        await asyncio.sleep(0.01)
        cancelled, kept = asyncio.create_task(batcher("a", 1)), asyncio.create_task(batcher("a", 2))
        await asyncio.sleep(0.01)
        cancelled.cancel()
        assert await asyncio.gather(first, kept) == [0, 4]
        assert cancelled.cancelled()
        return work

    assert run_at_once(run()).batches == [[0], [2]]


def test_an_error_reaches_its_own_callers_only() -> None:
    async def run() -> list[object]:
        batcher = Batcher(Work(), size=8, wait_s=0.02)
        results = list(await asyncio.gather(*(batcher("a", job) for job in (1, 101, 3)), return_exceptions=True))
        with pytest.raises(RuntimeError, match="the network is gone"):
            await batcher("a", 1000)
        return [*results, await batcher("a", 5)]

    one, broken, three, after = run_at_once(run())
    assert (one, three, after) == (2, 6, 10) and isinstance(broken, ValueError)
