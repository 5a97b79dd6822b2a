"""What is measured: each measure says on what it runs, makes that, and gives the piece of work that is timed."""

import contextlib
import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from growth.material import SPLIT, poses_of, records_of, write_coco, write_shards
from posefleet.data.schemas.shipped import COCO17

Work = Callable[[], object]
Prepare = Callable[[Path, int], None]

BATCH = 8
RANKS = 512
"""Of which the stream plays one, the 300th."""
RANKED_SAMPLES = 100_000


class Measure(NamedTuple):
    """A piece of work at some size."""

    what: str
    unit: str
    """What there is one more of: sample, rank, trial, ..."""
    axis: Literal["samples", "counts"]
    largest: int
    """Where it stops unless other sizes are asked for."""
    prepare: Prepare
    """Makes the material of a size in a new folder; not measured."""
    begin: Callable[[Path, int], Work]
    """Gets ready, which is not timed, and gives what is."""


# ------------------------------------------------------------------------------------------------------- samples


def _shard_driver(folder: Path, _: int) -> Work:
    from posefleet.data.coco.source import find_source
    from posefleet.data.coco.split import read_coco
    from posefleet.data.shards.plan import plan_shards

    def work() -> None:
        source = find_source(str(folder), SPLIT)
        plan = plan_shards(source, read_coco(source.annotation_file, COCO17), shard_mib=128)
        for shard in plan.shards():
            shard.pack()

    return work


def _doctor(folder: Path, _: int) -> Work:
    from posefleet.data.coco.source import find_source
    from posefleet.data.doctor.examine import examine

    return lambda: examine(find_source(str(folder), SPLIT), COCO17, check_images=False).as_text()


def _pictures(folder: Path, _: int) -> Work:
    from posefleet.platform.prediction.inputs import list_images

    return lambda: list_images(str(folder), split=SPLIT)


def _stream_start(folder: Path, _: int) -> Work:
    """Open the data set and take the first batch of a rank, at the start and in the middle of the third epoch."""
    from posefleet.data.loading.loader import training_batches
    from posefleet.data.loading.shard_dataset import ShardDataset
    from posefleet.data.transforms import EvalTransform, Resize

    def work() -> None:
        for epochs in (0.0, 2.5):
            dataset = ShardDataset(str(folder), COCO17, EvalTransform(Resize(short_side=32, long_side=64), COCO17))
            position = int(epochs * len(dataset)) // (RANKS * BATCH) * RANKS * BATCH
            start = {"batch_size": BATCH, "rank": 300, "world_size": RANKS, "position": position}
            with training_batches(dataset, **start) as batches:
                next(batches)

    return work


def _stream_on(folder: Path, _: int) -> Work:
    """200 batches of a rank of 512: far apart, so that as many shards are open as ever will be."""
    from posefleet.data.loading.loader import training_batches
    from posefleet.data.loading.shard_dataset import ShardDataset
    from posefleet.data.transforms import EvalTransform, Resize

    dataset = ShardDataset(str(folder), COCO17, EvalTransform(Resize(short_side=32, long_side=64), COCO17))

    def work() -> None:
        with training_batches(dataset, batch_size=BATCH, rank=300, world_size=RANKS) as batches:
            for _ in range(200):
                next(batches)

    return work


def _truth(_: Path, images: int) -> Work:
    """The ground truth that rank 0 packs before it scores."""
    from posefleet.data.evaluation.ground_truth import GroundTruth

    return lambda: GroundTruth.from_records(
        (r["image_id"], (r["width"], r["height"]), r["people"]) for r in records_of(images)
    )


def _score(backend: str) -> Callable[[Path, int], Work]:
    def begin(_: Path, images: int) -> Work:
        from posefleet.data.evaluation.evaluate import evaluate
        from posefleet.data.evaluation.ground_truth import GroundTruth

        truth = GroundTruth.from_records(
            (r["image_id"], (r["width"], r["height"]), r["people"]) for r in records_of(images)
        )
        predictions = poses_of(images, per_image=6)
        return lambda: evaluate(truth, predictions, COCO17, backend=backend)

    return begin


SCORERS = 64
"""Ranks among which an evaluation is divided."""


