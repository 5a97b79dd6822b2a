"""Reads videos one frame at a time; ``data/video_file.py`` writes them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from posefleet.data.errors import DataError, TooManyPixels

DEFAULT_RATE = 25.0
"""Frames per second, where a video does not give its rate."""

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
