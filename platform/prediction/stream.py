"""Cameras and network streams: their addresses, and their frames as they come, through breaks of the connection."""

import json
import math
import os
import re
import select
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, unquote, urlsplit

import numpy as np

from posefleet.data.decode_process import environment_of_child
from posefleet.data.errors import DataError, TooManyPixels
from posefleet.platform.prediction.video import DEFAULT_RATE, Frame
from posefleet.platform.runtime.redaction import HIDDEN, redact

SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp")
"""Beginnings of addresses that are always streams. An http(s) address is one if the caller says so."""

TIMEOUT_S = 10.0
"""Seconds without an answer, or without a frame, after which a connection counts as broken."""

START_S = 60.0
"""Seconds that the process that reads may take to start, on a busy machine."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before the first attempt to connect again, and the most; each attempt that fails doubles the pause."""

USER_VARIABLE, PASSWORD_VARIABLE = "POSEFLEET_STREAM_USER", "POSEFLEET_STREAM_PASSWORD"
"""Environment variables with the user and password of addresses that name no user."""

_DEVICE = re.compile(r"/dev/video\d+")
_PREFIX = re.compile(r"^(\[[^\]]*\]\s*)+")
_SIGN_IN = re.compile(r"\b40[13]\b|[Uu]nauthori[sz]ed|[Ff]orbidden")


def is_stream(source: str, *, live: bool = False) -> bool:
    """Whether an input is a camera or a network stream: a scheme of ``SCHEMES``, ``/dev/video0``, or a number.

    Args:
        source: The input; a number that is also a file or folder here means that.
        live: Whether an http(s) address is a stream, and not a file.

    Raises:
        ValueError: ``live`` is set for something else.
    """
    scheme = source.partition("://")[0].lower() if "://" in source else ""
    if scheme in SCHEMES or _DEVICE.fullmatch(source) or (source.isdecimal() and not os.path.exists(source)):
        return True
    if live and scheme not in ("http", "https"):
        raise ValueError(f"--live is for http(s) addresses of streams, and {redact(source)} is none")
    return live


