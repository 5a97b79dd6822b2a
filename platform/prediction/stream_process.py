"""Reads a camera or network stream in a process of its own, and hands out its newest frame when it is asked.

``python -m posefleet.platform.prediction.stream_process`` is such a process, a child of
:class:`~posefleet.platform.prediction.stream.LiveStream`. A read that hangs, or a decoder that dies of hostile bytes,
ends this process alone. One frame waits at a time, so a slow reader loses frames and no memory.

The first line of stdin is the order, as JSON: ``address``, ``most_pixels`` and ``timeout_s``. The answer is a line of
JSON with ``rate``, or ``fault``. Each further byte of stdin asks for a frame, which is a line of JSON (``index``,
``time``, ``shape``), then the pixels; or ``fault`` at the end. What FFmpeg complains of goes to stderr.
"""

import json
import os
import signal
import sys
import threading
import time
from typing import IO, Any

import cv2
import numpy as np

from posefleet.data.decode_process import end_with_parent


class Newest:
    """Holds the frame that came last; one that nobody took is replaced."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._frame: tuple[int, float, np.ndarray] | None = None
        self._ended = False

    def put(self, index: int, seconds: float, image: np.ndarray) -> None:
        """Replace the frame."""
        with self._changed:
            self._frame = (index, seconds, image)
            self._changed.notify()

    def end(self) -> None:
        """No more frames will come."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def take(self) -> tuple[int, float, np.ndarray] | None:
        """Wait for a frame that was not taken yet: index, time and image; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._frame is not None or self._ended)
            frame, self._frame = self._frame, None
            return frame


def opened(address: str, timeout_s: float) -> cv2.VideoCapture:
    """The stream of an address, or the camera of a device; it may be closed, if there is none."""
    if address.startswith("/dev/"):
        return cv2.VideoCapture(address, cv2.CAP_V4L2)
    if address.isdecimal():
        return cv2.VideoCapture(int(address))
    limit = int(1000 * timeout_s)
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, limit, cv2.CAP_PROP_READ_TIMEOUT_MSEC, limit]
    return cv2.VideoCapture(address, cv2.CAP_FFMPEG, limits)


def serve(orders: IO[bytes], answers: IO[bytes]) -> None:
    """Read the stream of the order until it ends or ``orders`` does."""
    order = json.loads(orders.readline())
    capture = opened(order["address"], order["timeout_s"])
    if not capture.isOpened():
        _answer(answers, {"fault": "closed"})
        return
    _answer(answers, {"rate": capture.get(cv2.CAP_PROP_FPS)})
    newest = Newest()
    threading.Thread(target=_read_all, args=(capture, newest), daemon=True).start()
    while orders.read(1):
        frame = newest.take()
        if frame is None:
            _answer(answers, {"fault": "ended"})
            return
        index, seconds, image = frame
        if image.shape[0] * image.shape[1] > order["most_pixels"]:
            _answer(answers, {"fault": "too large", "shape": image.shape})
            return
        _answer(answers, {"index": index, "time": seconds, "shape": image.shape})
        answers.write(cv2.cvtColor(image, cv2.COLOR_BGR2RGB).data)
        answers.flush()


def _read_all(capture: cv2.VideoCapture, newest: Newest) -> None:
    index = 0
    while True:
        ok, image = capture.read()
        if not ok:
            newest.end()
            return
        newest.put(index, time.monotonic(), image)
        index += 1


def _answer(answers: IO[bytes], values: dict[str, Any]) -> None:
    answers.write(json.dumps(values).encode() + b"\n")
    answers.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal; the parent ends this process when it is done
    threading.Thread(target=end_with_parent, daemon=True).start()
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # FFmpeg prints what it complains of
    serve(sys.stdin.buffer, pipe)
    os._exit(0)  # a read may still be waiting
