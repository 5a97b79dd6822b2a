"""Predicts a camera or stream as it comes, and writes tables and films in segments.

    OUTPUT/parts/part-00000.parquet       a segment, see ``tables``; a killed process loses the last one at most
    OUTPUT/overlays/segment-00000.webm    its film in real time, if wanted
    OUTPUT/poses.parquet, ...             the tables of all segments, written at the end, as for files

The end is a signal, or a number of seconds. A process that was killed leaves its segments; the same command goes on
with the next one.
"""

import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np

from posefleet.data.errors import DataError
from posefleet.data.video_file import VideoFile
from posefleet.platform.prediction.batch import BatchResult
from posefleet.platform.prediction.inputs import InputImage
from posefleet.platform.prediction.output import ModelInfo, claim_output, file_names, finish_output, part_name
from posefleet.platform.prediction.stream import LiveStream
from posefleet.platform.prediction.tables import ImageResult, read_part, write_part, write_tables
from posefleet.platform.prediction.tracker import UNTRACKED
from posefleet.platform.prediction.video import Frame
from posefleet.platform.prediction.worker import NOT_FINITE, Job, PredictionOptions, PredictionWorker, smooth_row

SEGMENT_S = 60.0
"""Seconds of a segment."""
SAY_EVERY = 10.0
"""Seconds between two lines that say how it goes."""
MOST_RATE = 60.0
"""Frames per second of a film at most; some streams announce the ticks of their clock."""


def predict_stream(
    source: str,
    output: str,
    model: str,
    *,
    options: PredictionOptions,
    seconds: float = math.inf,
    tracking: str = "",
) -> BatchResult:
    """Predict the frames of a camera or stream until a signal, or for ``seconds``, and write them to ``output``.

    Frames that come while one is predicted are dropped. SIGINT or SIGTERM ends it with everything written; a second one
    ends the process at once.

    Args:
        source: See :func:`posefleet.platform.prediction.stream.is_stream`.
        output: Folder; any fsspec path.
        model: Address as :meth:`Predictor.from_checkpoint` takes it.
        options: What is kept and drawn.
        seconds: After which it ends.
        tracking: MLflow store of registered models.

    Raises:
        DataError: There is no such device or stream, it refuses the user, or no frame came.
        CheckpointError: There is no such checkpoint.
        TrackingError: The registry does not answer.
        ValueError: ``output`` holds predictions of something else, or a stream that was ended; or the registered
            version does not exist.
        OSError: A file cannot be written. The same call goes on from there.
    """
    if seconds <= 0:
        raise ValueError(f"seconds {seconds} must be above 0")
    output = output.rstrip("/")
    with (
        _stopped_by_signals() as stop,
        LiveStream(source, most_pixels=options.most_pixels, stop=stop, say=_say) as live,
    ):
        info = ModelInfo.find(model, tracking)
        plan = {"model": info.identity, "input": live.name, **asdict(options)}
        if claim_output(output, plan) is not None:
            raise ValueError(f"{output} holds a stream that was ended; choose another output folder")
        recorder = Recorder(Job(info.files, output, output, options, 1), live)
        _say(f"{live.name}: {live.rate:g} frames/s; Ctrl-C ends it")
        start = time.perf_counter()
        predicted = recorder.record(seconds)
        took = time.perf_counter() - start
        parts = recorder.finished_parts()
        if not parts:
            raise DataError(f"{live.name}: no frame came")
        _say(f"{live.received:,} frames came, {predicted:,} were predicted")
    counts = write_tables(output, parts, info.schema)
    finish_output(output, plan, info, counts, predicted, took)
    return BatchResult(counts, predicted, took, note=info.about["note"])


