"""Worker of batch prediction: reads the images of a chunk, predicts them, and writes the chunk's part."""

import itertools
import json
import logging
import os
import platform
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
from fsspec.implementations.local import LocalFileSystem

from posefleet.data.errors import DataError
from posefleet.data.images import FILE_FORMATS, decode_untrusted, encode_jpeg
from posefleet.data.io.cluster import TaskDied, in_tasks, to_row
from posefleet.data.io.files import create, path_inside, printable
from posefleet.data.structures import Poses, Sample, padded_shape
from posefleet.data.transforms import EvalTransform
from posefleet.data.video_file import VideoFile
from posefleet.memory import collect_garbage_rarely, keep_freed_memory
from posefleet.platform.checkpoints.format import META
from posefleet.platform.inference.predictor import Prediction, Predictor, prepare_image
from posefleet.platform.prediction.inputs import InputImage, read_input
from posefleet.platform.prediction.output import file_names, part_name
from posefleet.platform.prediction.quarantine import REASON, Quarantine
from posefleet.platform.prediction.tables import Counts, ImageResult, join_parts, read_part, write_part
from posefleet.platform.prediction.tracker import OneEuro, PoseTracker
from posefleet.platform.prediction.video import Frame, Video
from posefleet.platform.runtime import logs

log = logging.getLogger(__name__)

FRAMES_KEPT = 256
"""Frames of a video that are written together; a worker that takes over a video predicts the frames after them."""

READERS = 4
"""Images read at once for a worker if nothing else is asked for; most of their time they wait for storage."""

GROUPS = 4
"""Batches' worth of images of different shapes that may wait for a full batch; this bounds a worker's memory."""

NOT_FINITE = "the model gave a pose that is not finite"

OVERLAY_SCORE = 0.1
"""Poses with a lower score are not drawn if no threshold is given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionOptions:
    """What is kept of the predictions, and what is drawn; an output folder holds predictions of one set of options."""

    score_threshold: float | None = None
    """Poses with a lower score are dropped. Raise it for fewer false poses, lower it to miss fewer people. None: all
    poses are kept, and those with at least ``OVERLAY_SCORE`` drawn."""
    keypoint_threshold: float = 0.0
    """Keypoints with a lower score are not drawn; the tables hold all of them."""
    max_people: int | None = None
    """Largest number of poses kept for an image, best first. None: all."""
    most_pixels: int = 100_000_000
    """Images with more pixels are not decoded. Raise it for larger images; a worker then needs more memory."""
    overlays: bool = False
    """Also write each image and video with its poses drawn."""
    track: bool = True
    """Number the people of a video, so that a person has one number in all frames."""
    smooth: float = 0.0
    """Hz; smooth the keypoints of tracked people by a one-euro filter with this cutoff, see ``OneEuro``. 0: not."""

    def __post_init__(self) -> None:
        for name in ("score_threshold", "keypoint_threshold"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} must be between 0 and 1")
        if self.smooth < 0 or (self.smooth and not self.track):
            raise ValueError(f"smooth {self.smooth} must not be negative, and needs track")
        for name in ("max_people", "most_pixels"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} {value} must be at least 1")


@dataclass(frozen=True, slots=True)
class Job:
    """What every worker of a batch prediction is given."""

    checkpoint: dict[str, bytes]
    """Content of the files of the checkpoint or exported network by name, see ``ModelInfo.files``."""
    folder: str
    """fsspec path of the input's folder."""
    output: str
    """fsspec path of the output folder."""
    options: PredictionOptions
    batch_size: int | None
    """Largest number of images of a forward pass; None: the model's ``data.eval_batch_size``."""
    readers: int = READERS
    """Images that are read and decoded at once for a worker."""
    reader_cpus: float = 0.0
    """CPUs of the Ray task that reads and decodes an image, on any node; 0: threads of the worker do it."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """An image that waits for its batch."""

    image: InputImage
    data: bytes
    """Content of its file if it is drawn later, as it is smaller than the pixels; else empty."""
    size: tuple[int, int]
    """(width, height)."""
    views: list[Sample]
    """The image as the network sees it, once for each scale of the evaluation."""

    @property
    def shape(self) -> tuple[tuple[int, int], ...]:
        """Padded (height, width) of each view; in a batch, images of one shape do not pad each other."""
        return tuple(padded_shape([view]) for view in self.views)


@dataclass(frozen=True, slots=True)
class _Loader:
    """Reads, decodes and resizes images, in a thread of the worker or in a Ray task."""

    folder: str
    """fsspec path of the input's folder."""
    options: PredictionOptions
    transforms: Sequence[EvalTransform]
    """Those of the predictor."""

    def __call__(self, image: InputImage) -> _Loaded:
        data = read_input(fsspec.core.url_to_fs(self.folder)[0], self.folder, image)
        pixels = self.decode(data, image)
        size = (pixels.shape[1], pixels.shape[0])
        return _Loaded(image, data if self.options.overlays else b"", size, prepare_image(pixels, self.transforms))

    def decode(self, data: bytes, image: InputImage) -> np.ndarray:
        """(H, W, 3) uint8 RGB pixels of the content of an image's file."""
        return decode_untrusted(data, most_pixels=self.options.most_pixels, what=image.name, formats=FILE_FORMATS)


