"""A worker of batch prediction: reads images, predicts, and writes what it found."""

import itertools
import json
import logging
import os
import platform
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
from fsspec.implementations.local import LocalFileSystem

from posefleet.data.errors import DataError
from posefleet.data.images import decode_untrusted, encode_jpeg
from posefleet.data.io.files import create, path_inside
from posefleet.data.structures import Poses, Sample, padded_shape
from posefleet.memory import collect_garbage_rarely, keep_freed_memory
from posefleet.platform.inference.predictor import Prediction, Predictor
from posefleet.platform.prediction.inputs import InputImage, read_input
from posefleet.platform.prediction.output import file_names, part_name
from posefleet.platform.prediction.quarantine import REASON, Quarantine
from posefleet.platform.prediction.tables import Counts, ImageResult, join_parts, read_part, write_part
from posefleet.platform.prediction.video import Frame, Video, VideoFile
from posefleet.platform.runtime import logs

log = logging.getLogger(__name__)


FRAMES_KEPT = 256
"""Frames of a video after which a killed worker's successor goes on."""


READERS = 4
"""Threads of a worker that read and decode; most of their time they wait for storage, or for each other."""


GROUPS = 4
"""Batches of different shapes that may be filling at once; this bounds a worker's memory."""


NOT_FINITE = "the model gave a pose that is not finite"


