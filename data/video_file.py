"""Writes videos one frame at a time, in a format that browsers play."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

log = logging.getLogger(__name__)

CODECS = {".webm": "VP80", ".mp4": "mp4v"}
"""Endings and codecs of drawn videos, the first that OpenCV can encode. H.264 is in no wheel of OpenCV."""


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
