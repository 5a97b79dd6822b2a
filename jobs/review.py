"""Find annotations that are probably wrong, by what models that did not see them predict.

posefleet review --source /data/dogs --split train --config smpr.yaml --parts 3 --out review
posefleet review --source /data/dogs --split train --models runs/a runs/b runs/c --out review
posefleet review --source /data/dogs --split train --corrected export.json --out dogs-corrected.json

The first form divides the images into parts, trains a model on the others for each part, and predicts the part with
it; the trainings run on the Ray cluster, as those of posefleet train do, and the same command goes on where one
stopped. The second form takes models instead: as many as parts, each trained without its part, or one that saw none of
the images; it runs in this process.

OUT gets review.html with pictures, suspects.json, and the images that are shown as tasks for label tools: cvat/ (COCO's
format) and label-studio/. The third form puts the images that such a tool corrected into the annotation file; sharding
the new file then writes only the shards that changed.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from posefleet.command_line import Given, Place, fail, one_of
from posefleet.platform.config.cli import WORKERS, override, parse_with_settings
from posefleet.platform.runtime.errors import PlatformError

if TYPE_CHECKING:
    from posefleet.data.coco.source import Source
    from posefleet.data.schemas.schema import KeypointSchema


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which labels are looked at, by whom, and where the result goes."""

    source: Annotated[str, Place("PATH")]
    """Data set folder, in COCO's layout or as a label tool exports it, or an annotation file."""
    out: Annotated[str, Place("PATH")]
    """Folder of the review; with --corrected the new annotation file."""
    split: Annotated[str, "NAME"] = ""
    """Split of the data set: train2017, train, ... Default: the only one that is there."""
    images: Annotated[str, Place("PATH")] = ""
    """Image folder, if it is not at its usual place."""
    category: Annotated[tuple[str, ...], "NAME"] = ()
    """Categories whose annotations are looked at; all: every one that lists keypoints. Default: the only one that can
    be meant."""
    config: Annotated[str, Place("FILE")] = ""
    """Settings of the trainings, such as a file of jobs/configs/; its method is trained once for each part."""
    models: Annotated[tuple[str, ...], Place("RUN")] = ()
    """Runs, checkpoints or models:/NAME@ALIAS that predict instead of new trainings."""
    corrected: Annotated[str, Place("FILE")] = ""
    """What a label tool gave back: a json file in COCO's format, or Label Studio's JSON export."""
    parts: Annotated[int, "N"] = 3
    """Parts of the images with --config. More parts train on more of the images, and take longer in all."""
    show: Annotated[int, "N"] = 200
    """Suspects, from the most doubtful, on the page and in the tasks."""
    tracking: Annotated[str, "URI"] = ""
    """MLflow store of registered models. Default: as for training."""

    def __post_init__(self) -> None:
        one_of(self, "config", "models", "corrected")
        if self.parts < 2:
            raise ValueError(
                f"--parts {self.parts} must be at least 2: one part is predicted, the others are trained on"
            )
        if self.show < 1:
            raise ValueError(f"--show {self.show} must be at least 1")


def main(arguments: Sequence[str] | None = None) -> int:
    """Review a data set, or take corrections. Exit status: 0 finished, 1 a training failed, 2 bad arguments or data."""
    options, overrides = parse_with_settings(
        Options, arguments, command="review", about=__doc__ or "", shown=("train.epochs", "seed", *WORKERS)
    )
    if overrides and not options.config:
        fail(f"--{next(iter(overrides))} belongs to the trainings of --config")
    from posefleet.data.coco.file_schema import read_file_schema
    from posefleet.data.coco.source import find_source

    try:
        source = find_source(options.source, options.split, options.images or None)
        sys.stderr.write(f"{source}\n")
        schema = read_file_schema(source.annotation_file, options.category)
        if options.corrected:
            return _correct(options, source, schema)
        if "://" in options.out:
            raise ValueError(f"--out {options.out} must be a folder on a disk")
        return _review(options, overrides, source, schema)
    except (ValueError, OSError, PlatformError) as error:
        fail(error)


def _review(options: Options, overrides: Given, source: "Source", schema: "KeypointSchema") -> int:
    from posefleet.platform.checkpoints.resolve import find_checkpoint
    from posefleet.platform.comparison.budget import folder_of, train_all
    from posefleet.platform.config.loading import build_experiment, read_yaml
    from posefleet.platform.review import folds, report

    if options.models:
        models = [find_checkpoint(model, tracking=options.tracking) for model in options.models]
        count = len(models)
        about = f"Predicted by {', '.join(options.models)}."
    else:
        count, models = options.parts, []
        about = f"Each of {count} parts was predicted by a model that was trained on the others."
    on_cluster = not models and overrides.get("scaling.num_workers") != ["0"]
    parts = folds.shard_parts(
        source, schema, f"{options.out}/parts", count, category=options.category, parallel=on_cluster
    )
    if not models:
        values = read_yaml(options.config)
        values["data"] = {**values.get("data", {}), "train": parts[0], "eval": parts[0]}
        values["train"] = {**values.get("train", {}), "eval_every": 1e9}  # evaluate once, at the end
        experiments = folds.fold_experiments(
            override(build_experiment(values, where=options.config), overrides), parts, f"{options.out}/runs"
        )
        if not train_all(experiments):
            return 1
        models = [folder_of(experiment) for experiment in experiments.values()]
    poses = folds.predict_parts(models, parts)
    sys.stdout.write(report.write_review(parts, poses, schema, Path(options.out), show=options.show, about=about))
    return 0


def _correct(options: Options, source: "Source", schema: "KeypointSchema") -> int:
    from posefleet.data.review.corrections import apply_corrections
    from posefleet.data.review.tasks import read_corrected

    changes = apply_corrections(source.annotation_file, read_corrected(options.corrected, schema), options.out)
    sys.stdout.write(f"{options.out}: {changes}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
