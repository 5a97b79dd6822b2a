"""Score a checkpoint on a split in COCO's format: AP, AP of each keypoint, and kinds of errors.

posefleet evaluate --checkpoint runs/smpr-20261121-120000 --data.eval datasets/coco-shards/val2017
posefleet evaluate --checkpoint CHECKPOINT --data.eval /data/shards/coco-val /data/shards/crowdpose-val
posefleet evaluate --checkpoint CHECKPOINT --source /data/coco --split val2017 --evaluate.flip true
posefleet evaluate --checkpoint CHECKPOINT --source /data/ochuman/val.json --images /data/ochuman/images
posefleet evaluate --checkpoint CHECKPOINT --evaluate.oracle_scores true    # the AP of perfect ranking

Settings come from the checkpoint's experiment; options change them for this evaluation.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from posefleet.command_line import Given, Place, fail
from posefleet.platform.config.cli import EVALUATE, override, parse_with_settings
from posefleet.platform.runtime.errors import PlatformError


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to score, and on which images."""

    checkpoint: Annotated[str, Place("PATH")]
    """A checkpoint, a run's folder (its best checkpoint), models:/NAME@champion of the registry, or an exported
    file."""
    backend: Literal["torch", "onnxruntime", "openvino", "tensorrt"] | None = None
    """What computes the network of a checkpoint: onnxruntime and openvino on the CPU, tensorrt on the GPU. Default:
    what it was promoted with, else torch."""
    source: Annotated[str, Place("PATH")] = ""
    """COCO's layout, or an annotation file (COCO, OCHuman, CrowdPose). Default: the shards of --data.eval."""
    split: Annotated[str, "NAME"] = ""
    """Split of --source. Default: val2017 if it is there, else the only one."""
    images: Annotated[str, Place("PATH")] = ""
    """Image folder, if --source is an annotation file."""
    category: Annotated[tuple[str, ...], "NAME"] = ()
    """Categories of --source whose annotations are read; all: every one that lists keypoints. Default: the only one
    that can be meant."""
    allow_errors: bool = False
    """Leave out the records of --source that have errors, and list them, instead of refusing the file."""
    allow_missing: bool = False
    """Leave out images of --source whose files are missing, and list them. Their people count as missed."""
    out: Annotated[str, Place("FILE.json")] = ""
    """Also write the poses to this file as COCO results, and the metrics to FILE.metrics.json."""
    tracking: Annotated[str, "URI"] = ""
    """MLflow store of registered models. Default: as for training."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Score a checkpoint. Exit status: 0 finished, 2 bad arguments or bad data."""
    options, overrides = parse_with_settings(
        Options, arguments, command="evaluate", about=__doc__ or "", shown=EVALUATE
    )
    try:
        return _evaluate(options, overrides)
    except (ValueError, OSError, PlatformError) as error:
        fail(error)


def _evaluate(options: Options, overrides: Given) -> int:
    from posefleet.data.coco.results import write_results
    from posefleet.data.io.files import write_file
    from posefleet.data.structures import Poses
    from posefleet.memory import keep_freed_memory
    from posefleet.platform.exports.backends import describe, device_for, locate, open_model
    from posefleet.platform.inference.evaluate import evaluate
    from posefleet.platform.inference.sources import evaluated_sources
    from posefleet.platform.inference.split import Split
    from posefleet.platform.runtime.worker import LocalWorker

    path = locate(options.checkpoint, tracking=options.tracking)
    experiment = override(describe(path).experiment, overrides)
    keep_freed_memory()
    model, _ = open_model(path, experiment=experiment, backend=options.backend)
    worker = LocalWorker(device=device_for(model))
    several = not options.source and evaluated_sources(experiment)
    split = None
    if not several:
        split = Split.of_command(
            options, experiment.data, allow_errors=options.allow_errors, allow_missing=options.allow_missing
        )

    def keep(poses: dict[int, Poses]) -> None:
        write_results(options.out, poses)

    result = evaluate(
        model.to(worker.device),
        experiment,
        worker,
        open_split=split.view if split else None,
        keep=keep if options.out else None,
    )
    if result:
        sys.stdout.write(f"{path}\n{result}\n")
        if options.out:
            scored = {**result.as_dict(), "schema": experiment.keypoints.as_dict(), "notes": result.notes}
            metrics = json.dumps(scored, indent=1).encode() + b"\n"
            write_file(f"{options.out.removesuffix('.json')}.metrics.json", metrics)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
