"""The server at saturation for a long time: memory of every process, answers, waits."""

import contextlib
import http.client
import random
import statistics
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import hostile_images
import numpy as np
import psutil
from server import Server, misses, running_server

from posefleet.platform.inference.predictor import Predictor
from serving.material import photographs, untrained
from serving.sides import title
from serving.speed import served

HOSTILE = 0.01
"""Share of requests whose image is refused for its structure."""
SIZES = ((0.1, 12), (1.0, 3), (5.0, 1))
"""Megabytes of the photographs, and how many of them."""
WARM = 1 / 3
"""Share of the time after which memory and waits are compared: caches of the allocator are full by then."""


@dataclass(slots=True)
class Minute:
    """What happened in one minute."""

    waits: list[float] = field(default_factory=list)
    """Milliseconds of the answers to photographs of the smallest size."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """``right``, ``wrong``, ``refused``, or what went wrong, and how often."""


def soak(*, checkpoint: str, minutes: int, clients: int, direct: bool) -> None:
    """Clients ask without a pause; the model is loaded again every minute, and one request of a hundred is hostile."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        checkpoint = checkpoint or untrained("smpr_demo", folder)
        bodies = [body for megabytes, count in SIZES for body in photographs(count, megabytes)]
        predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
        expected = [predictor(body).poses.keypoints.numpy() for body in bodies]
        refused = [make() for make in hostile_images.REFUSED.values()]
        config = {"models": [served(checkpoint)], "direct": direct}
        server = stack.enter_context(running_server(config, local=direct))
        print(f"{clients} clients, {minutes} minutes; MB of memory of its own, by process:")
        load = _Load(server, bodies, expected, refused)
        memory: list[dict[str, float]] = []
        with load.running(clients):
            for number in range(minutes):
                load.minutes.append(Minute())
                time.sleep(60)
                status = server.reload("pose").status
                memory.append(_memory(server))
                _print_minute(number, load.minutes[number], memory[-1], reload=status, head=not number)
        _summarise(load.minutes, memory)


@dataclass(slots=True)
class _Load:
    server: Server
    bodies: Sequence[bytes]
    expected: Sequence[np.ndarray]
    refused: Sequence[bytes]
    minutes: list[Minute] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)
    _counting: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def running(self, clients: int) -> Iterator[None]:
        threads = [threading.Thread(target=self._client, args=(random.Random(seed),)) for seed in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            for thread in threads:
                thread.join()

    def _client(self, chance: random.Random) -> None:
        while not self._ended.is_set():
            hostile = chance.random() < HOSTILE
            which = chance.randrange(len(self.refused if hostile else self.bodies))
            begun = time.monotonic()
            try:
                answer = self.server.post("/v1/poses", (self.refused if hostile else self.bodies)[which])
            except (OSError, http.client.HTTPException) as error:
                self._count(type(error).__name__)
                time.sleep(0.1)
                continue
            if hostile:
                self._count("refused" if 400 <= answer.status < 500 else f"hostile: {answer.status}")
            elif answer.status != 200:
                self._count(f"{answer.status}")
            else:
                right = misses(answer.json, self.expected[which]) < 0.01
                wait = 1e3 * (time.monotonic() - begun) if which < SIZES[0][1] else None
                self._count("right" if right else "wrong", wait)

    def _count(self, outcome: str, wait: float | None = None) -> None:
        if not self.minutes:
            return
        with self._counting:
            minute = self.minutes[-1]
            minute.outcomes[outcome] += 1
            if wait is not None:
                minute.waits.append(wait)


def _memory(server: Server) -> dict[str, float]:
    """MB that the processes of each title have for themselves, shared pages aside."""
    sums: dict[str, float] = defaultdict(float)
    for process in server.processes():
        with contextlib.suppress(psutil.Error):
            sums[title(process)] += process.memory_full_info().uss / 1e6
    return {name: size for name, size in sums.items() if size > 20}


def _print_minute(number: int, minute: Minute, memory: Mapping[str, float], *, reload: int, head: bool) -> None:
    if head:
        print(f"{'minute':>7}{'right':>8}{'refused':>9}{'p50 ms':>8}{'p99 ms':>8}{'reload':>8}  others")
    others = {name: count for name, count in minute.outcomes.items() if name not in ("right", "refused")}
    p50, p99 = np.percentile(minute.waits, (50, 99)) if minute.waits else (np.nan, np.nan)
    sizes = " ".join(f"{name}={size:.0f}" for name, size in sorted(memory.items()))
    print(
        f"{number + 1:7}{minute.outcomes['right']:8}{minute.outcomes['refused']:9}{p50:8.0f}{p99:8.0f}{reload:8}"
        f"  {others or 'none'}  {sizes}",
        flush=True,
    )


def _summarise(minutes: Sequence[Minute], memory: Sequence[Mapping[str, float]]) -> None:
    """Compare the first third after the warm-up with the last third."""
    warm = max(1, round(WARM * len(minutes)))
    third = max(1, (len(minutes) - warm) // 3)
    outcomes = sum((minute.outcomes for minute in minutes), Counter[str]())
    print(f"\noutcomes: {dict(outcomes)}; targets: no wrong answer, nothing but right and refused")
    early, late = slice(warm, warm + third), slice(-third, None)
    print(f"memory, median of minutes {warm + 1} to {warm + third} and of the last {third} (target: within 3 %):")
    for name in sorted(set().union(*memory[early], *memory[late])):
        before, after = (statistics.median(sizes.get(name, 0.0) for sizes in memory[part]) for part in (early, late))
        growth = 100 * (after / before - 1) if before else float("inf")
        print(f"  {name:40}{before:8.0f} MB{after:8.0f} MB{growth:+8.1f} %")
    before, after = (
        statistics.median(float(np.percentile(m.waits, 99)) for m in minutes[part] if m.waits) for part in (early, late)
    )
    print(f"p99 of small photographs: {before:.0f} ms, then {after:.0f} ms")
