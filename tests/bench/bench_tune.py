"""What a search adds to one training: the same experiment as a search of a single trial, and alone.

    python tests/bench/bench_tune.py --rounds 3 --epochs 20

Whole commands, one after the other in turns, each with its start of Ray, two workers and its report.
"""

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_step import make_experiment

from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.loading import to_yaml

ROOT = Path(__file__).resolve().parents[2]


def seconds(*command: object) -> float:
    """What a command takes by the clock."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=os.environ | {"RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - start


def configured(experiment: Experiment, folder: Path, workers: int, epochs: float) -> Path:
    """A config file of the experiment with runs in a folder of its own."""
    run = dataclasses.replace(experiment.run, storage=str(folder), name="", experiment="bench")
    experiment = dataclasses.replace(
        experiment,
        run=run,
        data=dataclasses.replace(experiment.data, eval=experiment.data.train),
        scaling=dataclasses.replace(experiment.scaling, num_workers=workers),
        train=dataclasses.replace(experiment.train, epochs=epochs, eval_every=epochs),
    )
    folder.mkdir()
    path = folder / "experiment.yaml"
    path.write_text(to_yaml(experiment))
    return path


def main() -> None:
    """Prints both times of every round, their difference, and what the bound would allow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=float, default=20, help="of 64 images")
    options = parser.parse_args()
    added = []
    with tempfile.TemporaryDirectory(prefix="posefleet-bench-") as folder:
        root = Path(folder)
        experiment = make_experiment(root, batch_size=4)
        space = root / "space.yaml"
        space.write_text(f"model.loss.cls: [{experiment.model.loss.cls}]\n")
        for number in range(options.rounds):
            alone = configured(experiment, root / f"alone-{number}", options.workers, options.epochs)
            trial = configured(experiment, root / f"trial-{number}", options.workers, options.epochs)
            train = seconds("jobs/train_smpr.py", "--config", alone, "--run.name", "alone")
            search = ("--space", space, "--samples", 1, "--out", trial.parent / "search")
            tune = seconds("jobs/tune.py", "--method", "smpr", "--config", trial, *search)
            added.append(tune - train)
            sys.stdout.write(f"alone {train:.1f} s   as a trial {tune:.1f} s   added {tune - train:+.1f} s\n")
            sys.stdout.flush()
    sys.stdout.write(f"added, median of {options.rounds}: {statistics.median(added):+.1f} s\n")


if __name__ == "__main__":
    main()
