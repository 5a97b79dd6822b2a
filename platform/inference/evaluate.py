"""Evaluates a model on a data set; each rank predicts a part of it."""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

from torch import nn

from posefleet.data.coco.records import Record
from posefleet.data.evaluation.accumulate import match_images
from posefleet.data.evaluation.boxes import evaluate_boxes
from posefleet.data.evaluation.evaluate import Evaluation, summarize
from posefleet.data.evaluation.evaluate import evaluate as score
from posefleet.data.evaluation.ground_truth import GroundTruth
from posefleet.data.loading.loader import evaluation_batches
from posefleet.data.loading.shard_dataset import ShardDataset
from posefleet.data.loading.source import SampleSource
from posefleet.data.structures import Batch, Detections, Poses
from posefleet.data.transforms import EvalTransform
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.inference.predictor import Predictor
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
) -> Evaluation | None:
    """Predict a split and score it: each rank predicts and matches its part, and rank 0 accumulates the matches.

    Args:
        model: On ``worker.device``; left in the mode it was in.
        open_split: Opens the split with a transform. Default: opens the shards ``experiment.data.eval``.
        step: Training step with which images and plots are logged.
        keep: Called on rank 0 with all poses, in pixels of the original images.

    Returns:
        The scores on rank 0, None on the other ranks.
    """
    from posefleet.platform.visualization.report import log_evaluation  # matplotlib, which training does not need

    schema = experiment.keypoints
    worker.watch.enter(Phase.EVALUATION)
    was_training = model.training
    predictor = Predictor(model, experiment, device=worker.device)
    datasets = [open_split(view) if open_split else evaluation_set(experiment, view) for view in predictor.transforms()]
    found: dict[int, Poses] = {}
    boxes: dict[int, Detections] = {}
    shown: list[tuple[Batch, list[Poses]]] = []
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
            if worker.rank == 0 and sum(len(batch) for batch, _ in shown) < experiment.evaluate.overlays:
                shown.append((batches[0], poses))
            worker.watch.beat()
    model.train(was_training)
    result = _score(found, datasets[0], experiment, worker, predictor.score_rule)
    if predictor.has_boxes and (all_boxes := _gather(boxes, worker)) is not None and result:
        _check_detections(predictor, all_boxes)
        result = dataclasses.replace(result, boxes=evaluate_boxes(ground_truth(datasets[0]), all_boxes))
    if result and (notes := datasets[0].notes):
        result = dataclasses.replace(result, notes=(*result.notes, *notes))
    if keep and (all_poses := _gather(found, worker)) is not None:
        keep(all_poses)
    if result and worker.sink:
        log_evaluation(worker.sink, result, shown, schema, step=step, most=experiment.evaluate.overlays)
    return result


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
    """All images of the shards ``experiment.data.eval``, in their stored order, passed through ``view``."""
    return ShardDataset(experiment.data.eval, view.schema, view, labelled_only=False, seed=None)


def ground_truth(source: SampleSource, rank: int = 0, world_size: int = 1) -> GroundTruth:
    """The ground truth of the images of ``source`` that ``rank`` predicts; with the defaults, of all its images."""
    crowd_index: dict[int, float] = {}  # filled while the records are read, and used after that

    def images() -> Iterator[tuple[int, tuple[int, int], list[Record]]]:
        for record in source.records(rank, world_size):
            if "crowdIndex" in record:
                crowd_index[record["image_id"]] = record["crowdIndex"]
            yield record["image_id"], (record["width"], record["height"]), record["people"]

    return GroundTruth.from_records(images(), crowd_index=crowd_index)