def stream_name(address: str) -> str:
    """The address for tables and messages: without user, password and query, any of which may be a secret."""
    if "://" not in address:
        return f"camera {address}" if address.isdecimal() else address
    parts = urlsplit(address)
    return redact(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")


def with_credentials(address: str) -> str:
    """The address with user and password of the environment, if it is one of a server and names no user itself."""
    user, password = os.environ.get(USER_VARIABLE, ""), os.environ.get(PASSWORD_VARIABLE, "")
    scheme, found, rest = address.partition("://")
    if not found or not (user or password) or "@" in urlsplit(address).netloc:
        return address
    return f"{scheme}://{quote(user, safe='')}:{quote(password, safe='')}@{rest}"


class LiveStream:
    """A camera or stream that is open; :meth:`frames` yields its newest frame whenever it is asked for the next.

    Frames that come while the caller is busy are dropped. A connection that breaks is opened again, after growing
    pauses. Use it as a context manager.

    Args:
        address: See :func:`is_stream`; user and password may be in the environment, see :func:`with_credentials`.
        most_pixels: Frames with more pixels end the stream.
        stop: Set by the caller, from any thread, to end :meth:`frames`.
        say: Called with a sentence when the connection breaks, and when it is back.

    Raises:
        DataError: There is no such device or stream, it refuses the user, or it is no video; the message says which,
            without secrets.
    """

    def __init__(
        self, address: str, *, most_pixels: int, stop: threading.Event, say: Callable[[str], object] = lambda text: None
    ) -> None:
        self._address, self._most_pixels, self._stop, self._say = with_credentials(address), most_pixels, stop, say
        self.name = stream_name(address)
        """See :func:`stream_name`."""
        self.received = 0
        """Frames that came, with those that were dropped."""
        self.breaks = 0
        """How often the connection broke."""
        self._reader: _Reader | None = None
        self._reader = self._connect()
        self.rate = self._reader.rate
        """Frames per second, as the stream says; ``DEFAULT_RATE`` where it does not."""

    def frames(self, seconds: float = math.inf) -> Iterator[Frame]:
        """Yield the newest frame, again and again, until ``stop`` is set or ``seconds`` have passed.

        ``index`` counts all frames that came, ``seconds`` is the time since the first call, both through breaks.

        Raises:
            TooManyPixels: A frame is larger than allowed.
        """
        start = time.monotonic()
        before: int | None = None  # frames of earlier connections
        pause = FIRST_PAUSE
        while (left := start + seconds - time.monotonic()) > 0 and not self._stop.is_set():
            try:
                reader = self._reader = self._reader or self._connect()
                found = reader.next(min(left, TIMEOUT_S), self._stop)
            except TooManyPixels:
                raise
            except DataError as error:
                self._disconnect()
                if self._stop.is_set():
                    return
                before = self.received
                self.breaks += 1
                self._say(f"{error}; trying again in {pause:g} s")
                self._stop.wait(min(pause, left))
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            if found is None:
                continue  # the time is over, or it was asked to stop
            index, taken, image = found
            if before is None:
                before = -index  # those before the first call do not count
            if pause > FIRST_PAUSE:
                self._say(f"{self.name}: the stream is back")
                pause = FIRST_PAUSE
            self.received = before + index + 1
            yield Frame(before + index, max(0.0, taken - start), image)

    def close(self) -> None:
        """End the connection."""
        self._disconnect()

    def __enter__(self) -> "LiveStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connect(self) -> "_Reader":
        if _DEVICE.fullmatch(self._address):
            _check_device(Path(self._address))
        return _Reader(self._address, self.name, self._most_pixels, self._stop)

    def _disconnect(self) -> None:
        if self._reader:
            self._reader.close()
        self._reader = None


class _Reader:
    """One connection: a process that reads it, see ``stream_process``."""

    def __init__(self, address: str, name: str, most_pixels: int, stop: threading.Event) -> None:
        self._address, self._name, self._most_pixels = address, name, most_pixels
        self._asked = 0.0  # since when a frame is asked for; 0: none is
        quiet = {"OPENCV_FFMPEG_LOGLEVEL": "24", "OPENCV_LOG_LEVEL": "SILENT"}  # FFmpeg's warnings alone
        self._process = subprocess.Popen(
            [sys.executable, "-m", "posefleet.platform.prediction.stream_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment_of_child() | quiet,
        )
        self._complaints: deque[str] = deque(maxlen=20)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        order = {"address": address, "most_pixels": most_pixels, "timeout_s": TIMEOUT_S}
        try:
            self._ask(json.dumps(order).encode() + b"\n")  # not an argument, which other users could see
            answer = self._answer(START_S + TIMEOUT_S, stop)
            if answer is None:
                raise DataError(f"{name}: no answer" + (" until it was stopped" if stop.is_set() else ""))
        except BaseException:
            self.close()
            raise
        rate = float(answer["rate"])
        self.rate = rate if 0 < rate < 1000 else DEFAULT_RATE

    def next(self, timeout_s: float, stop: threading.Event) -> tuple[int, float, np.ndarray] | None:
        """The newest frame: its index, ``time.monotonic()`` when it came, and its pixels; None if ``stop`` was set or
        ``timeout_s`` have passed.

        Raises:
            DataError: The connection is broken, or no frame has come for ``TIMEOUT_S``.
        """
        if not self._asked:
            self._ask(b"n")
            self._asked = time.monotonic()
        answer = self._answer(timeout_s, stop)
        if answer is None:
            if time.monotonic() - self._asked >= TIMEOUT_S:
                raise DataError(f"{self._name}: no frame for {TIMEOUT_S:g} s")
            return None
        self._asked = 0.0
        shape = tuple(answer["shape"])
        data = _pipe(self._process.stdout).read(math.prod(shape))
        if len(data) < math.prod(shape):
            raise self._broken("ended")
        return answer["index"], answer["time"], np.frombuffer(data, np.uint8).reshape(shape)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._listener.join(5.0)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            with suppress(OSError):
                _pipe(pipe).close()

    def _ask(self, data: bytes) -> None:
        try:
            _pipe(self._process.stdin).write(data)
            _pipe(self._process.stdin).flush()
        except OSError:
            raise self._broken("ended") from None

    def _answer(self, timeout_s: float, stop: threading.Event) -> dict[str, Any] | None:
        """The next line of the process; None if ``stop`` was set or ``timeout_s`` have passed."""
        pipe, end = _pipe(self._process.stdout), time.monotonic() + timeout_s
        while not select.select([pipe], [], [], min(0.1, max(0.0, end - time.monotonic())))[0]:
            if stop.is_set() or time.monotonic() >= end:
                return None
        line = pipe.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"fault": "ended"}
        if "fault" in answer:
            raise self._broken(answer["fault"], answer.get("shape", ()))
        return answer

    def _broken(self, fault: str, shape: tuple[int, ...] = ()) -> DataError:
        """The error about what the process reported, with what FFmpeg complained of last."""
        if fault == "too large":
            size = f"{shape[1]} x {shape[0]}"
            return TooManyPixels(f"{self._name}: frames of {size} pixels, {self._most_pixels:,} are allowed")
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5.0)
        self._listener.join(5.0)
        why = next((line for line in self._complaints if _SIGN_IN.search(line)), "")
        if why:
            return DataError(f"{self._name}: user or password is wrong, or missing ({why})")
        why = self._complaints[-1] if self._complaints else ""
        if fault == "ended":
            return DataError(f"{self._name}: the stream broke" + (f" ({why})" if why else ""))
        if "://" not in self._address:
            return DataError(f"{self._name}: no camera that can be opened; does another program use it?")
        return DataError(f"{self._name}: no stream that can be read" + (f" ({why})" if why else ""))

    def _listen(self) -> None:
        for line in _pipe(self._process.stderr):
            text = _PREFIX.sub("", line.decode(errors="replace").strip())
            if text and not text.startswith("Stream ends prematurely"):  # it has no length that it could reach
                self._complaints.append(without_secrets(text, self._address)[:200])


def without_secrets(text: str, address: str) -> str:
    """``text`` without the user, password and query of an address, in any of its parts."""
    parts = urlsplit(address) if "://" in address else None
    text = text.replace(address, stream_name(address))
    if parts:
        user_info = parts.netloc.rpartition("@")[0]
        password = parts.password or ""
        for secret in (user_info, parts.query, password, unquote(password)):
            text = text.replace(secret, HIDDEN) if secret else text
    return redact(text)


def _check_device(path: Path) -> None:
    """Raise ``DataError`` unless the device is there and may be read."""
    if not path.exists():
        there = ", ".join(sorted(map(str, path.parent.glob("video*")))) or "no camera at all"
        raise DataError(f"{path}: no such device; there is {there}")
    if not os.access(path, os.R_OK | os.W_OK):
        raise DataError(f"{path}: no permission to read it; on most systems the group 'video' has it")


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe
