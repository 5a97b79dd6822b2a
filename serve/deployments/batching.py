"""Requests that wait together: the next batch is closed when the network is free, not before.

Ray's ``@serve.batch`` closes a batch as soon as its waiting time is over, also while the one before it is still
computed; under load its batches then hold one image each, and wait in line. Here what comes meanwhile joins.
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
    """Like all times here by the clock of the event loop, seconds."""


class Batcher(Generic[Job, Result]):
    """Batches of jobs of one kind, the kind of the job that waits longest first. Of one event loop."""

    def __init__(
        self, run: Callable[[list[Job]], Awaitable[list[Result | Exception]]], *, size: int, wait_s: float
    ) -> None:
        """
        Args:
            run: Results of the jobs of a batch, in their order, or why there is none.
            size: Most jobs of a batch.
            wait_s: How long a job waits for others while nothing else is computed, seconds.
        """
        self._run, self._size, self._wait_s = run, size, wait_s
        self._waiting: dict[Hashable, deque[_Waiting[Job, Result]]] = {}
        self._work: asyncio.Task[None] | None = None

    async def __call__(self, kind: Hashable, job: Job) -> Result:
        """The job's result; cancelled while it waits, the job is never run.

        Raises:
            Exception: That of the job.
        """
        loop = asyncio.get_running_loop()
        waiting: _Waiting[Job, Result] = _Waiting(job, loop.create_future(), loop.time())
        self._waiting.setdefault(kind, deque()).append(waiting)
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._until_nothing_waits())
        return await waiting.result

    async def _until_nothing_waits(self) -> None:
        while self._waiting:
            kind = min(self._waiting, key=lambda kind: self._waiting[kind][0].since)
            queue = self._waiting[kind]
            left = queue[0].since + self._wait_s - asyncio.get_running_loop().time()
            if len(queue) < self._size and left > 0:
                await asyncio.sleep(left)
            batch = [queue.popleft() for _ in range(min(self._size, len(queue)))]
            if not queue:
                del self._waiting[kind]
            if batch := [waiting for waiting in batch if not waiting.result.done()]:
                await self._finish(batch)

    async def _finish(self, batch: list[_Waiting[Job, Result]]) -> None:
        try:
            results = await self._run([waiting.job for waiting in batch])
        except Exception as error:  # whatever it is, those who wait must hear of it
            results = [error] * len(batch)
        for waiting, result in zip(batch, results, strict=True):
            if waiting.result.done():
                continue
            if isinstance(result, Exception):
                waiting.result.set_exception(result)
            else:
                waiting.result.set_result(result)
