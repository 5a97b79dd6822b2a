"""Groups waiting jobs into batches; a batch closes when the network is free.

Ray's ``@serve.batch`` closes a batch when its waiting time is over, even while the previous batch is being computed.
Under load its batches then hold one image each and queue up. Here a job that arrives during a batch joins the next one.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(slots=True, eq=False)
class _Waiting(Generic[Job, Result]):
    job: Job
    result: "asyncio.Future[Result]"
    since: float
    """When the job arrived, by the event loop's clock, seconds."""


class Batcher(Generic[Job, Result]):
    """Runs jobs in batches of one kind; the kind of the job that has waited longest goes first.

    All calls must come from one event loop.
    """

    def __init__(
        self, run: Callable[[list[Job]], Awaitable[list[Result | Exception]]], *, size: int, wait_s: float
    ) -> None:
        """
        Args:
            run: Computes a batch. Returns one result per job, in order; an exception fails that job alone.
            size: Maximum number of jobs in a batch.
            wait_s: How long a batch that is not full waits for more jobs while nothing is computed, seconds.
        """
        self._run, self._size, self._wait_s = run, size, wait_s
        self._queues: dict[Hashable, deque[_Waiting[Job, Result]]] = {}
        self._worker: asyncio.Task[None] | None = None

    async def __call__(self, kind: Hashable, job: Job) -> Result:
        """Return the job's result. A job that is cancelled while it waits is never run.

        Raises:
            Exception: Whatever ``run`` raised or returned for this job.
        """
        loop = asyncio.get_running_loop()
        waiting: _Waiting[Job, Result] = _Waiting(job, loop.create_future(), loop.time())
        self._queues.setdefault(kind, deque()).append(waiting)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._run_until_empty())
        return await waiting.result

    async def _run_until_empty(self) -> None:
        while self._queues:
            kind = min(self._queues, key=lambda kind: self._queues[kind][0].since)
            queue = self._queues[kind]
            remaining = queue[0].since + self._wait_s - asyncio.get_running_loop().time()
            if len(queue) < self._size and remaining > 0:
                await asyncio.sleep(remaining)
            batch = [queue.popleft() for _ in range(min(self._size, len(queue)))]
            if not queue:
                del self._queues[kind]
            if batch := [waiting for waiting in batch if not waiting.result.done()]:
                await self._run_batch(batch)

    async def _run_batch(self, batch: list[_Waiting[Job, Result]]) -> None:
        try:
            results = await self._run([waiting.job for waiting in batch])
        except Exception as error:  # callers wait for their result, so every error must reach them
            results = [error] * len(batch)
        for waiting, result in zip(batch, results, strict=True):
            if waiting.result.done():
                continue
            if isinstance(result, Exception):
                waiting.result.set_exception(result)
            else:
                waiting.result.set_result(result)
