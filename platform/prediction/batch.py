"""Predicts many images on the cluster; a killed run is finished by running it again.

The listed images are cut into chunks; a video is a chunk of its own. Each chunk is predicted by one task that writes
one part, which appears whole or not at all; a chunk that has its part is not predicted again. When all parts exist,
they are written as the tables, then the summary, and the parts are deleted.

    OUTPUT/parts/plan.json             model, input and options; a run with others is refused
    OUTPUT/parts/part-00012.parquet    see ``tables``
    OUTPUT/overlays/NAME.jpg           the images with their poses drawn, if wanted
    OUTPUT/other_files.json            files of the input that are neither images nor videos
    OUTPUT/logs/                       logs of the workers, see ``runtime/logs``
    OUTPUT/summary.json                written last: a folder with a summary is finished
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Self

from posefleet.data.errors import DataError
from posefleet.data.io.cluster import from_row, open_ray_data
from posefleet.data.io.files import printable, write_file
from posefleet.data.schemas.names import difference
from posefleet.platform.prediction.inputs import InputImage, InputImages, split_into_chunks, why_left_out
from posefleet.platform.prediction.output import ModelInfo, claim_output, file_names, finish_output, part_name
from posefleet.platform.prediction.tables import Counts, write_tables
from posefleet.platform.prediction.worker import READERS, Job, PredictionOptions, PredictionWorker, RowWorker
from posefleet.platform.runtime.progress import ProgressLine

log = logging.getLogger(__name__)

SMALLEST_CHUNK, LARGEST_CHUNK = 16, 256
"""Bounds of the number of images of a chunk."""
FOR_VIDEOS = ("track", "smooth")
"""Options that only concern videos."""
CHUNKS = 32
"""Number of chunks that is aimed at within those bounds: enough for some workers to finish at about the same time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerPool:
    """The Ray actors that predict. The result does not depend on it."""

    workers: int | None = None
    """Largest number of workers. None: as many as the cluster has room for now."""
    cpus: float = 1.0
    """CPUs reserved for each worker. Raise it where reading and decoding hold the network up."""
    gpus: float | None = None
    """GPUs reserved for each worker; workers with 0.5 share one. None: 1 where the cluster has GPUs now, else 0."""
    readers: int = READERS
    """Images read and decoded at once for each worker. More hide a slow store, and hold more images in memory."""
    reader_cpus: float = 0.0
    """CPUs of the Ray task that reads and decodes an image, on any node. 0: threads of the worker do it."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers {self.workers} must be at least 1")
        if self.cpus <= 0 or (self.gpus or 0) < 0:
            raise ValueError(f"cpus {self.cpus} of a worker must be above 0, and gpus {self.gpus} not negative")
        if self.readers < 1:
            raise ValueError(f"readers {self.readers} must be at least 1")
        if self.reader_cpus < 0:
            raise ValueError(f"reader_cpus {self.reader_cpus} must not be negative; 0: threads of the workers read")

    def fitted(self, cluster: Mapping[str, float], chunks: int) -> Self:
        """The same pool with numbers in place of None.

        Args:
            cluster: Resources of the cluster: "CPU" and "GPU".
            chunks: Largest number of workers that have something to do.
        """
        gpus = float(cluster.get("GPU", 0) > 0) if self.gpus is None else self.gpus
        room = cluster.get("CPU", 0) / (self.cpus + self.reader_cpus)
        if gpus:
            room = min(room, cluster.get("GPU", 0) / gpus)
        return replace(self, workers=min(self.workers or max(1, int(room)), chunks), gpus=gpus)


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What an output folder holds, and what this call added to it."""

    counts: Counts
    predicted: int
    """Images and frames that this call predicted."""
    seconds: float
    """Time that this call took to predict them."""
    other: int = 0
    """Files of the input that are neither images nor videos; ``other_files.json`` names them."""
    note: str = ""
    """What users of the model must know, as its run said (``run.note``)."""