class Recorder(PredictionWorker):
    """Predicts the frames of a stream, and writes segments.

    Args:
        job: What is predicted, and where it is written.
        live: The open stream.
    """

    def __init__(self, job: Job, live: LiveStream) -> None:
        super().__init__(job)
        self._live = live
        names = sorted(name for name in file_names(f"{job.output}/parts") if name.endswith(".parquet"))
        self._parts = [f"{job.output}/parts/{name}" for name in names]
        earlier = [row for part in self._parts[-1:] for row in read_part(part, self._predictor.schema)]
        # Segments of a process that was killed: times, frames and people go on behind them.
        self._seconds_before = max((row.seconds or 0.0 for row in earlier), default=0.0)
        self._frames_before = max((row.frame or 0 for row in earlier), default=-1) + 1
        self._people_before = self._people(self._parts)
        self._follow = self._tracker()
        self._smooth = self._smoother()
        self._next_say = time.monotonic() + SAY_EVERY

    def record(self, seconds: float) -> int:
        """Write segments until the stream ends; returns the number of frames that were predicted."""
        frames, predicted = self._live.frames(seconds), 0
        first = next(frames, None)
        while first is not None:
            rows: list[ImageResult] = []
            try:
                first = self._live_segment(rows, first, frames)
            finally:  # whatever ended it
                part = f"{self._job.output}/parts/{part_name(len(self._parts))}"
                write_part(part, rows, self._predictor.schema)
                self._parts.append(part)
                predicted += len(rows)
        return predicted

    def finished_parts(self) -> list[str]:
        """The parts of all segments, smoothed if that is wanted."""
        return self._smoothed(self._parts)

    def _live_segment(self, rows: list[ImageResult], first: Frame, frames: Iterator[Frame]) -> Frame | None:
        """Predict the frames of a segment from ``first`` on and append their rows; returns the first frame after it.

        A break of the connection, and another size, begin a new segment.
        """
        image, breaks = InputImage(f"segment-{len(self._parts):05d}", 1), self._live.breaks
        rate = min(self._live.rate, MOST_RATE)
        with self._drawn_video(image, rate) as drawn:
            film = _RealTime(drawn, rate, first.seconds) if drawn else None
            frame: Frame | None = first
            while frame is not None and self._live.breaks == breaks and _belongs(frame, first):
                rows.append(row := self._predicted(frame))
                if film:
                    film.show(self._drawing(frame, row), frame.seconds)
                self._tell(row)
                frame = next(frames, None)
        return frame

    def _predicted(self, frame: Frame) -> ImageResult:
        (poses,) = self._poses([self._predictor.prepare(frame.image)])
        size = frame.image.shape[1], frame.image.shape[0]
        seconds, index = self._seconds_before + frame.seconds, self._frames_before + frame.index
        reason = f"{self._live.name}: frame {index}: {NOT_FINITE}" if poses is None else None
        tracks = self._follow(poses, seconds) if self._follow and poses else None
        if tracks is not None:
            tracks = np.where(tracks == UNTRACKED, UNTRACKED, tracks + self._people_before).astype(np.int32)
        return ImageResult(1, self._live.name, index, seconds, size, poses, tracks, reason)

    def _drawing(self, frame: Frame, row: ImageResult) -> np.ndarray:
        row = smooth_row(row, self._smooth)
        return frame.image if row.poses is None else self._draw(frame.image, row.poses, row.tracks)

    def _people(self, parts: list[str]) -> int:
        """One more than the highest number of a person in ``parts``."""
        rows = (row for part in parts for row in read_part(part, self._predictor.schema) if row.tracks is not None)
        return max((int(row.tracks.max(initial=-1)) for row in rows if row.tracks is not None), default=-1) + 1

    def _tell(self, row: ImageResult) -> None:
        if time.monotonic() < self._next_say:
            return
        self._next_say = time.monotonic() + SAY_EVERY
        people = 0 if row.poses is None else len(row.poses)
        _say(f"{row.seconds:,.0f} s: frame {row.frame:,}, {people} {'person' if people == 1 else 'people'}")


class _RealTime:
    """Writes drawn frames to a film that runs as fast as the stream did, though frames are missing."""

    def __init__(self, file: VideoFile, rate: float, start: float) -> None:
        self._file, self._rate, self._start = file, rate, start
        self._written = 0
        self._last: np.ndarray | None = None

    def show(self, image: np.ndarray, seconds: float) -> None:
        """Show a frame from its time on; until then the one before stays."""
        due = round((seconds - self._start) * self._rate)
        while self._last is not None and self._written < due:
            self._write(self._last)
        if self._written <= due:
            self._write(image)
        self._last = image

    def _write(self, image: np.ndarray) -> None:
        self._file.write(image)
        self._written += 1


def _belongs(frame: Frame, first: Frame) -> bool:
    """Whether a frame is of the segment that begins with ``first``."""
    return frame.seconds - first.seconds < SEGMENT_S and frame.image.shape == first.image.shape


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


@contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """Within, the first SIGINT or SIGTERM sets the event; the second interrupts. Elsewhere than in the main thread,
    signals stay as they are."""
    stop = threading.Event()

    def ask(number: int, _: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
