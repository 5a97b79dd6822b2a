"""Many pictures to poses over the cluster; safe to kill and start again.

The listed pictures are cut into chunks, a video is a chunk of its own. Each chunk is predicted by one task that leaves
one part, which appears whole or not at all; a chunk whose part is there is not predicted again. When all parts are
there they become the tables, the summary is written, and the parts go.

    OUTPUT/parts/plan.json        what is predicted by what and how; another command is refused
    OUTPUT/parts/part-00012...    see ``pose_tables``
    OUTPUT/overlays/NAME.jpg      the pictures with their poses, if asked for
    OUTPUT/logs/                  of the workers, see ``logs``
    OUTPUT/summary.json           written last, so a folder with a summary is whole
"""

import hashlib
import itertools
import json
import logging
import os
import platform
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import fsspec
import numpy as np
import torch
from fsspec.implementations.local import LocalFileSystem

from posefleet.data.errors import DataError
from posefleet.data.images import decode_untrusted, encode_jpeg
from posefleet.data.io.cluster import open_ray_data
from posefleet.data.io.files import UNFINISHED, create, path_inside, read_json, write_file
from posefleet.data.keypoints import load_schema
from posefleet.data.loading.memory import collect_garbage_rarely, keep_freed_memory
from posefleet.data.pictures import Picture, Pictures, chunks, read_picture
from posefleet.data.structures import Poses, Sample, padded_shape
from posefleet.data.video import Frame, Video, VideoFile
from posefleet.platform.checkpoints.format import copy_for_use, read_content
from posefleet.platform.checkpoints.resolve import find_checkpoint
from posefleet.platform.inference.predictor import Prediction, Predictor
from posefleet.platform.pose_tables import Counts, Found, join_parts, read_part, write_part, write_tables
from posefleet.platform.runtime import logs
from posefleet.platform.runtime.paths import MODELS, resolve_path
from posefleet.platform.runtime.progress import ProgressLine
from posefleet.platform.suspects import REASON, Suspects
from posefleet.platform.tracking.client import store_uri
from posefleet.platform.tracking.registry import find_alias

log = logging.getLogger(__name__)

FEWEST_IN_A_CHUNK, MOST_IN_A_CHUNK = 16, 256
CHUNKS = 32
"""Aimed at, between those two bounds: enough for some workers to end at about the same time."""

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
class Wanted:
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Crew:
    """Who predicts: actors of Ray. The result does not depend on it."""

    workers: int | None = None
    """At most so many. None: as many as the cluster has room for now."""
    cpus: float = 1.0
    """Of each worker."""
    gpus: float | None = None
    """Of each worker; a fraction shares one. None: 1 where the cluster has GPUs now, else 0."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers {self.workers} must be at least 1")
        if self.cpus <= 0 or (self.gpus or 0) < 0:
            raise ValueError(f"a worker cannot have {self.cpus} CPUs and {self.gpus} GPUs")

    def fitted(self, cluster: Mapping[str, float], chunks: int) -> Self:
        """With numbers for None, on a cluster of these resources; no more workers than chunks."""
        gpus = float(cluster.get("GPU", 0) > 0) if self.gpus is None else self.gpus
        room = cluster.get("CPU", 0) / self.cpus
        if gpus:
            room = min(room, cluster.get("GPU", 0) / gpus)
        return type(self)(workers=min(self.workers or max(1, int(room)), chunks), cpus=self.cpus, gpus=gpus)


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What an output folder holds now, and what this call did for it."""

    counts: Counts
    predicted: int
    """Images and frames that this call predicted."""
    seconds: float
    """That this call took to predict them."""


