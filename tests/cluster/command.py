"""A training command with a plan of faults: ``python command.py SETTINGS.json``; ``jobs/train_smpr.py`` besides."""

import json
import sys
from pathlib import Path

from faults import Plan, carried_out, train_worker

from posefleet.platform.config.loading import build_experiment
from posefleet.platform.training import launch
from posefleet.platform.training import ray_trainer as train


def main(file: str) -> int:
    """Returns the exit status of the job."""
    content = json.loads(Path(file).read_text())
    experiment, plan = build_experiment(content["settings"]), Plan(**content["plan"])
    if experiment.scaling.num_workers:
        train._ray_worker = train_worker(plan)
        return launch.train(experiment)
    with carried_out(plan):
        return launch.train(experiment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
