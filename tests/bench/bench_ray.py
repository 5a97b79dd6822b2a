"""Two workers under Ray Train against two under torchrun, same code, same shards: time of a step.

    python tests/bench/bench_ray.py

Both runs exist all the time and take turns of a few seconds: while one trains, all processes of the other (Ray's
daemons included) are stopped. So both see the same machine, however its speed drifts.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
from bench_step import make_experiment

from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.loading import build_experiment, read_yaml, to_yaml

ROOT = Path(__file__).resolve().parents[2]
Look = tuple[float, int]
"""When rank 0 looked at the losses (seconds since the epoch), and the optimiser steps until then."""


def torchrun_worker(config: str) -> None:
    """One of torchrun's processes; rank 0 tracks the run like Ray's does, so that only the launcher differs."""
    import torch
    import torch.distributed as dist

    from posefleet.memory import keep_freed_memory
    from posefleet.platform.runtime.worker import LocalWorker
    from posefleet.platform.training.loop import fit
    from posefleet.platform.training.run import RunLogger, open_run

    torch.set_num_threads(1)
    keep_freed_memory()
    worker = LocalWorker(device="cpu")
    experiment = build_experiment(read_yaml(config))
    if worker.rank == 0:
        experiment, run = open_run(experiment)
        worker.sink = RunLogger(run)
    dist.barrier()
    fit(experiment, worker, CheckpointStore(f"{experiment.run.storage}/checkpoints"))


class Contestant:
    """A training that goes on without end, with all its processes, and can be stopped and continued."""

    def __init__(self, experiment: Experiment, storage: Path, command: Sequence[str], option: str) -> None:
        """``command``, then ``option CONFIG``, trains the experiment in a storage of its own."""
        storage.mkdir()
        run = dataclasses.replace(experiment.run, storage=str(storage), name="run")
        scaling = dataclasses.replace(experiment.scaling, num_workers=2)
        config = storage / "experiment.yaml"
        config.write_text(to_yaml(dataclasses.replace(experiment, run=run, scaling=scaling)))
        self._storage, self._log = storage, storage / "log"
        with self._log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, *command, option, str(config)],
                env=os.environ | {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def looks(self) -> list[Look]:
        """All looks so far, oldest first; from MLflow, whose times are milliseconds."""
        from mlflow import MlflowClient

        described = self._storage / "run" / "run.json"
        if not described.exists():
            return []
        history = MlflowClient(f"sqlite:///{self._storage}/mlflow.db").get_metric_history(
            json.loads(described.read_text())["run_id"], "loss"
        )
        return sorted((point.timestamp / 1000, point.step) for point in history)

    def wait_for_looks(self, count: int, seconds: float = 300) -> None:
        """Until the training runs."""
        for _ in range(int(seconds)):
            if len(self.looks()) >= count:
                return
            if self._process.poll() is not None:
                break
            time.sleep(1)
        raise SystemExit(f"this training does not run:\n{self._log.read_text()}")

    def signal(self, number: signal.Signals) -> None:
        """To every process of the training."""
        processes = [psutil.Process(self._process.pid)]
        for process in [*processes, *processes[0].children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def end(self) -> None:
        """Kill it: nothing of it is wanted."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self.signal(signal.SIGKILL)
        self._process.wait()


def seconds_per_step(looks: list[Look], start: float, end: float) -> float:
    """Between the first and the last look inside a window; not a number if there are fewer than two."""
    inside = [look for look in looks if start < look[0] < end]
    if len(inside) < 2:
        return float("nan")
    (first, first_step), (last, last_step) = inside[0], inside[-1]
    return (last - first) / (last_step - first_step)


@contextlib.contextmanager
def contestants(experiment: Experiment, folder: Path) -> Iterator[list[Contestant]]:
    """The training under torchrun and under Ray, running and then stopped; killed at the end."""
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29533", __file__]
    with contextlib.ExitStack() as stack:
        both = []
        for name, command, option in (
            ("torchrun", torchrun, "--worker"),
            ("ray", [str(ROOT / "jobs" / "train_smpr.py")], "--config"),
        ):
            contestant = Contestant(experiment, folder / name, command, option)
            stack.callback(contestant.end)
            contestant.wait_for_looks(4)
            contestant.signal(signal.SIGSTOP)
            both.append(contestant)
        yield both


def main() -> None:
    """Take turns and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a turn")
    parser.add_argument("--rounds", type=int, default=12, help="turns of each")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        torchrun_worker(options.worker)
        return
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        experiment = make_experiment(folder, batch_size=4)
        experiment = dataclasses.replace(
            experiment, train=dataclasses.replace(experiment.train, eval_every=1e6, log_every=5)
        )
        with contestants(experiment, folder) as both:
            turns: list[list[tuple[float, float]]] = [[], []]
            for _, (index, contestant) in itertools.product(range(options.rounds), enumerate(both)):
                start = time.time()
                contestant.signal(signal.SIGCONT)
                time.sleep(options.seconds)
                turns[index].append((start, time.time()))
                contestant.signal(signal.SIGSTOP)
            for contestant in both:
                time.sleep(1)
                contestant.signal(signal.SIGCONT)
            time.sleep(10)  # what was logged last reaches MLflow
            seen = [contestant.looks() for contestant in both]
    torchrun, ray = ([seconds_per_step(looks, *turn) for turn in mine] for looks, mine in zip(seen, turns, strict=True))
    ratios = [b / a for a, b in zip(torchrun, ray, strict=True) if a == a and b == b]
    sys.stdout.write(
        f"step of two workers, batch 4 each: torchrun {1e3 * statistics.median(torchrun):.0f} ms, "
        f"Ray {1e3 * statistics.median(ray):.0f} ms\n"
        f"Ray / torchrun: median {statistics.median(ratios):.3f} of {len(ratios)} pairs ("
        + " ".join(f"{ratio:.3f}" for ratio in ratios)
        + ")\n"
    )


if __name__ == "__main__":
    main()