class PredictionWorker:
    """Holds the model and predicts one chunk after the other.

    Args:
        job: What is predicted, and where it is written.
    """

    def __init__(self, job: Job) -> None:
        keep_freed_memory()
        with tempfile.TemporaryDirectory() as folder:
            for name, data in job.checkpoint.items():
                Path(folder, name).write_bytes(data)
            exported = META not in job.checkpoint
            self._predictor = Predictor.from_checkpoint(str(Path(folder, name)) if exported else folder)
        self._job, self._options = job, job.options
        self._batch_size = job.batch_size or self._predictor.batch_size
        self._fs, _ = fsspec.core.url_to_fs(job.folder)
        self._threads = ThreadPoolExecutor(job.readers)
        self._predictor.refuse_oracles()
        self._loader = _Loader(job.folder, job.options, self._predictor.transforms())
        self._load = in_tasks(self._loader, cpus=job.reader_cpus) if job.reader_cpus else self._loader

    def __call__(self, number: int, chunk: Sequence[InputImage]) -> Counts:
        """Predict chunk ``number``, write its part, and count what was predicted."""
        part = f"{self._job.output}/parts/{part_name(number)}"
        quarantine = Quarantine(f"{part}.begun")
        first = chunk[0]
        if not first.is_video:
            found = self._one_at_a_time(chunk, quarantine) if quarantine.careful else self._images(chunk)
            counts = self._write(part, sorted(found, key=lambda row: row.image_id))
        elif quarantine.refuses(first.name):
            counts = self._write(part, [_failed(first, f"{first.name}: {REASON}")])
        else:
            with quarantine.reading(first.name):
                counts = self._video(first, part)
        quarantine.finish()
        return counts

    def _one_at_a_time(self, chunk: Sequence[InputImage], quarantine: Quarantine) -> Iterator[ImageResult]:
        for image in chunk:
            if quarantine.refuses(image.name):
                yield _failed(image, f"{image.name}: {REASON}")
            else:
                with quarantine.reading(image.name):
                    yield from self._images([image])

    def _write(self, part: str, rows: list[ImageResult]) -> Counts:
        """Write a part of images, or of a video that cannot be read."""
        write_part(part, rows, self._predictor.schema)
        bad = sum(row.reason is not None for row in rows)
        return Counts(images=len(rows) - bad, bad=bad)

    # Images

    def _images(self, chunk: Sequence[InputImage]) -> Iterator[ImageResult]:
        """Predict images in batches of equal shapes; they come in the order of the batches."""
        groups: dict[Any, list[_Loaded]] = {}
        for image, loading in self._loading(chunk):
            try:
                loaded = loading.result()
            except (DataError, TaskDied) as error:
                yield _failed(image, str(error) if isinstance(error, DataError) else f"{image.name}: {REASON}")
                continue
            groups.setdefault(loaded.shape, []).append(loaded)
            fullest = max(groups, key=lambda shape: len(groups[shape]))
            if len(groups[fullest]) == self._batch_size or sum(map(len, groups.values())) > GROUPS * self._batch_size:
                yield from self._predict(groups.pop(fullest))
        for group in groups.values():
            yield from self._predict(group)

    def _loading(self, chunk: Sequence[InputImage]) -> Iterator[tuple[InputImage, "Future[_Loaded]"]]:
        """Yield each image in order, while the threads load those after it."""
        ahead: deque[tuple[InputImage, Future[_Loaded]]] = deque()
        for image in chunk:
            ahead.append((image, self._threads.submit(self._load, image)))
            if len(ahead) > 2 * self._job.readers:
                yield ahead.popleft()
        yield from ahead

    def _predict(self, group: Sequence[_Loaded]) -> Iterator[ImageResult]:
        for loaded, poses in zip(group, self._poses([loaded.views for loaded in group]), strict=True):
            image = loaded.image
            if poses is None:
                yield _failed(image, f"{image.name}: {NOT_FINITE}")
                continue
            if self._options.overlays:
                with create(self._overlay(image, ".jpg")) as file:
                    file.write(encode_jpeg(self._draw(self._loader.decode(loaded.data, image), poses)))
            yield ImageResult(image.image_id, image.name, size=loaded.size, poses=poses)

    def _poses(self, prepared: Sequence[list[Sample]]) -> list[Poses | None]:
        """The poses of a batch that the options keep; None where a number of them is not finite."""
        return [self._kept(poses) for poses in self._predictor.predict_prepared(prepared)]

    def _kept(self, poses: Poses) -> Poses | None:
        poses = poses[poses.scores >= (self._options.score_threshold or 0.0)][: self._options.max_people]
        finite = (torch.isfinite(values).all() for values in (poses.keypoints, poses.keypoint_scores, poses.scores))
        return poses if all(finite) else None

    # Videos

    def _video(self, image: InputImage, part: str) -> Counts:
        """Predict a video in segments of ``FRAMES_KEPT`` frames; segments of an earlier worker are only drawn."""
        stem = part.removesuffix(".parquet")
        existing = file_names(part.rpartition("/")[0])
        segments: list[str] = []
        predicted = 0
        with ExitStack() as stack:
            try:
                path = stack.enter_context(self._on_this_machine(image))
                video = Video(path, most_pixels=self._options.most_pixels, what=image.name)
            except DataError as error:
                return self._write(part, [_failed(image, str(error))])
            stack.enter_context(closing(video))
            drawn = stack.enter_context(self._drawn_video(image, video.rate))
            frames = video.frames()
            follow, smooth = self._tracker(), self._smoother()
            full = True
            while full:
                segments.append(f"{stem}-{len(segments):05d}.parquet")
                exists = segments[-1].rpartition("/")[2] in existing
                known = read_part(segments[-1], self._predictor.schema) if exists else None
                rows = self._segment(image, frames, known, follow, smooth, drawn)
                full = len(rows) == FRAMES_KEPT
                if known is None:
                    predicted += len(rows)
                    if not full and video.fault:
                        rows.append(_failed(image, video.fault))
                    write_part(segments[-1], rows, self._predictor.schema)
        join_parts(part, self._smoothed(segments))
        return Counts(frames=predicted, bad=bool(video.fault))

    def _segment(
        self,
        image: InputImage,
        frames: Iterator[Frame],
        known: list[ImageResult] | None,
        follow: PoseTracker | None,
        smooth: OneEuro | None,
        drawn: VideoFile | None,
    ) -> list[ImageResult]:
        """Rows of the next ``FRAMES_KEPT`` frames, fewer at the end; ``known`` holds them if they are predicted.

        Rows are not smoothed, so that whoever takes over the video gives the same numbers.
        """
        rows: list[ImageResult] = []
        while batch := list(itertools.islice(frames, min(self._batch_size, FRAMES_KEPT - len(rows)))):
            if known is None:
                found = self._poses(list(self._threads.map(self._predictor.prepare, (frame.image for frame in batch))))
            else:
                found = [row.poses for row in known[len(rows) : len(rows) + len(batch)]]
            for frame, poses in zip(batch, found, strict=True):
                size = frame.image.shape[1], frame.image.shape[0]
                reason = f"{image.name}: frame {frame.index}: {NOT_FINITE}" if poses is None else None
                tracks = follow(poses, frame.seconds) if follow and poses else None
                row = ImageResult(image.image_id, image.name, frame.index, frame.seconds, size, poses, tracks, reason)
                rows.append(row)
                if drawn:
                    row = smooth_row(row, smooth)
                    drawn.write(frame.image if row.poses is None else self._draw(frame.image, row.poses, row.tracks))
        return rows

    def _tracker(self) -> PoseTracker | None:
        return PoseTracker(self._predictor.schema.sigmas) if self._options.track else None

    def _smoother(self) -> OneEuro | None:
        return OneEuro(self._options.smooth) if self._options.smooth else None

    def _smoothed(self, segments: Sequence[str]) -> list[str]:
        """The segments with smoothed keypoints, written beside them; the segments themselves without ``smooth``."""
        smooth, found = self._smoother(), []
        for segment in segments:
            if smooth:
                rows = [smooth_row(row, smooth) for row in read_part(segment, self._predictor.schema)]
                segment = f"{segment.removesuffix('.parquet')}-smooth.parquet"
                write_part(segment, rows, self._predictor.schema)
            found.append(segment)
        return found

    @contextmanager
    def _on_this_machine(self, image: InputImage) -> Iterator[Path]:
        """The path of a video, of a link to it if its path is not UTF-8, or of a copy if it is on remote storage."""
        path = fsspec.core.url_to_fs(path_inside(self._job.folder, image.name))[1]
        local = isinstance(self._fs, LocalFileSystem)
        if local and printable(path) == path:
            yield Path(path)
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, "video").with_suffix(Path(path).suffix)
            if local:
                copy.symlink_to(path)
                yield copy
                return
            try:
                self._fs.get_file(path, str(copy))
            except FileNotFoundError:
                raise DataError(f"{image.name}: no such file") from None
            yield copy

    @contextmanager
    def _drawn_video(self, image: InputImage, rate: float) -> Iterator[VideoFile | None]:
        """A file for the drawn frames, copied to the overlays at the end; None where no overlays are wanted."""
        if not self._options.overlays:
            yield None
            return
        with tempfile.TemporaryDirectory() as folder:
            with closing(VideoFile(Path(folder, "drawn"), rate)) as file:
                yield file
            if file.path:
                with file.path.open("rb") as source, create(self._overlay(image, file.path.suffix)) as target:
                    shutil.copyfileobj(source, target)

    # Overlays

    def _draw(self, image: np.ndarray, poses: Poses, tracks: np.ndarray | None = None) -> np.ndarray:
        threshold = self._options.score_threshold
        return Prediction(image, poses, self._predictor.schema, tracks=tracks).plot(
            score_threshold=OVERLAY_SCORE if threshold is None else threshold,
            keypoint_threshold=self._options.keypoint_threshold,
        )

    def _overlay(self, image: InputImage, ending: str) -> str:
        name = image.name if image.name.endswith(ending) else image.name + ending
        return path_inside(f"{self._job.output}/overlays", name)