OVERLAY_SCORE = 0.1
"""Poses below it are not drawn where no threshold was asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionOptions:
    """What of the predictions is wanted; part of what an output folder is."""

    score_threshold: float | None = None
    """Poses below are left out. None: all that the model gives are kept, and those from ``OVERLAY_SCORE`` on drawn."""
    keypoint_threshold: float = 0.0
    """Keypoints below are not drawn; the tables hold all of them."""
    max_people: int | None = None
    """At most so many poses of an image, the best."""
    most_pixels: int = 100_000_000
    """Larger images are not decoded."""
    overlays: bool = False
    """Also draw the poses on the pictures."""

    def __post_init__(self) -> None:
        for name in ("score_threshold", "keypoint_threshold"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} must be between 0 and 1")
        for name in ("max_people", "most_pixels"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} {value} must be at least 1")


@dataclass(frozen=True, slots=True)
class Job:
    """All that a worker needs to know."""

    checkpoint: dict[str, bytes]
    schema: str
    folder: str
    output: str
    wanted: PredictionOptions
    batch_size: int | None


@dataclass(frozen=True, slots=True)
class _Loaded:
    """An image on its way into a batch."""

    picture: InputImage
    data: bytes
    """Of its file; kept for the overlay, being smaller than its pixels."""
    size: tuple[int, int]
    views: list[Sample]

    @property
    def shape(self) -> tuple[tuple[int, int], ...]:
        """Images of one shape do not pad each other: alone or together, they give the same poses."""
        return tuple(padded_shape([view]) for view in self.views)


class PredictionWorker:
    """Has the model, predicts chunks."""

    def __init__(self, work: Job) -> None:
        keep_freed_memory()
        with tempfile.TemporaryDirectory() as folder:
            for name, data in work.checkpoint.items():
                Path(folder, name).write_bytes(data)
            self._predictor = Predictor.from_checkpoint(folder)
        self._work, self._wanted = work, work.wanted
        self._batch_size = work.batch_size or self._predictor.batch_size
        self._fs, _ = fsspec.core.url_to_fs(work.folder)
        self._threads = ThreadPoolExecutor(READERS)

    def __call__(self, number: int, chunk: Sequence[InputImage]) -> Counts:
        """Leave the part of a chunk."""
        part = f"{self._work.output}/parts/{part_name(number)}"
        suspects = Quarantine(f"{part}.begun")
        if chunk[0].is_video:
            counts = self._suspected_video(chunk[0], part, suspects)
        else:
            found = self._one_at_a_time(chunk, suspects) if suspects.careful else self._images(chunk)
            rows = sorted(found, key=lambda row: row.image_id)
            write_part(part, rows, self._predictor.schema)
            bad = sum(row.reason is not None for row in rows)
            counts = Counts(images=len(rows) - bad, bad=bad)
        suspects.done()
        return counts

    def _one_at_a_time(self, chunk: Sequence[InputImage], suspects: Quarantine) -> Iterator[ImageResult]:
        for picture in chunk:
            if suspects.avoid(picture.name):
                yield ImageResult(picture.image_id, picture.name, reason=f"{picture.name}: {REASON}")
            else:
                with suspects.reading(picture.name):
                    yield from self._images([picture])

    def _suspected_video(self, video: InputImage, part: str, suspects: Quarantine) -> Counts:
        if suspects.avoid(video.name):
            write_part(
                part,
                [ImageResult(video.image_id, video.name, reason=f"{video.name}: {REASON}")],
                self._predictor.schema,
            )
            return Counts(bad=1)
        with suspects.reading(video.name):
            return self._video(video, part)

    # Images

    def _images(self, chunk: Sequence[InputImage]) -> Iterator[ImageResult]:
        groups: dict[Any, list[_Loaded]] = {}
        for picture, loading in self._ahead(self._load, chunk):
            try:
                loaded = loading.result()
            except DataError as error:
                yield ImageResult(picture.image_id, picture.name, reason=str(error))
                continue
            groups.setdefault(loaded.shape, []).append(loaded)
            fullest = max(groups, key=lambda shape: len(groups[shape]))
            if len(groups[fullest]) == self._batch_size or sum(map(len, groups.values())) > GROUPS * self._batch_size:
                yield from self._predict(groups.pop(fullest))
        for group in groups.values():
            yield from self._predict(group)

    def _ahead(
        self, load: Callable[[InputImage], _Loaded], chunk: Sequence[InputImage]
    ) -> Iterator[tuple[InputImage, "Future[_Loaded]"]]:
        """Each picture, while the threads are at those after it."""
        coming: deque[tuple[InputImage, Future[_Loaded]]] = deque()
        for picture in chunk:
            coming.append((picture, self._threads.submit(load, picture)))
            if len(coming) > 2 * READERS:
                yield coming.popleft()
        yield from coming

    def _load(self, picture: InputImage) -> _Loaded:
        data = read_input(self._fs, self._work.folder, picture)
        image = self._decode(data, picture)
        return _Loaded(picture, data, (image.shape[1], image.shape[0]), self._predictor.prepare(image))

    def _decode(self, data: bytes, picture: InputImage) -> np.ndarray:
        return decode_untrusted(data, most_pixels=self._wanted.most_pixels, what=picture.name)

    def _predict(self, group: Sequence[_Loaded]) -> Iterator[ImageResult]:
        for loaded, poses in zip(group, self._poses([loaded.views for loaded in group]), strict=True):
            picture = loaded.picture
            if poses is None:
                yield ImageResult(picture.image_id, picture.name, reason=f"{picture.name}: {NOT_FINITE}")
                continue
            if self._wanted.overlays:
                with create(self._overlay(picture, ".jpg")) as file:
                    file.write(encode_jpeg(self._draw(self._decode(loaded.data, picture), poses)))
            yield ImageResult(picture.image_id, picture.name, size=loaded.size, poses=poses)

    def _poses(self, prepared: Sequence[list[Sample]]) -> list[Poses | None]:
        """What is wanted of the poses of a batch; None where the model gave numbers that are none."""
        return [self._kept(poses) for poses in self._predictor.predict_prepared(prepared)]

    def _kept(self, poses: Poses) -> Poses | None:
        poses = poses[poses.scores >= (self._wanted.score_threshold or 0.0)][: self._wanted.max_people]
        finite = (torch.isfinite(values).all() for values in (poses.keypoints, poses.keypoint_scores, poses.scores))
        return poses if all(finite) else None

    # Videos

    def _video(self, picture: InputImage, part: str) -> Counts:
        """One run of frames after the other; those that are there already are drawn, but not predicted again."""
        stem = part.removesuffix(".parquet")
        there = file_names(part.rpartition("/")[0])
        runs: list[str] = []
        predicted = 0
        with ExitStack() as stack:
            try:
                path = stack.enter_context(self._on_this_machine(picture))
                video = stack.enter_context(Video(path, most_pixels=self._wanted.most_pixels, what=picture.name))
            except DataError as error:
                write_part(
                    part, [ImageResult(picture.image_id, picture.name, reason=str(error))], self._predictor.schema
                )
                return Counts(bad=1)
            drawn = stack.enter_context(self._drawn_video(picture, video.rate))
            frames = video.frames()
            whole = True
            while whole:
                runs.append(f"{stem}-{len(runs):05d}.parquet")
                known = read_part(runs[-1], self._predictor.schema) if runs[-1].rpartition("/")[2] in there else None
                rows = self._run(picture, frames, known, drawn)
                whole = len(rows) == FRAMES_KEPT
                if known is None:
                    predicted += len(rows)
                    if not whole and video.fault:
                        rows.append(ImageResult(picture.image_id, picture.name, reason=video.fault))
                    write_part(runs[-1], rows, self._predictor.schema)
        join_parts(part, runs)
        return Counts(frames=predicted, bad=bool(video.fault))

    def _run(
        self, picture: InputImage, frames: Iterator[Frame], known: list[ImageResult] | None, drawn: VideoFile | None
    ) -> list[ImageResult]:
        rows: list[ImageResult] = []
        while batch := list(itertools.islice(frames, min(self._batch_size, FRAMES_KEPT - len(rows)))):
            if known is None:
                found = self._poses(list(self._threads.map(self._predictor.prepare, (frame.image for frame in batch))))
            else:
                found = [row.poses for row in known[len(rows) : len(rows) + len(batch)]]
            for frame, poses in zip(batch, found, strict=True):
                size = frame.image.shape[1], frame.image.shape[0]
                reason = f"{picture.name}: frame {frame.index}: {NOT_FINITE}" if poses is None else None
                rows.append(
                    ImageResult(picture.image_id, picture.name, frame.index, frame.seconds, size, poses, reason)
                )
                if drawn:
                    drawn.write(frame.image if poses is None else self._draw(frame.image, poses))
        return rows

    @contextmanager
    def _on_this_machine(self, picture: InputImage) -> Iterator[Path]:
        """The path of a video, or of a copy of it."""
        path = fsspec.core.url_to_fs(path_inside(self._work.folder, picture.name))[1]
        if isinstance(self._fs, LocalFileSystem):
            yield Path(path)
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, "video").with_suffix(Path(path).suffix)
            try:
                self._fs.get_file(path, str(copy))
            except FileNotFoundError:
                raise DataError(f"{picture.name}: no such file") from None
            yield copy

    @contextmanager
    def _drawn_video(self, picture: InputImage, rate: float) -> Iterator[VideoFile | None]:
        if not self._wanted.overlays:
            yield None
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "drawn.mp4")
            with closing(VideoFile(path, rate)) as file:
                yield file
            if path.exists():
                with path.open("rb") as source, create(self._overlay(picture, ".mp4")) as target:
                    shutil.copyfileobj(source, target)

    # Overlays

    def _draw(self, image: np.ndarray, poses: Poses) -> np.ndarray:
        asked = self._wanted.score_threshold
        return Prediction(image, poses, self._predictor.schema).plot(
            score_threshold=OVERLAY_SCORE if asked is None else asked,
            keypoint_threshold=self._wanted.keypoint_threshold,
        )

    def _overlay(self, picture: InputImage, ending: str) -> str:
        name = picture.name if picture.name.endswith(ending) else picture.name + ending
        return path_inside(f"{self._work.output}/overlays", name)


class RowWorker(PredictionWorker):
    """A worker as Ray Data calls it."""

    def __init__(self, work: Any) -> None:
        import ray

        collect_garbage_rarely()
        work = ray.get(work)
        self._written = logs.log_to_folder(work.output, f"worker-{platform.node()}-{os.getpid()}")
        self._written.__enter__()  # until Ray ends the process
        super().__init__(work)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        chunk = [InputImage(**picture) for picture in json.loads(row["chunk"])]
        start = time.perf_counter()
        counts = super().__call__(row["number"], chunk)
        log.debug("chunk %d in %.1f s: %s", row["number"], time.perf_counter() - start, counts)
        return {"number": row["number"], **asdict(counts)}