def predict_pictures(
    pictures: Pictures,
    output: str,
    model: str,
    *,
    wanted: Wanted | None = None,
    batch_size: int | None = None,
    tracking: str = "",
    crew: Crew | None = None,
    parallel: bool = True,
) -> BatchResult:
    """Make ``output`` hold the predictions of all pictures, by as little work as it takes.

    Args:
        pictures: Of a folder that every node of the cluster can read.
        output: Folder; any fsspec path that every node can write to.
        model: As :meth:`Predictor.from_checkpoint` takes it; read here, once, and sent to the workers.
        wanted: What is kept and drawn.
        batch_size: Most images of a forward pass; default: the model's ``data.eval_batch_size``.
        tracking: Where models are registered.
        crew: Who predicts.
        parallel: Over the Ray cluster; otherwise in this process, one chunk after the other.

    Raises:
        CheckpointError: There is no such model.
        ValueError: ``output`` holds predictions of another model, input or wish; names both.
        DataError: A part of ``output`` is damaged.
        OSError: The storage does not answer, or a file cannot be written. The same call goes on from there.
    """
    wanted = wanted or Wanted()
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size {batch_size} must be at least 1")
    chosen = _Model.find(model, tracking)
    plan = {
        "model": chosen.identity,
        "input": f"{pictures.folder}, {len(pictures.listed):,} files, fingerprint {pictures.fingerprint[:12]}",
        **asdict(wanted),
    }
    output = output.rstrip("/")
    if (counts := _claim(output, plan)) is not None:
        return BatchResult(counts, 0, 0.0)
    work = _Work(chosen.files, chosen.schema, pictures.folder, output, wanted, batch_size)
    size = min(max(len(pictures.listed) // CHUNKS, FEWEST_IN_A_CHUNK), MOST_IN_A_CHUNK)
    planned = chunks(pictures.listed, size)
    there = _names(f"{output}/parts")
    waiting = {number: chunk for number, chunk in enumerate(planned) if _part(number) not in there}
    start = time.perf_counter()
    done = _over_the_cluster(work, waiting, crew or Crew()) if parallel else _one_by_one(work, waiting)
    predicted = _follow(done, planned, waiting)
    seconds = time.perf_counter() - start
    counts = write_tables(
        output, [f"{output}/parts/{_part(number)}" for number in range(len(planned))], load_schema(chosen.schema)
    )
    _finish(output, plan, chosen, counts, predicted, seconds)
    return BatchResult(counts, predicted, seconds)


@dataclass(frozen=True, slots=True)
class _Model:
    """A checkpoint as it travels."""

    about: dict[str, Any]
    """For the summary."""
    identity: str
    schema: str
    files: dict[str, bytes]

    @classmethod
    def find(cls, address: str, tracking: str) -> Self:
        about: dict[str, Any] = {"model": address}
        if address.startswith(MODELS) and "@" in address:  # an alias may move while we are at it
            name, _, alias = address.removeprefix(MODELS).partition("@")
            path = find_checkpoint(address, tracking=tracking)  # explains what is wrong with an address
            if version := find_alias(store_uri(tracking), name, alias):
                about["version"] = version.number
                path = find_checkpoint(version.address, tracking=tracking)
        else:
            path = find_checkpoint(resolve_path(address), tracking=tracking)
        with tempfile.TemporaryDirectory() as folder:
            copy_for_use(path, Path(folder))
            files = {file.name: file.read_bytes() for file in Path(folder).iterdir()}
        content = read_content(path)
        weights = next(iter(json.loads(files["meta.json"])["files"].values()))["sha256"]
        settings = hashlib.sha256(json.dumps(content["experiment"], sort_keys=True).encode()).hexdigest()
        about |= {"checkpoint": path, "method": content["method"], "step": content["step"], "weights": weights}
        identity = f"{content['method']} at step {content['step']}, weights {weights[:12]}, settings {settings[:12]}"
        return cls(about, identity, content["schema"], files)


# ---------------------------------------------------------------------------------------------------- the folder


def _claim(output: str, plan: dict[str, Any]) -> Counts | None:
    """Make sure that ``output`` is of this plan; what it holds if it is whole."""
    summary = read_json(f"{output}/summary.json")
    known = summary["plan"] if summary else read_json(f"{output}/parts/plan.json")
    for name, value in plan.items() if known else ():
        if known.get(name) != value:
            raise ValueError(
                f"{output} holds predictions with {name} {known.get(name)!r}, and now it is {value!r}; "
                "give the first command again, or choose another output folder"
            )
    if not known:
        _write_json(f"{output}/parts/plan.json", plan)
    return Counts(**summary["counts"]) if summary else None


def _finish(output: str, plan: dict[str, Any], model: _Model, counts: Counts, predicted: int, seconds: float) -> None:
    fs, path = fsspec.core.url_to_fs(output)
    for file in fs.find(path):
        if file.endswith(UNFINISHED):
            fs.rm_file(file)
    last = {"predicted": predicted, "seconds": round(seconds, 1), "per_second": round(predicted / seconds, 2)}
    _write_json(
        f"{output}/summary.json",
        {"model": model.about, "keypoints": model.schema, "plan": plan, "counts": asdict(counts), "last_run": last},
    )
    fs.rm(f"{path}/parts", recursive=True)


def _part(number: int) -> str:
    return f"part-{number:05d}.parquet"


def _names(folder: str) -> set[str]:
    fs, path = fsspec.core.url_to_fs(folder)
    fs.invalidate_cache()
    return {file.rpartition("/")[2] for file in fs.ls(path, detail=False)}


def _write_json(path: str, content: Any) -> None:
    write_file(path, json.dumps(content, indent=1).encode() + b"\n")


# ---------------------------------------------------------------------------------------------------- the workers


@dataclass(frozen=True, slots=True)
class _Work:
    """All that a worker needs to know."""

    checkpoint: dict[str, bytes]
    schema: str
    folder: str
    output: str
    wanted: Wanted
    batch_size: int | None


@dataclass(frozen=True, slots=True)
class _Loaded:
    """An image on its way into a batch."""

    picture: Picture
    data: bytes
    """Of its file; kept for the overlay, being smaller than its pixels."""
    size: tuple[int, int]
    views: list[Sample]

    @property
    def shape(self) -> tuple[tuple[int, int], ...]:
        """Images of one shape do not pad each other: alone or together, they give the same poses."""
        return tuple(padded_shape([view]) for view in self.views)


class _Worker:
    """Has the model, predicts chunks."""

    def __init__(self, work: _Work) -> None:
        keep_freed_memory()
        with tempfile.TemporaryDirectory() as folder:
            for name, data in work.checkpoint.items():
                Path(folder, name).write_bytes(data)
            self._predictor = Predictor.from_checkpoint(folder)
        self._work, self._wanted = work, work.wanted
        self._batch_size = work.batch_size or self._predictor.batch_size
        self._fs, _ = fsspec.core.url_to_fs(work.folder)
        self._threads = ThreadPoolExecutor(READERS)

    def __call__(self, number: int, chunk: Sequence[Picture]) -> Counts:
        """Leave the part of a chunk."""
        part = f"{self._work.output}/parts/{_part(number)}"
        suspects = Suspects(f"{part}.begun")
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

    def _one_at_a_time(self, chunk: Sequence[Picture], suspects: Suspects) -> Iterator[Found]:
        for picture in chunk:
            if suspects.avoid(picture.name):
                yield Found(picture.image_id, picture.name, reason=f"{picture.name}: {REASON}")
            else:
                with suspects.reading(picture.name):
                    yield from self._images([picture])

    def _suspected_video(self, video: Picture, part: str, suspects: Suspects) -> Counts:
        if suspects.avoid(video.name):
            write_part(
                part, [Found(video.image_id, video.name, reason=f"{video.name}: {REASON}")], self._predictor.schema
            )
            return Counts(bad=1)
        with suspects.reading(video.name):
            return self._video(video, part)

    # Images

    def _images(self, chunk: Sequence[Picture]) -> Iterator[Found]:
        groups: dict[Any, list[_Loaded]] = {}
        for picture, loading in self._ahead(self._load, chunk):
            try:
                loaded = loading.result()
            except DataError as error:
                yield Found(picture.image_id, picture.name, reason=str(error))
                continue
            groups.setdefault(loaded.shape, []).append(loaded)
            fullest = max(groups, key=lambda shape: len(groups[shape]))
            if len(groups[fullest]) == self._batch_size or sum(map(len, groups.values())) > GROUPS * self._batch_size:
                yield from self._predict(groups.pop(fullest))
        for group in groups.values():
            yield from self._predict(group)

    def _ahead(
        self, load: Callable[[Picture], _Loaded], chunk: Sequence[Picture]
    ) -> Iterator[tuple[Picture, "Future[_Loaded]"]]:
        """Each picture, while the threads are at those after it."""
        coming: deque[tuple[Picture, Future[_Loaded]]] = deque()
        for picture in chunk:
            coming.append((picture, self._threads.submit(load, picture)))
            if len(coming) > 2 * READERS:
                yield coming.popleft()
        yield from coming

    def _load(self, picture: Picture) -> _Loaded:
        data = read_picture(self._fs, self._work.folder, picture)
        image = self._decode(data, picture)
        return _Loaded(picture, data, (image.shape[1], image.shape[0]), self._predictor.prepare(image))

    def _decode(self, data: bytes, picture: Picture) -> np.ndarray:
        return decode_untrusted(data, most_pixels=self._wanted.most_pixels, what=picture.name)

    def _predict(self, group: Sequence[_Loaded]) -> Iterator[Found]:
        for loaded, poses in zip(group, self._poses([loaded.views for loaded in group]), strict=True):
            picture = loaded.picture
            if poses is None:
                yield Found(picture.image_id, picture.name, reason=f"{picture.name}: {NOT_FINITE}")
                continue
            if self._wanted.overlays:
                with create(self._overlay(picture, ".jpg")) as file:
                    file.write(encode_jpeg(self._draw(self._decode(loaded.data, picture), poses)))
            yield Found(picture.image_id, picture.name, size=loaded.size, poses=poses)

    def _poses(self, prepared: Sequence[list[Sample]]) -> list[Poses | None]:
        """What is wanted of the poses of a batch; None where the model gave numbers that are none."""
        return [self._kept(poses) for poses in self._predictor.predict_prepared(prepared)]

    def _kept(self, poses: Poses) -> Poses | None:
        poses = poses[poses.scores >= (self._wanted.score_threshold or 0.0)][: self._wanted.max_people]
        finite = (torch.isfinite(values).all() for values in (poses.keypoints, poses.keypoint_scores, poses.scores))
        return poses if all(finite) else None

    # Videos

    def _video(self, picture: Picture, part: str) -> Counts:
        """One run of frames after the other; those that are there already are drawn, but not predicted again."""
        stem = part.removesuffix(".parquet")
        there = _names(part.rpartition("/")[0])
        runs: list[str] = []
        predicted = 0
        with ExitStack() as stack:
            try:
                path = stack.enter_context(self._on_this_machine(picture))
                video = stack.enter_context(Video(path, most_pixels=self._wanted.most_pixels, what=picture.name))
            except DataError as error:
                write_part(part, [Found(picture.image_id, picture.name, reason=str(error))], self._predictor.schema)
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
                        rows.append(Found(picture.image_id, picture.name, reason=video.fault))
                    write_part(runs[-1], rows, self._predictor.schema)
        join_parts(part, runs)
        return Counts(frames=predicted, bad=bool(video.fault))

    def _run(
        self, picture: Picture, frames: Iterator[Frame], known: list[Found] | None, drawn: VideoFile | None
    ) -> list[Found]:
        rows: list[Found] = []
        while batch := list(itertools.islice(frames, min(self._batch_size, FRAMES_KEPT - len(rows)))):
            if known is None:
                found = self._poses(list(self._threads.map(self._predictor.prepare, (frame.image for frame in batch))))
            else:
                found = [row.poses for row in known[len(rows) : len(rows) + len(batch)]]
            for frame, poses in zip(batch, found, strict=True):
                size = frame.image.shape[1], frame.image.shape[0]
                reason = f"{picture.name}: frame {frame.index}: {NOT_FINITE}" if poses is None else None
                rows.append(Found(picture.image_id, picture.name, frame.index, frame.seconds, size, poses, reason))
                if drawn:
                    drawn.write(frame.image if poses is None else self._draw(frame.image, poses))
        return rows

    @contextmanager
    def _on_this_machine(self, picture: Picture) -> Iterator[Path]:
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
    def _drawn_video(self, picture: Picture, rate: float) -> Iterator[VideoFile | None]:
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

    def _overlay(self, picture: Picture, ending: str) -> str:
        name = picture.name if picture.name.endswith(ending) else picture.name + ending
        return path_inside(f"{self._work.output}/overlays", name)


def _one_by_one(work: _Work, chunks: Mapping[int, list[Picture]]) -> Iterator[tuple[int, Counts]]:
    worker = _Worker(work) if chunks else None
    for number, chunk in chunks.items():
        assert worker is not None
        yield number, worker(number, chunk)


class _RowWorker(_Worker):
    """A worker as Ray Data calls it."""

    def __init__(self, work: Any) -> None:
        import ray

        collect_garbage_rarely()
        work = ray.get(work)
        self._written = logs.written(work.output, f"worker-{platform.node()}-{os.getpid()}")
        self._written.__enter__()  # until Ray ends the process
        super().__init__(work)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        chunk = [Picture(**picture) for picture in json.loads(row["chunk"])]
        start = time.perf_counter()
        counts = super().__call__(row["number"], chunk)
        log.debug("chunk %d in %.1f s: %s", row["number"], time.perf_counter() - start, counts)
        return {"number": row["number"], **asdict(counts)}


def _over_the_cluster(work: _Work, chunks: Mapping[int, list[Picture]], crew: Crew) -> Iterator[tuple[int, Counts]]:
    """A Ray Data pipeline of one block, and so one task, for each chunk; starts Ray where there is none."""
    if not chunks:
        return
    ray = open_ray_data()
    crew = crew.fitted(ray.cluster_resources(), len(chunks))
    rows = [{"number": n, "chunk": json.dumps([asdict(picture) for picture in chunk])} for n, chunk in chunks.items()]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _RowWorker,
        fn_constructor_args=(ray.put(work),),
        # One is enough to go on where the others find no room.
        compute=ray.data.ActorPoolStrategy(
            min_size=1, initial_size=crew.workers, max_size=crew.workers, max_tasks_in_flight_per_actor=2
        ),
        num_cpus=crew.cpus,
        num_gpus=crew.gpus,
    )
    for row in dataset.iter_rows():
        yield row.pop("number"), Counts(**row)


def _follow(
    done: Iterator[tuple[int, Counts]], planned: Sequence[list[Picture]], waiting: Mapping[int, list[Picture]]
) -> int:
    """Show how it goes; how many images and frames were predicted."""
    total = sum(map(len, planned))
    through = total - sum(map(len, waiting.values()))
    sum_of_all, start = Counts(), time.perf_counter()
    with ProgressLine(total, done=through) as line:
        for number, counts in done:
            through += len(planned[number])
            sum_of_all += counts
            rate = (sum_of_all.images + sum_of_all.frames) / (time.perf_counter() - start)
            line.update(through, f"{through:,} of {total:,} files  {rate:.1f} images/s  {sum_of_all.bad} bad")
    return sum_of_all.images + sum_of_all.frames
