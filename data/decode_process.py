"""Decodes images in processes of their own, which are killed and replaced when an image takes too long or too much.

For images whose cost their structure does not bound (:attr:`~posefleet.data.image_limits.Structure.plain`). A thread
that decodes cannot be stopped; a process can. ``python -m posefleet.data.decode_process`` is such a process.
"""

import json
import math
import mmap
import os
import queue
import resource
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np

import posefleet
from posefleet.data.errors import DataError, NotAnImage, TooCostly, TooManyPixels
from posefleet.data.image_limits import LIMITS, Buffer, ImageLimits

_ERRORS = {kind.__name__: kind for kind in (DataError, NotAnImage, TooCostly, TooManyPixels)}

_PIXEL_BYTES, _MORE_BYTES = 32, 256 * 2**20
"""Memory that a process may take for each allowed pixel (the result, 16 bits a channel, coefficients), and besides."""

_WAITS = 10
"""A process is killed after this many times its CPU seconds have passed, whatever it does meanwhile."""

_START_S = 60.0
"""Seconds that a process may take to import its libraries."""


class DecodeProcesses:
    """A pool of processes that decode; one is started when it is needed, and kept. Methods may run in any thread."""

    def __init__(self, count: int, *, cpu_s: float, most_pixels: int, limits: ImageLimits = LIMITS) -> None:
        """
        Args:
            count: Maximum number of processes.
            cpu_s: CPU seconds that an image may take, rounded up to a whole second.
            most_pixels: Maximum width times height of an image; memory is limited accordingly.
            limits: What the structure of a file may ask for.
        """
        self._settings = {"cpu_s": cpu_s, "most_pixels": most_pixels, "limits": asdict(limits)}
        self._timeout_s = _WAITS * max(1.0, cpu_s)
        self._idle: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(count):
            self._idle.put(None)

    def decode(self, data: Buffer, *, what: str = "image", formats: Sequence[str]) -> np.ndarray:
        """:func:`posefleet.data.images.decode_untrusted` in a process; waits for one that is idle.

        Raises:
            TooCostly: The image takes more CPU time or memory than it may; its process has been replaced.
            DataError: See ``decode_untrusted``.
        """
        process = self._idle.get()
        try:
            process = process or _Process(self._settings)
            return process.decode(data, what, formats, self._timeout_s)
        except _Ended as error:
            assert process is not None
            process.end()
            process = None
            raise TooCostly(f"{what}: decoding it {error}; save the image again with an ordinary encoder") from None
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """End the processes that are idle."""
        with suppress(queue.Empty):
            while True:
                if process := self._idle.get_nowait():
                    process.end()


class _Ended(Exception):
    """A process has ended, or has to be ended; the message follows "decoding it"."""


class _Process:
    """One process, and the shared memory in which it finds a file's bytes and leaves the pixels."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._shared = tempfile.TemporaryFile(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)  # noqa: SIM115
        descriptor = self._shared.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "posefleet.data.decode_process", str(descriptor), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # decoders complain about damaged files
            pass_fds=(descriptor,),
            env=environment_of_child(),
        )
        self._ready = False

    def decode(self, data: Buffer, what: str, formats: Sequence[str], timeout_s: float) -> np.ndarray:
        if not self._ready:
            self._read(_START_S)
            self._ready = True
        order = json.dumps({"bytes": len(data), "what": what, "formats": list(formats)}).encode() + b"\n"
        pipe = self._process.stdin
        assert pipe is not None
        self._shared.seek(0)
        self._shared.write(data)  # a process that does not read cannot block this, as it could a pipe
        self._shared.flush()
        try:
            pipe.write(order)
            pipe.flush()
        except OSError:
            raise _Ended("ended its process") from None
        answer = self._read(timeout_s)
        if "error" in answer:
            raise _ERRORS[answer["error"]](answer["text"])
        shape = tuple(answer["shape"])
        with mmap.mmap(self._shared.fileno(), math.prod(shape), prot=mmap.PROT_READ) as memory:
            image = np.frombuffer(memory, np.uint8).reshape(shape)
            copied = image.copy()
            del image
        self._shared.truncate(0)
        return copied

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._shared):
            with suppress(OSError):
                file.close()  # type: ignore[union-attr]

    def _read(self, timeout_s: float) -> dict[str, Any]:
        pipe = self._process.stdout
        assert pipe is not None
        if not select.select([pipe], [], [], timeout_s)[0]:
            raise _Ended(f"took more than {timeout_s:g} s")
        line = pipe.readline()
        if not line:
            raise _Ended("took more CPU time or memory than an image may")
        answer: dict[str, Any] = json.loads(line)
        return answer


def environment_of_child() -> dict[str, str]:
    """This process's own environment, in which Python also finds this package where Ray put it."""
    folder = str(Path(posefleet.__file__).parents[1])
    paths = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def _serve(shared: int, settings: dict[str, Any], orders: IO[bytes], answers: IO[bytes]) -> None:
    """Decode one image after the other, until ``orders`` ends."""
    import cv2

    from posefleet.data.images import decode_untrusted

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    limits = ImageLimits(**settings["limits"])
    _limit_memory(_PIXEL_BYTES * settings["most_pixels"] + _MORE_BYTES)
    _answer(answers, {})
    while line := orders.readline():
        order = json.loads(line)
        data = os.pread(shared, order["bytes"], 0)
        _allow_cpu(settings["cpu_s"])
        try:
            image = decode_untrusted(
                data,
                most_pixels=settings["most_pixels"],
                what=order["what"],
                formats=order["formats"],
                limits=limits,
            )
        except DataError as error:
            name = type(error).__name__
            _answer(answers, {"error": name if name in _ERRORS else "DataError", "text": str(error)})
            continue
        except MemoryError:
            os._exit(1)
        os.truncate(shared, image.nbytes)
        with mmap.mmap(shared, image.nbytes) as memory:
            memory.write(image.reshape(-1).data)
        _answer(answers, {"shape": image.shape})


def _answer(answers: IO[bytes], values: dict[str, Any]) -> None:
    answers.write(json.dumps(values).encode() + b"\n")
    answers.flush()


def _limit_memory(size: int) -> None:
    """Let this process map at most ``size`` bytes more than now, where the system has such a limit."""
    with suppress(OSError, ValueError):
        with open("/proc/self/statm") as file:
            mapped = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + size, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _allow_cpu(seconds: float) -> None:
    """Let the kernel end this process after so many CPU seconds from now."""
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used + seconds), hard))


def end_with_parent() -> None:
    """End this process when its parent has ended, also in the middle of an image; runs in a thread of its own."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    _serve(int(sys.argv[1]), json.loads(sys.argv[2]), sys.stdin.buffer, sys.stdout.buffer)
