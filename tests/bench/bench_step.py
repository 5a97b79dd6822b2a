"""What the platform adds to a training step, and what the allocator settings give.

    python tests/bench/bench_step.py

One process, one model, the same batches: windows of the platform's loop (logging to MLflow on sqlite, losses looked
at every 10 steps) between windows of a bare PyTorch loop. Then bare windows in fresh processes with glibc's defaults
and with ``keep_freed_memory``.
"""

import argparse
import contextlib
import copy
import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.utils import clip_grad_norm_

from posefleet.data.coco.source import find_source
from posefleet.data.loading.loader import training_batches
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.shards.build import shard_coco
from posefleet.data.structures import Batch
from posefleet.data.synthetic.dataset import write_dataset
from posefleet.data.synthetic.scenes import SceneConfig
from posefleet.memory import keep_freed_memory
from posefleet.platform.checkpoints.format import Meta
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.loading import build_experiment, read_yaml
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.training import loop
from posefleet.platform.training.run import RunLogger, open_run
from posefleet.platform.training.state import TrainingState, initial_state

ROOT = Path(__file__).resolve().parents[2]


def make_experiment(folder: Path, batch_size: int) -> Experiment:
    """The demo's model on 64 rendered images under ``folder``."""
    if not (folder / "shards").exists():
        write_dataset(folder / "coco", "train2017", 64, SceneConfig(), seed=0, workers=1)
        source = find_source(str(folder / "coco"), "train2017")
        shard_coco(source, str(folder / "shards"), COCO17, parallel=False)
    values = copy.deepcopy(read_yaml(ROOT / "jobs/configs/smpr_demo.yaml"))
    values["data"] |= {"train": str(folder / "shards"), "eval": "", "batch_size": batch_size, "loaders": 0}
    values["train"] |= {"epochs": 1e6}
    values["scaling"] = {"num_workers": 0}
    values["run"] = {"storage": str(folder / "runs"), "name": f"bench-{time.time_ns()}"}
    return build_experiment(values)


class Window(NamedTuple):
    """Seconds of a step."""

    clock: float
    processor: float
    """Of all threads; does not count waiting for a core that somebody else has."""


@contextmanager
def timed(steps: int, windows: list[Window]) -> Iterator[None]:
    """Append what a step inside took."""
    clock, processor = time.perf_counter(), time.process_time()
    yield
    windows.append(Window((time.perf_counter() - clock) / steps, (time.process_time() - processor) / steps))


def bare_loop(state: TrainingState, batches: Iterator[Batch], steps: int) -> None:
    """What anyone would write first."""
    optimizer, model = state.optimizer, state.model
    for batch in itertools.islice(batches, steps):
        losses = model(batch.images, batch.people)
        total = sum(losses.values())
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 35.0)
        optimizer.step()
    float(total.detach())


class AlternatingWorker(LocalWorker):
    """Times the platform's loop from report to report, and a bare loop between."""

    def __init__(self, sink: RunLogger, run_bare: Callable[[], object], steps: int) -> None:
        super().__init__(device="cpu", sink=sink)
        self._run_bare, self._steps = run_bare, steps
        self._window = contextlib.ExitStack()
        self.ours: list[Window] = []

    def agree(self, problem: str | None) -> None:
        """Called after the last step of a window, when its checkpoint would be written."""
        super().agree(problem)
        self._window.close()

    def report(self, metrics: Mapping[str, float], checkpoint: str) -> None:
        """Called between two windows."""
        self._run_bare()
        self._window.enter_context(timed(self._steps, self.ours))


class NoStore(CheckpointStore):
    """Writes nothing, so that only steps are timed."""

    def save(self, meta: Meta, weights: Mapping[str, torch.Tensor], state: Mapping[str, object]) -> str:
        """Do nothing."""
        return ""


def compare(folder: Path, batch_size: int, steps: int, rounds: int) -> None:
    """Print seconds per step of both loops, in turn, and their ratio."""
    keep_freed_memory()
    experiment, run = open_run(make_experiment(folder, batch_size))
    dataset = loop.training_set(experiment)
    window = steps * batch_size / len(dataset)  # epochs
    train = dataclasses.replace(experiment.train, eval_every=window, epochs=window * (rounds + 1))
    experiment = dataclasses.replace(experiment, train=train)
    store = NoStore(f"{run.folder}/checkpoints")
    state = initial_state(experiment, LocalWorker(device="cpu"), store)
    bare: list[Window] = []
    with training_batches(dataset, batch_size=batch_size) as batches:

        def run_bare() -> None:
            with timed(steps, bare):
                bare_loop(state, batches, steps)

        bare_loop(state, batches, 5)
        worker = AlternatingWorker(RunLogger(run), run_bare, steps)
        loop.fit(experiment, worker, store)
    ours = worker.ours[:rounds]
    bare = bare[: len(ours)]
    sys.stdout.write(f"step, batch {batch_size}, {torch.get_num_threads()} threads, {rounds} rounds of {steps} steps\n")
    for unit in Window._fields:
        pairs = [(getattr(b, unit), getattr(o, unit)) for b, o in zip(bare, ours, strict=True)]
        ratios = [o / b for b, o in pairs]
        bare_step, our_step = (1e3 * statistics.median(values) for values in zip(*pairs, strict=True))
        sys.stdout.write(
            f"  {unit:9s}  bare loop {bare_step:7.1f} ms   platform {our_step:7.1f} ms   "
            f"ratio: median {statistics.median(ratios):.3f}  (" + " ".join(f"{r:.3f}" for r in ratios) + ")\n"
        )
    run.finish("FINISHED")


def allocator_window(folder: Path, batch_size: int, steps: int) -> None:
    """In a fresh process: seconds per step as json."""
    experiment = make_experiment(folder, batch_size)
    state = initial_state(experiment, LocalWorker(device="cpu"), CheckpointStore(str(folder / "none")))
    with training_batches(loop.training_set(experiment), batch_size=batch_size) as batches:
        bare_loop(state, batches, 5)
        windows: list[Window] = []
        with timed(steps, windows):
            bare_loop(state, batches, steps)
        sys.stdout.write(json.dumps(windows[0].clock))


def main() -> None:
    """Run both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--window", choices=["default", "kept"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.window:
        if options.window == "kept":
            keep_freed_memory()
        allocator_window(options.folder, options.batch_size, options.steps)
        return
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        compare(folder, options.batch_size, options.steps, options.rounds)
        seconds: dict[str, list[float]] = {"default": [], "kept": []}
        for _ in range(max(2, options.rounds // 3)):
            for window, values in seconds.items():
                command = [sys.executable, __file__, "--window", window, "--folder", temp]
                command += ["--batch-size", str(options.batch_size), "--steps", str(options.steps)]
                values.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        default, kept = (statistics.median(values) for values in seconds.values())
        sys.stdout.write(
            f"allocator, batch {options.batch_size}\n  glibc's defaults {1e3 * default:7.1f} ms\n"
            f"  memory kept      {1e3 * kept:7.1f} ms\n  kept / default  {kept / default:.3f}\n"
        )


if __name__ == "__main__":
    main()
