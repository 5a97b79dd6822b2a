"""Out-of-fold predictions: a data set in parts, a training on the others for each part, and its poses there."""

import dataclasses
import sys
from collections.abc import Sequence

from posefleet.data.coco.source import Source
from posefleet.data.coco.split import part_of
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.shards.build import shard_coco
from posefleet.data.structures import Poses
from posefleet.platform.checkpoints.format import read_meta
from posefleet.platform.checkpoints.load import load_model
from posefleet.platform.checkpoints.resolve import find_checkpoint
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.sources import DataSource
from posefleet.platform.inference.evaluate import evaluate
from posefleet.platform.runtime.worker import LocalWorker


def shard_parts(
    source: Source,
    schema: KeypointSchema,
    out: str,
    parts: int,
    *,
    category: Sequence[str] = (),
    parallel: bool = True,
) -> list[str]:
    """Write a data set as shards in ``parts`` parts, by file name; returns their folders.

    Shards that are there already and whose images and labels did not change are kept.

    Args:
        source: Annotation file and image folder.
        schema: Its keypoints.
        out: Folder of the parts.
        parts: Number of parts, at least 1.
        category: As for :func:`posefleet.data.shards.build.shard_coco`.
        parallel: Write on the Ray cluster; otherwise in this process.

    Raises:
        DataError: The annotations cannot be used, or a part has no image.
    """
    roots = []
    for part in range(parts):
        root = f"{out}/part{part}"
        shard_coco(
            dataclasses.replace(source, split=f"part{part}"),
            root,
            schema,
            category=category,
            parallel=parallel,
            take=lambda name, part=part: part_of(name, parts) == part,  # type: ignore[misc]
        )
        roots.append(root)
    return roots


def fold_experiments(experiment: Experiment, parts: Sequence[str], storage: str) -> dict[str, Experiment]:
    """For each part the experiment that trains on the others and is evaluated on it, by the name of its run.

    Args:
        experiment: The settings of all.
        parts: Folders of shards, at least two.
        storage: Folder of the runs.
    """
    found = {}
    for number, part in enumerate(parts):
        others = tuple(DataSource(path=root, name=root.rpartition("/")[2]) for root in parts if root != part)
        train = others[0].path if len(others) == 1 else others
        data = dataclasses.replace(experiment.data, train=train, eval=part)
        name = f"without-part{number}"
        run = dataclasses.replace(experiment.run, name=name, storage=storage)
        found[name] = dataclasses.replace(experiment, data=data, run=run)
    return found


def predict_parts(models: Sequence[str], parts: Sequence[str]) -> dict[int, Poses]:
    """The poses of all images by id, of each part by the model with its number; a single model predicts all parts.

    Args:
        models: Runs or checkpoints: one, or as many as parts.
        parts: Folders of shards.

    Raises:
        CheckpointError: There is no such model.
        DataError: A model has other keypoints than the parts.
    """
    poses: dict[int, Poses] = {}
    for number, part in enumerate(parts):
        path = find_checkpoint(models[number if len(models) > 1 else 0])
        experiment = read_meta(path).experiment
        data = dataclasses.replace(experiment.data, eval=part)
        experiment = dataclasses.replace(
            experiment, data=data, evaluate=dataclasses.replace(experiment.evaluate, overlays=0)
        )
        worker = LocalWorker()
        model, _ = load_model(path, experiment=experiment)
        sys.stderr.write(f"predicting {part} with {path}\n")
        result = evaluate(model.to(worker.device), experiment, worker, keep=poses.update)
        sys.stderr.write(f"  AP {result.ap:.3f} on labels as they are\n" if result else "")
    return poses
