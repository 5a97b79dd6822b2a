"""Reads and writes videos one frame at a time."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from posefleet.data.errors import DataError, TooManyPixels

log = logging.getLogger(__name__)

DEFAULT_RATE = 25.0
"""Frames per second, where a video does not give its rate."""

CODECS = {".webm": "VP80", ".mp4": "mp4v"}
"""Endings and codecs of drawn videos, the first that OpenCV can encode. H.264 is in no wheel of OpenCV."""

MISSING = 0.05
"""Share of the frames announced by the container that may be missing, as many containers only estimate the number."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a video, decoded."""

    index: int
    """Number of the frame, from 0."""
    seconds: float
    """Time at which it is shown, as given by the container; the frame rate may vary."""
    image: np.ndarray
    """(H, W, 3) uint8 RGB, upright."""


class Video:
    """A video file on this machine, opened for reading.

    Args:
        path: Path of the file.
        most_pixels: Videos whose frames have more pixels are refused.
        what: Name of the video in error messages.

    Raises:
        DataError: The file is not a video, or is damaged.
        TooManyPixels: The frames are larger than ``most_pixels``.
    """

    def __init__(self, path: Path, *, most_pixels: int, what: str = "video") -> None:
        self._what = what
        self._capture = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG)
        if not self._capture.isOpened():
            raise DataError(f"{what}: not a video that can be read, or its beginning or index is missing")
        size = tuple(round(self._capture.get(which)) for which in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if size[0] * size[1] > most_pixels:
            self._capture.release()
            raise TooManyPixels(f"{what}: frames of {size[0]} x {size[1]} pixels, {most_pixels:,} are allowed")
        rate = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.rate = rate if 0 < rate < 1000 else DEFAULT_RATE
        """Average frames per second; ``DEFAULT_RATE`` where the container gives none."""
        self._announced = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self._read = 0

    def frames(self) -> Iterator[Frame]:
        """Yield every frame that can be read, in order; :attr:`fault` is valid afterwards."""
        while True:
            ok, image = self._capture.read()
            if not ok:
                break
            seconds = float(self._capture.get(cv2.CAP_PROP_POS_MSEC)) / 1000
            yield Frame(self._read, seconds, cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
            self._read += 1

    @property
    def fault(self) -> str:
        """After the last frame: what is wrong if more frames were announced than could be read; else empty."""
        if self._read and self._read >= (1 - MISSING) * self._announced:
            return ""
        return f"{self._what}: ends after {self._read:,} of {max(self._announced, 0):,} frames"

    def close(self) -> None:
        """Close the file."""
        self._capture.release()


class VideoFile:
    """Writes a video that browsers play, all frames of the size of the first; without a frame no file is made.

    Args:
        stem: Path on this machine, without the ending, which depends on what OpenCV can write.
        rate: Frames per second.
    """

    def __init__(self, stem: Path, rate: float) -> None:
        self._stem, self._rate = stem, rate
        self._writer: cv2.VideoWriter | None = None
        self.path: Path | None = None
        """The file; None as long as no frame was written."""

    def write(self, image: np.ndarray) -> None:
        """Append a frame, (H, W, 3) uint8 RGB.

        Raises:
            OSError: The file cannot be written.
        """
        if self._writer is None:
            self._writer, self.path = self._opened((image.shape[1], image.shape[0]))
        self._writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Finish the file, if a frame was written."""
        if self._writer is not None:
            self._writer.release()

    def _opened(self, size: tuple[int, int]) -> tuple[cv2.VideoWriter, Path]:
        for ending, codec in CODECS.items():
            path = self._stem.with_suffix(ending)
            with _no_stderr():  # FFmpeg says there that it replaces the code of the codec, which is right
                writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), self._rate, size)
            if writer.isOpened():
                if codec == "mp4v":
                    log.warning("this OpenCV cannot encode VP8; the video is MPEG-4 Part 2, which browsers do not play")
                return writer, path
            writer.release()
            path.unlink(missing_ok=True)
        raise OSError(f"{self._stem}: cannot write a video of {size[0]} x {size[1]} pixels there")


@contextmanager
def _no_stderr() -> Iterator[None]:
    """Within, libraries of this process write nothing to the terminal."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
