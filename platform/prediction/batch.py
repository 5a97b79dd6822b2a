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

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Self

from posefleet.data.io.cluster import open_ray_data
from posefleet.data.keypoints import load_schema
from posefleet.platform.prediction.inputs import InputImage, InputImages, chunks
from posefleet.platform.prediction.output import ModelInfo, claim_output, file_names, finish_output, part_name
from posefleet.platform.prediction.tables import Counts, write_tables
from posefleet.platform.prediction.worker import Job, PredictionOptions, PredictionWorker, RowWorker
from posefleet.platform.runtime.progress import ProgressLine

log = logging.getLogger(__name__)

FEWEST_IN_A_CHUNK, MOST_IN_A_CHUNK = 16, 256
CHUNKS = 32
"""Aimed at, between those two bounds: enough for some workers to end at about the same time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerPool:
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


def predict_images(
    pictures: InputImages,
    output: str,
    model: str,
    *,
    wanted: PredictionOptions | None = None,
    batch_size: int | None = None,
    tracking: str = "",
    crew: WorkerPool | None = None,
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
    wanted = wanted or PredictionOptions()
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size {batch_size} must be at least 1")
    chosen = ModelInfo.find(model, tracking)
    plan = {
        "model": chosen.identity,
        "input": f"{pictures.folder}, {len(pictures.listed):,} files, fingerprint {pictures.fingerprint[:12]}",
        **asdict(wanted),
    }
    output = output.rstrip("/")
    if (counts := claim_output(output, plan)) is not None:
        return BatchResult(counts, 0, 0.0)
    work = Job(chosen.files, chosen.schema, pictures.folder, output, wanted, batch_size)
    size = min(max(len(pictures.listed) // CHUNKS, FEWEST_IN_A_CHUNK), MOST_IN_A_CHUNK)
    planned = chunks(pictures.listed, size)
    there = file_names(f"{output}/parts")
    waiting = {number: chunk for number, chunk in enumerate(planned) if part_name(number) not in there}
    start = time.perf_counter()
    done = _over_the_cluster(work, waiting, crew or WorkerPool()) if parallel else _one_by_one(work, waiting)
    predicted = _follow(done, planned, waiting)
    seconds = time.perf_counter() - start
    counts = write_tables(
        output, [f"{output}/parts/{part_name(number)}" for number in range(len(planned))], load_schema(chosen.schema)
    )
    finish_output(output, plan, chosen, counts, predicted, seconds)
    return BatchResult(counts, predicted, seconds)


# ---------------------------------------------------------------------------------------------------- the workers


def _one_by_one(work: Job, chunks: Mapping[int, list[InputImage]]) -> Iterator[tuple[int, Counts]]:
    worker = PredictionWorker(work) if chunks else None
    for number, chunk in chunks.items():
        assert worker is not None
        yield number, worker(number, chunk)


def _over_the_cluster(
    work: Job, chunks: Mapping[int, list[InputImage]], crew: WorkerPool
) -> Iterator[tuple[int, Counts]]:
    """A Ray Data pipeline of one block, and so one task, for each chunk; starts Ray where there is none."""
    if not chunks:
        return
    ray = open_ray_data()
    crew = crew.fitted(ray.cluster_resources(), len(chunks))
    rows = [{"number": n, "chunk": json.dumps([asdict(picture) for picture in chunk])} for n, chunk in chunks.items()]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        RowWorker,
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
    done: Iterator[tuple[int, Counts]], planned: Sequence[list[InputImage]], waiting: Mapping[int, list[InputImage]]
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