class RowWorker(PredictionWorker):
    """A worker in the form that Ray Data calls: made with a reference to a :class:`Job`, called with rows."""

    def __init__(self, job: Any) -> None:
        import ray

        collect_garbage_rarely()
        job = ray.get(job)
        self._logging = logs.log_to_folder(job.output, f"worker-{platform.node()}-{os.getpid()}")
        self._logging.__enter__()  # until Ray ends the process
        super().__init__(job)

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:  # type: ignore[override]
        """Predict the chunk of a row: its ``number``, and its images as JSON; ``from_row`` gives number and counts."""
        return to_row(lambda: self._predict_row(row))

    def _predict_row(self, row: dict[str, Any]) -> dict[str, Any]:
        chunk = [InputImage(**image) for image in json.loads(row["chunk"])]
        start = time.perf_counter()
        counts = super().__call__(row["number"], chunk)
        log.debug("chunk %d in %.1f s: %s", row["number"], time.perf_counter() - start, counts)
        return {"number": row["number"], **asdict(counts)}


def smooth_row(row: ImageResult, smooth: OneEuro | None) -> ImageResult:
    """The row with smoothed keypoints."""
    if smooth is None or row.poses is None or row.tracks is None or row.seconds is None:
        return row
    keypoints = smooth(row.poses.keypoints.double().numpy(), row.tracks, row.seconds)
    return replace(row, poses=replace(row.poses, keypoints=torch.from_numpy(keypoints).float()))


def _failed(image: InputImage, reason: str) -> ImageResult:
    return ImageResult(image.image_id, image.name, reason=reason)
