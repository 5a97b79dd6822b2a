"""Evaluates a model on a data set; each rank predicts a part of it."""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TypeVar

import numpy as np
from torch import nn

from posefleet.data.coco.records import Record
from posefleet.data.evaluation.accumulate import ImageStats, match_images
from posefleet.data.evaluation.boxes import evaluate_boxes
from posefleet.data.evaluation.evaluate import Evaluation, summarize
from posefleet.data.evaluation.evaluate import evaluate as score
from posefleet.data.evaluation.ground_truth import GroundTruth
from posefleet.data.loading.loader import evaluation_batches
from posefleet.data.loading.shard_dataset import ShardDataset
from posefleet.data.loading.source import SampleSource
from posefleet.data.loading.union import SpreadSource
from posefleet.data.structures import Batch, Detections, Poses
from posefleet.data.transforms import EvalTransform
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.inference.predictor import Predictor
from posefleet.platform.inference.sources import EvaluatedSource, evaluated_sources, spread_people
from posefleet.platform.runtime.activity import Phase
from posefleet.platform.runtime.worker import LocalWorker

T = TypeVar("T")


def evaluate(
    model: nn.Module,
    experiment: Experiment,
    worker: LocalWorker,
    *,
    open_split: Callable[[EvalTransform], SampleSource] | None = None,
    step: int = 0,
    keep: Callable[[dict[int, Poses]], None] | None = None,
    keep_boxes: Callable[[dict[int, Detections]], None] | None = None,
) -> Evaluation | None:
    """Predict a split and score it: each rank predicts and matches its part, and rank 0 accumulates the matches.

    Args:
        model: On ``worker.device``; left in the mode it was in.
        open_split: Opens the split with a transform. Default: opens the shards ``experiment.data.eval``; several
            sources are scored one by one, with their own keypoints and sigmas, and together.
        step: Training step with which images and plots are logged.
        keep: Called on rank 0 with all poses, in pixels of the original images.
        keep_boxes: Called on rank 0 with the boxes of a top-down method in which the poses were predicted, if the
            result has their scores. Not for several sources.

    Returns:
        The scores on rank 0, None on the other ranks.

    Raises:
        ValueError: There are several sources, whose image ids may be equal, and ``keep`` or ``evaluate.detections``.
    """
    from posefleet.platform.visualization.report import log_evaluation  # matplotlib, which training does not need

    worker.watch.enter(Phase.EVALUATION)
    was_training = model.training
    predictor = Predictor(model, experiment, device=worker.device)
    shown: list[tuple[Batch, list[Poses]]] = []
    sources = [] if open_split else evaluated_sources(experiment)
    if sources:
        result = _evaluate_sources(predictor, sources, experiment, worker, shown, keep)
    else:
        views = predictor.transforms()
        datasets = [open_split(view) if open_split else evaluation_set(experiment, view) for view in views]
        found, boxes = _predict(predictor, datasets, experiment, worker, shown)
        result = _score(found, datasets[0], experiment, worker, predictor.score_rule)
        result = _with_boxes(result, predictor, boxes, datasets[0], worker)
        if result and (notes := datasets[0].notes):
            result = dataclasses.replace(result, notes=(*result.notes, *notes))
        if keep and (all_poses := _gather(found, worker)) is not None:
            keep(all_poses)
        if keep_boxes and predictor.has_boxes and (all_boxes := _gather(boxes, worker)) is not None:
            keep_boxes(all_boxes)
    model.train(was_training)
    if result and worker.sink:
        most = experiment.evaluate.overlays
        log_evaluation(worker.sink, result, shown, experiment.keypoints, step=step, most=most)
    return result


def _predict(
    predictor: Predictor,
    datasets: Sequence[SampleSource],
    experiment: Experiment,
    worker: LocalWorker,
    shown: list[tuple[Batch, list[Poses]]],
    overlays: int | None = None,
) -> tuple[dict[int, Poses], dict[int, Detections]]:
    """The poses, and the boxes of a top-down method, that this rank predicts in its part of a split, by image id.

    Args:
        datasets: The split as each view of the predictor reads it.
        shown: Rank 0 adds batches with poses until there are ``overlays`` images to be drawn.
    """
    found: dict[int, Poses] = {}
    boxes: dict[int, Detections] = {}
    most = experiment.evaluate.overlays if overlays is None else overlays
    with contextlib.ExitStack() as stack:
        views = [
            stack.enter_context(
                evaluation_batches(
                    dataset,
                    batch_size=experiment.data.eval_batch_size,
                    rank=worker.rank,
                    world_size=worker.world_size,
                    workers=experiment.data.loaders,
                )
            )
            for dataset in datasets
        ]
        for batches in zip(*views, strict=True):
            poses = predictor.predict(batches)
            found.update(zip(batches[0].image_ids.tolist(), poses, strict=True))
            boxes.update(zip(batches[0].image_ids.tolist(), predictor.refined, strict=False))
            if worker.rank == 0 and sum(len(batch) for batch, _ in shown) < most:
                shown.append((batches[0], poses))
            worker.watch.beat()
    return found, boxes