def predict_images(
    images: InputImages,
    output: str,
    model: str,
    *,
    options: PredictionOptions | None = None,
    batch_size: int | None = None,
    tracking: str = "",
    pool: WorkerPool | None = None,
    parallel: bool = True,
) -> BatchResult:
    """Write the predictions of all images into ``output``; chunks that have their part there are not predicted again.

    Args:
        images: See :func:`~posefleet.platform.prediction.inputs.list_images`; every node must be able to read them.
        output: Folder; any fsspec path that every node can write to.
        model: Address as :meth:`Predictor.from_checkpoint` takes it. It is read once, here, and sent to the workers.
        options: What is kept and drawn.
        batch_size: Largest number of images of a forward pass; default: the model's ``data.eval_batch_size``.
        tracking: MLflow store of registered models.
        pool: Workers.
        parallel: Whether to predict on the Ray cluster; otherwise in this process, one chunk after the other.

    Raises:
        CheckpointError: There is no such checkpoint.
        TrackingError: The registry does not answer.
        ValueError: There is no such registered version, or ``output`` holds predictions of another model, input or
            options; the message gives both values.
        DataError: A part in ``output`` is damaged, or the input is annotated with other keypoints than the model's.
        OSError: The storage does not answer, or a file cannot be written. The same call goes on from there.
    """
    options = options or PredictionOptions()
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size {batch_size} must be at least 1")
    info = ModelInfo.find(model, tracking)
    if images.keypoints:
        titles = f"schema {info.schema.name} of the model", "the annotations of the input"
        if text := difference(info.schema.keypoints, images.keypoints, *titles):
            advice = "To predict the images all the same, give their folder instead of the annotations."
            raise DataError(f"{images.folder}: {text}\n{advice}")
    has_videos = any(image.is_video for image in images.listed)
    plan = {
        "model": info.identity,
        "input": f"{images.folder}, {len(images.listed):,} files, fingerprint {images.fingerprint[:12]}",
        **{name: value for name, value in asdict(options).items() if has_videos or name not in FOR_VIDEOS},
    }
    output = output.rstrip("/")
    if (counts := claim_output(output, plan)) is not None:
        return BatchResult(counts, 0, 0.0, len(images.other), info.about["note"])
    pool = pool or WorkerPool()
    if pool.reader_cpus and not parallel:
        raise ValueError(f"reader_cpus {pool.reader_cpus:g} needs Ray, and this predicts in one process")
    job = Job(info.files, images.folder, output, options, batch_size, pool.readers, pool.reader_cpus)
    size = min(max(len(images.listed) // CHUNKS, SMALLEST_CHUNK), LARGEST_CHUNK)
    chunks = split_into_chunks(images.listed, size)
    existing = file_names(f"{output}/parts")
    missing = {number: chunk for number, chunk in enumerate(chunks) if part_name(number) not in existing}
    start = time.perf_counter()
    done = _on_the_cluster(job, missing, pool) if parallel else _in_this_process(job, missing)
    predicted = _show_progress(done, chunks, missing)
    seconds = time.perf_counter() - start
    parts = [f"{output}/parts/{part_name(number)}" for number in range(len(chunks))]
    counts = write_tables(output, parts, info.schema)
    left_out = [{"path": printable(name), "reason": why_left_out(name)} for name in images.other]
    write_file(f"{output}/other_files.json", json.dumps(left_out, indent=1).encode())
    finish_output(output, plan, info, counts, predicted, seconds)
    return BatchResult(counts, predicted, seconds, len(images.other), info.about["note"])


def _in_this_process(job: Job, chunks: Mapping[int, list[InputImage]]) -> Iterator[tuple[int, Counts]]:
    if chunks:
        worker = PredictionWorker(job)
        yield from ((number, worker(number, chunk)) for number, chunk in chunks.items())


def _on_the_cluster(job: Job, chunks: Mapping[int, list[InputImage]], pool: WorkerPool) -> Iterator[tuple[int, Counts]]:
    """Predict each chunk in a task of its own, a block of a Ray Data pipeline; starts Ray if it is not running."""
    if not chunks:
        return
    ray = open_ray_data()
    cluster = ray.cluster_resources()
    pool = pool.fitted(cluster, len(chunks))
    free = cluster.get("CPU", 0) - (pool.workers or 0) * pool.cpus
    if pool.reader_cpus and free < pool.reader_cpus:
        log.warning(
            "the workers reserve all %g CPUs of the cluster, so nothing is read until a node with %g free ones comes",
            cluster.get("CPU", 0),
            pool.reader_cpus,
        )
    rows = [{"number": n, "chunk": json.dumps([asdict(image) for image in chunk])} for n, chunk in chunks.items()]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        RowWorker,
        fn_constructor_args=(ray.put(job),),
        # With min_size 1 prediction starts with one worker where there is no room for the others yet.
        compute=ray.data.ActorPoolStrategy(
            min_size=1, initial_size=pool.workers, max_size=pool.workers, max_tasks_in_flight_per_actor=2
        ),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
    )
    for row in map(from_row, dataset.iter_rows()):
        yield row.pop("number"), Counts(**row)


def _show_progress(
    done: Iterator[tuple[int, Counts]], chunks: Sequence[list[InputImage]], missing: Mapping[int, list[InputImage]]
) -> int:
    """Show the progress of the missing chunks; return how many images and frames were predicted."""
    files = sum(map(len, chunks))
    finished = files - sum(map(len, missing.values()))
    total, start = Counts(), time.perf_counter()
    with ProgressLine(files, done=finished) as line:
        for number, counts in done:
            finished += len(chunks[number])
            total += counts
            rate = (total.images + total.frames) / (time.perf_counter() - start)
            line.update(finished, f"{finished:,} of {files:,} files  {rate:.1f} images/s  {total.bad} bad")
    return total.images + total.frames
