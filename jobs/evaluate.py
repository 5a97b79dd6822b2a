"""Score a checkpoint on any COCO-format split, shards or files.

python jobs/evaluate.py --checkpoint runs/smpr-20261121-120000 --data.eval datasets/coco-shards/val2017
python jobs/evaluate.py --checkpoint CHECKPOINT --source /data/coco --split val2017 --evaluate.flip true
python jobs/evaluate.py --checkpoint CHECKPOINT --source /data/ochuman/val.json --images /data/ochuman/images
python jobs/evaluate.py --checkpoint CHECKPOINT --evaluate.oracle_scores true    # what perfect ranking would reach
"""

import dataclasses
import json
import sys

from posefleet.data.loading.memory import collect_garbage_rarely

DESCRIPTION = """Score a checkpoint on a COCO-format split: AP, per-keypoint AP and what goes wrong.

--checkpoint PATH  a checkpoint, a run's folder (its best checkpoint), or models:/NAME@champion of the registry
--source PATH      COCO's layout, or an annotation file (COCO, OCHuman, CrowdPose); without it: --data.eval SHARDS
--split NAME       split of --source (val2017)
--images PATH      image folder, where --source is an annotation file
--out FILE.json    also write the poses as COCO results, and the numbers beside them (FILE.metrics.json)

The options below are those of the checkpoint's own experiment, and change it for this evaluation."""

OPTIONS = ("--checkpoint", "--source", "--split", "--images", "--out")


def main() -> int:
    """Exit status: 0, or 2 on bad arguments and bad data."""
    collect_garbage_rarely()
    from posefleet.platform.config.cli import fail, take_option  # imports torch

    values, arguments = {}, sys.argv[1:]
    try:
        for option in OPTIONS:
            values[option], arguments = take_option(arguments, option)
    except ValueError as error:
        fail(str(error))
    if not values["--checkpoint"]:
        if {"-h", "--help"} & set(arguments):
            sys.stdout.write(
                f"usage: jobs/evaluate.py --checkpoint PATH [OPTIONS]\n\n{DESCRIPTION}\n"
                "Give --checkpoint PATH --help to see them with their values.\n"
            )
            return 0
        fail("--checkpoint is missing; give a checkpoint or the folder of a run")
    from posefleet.platform.checkpoints.format import CheckpointError  # after --help: torch takes seconds

    try:
        return _evaluate(values, arguments)
    except (ValueError, CheckpointError, OSError) as error:
        fail(str(error))


def _evaluate(values: dict[str, str], arguments: list[str]) -> int:
    from posefleet.data.coco.results import write_results
    from posefleet.data.coco.source import find_source
    from posefleet.data.io.files import write_file
    from posefleet.data.keypoints import load_schema
    from posefleet.data.loading.coco_dataset import FolderDataset
    from posefleet.data.loading.memory import keep_freed_memory
    from posefleet.data.structures import Poses
    from posefleet.platform.checkpoints.format import read_meta
    from posefleet.platform.checkpoints.load import load_model
    from posefleet.platform.checkpoints.resolve import find_checkpoint
    from posefleet.platform.config.cli import override
    from posefleet.platform.inference.evaluate import evaluate
    from posefleet.platform.runtime.paths import resolve_path
    from posefleet.platform.runtime.worker import LocalWorker

    path = find_checkpoint(resolve_path(values["--checkpoint"]))
    trained = read_meta(path).experiment
    experiment = override(trained, arguments, description=DESCRIPTION)
    experiment = dataclasses.replace(
        experiment, data=dataclasses.replace(experiment.data, eval=resolve_path(experiment.data.eval))
    )
    keep_freed_memory()
    worker = LocalWorker()
    model, _ = load_model(path, experiment=experiment)
    open_split = None
    if values["--source"]:
        images = resolve_path(values["--images"]) or None
        source = find_source(resolve_path(values["--source"]), values["--split"] or "val2017", images=images)
        schema = load_schema(experiment.schema)
        open_split = lambda view: FolderDataset(source, schema, view)  # noqa: E731
    elif not experiment.data.eval:
        raise ValueError("nothing to evaluate on; give --source PATH or --data.eval SHARDS")
    out = resolve_path(values["--out"])

    def keep(poses: dict[int, Poses]) -> None:
        if out:
            write_results(out, poses)

    result = evaluate(model.to(worker.device), experiment, worker, open_split=open_split, keep=keep)
    if result:
        sys.stdout.write(f"{path}\n{result}\n")
        if out:
            numbers = json.dumps(result.as_dict(), indent=1).encode() + b"\n"
            write_file(f"{out.removesuffix('.json')}.metrics.json", numbers)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
