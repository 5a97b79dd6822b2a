"""The sides of a comparison, each in a process of its own: clients, a bare ``Predictor``, a LitServe server."""

import asyncio
import importlib.util
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import psutil
import torch

from posefleet.memory import keep_freed_memory
from posefleet.platform.inference.predictor import Predictor

_SPAWN = multiprocessing.get_context("spawn")


def title(process: psutil.Process) -> str:
    """What a process is, in a word or two: the deployment of a replica, the script of one of Ray's services.

    Raises:
        psutil.Error: It has ended.
    """
    words = process.cmdline()
    name = words[0].rpartition("/")[2] if words else ""
    if "python" in name:
        name = next((Path(word).stem for word in words[1:] if word.endswith(".py")), name)
    return name.removeprefix("ray::").removeprefix("ServeReplica:posefleet:").partition(".")[0].partition(":")[0]


def cpu_seconds(processes: Iterable[psutil.Process]) -> Counter[str]:
    """What processes have taken of the processor so far, by title."""
    taken = Counter[str]()
    for process in processes:
        with suppress(psutil.Error):
            times = process.cpu_times()
            taken[title(process)] += times.user + times.system  # type: ignore[assignment]  # a counter of seconds
    return taken


class Shot(NamedTuple):
    """A request: when it was sent and answered, by ``time.monotonic``, and the status; 0 if there was no answer."""

    sent: float
    answered: float
    status: int

    @property
    def ms(self) -> float:
        return 1e3 * (self.answered - self.sent)


class Part(NamedTuple):
    """Of a plan: so many clients for so many seconds."""

    clients: int
    seconds: float


@dataclass(slots=True)
class Clients:
    """A process whose clients ask one after another over connections that stay open."""

    _pool: ProcessPoolExecutor

    @classmethod
    @contextmanager
    def start(cls) -> Iterator[Self]:
        with ProcessPoolExecutor(1, _SPAWN) as pool:
            yield cls(pool)

    def ask(self, url: str, bodies: Sequence[bytes], plan: Sequence[Part], **options: Any) -> list[Shot]:
        """See :func:`_ask`; comes back when all are answered."""
        return self.begin(url, bodies, plan, **options).result()

    def begin(self, url: str, bodies: Sequence[bytes], plan: Sequence[Part], **options: Any) -> Future[list[Shot]]:
        return self._pool.submit(_run_clients, url, list(bodies), list(plan), **options)


def _run_clients(*args: Any, **options: Any) -> list[Shot]:
    return asyncio.run(_ask(*args, **options))


async def _ask(
    url: str, bodies: list[bytes], plan: list[Part], *, count: int | None = None, form: bool = False
) -> list[Shot]:
    """Let clients ask.

    Args:
        plan: Client i asks during parts of more than i clients.
        count: Most requests of all clients together.
        form: Send images as files of multipart/form-data.
    """
    import aiohttp

    contents = [_as_form(body) if form else body for body in bodies]
    kind = f"multipart/form-data; boundary={_BOUNDARY}" if form else "image/jpeg"
    shots: list[Shot] = []
    numbers = iter(range(count)) if count is not None else itertools.count()

    async def shoot(session: aiohttp.ClientSession, number: int) -> None:
        sent = time.monotonic()
        try:
            async with session.post(url, data=contents[number % len(contents)]) as response:
                await response.read()
                status = response.status
        except aiohttp.ClientError:
            status = 0
            await asyncio.sleep(0.05)
        shots.append(Shot(sent, time.monotonic(), status))

    async def client(session: aiohttp.ClientSession, index: int) -> None:
        end = time.monotonic()
        for part in plan:
            end += part.seconds
            if index >= part.clients:
                await asyncio.sleep(end - time.monotonic())
            while time.monotonic() < end:
                if (number := next(numbers, None)) is None:
                    return
                await shoot(session, number)

    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers={"Content-Type": kind}) as session:
        await asyncio.gather(*(client(session, index) for index in range(max(part.clients for part in plan))))
    return shots


_BOUNDARY = "boundary-of-the-bench"


def _as_form(body: bytes) -> bytes:
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="request"; filename="a.jpg"\r\n'
    return head.encode() + b"Content-Type: image/jpeg\r\n\r\n" + body + f"\r\n--{_BOUNDARY}--\r\n".encode()


# ------------------------------------------------------------------------------------------------------ predictor


@dataclass(slots=True)
class Bare:
    """A process with nothing but a ``Predictor``."""

    _pool: ProcessPoolExecutor

    @classmethod
    @contextmanager
    def start(cls, checkpoint: str, threads: int) -> Iterator[Self]:
        with ProcessPoolExecutor(1, _SPAWN, initializer=_load, initargs=(checkpoint, threads)) as pool:
            yield cls(pool)

    def seconds(self, bodies: Sequence[bytes], *, batch: int, count: int) -> float:
        """For that many images, in batches."""
        images = list(itertools.islice(itertools.cycle(bodies), count))
        return self._pool.submit(_predict_all, images, batch).result()

    def ms(self, bodies: Sequence[bytes], seconds: float) -> list[float]:
        """Of images, one by one."""
        return self._pool.submit(_predict_each, list(bodies), seconds).result()


_predictor: Predictor


def _load(checkpoint: str, threads: int) -> None:
    global _predictor
    torch.set_num_threads(threads)
    keep_freed_memory()  # as replicas do
    _predictor = Predictor.from_checkpoint(checkpoint)


def _predict_all(images: list[bytes], batch: int) -> float:
    start = time.perf_counter()
    _predictor.batch_size = batch
    for first in range(0, len(images), batch):
        _predictor(list(images[first : first + batch]))
    return time.perf_counter() - start


def _predict_each(bodies: list[bytes], seconds: float) -> list[float]:
    times, end = [], time.perf_counter() + seconds
    for body in itertools.cycle(bodies):
        start = time.perf_counter()
        if start > end:
            break
        _predictor(body)
        times.append(1e3 * (time.perf_counter() - start))
    return times


# ------------------------------------------------------------------------------------------------------- LitServe


class LitServer(NamedTuple):
    """Where it takes images, and its group of processes."""

    url: str
    group: int

    def processes(self) -> list[psutil.Process]:
        parent = psutil.Process(self.group)
        return [parent, *parent.children(recursive=True)]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """None of its processes takes any time meanwhile; at rest they poll."""
        os.killpg(self.group, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self.group, signal.SIGCONT)


@contextmanager
def lit_server(
    checkpoint: str, port: int, *, batch: int, wait_ms: float, threads: int, replicas: int
) -> Iterator["LitServer"]:
    """A running LitServe server."""
    if importlib.util.find_spec("litserve") is None:
        raise SystemExit("LitServe is not installed, and only this needs it: pip install litserve")
    command = [sys.executable, str(Path(__file__).with_name("lit.py"))]
    command += [checkpoint, *map(str, (port, batch, wait_ms, threads, replicas))]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            _wait_for_lit(f"http://127.0.0.1:{port}/health", process)
            yield LitServer(f"http://127.0.0.1:{port}/predict", process.pid)
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def _wait_for_lit(health: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        if process.poll() is not None:
            raise SystemExit("LitServe does not start")
        try:
            with urllib.request.urlopen(health) as answer:
                if answer.status == 200:
                    return
        except OSError:
            pass
        time.sleep(0.2)
    raise SystemExit("LitServe is not ready after a minute")