def _score_part(_: Path, images: int) -> Work:
    """One of the ranks that score a split: packs the people of its images and matches its poses."""
    from posefleet.data.evaluation.accumulate import match_images
    from posefleet.data.evaluation.ground_truth import GroundTruth

    part = max(1, images // SCORERS)
    predictions = poses_of(part, per_image=6)

    def work() -> None:
        records = ((r["image_id"], (r["width"], r["height"]), r["people"]) for r in records_of(part))
        match_images(GroundTruth.from_records(records), predictions, COCO17, max_poses=20)

    return work


def _score_sum(_: Path, images: int) -> Work:
    """What rank 0 does with the parts of all: all numbers of the split. The parts are copies of one."""
    import numpy as np

    from posefleet.data.evaluation.accumulate import match_images
    from posefleet.data.evaluation.evaluate import summarize
    from posefleet.data.evaluation.ground_truth import GroundTruth

    part = max(1, images // SCORERS)
    truth = GroundTruth.from_records((r["image_id"], (r["width"], r["height"]), r["people"]) for r in records_of(part))
    one = match_images(truth, poses_of(part, per_image=6), COCO17, max_poses=20)
    return lambda: summarize(
        [dataclasses.replace(one, image_ids=np.arange(rank, SCORERS * part, SCORERS)) for rank in range(SCORERS)],
        COCO17,
    )


# ------------------------------------------------------------------------------------------------------- counts


def _ranks(folder: Path, ranks: int) -> Work:
    """Start-up of every rank in the middle of the third epoch, one after the other."""
    from posefleet.data.loading.loader import training_batches
    from posefleet.data.loading.shard_dataset import ShardDataset
    from posefleet.data.transforms import EvalTransform, Resize

    def work() -> None:
        for rank in range(ranks):
            dataset = ShardDataset(str(folder), COCO17, EvalTransform(Resize(short_side=32, long_side=64), COCO17))
            position = int(2.5 * len(dataset)) // (ranks * BATCH) * ranks * BATCH
            with training_batches(dataset, batch_size=BATCH, rank=rank, world_size=ranks, position=position) as batches:
                next(batches)

    return work


def _checkpoints(folder: Path, count: int) -> Work:
    """One more checkpoint where so many are kept, then which is the latest and which the best."""
    from posefleet.platform.checkpoints.store import CheckpointStore

    store = CheckpointStore(str(folder), keep=count)

    def work() -> None:
        _save(store, count)
        store.latest()
        store.best()

    return work


def _write_checkpoints(folder: Path, count: int) -> None:
    from posefleet.platform.checkpoints.store import CheckpointStore

    store = CheckpointStore(str(folder), keep=2)
    first = Path(_save(store, 0))
    content = (first / "meta.json").read_text()
    for step in range(1, count):
        copy = folder / f"step-{step:08d}"
        copy.mkdir()
        for file in ("model.safetensors", "state.pt"):
            (copy / file).hardlink_to(first / file)
        (copy / "meta.json").write_text(content.replace('"step": 0', f'"step": {step}'))


def _save(store: object, step: int) -> str:
    """A checkpoint of small weights with the description of a whole one."""
    from posefleet.platform.checkpoints.format import Meta
    from posefleet.platform.checkpoints.store import CheckpointStore
    from posefleet.platform.config.loading import build_experiment

    assert isinstance(store, CheckpointStore)
    experiment = build_experiment({"method": "smpr", "schema": "coco17", "data": {"train": "/shards/train2017"}})
    metrics = {f"AP_{number}": 0.5 for number in range(60)} | {"AP": 0.5}
    meta = Meta(experiment=experiment, step=step, position=step, metrics=metrics, provenance={"git": "0" * 40})
    return store.save(meta, {"weight": torch.zeros(1000)}, {"optimizer": {}})


def _comparison(_: Path, runs: int) -> Work:
    """The tables of so many runs on 500 images, differences of each two included."""
    from posefleet.data.evaluation.evaluate import evaluate
    from posefleet.data.evaluation.ground_truth import GroundTruth
    from posefleet.data.structures import Poses
    from posefleet.platform.checkpoints.format import Meta
    from posefleet.platform.comparison.compare import Entry, as_markdown, differences
    from posefleet.platform.comparison.cost import Cost
    from posefleet.platform.config.loading import build_experiment
    from posefleet.platform.inference.latency import CROWDS

    images = 500
    experiment = build_experiment({"method": "smpr", "schema": "coco17", "data": {"train": "/shards/train2017"}})
    truth = GroundTruth.from_records(
        (r["image_id"], (r["width"], r["height"]), r["people"]) for r in records_of(images)
    )
    poses, entries = poses_of(images, per_image=6), []
    cost = Cost(parameters=1, gflops=1.0, train_images_per_second=1.0, predict_ms=dict.fromkeys(CROWDS, 1.0))
    meta = Meta(experiment=experiment, step=1, position=1, metrics={}, provenance={})
    for run in range(min(runs, 8)):
        shifted = {i: Poses(p.keypoints + run, p.keypoint_scores, p.scores) for i, p in poses.items()}
        evaluation = evaluate(truth, shifted, COCO17)
        entries.append(
            Entry(
                name="",
                checkpoint="",
                meta=meta,
                experiment=experiment,
                data="",
                evaluation=evaluation,
                poses={},
                cost=cost,
            )
        )
    entries = [dataclasses.replace(entries[run % len(entries)], name=f"run-{run}") for run in range(runs)]
    return lambda: as_markdown(entries, differences(entries))


EVALUATIONS = 5
"""Of each trial, before it ends."""


def _search(folder: Path, _: int) -> object:
    from posefleet.platform.config.loading import build_experiment
    from posefleet.platform.tuning.space import Range
    from posefleet.platform.tuning.study import Search

    space = {
        "optim.lr": Range(low=1e-4, high=1e-1, log=True),
        "optim.weight_decay": Range(low=1e-5, high=1e-1, log=True),
        "model.score.exponent": Range(low=0.0, high=1.0),
    }
    base = build_experiment({"method": "smpr", "schema": "coco17", "data": {"train": "/shards/train2017"}})
    return Search(folder, base, space, about={}, seed=0, sampler="random")


def _trials(folder: Path, trials: int) -> Work:
    """What the driver of a search does for so many trials: hands them out, notes evaluations, says how it stands."""
    search = _search(folder, trials)

    def work() -> None:
        while trial := search.ask(trials):
            for epoch in range(1, EVALUATIONS + 1):
                scores = {"AP": epoch / (10 + trial.number % 7), "AP50": 0.5}
                search.report(trial.number, epoch, scores, run="", settings=trial.settings)
                search.best()
                search.standing()
            search.finish(trial.number, scores)

    return work


def _searched(folder: Path, trials: int) -> None:
    search = _search(folder, trials)
    while trial := search.ask(trials):
        for epoch in range(1, EVALUATIONS + 1):
            scores = {"AP": epoch / (10 + trial.number % 7), "AP50": 0.5}
            search.report(trial.number, epoch, scores, run="", settings=trial.settings)
        search.finish(trial.number, scores)


def _read_back(folder: Path, trials: int) -> Work:
    """Open a search again and leave its table and pictures."""

    def work() -> None:
        from posefleet.platform.tuning.report import log_search

        log_search(_search(folder, trials))

    return work


# ------------------------------------------------------------------------------------------------------- all


def _nothing(folder: Path, _: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)


def _some_shards(folder: Path, _: int) -> None:
    _nothing(folder, 0)
    write_shards(folder, RANKED_SAMPLES)


MEASURES = {
    "shard": Measure("sharding, driver", "image", "samples", 1_000_000, write_coco, _shard_driver),
    "doctor": Measure("doctor, annotations", "image", "samples", 1_000_000, write_coco, _doctor),
    "pictures": Measure("prediction, list", "image", "samples", 1_000_000, write_coco, _pictures),
    "open": Measure("stream, two starts", "sample", "samples", 1_000_000, write_shards, _stream_start),
    "stream": Measure("stream, 200 batches", "sample", "samples", 1_000_000, write_shards, _stream_on),
    "truth": Measure("ground truth", "image", "samples", 1_000_000, _nothing, _truth),
    "score": Measure("scoring, pycocotools", "image", "samples", 100_000, _nothing, _score("pycocotools")),
    "score-faster": Measure("scoring, faster", "image", "samples", 100_000, _nothing, _score("faster")),
    "score-part": Measure("scoring, a rank of 64", "image", "samples", 1_000_000, _nothing, _score_part),
    "score-sum": Measure("scoring, parts of 64 ranks", "image", "samples", 1_000_000, _nothing, _score_sum),
    "ranks": Measure("stream, start of ranks", "rank", "counts", 512, _some_shards, _ranks),
    "checkpoints": Measure("checkpoint saved, listed", "checkpoint", "counts", 512, _write_checkpoints, _checkpoints),
    "compare": Measure("table of a comparison", "run", "counts", 64, _nothing, _comparison),
    "trials": Measure("search, driver", "trial", "counts", 512, _nothing, _trials),
    "read-back": Measure("search read back, report", "trial", "counts", 512, _searched, _read_back),
}


def quietly(work: Work) -> None:
    """Do it without what it prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        work()
