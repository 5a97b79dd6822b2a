"""What DetPoseNet's filter is worth with the maps, detections and refinement of a trained network.

    python tests/bench/bench_trained_filter.py RUN [--data SHARDS]

Predicts the images of SHARDS (default: those that the run was evaluated on) once for each choice of boxes. Prints AP,
how often the refinement runs a person, the AP of the boxes, and the difference to box NMS at .5 with a 95 % interval
from draws of images. The last rows replace parts by what is annotated: boxes, and the ranking.
"""

import argparse
import dataclasses
import sys
from typing import Any

import torch

from posefleet.data.evaluation.bootstrap import difference
from posefleet.data.evaluation.evaluate import Evaluation
from posefleet.platform.checkpoints.format import read_meta
from posefleet.platform.checkpoints.load import load_model
from posefleet.platform.checkpoints.resolve import find_checkpoint
from posefleet.platform.config.loading import build_experiment, to_dict, with_settings
from posefleet.platform.inference.evaluate import evaluate
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.visualization.tables import table

PAPER = {
    "model.filter.box": "first",
    "model.filter.uncovered": "drop",
    "model.filter.merge_fragments": False,
    "model.filter.scale_recovered": False,
}
FIRST = "box NMS .5"
ROWS: dict[str, dict[str, Any]] = {
    FIRST: {"model.filter.mode": "nms"},
    "box NMS .7": {"model.filter.mode": "nms", "model.filter.nms_threshold": 0.7},
    "our filter": {},
    "our filter, box: first": {"model.filter.box": "first"},
    "our filter, box: mean": {"model.filter.box": "mean"},
    "our filter, boxes without a pose dropped": {"model.filter.uncovered": "drop"},
    "the paper's filter": PAPER,
    "annotated boxes": {"evaluate.oracle_boxes": "annotated"},
    "box NMS .5, perfect ranking": {"model.filter.mode": "nms", "evaluate.oracle_scores": True},
    "our filter, perfect ranking": {"evaluate.oracle_scores": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run's folder, or a checkpoint")
    parser.add_argument("--data", default="", help="shards to score on")
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = find_checkpoint(args.run)
    values = to_dict(read_meta(path).experiment, passwords=True)
    found: dict[str, Evaluation] = {}
    for name, settings in ROWS.items():
        data = {"data.eval": args.data} if args.data else {}
        experiment = build_experiment(with_settings(values, {**settings, **data, "evaluate.overlays": 0}))
        model, _ = load_model(path, experiment=experiment)
        result = evaluate(model, experiment, LocalWorker(device="cpu"))
        assert result is not None
        found[name] = result
        sys.stderr.write(f"{name}: {result.ap:.3f}\n")
    lines = []
    for name, result in found.items():
        assert result.matches is not None and found[FIRST].matches is not None
        minus = "" if name == FIRST else str(difference(result.matches, found[FIRST].matches, draws=400))
        boxes = [f"{result.boxes.per_person:.2f}", f"{result.boxes.ap:.3f}"] if result.boxes else ["", ""]
        lines.append([name, f"{result.ap:.3f}", *boxes, minus])
    people = dataclasses.asdict(found[FIRST].protocol)
    print(table(["boxes that are refined", "AP", "boxes a person", "box AP", "minus NMS .5"], lines))
    print(f"{people['images']} images, {people['people']} people")


if __name__ == "__main__":
    main()
