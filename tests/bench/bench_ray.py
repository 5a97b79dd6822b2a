"""Two workers under Ray Train against two under torchrun, same code, same shards: images/s once they run.

    python tests/bench/bench_ray.py

Start-up is not counted (Ray's takes longer; it is printed). Runs alternate: torchrun, Ray, torchrun, Ray.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from bench_step import make_experiment

from posefleet.platform.config import Experiment, build_experiment, read_yaml, to_yaml

WARM_UP_LOOKS = 2
"""Looks at the losses that are not counted: connections, first allocations."""


class SpeedSink:
    """Appends images/s to a file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        if "images_per_second" in metrics:
            self._file.write(f"{metrics['images_per_second']}\n")

    def log_bytes(self, name: str, data: bytes) -> None:
        pass


def torchrun_worker(config: str, out: Path) -> None:
    """One of torchrun's processes."""
    import torch

    from posefleet.platform.checkpoint import CheckpointStore
    from posefleet.platform.loop import fit
    from posefleet.platform.memory import keep_freed_memory
    from posefleet.platform.worker import LocalWorker

    torch.set_num_threads(1)
    keep_freed_memory()
    worker = LocalWorker(device="cpu")
    if worker.rank == 0:
        worker.sink = SpeedSink(out)
    with tempfile.TemporaryDirectory() as temp:
        fit(build_experiment(read_yaml(config)), worker, CheckpointStore(temp))
    os._exit(0)  # gloo's threads sometimes abort at exit


def under_torchrun(experiment: Experiment, folder: Path) -> tuple[list[float], float]:
    """Images/s at every look, and the whole seconds."""
    config, out = folder / "config.yaml", folder / f"speeds-{time.time_ns()}"
    config.write_text(to_yaml(experiment))
    start = time.perf_counter()
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    command = [torchrun, "--nproc-per-node=2", "--master-port=29533", __file__, "--worker", str(config), str(out)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return [float(line) for line in out.read_text().split()], time.perf_counter() - start


def under_ray(experiment: Experiment, folder: Path) -> tuple[list[float], float]:
    """Images/s at every look, and the whole seconds."""
    from posefleet.platform.tracking import read_metrics
    from posefleet.platform.train import train

    name = f"ray-{time.time_ns()}"
    experiment = dataclasses.replace(
        experiment,
        scaling=dataclasses.replace(experiment.scaling, num_workers=2),
        run=dataclasses.replace(experiment.run, storage=str(folder / "runs"), name=name),
    )
    start = time.perf_counter()
    if train(experiment):
        raise SystemExit("training under Ray failed")
    seconds = time.perf_counter() - start
    run_id = json.loads((folder / "runs" / name / "run.json").read_text())["run_id"]
    uri = f"sqlite:///{folder}/runs/mlflow.db"
    points = read_metrics(uri, run_id, ["images_per_second"])["images_per_second"]
    return [value for _, value in points], seconds


def main() -> None:
    """Alternate and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        torchrun_worker(options.worker[0], Path(options.worker[1]))
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        experiment = make_experiment(folder, batch_size=4)
        experiment = dataclasses.replace(
            experiment, train=dataclasses.replace(experiment.train, epochs=options.steps * 8 / 64, eval_every=1e6)
        )
        ratios, setup = [], []
        for _ in range(options.rounds):
            speeds = []
            for launch in (under_torchrun, under_ray):
                looks, seconds = launch(experiment, folder)
                speeds.append(statistics.median(looks[WARM_UP_LOOKS:]))
                setup.append(seconds)
            ratios.append(speeds[0] / speeds[1])
            sys.stdout.write(f"  torchrun {speeds[0]:6.2f} images/s   Ray {speeds[1]:6.2f} images/s\n")
            sys.stdout.flush()
        each = " ".join(f"{ratio:.3f}" for ratio in ratios)
        torchrun, ray = (statistics.median(seconds) for seconds in (setup[::2], setup[1::2]))
        sys.stdout.write(
            f"step time, Ray / torchrun: median {statistics.median(ratios):.3f} ({each})\n"
            f"whole runs, start-up included: torchrun {torchrun:.0f} s, Ray {ray:.0f} s\n"
        )


if __name__ == "__main__":
    main()
