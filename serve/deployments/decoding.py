"""Decodes the images of a replica: within budgets of pixels, in threads, and unusual files in processes that end."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np

from posefleet.data.decode_process import DecodeProcesses
from posefleet.data.errors import DataError, NotAnImage, TooCostly, TooManyPixels
from posefleet.data.image_limits import check_structure
from posefleet.data.images import FORMATS, decode_untrusted
from posefleet.serve.deployments.errors import ErrorDetail
from posefleet.serve.deployments.settings import Limits

T = TypeVar("T")

STUCK_S = 120.0
"""A thread that decodes one image for so many seconds hangs. It cannot be stopped, so the replica is replaced."""

_REASONS: dict[type[DataError], str] = {
    NotAnImage: "not_an_image",
    TooManyPixels: "too_many_pixels",
    TooCostly: "too_costly",
}


class PixelBudget:
    """How many pixels may be in use at a time."""

    def __init__(self, most: int) -> None:
        self.most, self.used = most, 0
        self._lock = threading.Lock()

    def reserve(self, pixels: int) -> bool:
        """Take ``pixels``, if there is room for them. Who takes them calls :meth:`release` once."""
        with self._lock:
            if self.used + pixels > self.most:
                return False
            self.used += pixels
            return True

    def release(self, pixels: int) -> None:
        """Give back what :meth:`reserve` took."""
        with self._lock:
            self.used -= pixels


class Decoder:
    """The threads and processes of a replica that decode, and the pixels that they may hold."""

    def __init__(self, limits: Limits, *, threads: int) -> None:
        """
        Args:
            limits: Those of the server.
            threads: Threads that decode usual images, and run what else is handed to :meth:`run`.
        """
        self.budget = PixelBudget(limits.replica_pixels or 4 * limits.image_pixels)
        self._limits = limits
        self._threads = ThreadPoolExecutor(threads, "decode")
        self._guards = ThreadPoolExecutor(limits.decode_processes, "decode-process")
        self._processes = DecodeProcesses(
            limits.decode_processes,
            cpu_s=limits.decode_cpu_s,
            most_pixels=limits.image_pixels,
            limits=limits.structure,
        )
        self._running: dict[int, float] = {}

    def check_health(self) -> None:
        """Raises:
        RuntimeError: A thread has been decoding one image for more than ``STUCK_S`` seconds.
        """
        oldest = min(list(self._running.values()), default=time.monotonic())
        if time.monotonic() - oldest > STUCK_S:
            raise RuntimeError(f"an image has been decoding for more than {STUCK_S:g} s; this replica must be replaced")

    async def decode(
        self, data: bytes, then: Callable[[np.ndarray], T], *, deadline: float
    ) -> "tuple[np.ndarray, T, int] | ErrorDetail":
        """Decode an image and prepare it, both outside the event loop.

        Args:
            data: The bytes of a file; they may be anything.
            then: Runs after decoding, in the same thread.
            deadline: When nobody waits for the image any more, by ``time.monotonic``, seconds.

        Returns:
            (H, W, 3) uint8, the result of ``then``, and the pixels that are reserved: the caller releases them from
            :attr:`budget` when it needs the image no more. Or why the image is refused; nothing is reserved then.
        """
        structure = await self.run(_reason_or, lambda: check_structure(data, limits=self._limits.structure))
        if isinstance(structure, ErrorDetail):
            return structure
        pixels, most = structure.pixels, self._limits.image_pixels
        if pixels > most:
            text = f"{structure.width} x {structure.height} pixels are more than the {most:,} that are allowed"
            return ErrorDetail("too_many_pixels", f"image: {text}")
        if not self.budget.reserve(pixels):
            text = f"images of {self.budget.used:,} pixels are in work, and {pixels:,} more are too many"
            return ErrorDetail("busy", f"{text} for the {self.budget.most:,} of a replica; try again in a second")
        guarded = not structure.plain and structure.kind != ""

        def work() -> tuple[np.ndarray, T]:
            if time.monotonic() > deadline:
                raise _LateError
            if guarded:
                image = self._processes.decode(data, formats=FORMATS)
            else:
                with self._watched():
                    image = decode_untrusted(data, most_pixels=most, limits=None)
            return image, then(image)

        future = (self._guards if guarded else self._threads).submit(_reason_or, work)
        handed_on = False
        try:
            decoded = await asyncio.wrap_future(future)
            if isinstance(decoded, ErrorDetail):
                return decoded
            handed_on = True
            return *decoded, pixels
        finally:
            if not handed_on:  # a thread goes on with an image whose client has left, so the pixels stay in use
                future.add_done_callback(lambda _: self.budget.release(pixels))

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """Run a function in one of the threads."""
        return await asyncio.wrap_future(self._threads.submit(function, *arguments))

    def close(self) -> None:
        """End the threads and processes, once they are idle."""
        self._threads.shutdown()
        self._guards.shutdown()
        self._processes.close()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        key = threading.get_ident()
        self._running[key] = time.monotonic()
        try:
            yield
        finally:
            del self._running[key]


class _LateError(Exception):
    pass


def _reason_or(work: Callable[[], T]) -> "T | ErrorDetail":
    """The result, or why an image is refused."""
    try:
        return work()
    except DataError as error:
        return ErrorDetail(_REASONS.get(type(error), "damaged_image"), str(error))
    except _LateError:
        return ErrorDetail("deadline", "the image waited too long to be decoded; the server is overloaded")