def _evaluate_sources(
    predictor: Predictor,
    sources: Sequence[EvaluatedSource],
    experiment: Experiment,
    worker: LocalWorker,
    shown: list[tuple[Batch, list[Poses]]],
    keep: Callable[[dict[int, Poses]], None] | None,
) -> Evaluation | None:
    """The scores of all sources together by the keypoints of the model, with those of each by its own.

    pycocotools matches, whatever ``evaluate.backend`` is; the other one gives the same numbers.
    """
    schema, most = experiment.keypoints, experiment.evaluate.max_detections
    if len(sources) > 1 and (keep or predictor.detections is not None):
        what = "poses are written" if keep else "evaluate.detections are given"
        names = ", ".join(source.name for source in sources)
        raise ValueError(f"{what} by image id, which {names} may share; give --data.eval one of them at a time")
    of_sources: dict[str, Evaluation] = {}
    stats: list[ImageStats] = []
    notes: list[str] = []
    for number, source in enumerate(sources, start=1):
        datasets = [source.open(view) for view in predictor.transforms()]
        share = round(experiment.evaluate.overlays * number / len(sources))
        found, boxes = _predict(predictor, datasets, experiment, worker, shown, share)
        own_people, people = (
            ground_truth(split, worker.rank, worker.world_size) for split in (datasets[0].source, datasets[0])
        )
        own_poses = {image_id: source.own_poses(poses) for image_id, poses in found.items()}
        own_parts = worker.gather(match_images(source.own_people(own_people), own_poses, source.own, max_poses=most))
        parts = worker.gather(match_images(people, found, schema, max_poses=most))
        scored = own_parts and summarize(own_parts, source.own, max_detections=most, score_rule=predictor.score_rule)
        scored = _with_boxes(scored or None, predictor, boxes, datasets[0], worker)
        if scored and parts:
            of_sources[source.name] = scored
            stats.append(ImageStats.merge(parts))
            notes += [f"{source.name}: {note}" for note in datasets[0].notes]
        if keep and (all_poses := _gather(found, worker)) is not None:
            keep(all_poses)
    if not stats:
        return None
    together = summarize(_numbered(stats), schema, max_detections=most, score_rule=predictor.score_rule)
    return dataclasses.replace(together, sources=of_sources, notes=(*together.notes, *notes))


def _numbered(stats: Sequence[ImageStats]) -> list[ImageStats]:
    """Results of several sources, with image ids that are all different: their own ones if they are, else numbers."""
    ids = np.concatenate([part.image_ids for part in stats])
    if len(np.unique(ids)) == len(ids):
        return list(stats)
    ends = np.cumsum([len(part.image_ids) for part in stats])
    return [
        dataclasses.replace(part, image_ids=np.arange(end - len(part.image_ids), end))
        for part, end in zip(stats, ends.tolist(), strict=True)
    ]


def _with_boxes(
    result: Evaluation | None,
    predictor: Predictor,
    boxes: dict[int, Detections],
    split: SampleSource,
    worker: LocalWorker,
) -> Evaluation | None:
    """The result with the scores of the boxes of a top-down method."""
    if not predictor.has_boxes or (all_boxes := _gather(boxes, worker)) is None or not result:
        return result
    _check_detections(predictor, all_boxes)
    return dataclasses.replace(result, boxes=evaluate_boxes(ground_truth(split), all_boxes))


def _score(
    found: dict[int, Poses], split: SampleSource, experiment: Experiment, worker: LocalWorker, score_rule: str
) -> Evaluation | None:
    """Scores of the poses of all ranks, on rank 0; with pycocotools each rank matches its own poses first."""
    schema, settings = experiment.keypoints, experiment.evaluate
    most = settings.max_detections
    if settings.backend == "pycocotools":
        people = ground_truth(split, worker.rank, worker.world_size)
        parts = worker.gather(match_images(people, found, schema, max_poses=most))
        return summarize(parts, schema, max_detections=most, score_rule=score_rule) if parts else None
    all_poses = _gather(found, worker)
    if all_poses is None:
        return None
    return score(
        ground_truth(split),
        all_poses,
        schema,
        max_detections=most,
        backend=settings.backend,
        score_rule=score_rule,
    )


def _check_detections(predictor: Predictor, images: Collection[int]) -> None:
    """Refuse a file of detections that has none of the images, which would score as if nobody had been detected."""
    given = predictor.detections
    if given is not None and images and not given.keys() & set(images):
        raise ValueError(
            f"evaluate.detections has images such as {min(given)}, and none of the {len(images)} that were predicted, "
            f"such as {min(images)}; give the detections of this split"
        )


def _gather(found: dict[int, T], worker: LocalWorker) -> dict[int, T] | None:
    """Results of all ranks by image id, on rank 0; None on the other ranks."""
    parts = worker.gather(found)
    return None if parts is None else {image_id: result for part in parts for image_id, result in part.items()}


def evaluation_set(experiment: Experiment, view: EvalTransform) -> ShardDataset:
    """All images of the shards ``experiment.data.eval``, one folder, in their stored order, passed through ``view``."""
    return ShardDataset(experiment.data.one_eval, view.schema, view, labelled_only=False, seed=None)


def ground_truth(source: SampleSource, rank: int = 0, world_size: int = 1) -> GroundTruth:
    """The ground truth of the images of ``source`` that ``rank`` predicts; with the defaults, of all its images."""
    crowd_index: dict[int, float] = {}  # filled while the records are read, and used after that

    def images() -> Iterator[tuple[int, tuple[int, int], list[Record]]]:
        for record in source.records(rank, world_size):
            if "crowdIndex" in record:
                crowd_index[record["image_id"]] = record["crowdIndex"]
            yield record["image_id"], (record["width"], record["height"]), record["people"]

    if not isinstance(source, SpreadSource):
        return GroundTruth.from_records(images(), crowd_index=crowd_index)
    return spread_people(GroundTruth.from_records(images(), crowd_index=crowd_index), source.supervision)
