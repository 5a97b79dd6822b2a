"""Runs a training as a Ray Train job. Beside ``elastic``, only this file of the platform imports ``ray.train``.

The driver opens the run, starts the workers, waits, and closes the run. When a worker dies, Ray replaces all workers,
and they resume from the last checkpoint in the run's own store, because a run must also resume where Ray's state is
lost, and because Ray counts a checkpoint only after its controller has polled. The checkpoints that Ray gets are
pointers to ours: a second copy would cost time, and Ray refuses to start again where a checkpoint that it knows was
deleted. An elastic run continues with the workers that the cluster has room for, and restarts all of them when there is
room for more.
"""

import dataclasses
import logging
import math
import os
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer, get_device
from ray.util.queue import Queue

from posefleet.data.io.cluster import start_ray
from posefleet.memory import collect_garbage_rarely
from posefleet.models import trust
from posefleet.platform.checkpoints.resolve import write_pointer
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.loading import build_experiment, to_dict
from posefleet.platform.runtime import logs
from posefleet.platform.runtime.leftovers import claim, sweep
from posefleet.platform.runtime.placement import TRAINING
from posefleet.platform.runtime.worker import FatalError, LocalWorker
from posefleet.platform.training.outcome import Outcome, ReportMetrics, fit_or_report
from posefleet.platform.training.run import Run, RunLogger

log = logging.getLogger(__name__)


ASK_SECONDS = 2.0
"""Shortest time between two checks of a worker for requests to stop or to save, in seconds."""
NOTICE_SECONDS = 10.0
"""Shortest time between two checkpoints while a node is about to be preempted, in seconds."""
RAY_TRIED = "2.60"
"""The releases of Ray that elastic runs were tried with, the same as in pyproject.toml."""
REPORT_LOGGER = str(Path(ray.train.__file__).with_name("v2") / "_internal" / "execution" / "context.py")
"""Name of the logger that Ray Train logs every report to: the path of its file, which other versions may change."""


class RayWorker(LocalWorker):
    """A worker of Ray Train."""

    replaced_on_failure = True

    def __init__(self, run: Run, sink: RunLogger | None) -> None:
        super().__init__(device=get_device(), sink=sink, folder=run.folder)
        self._run = run
        self._looked = time.monotonic()
        self._stop = self._save = False
        self._saved = -math.inf

    @property
    def node(self) -> str:
        """The node's name and its address in the cluster."""
        return f"{super().node} ({ray.util.get_node_ip_address()})"

    def stop_requested(self) -> bool:
        """Whether the run's folder holds a request to stop; rank 0 checks every ``ASK_SECONDS``."""
        self._ask()
        return self._stop

    def checkpoint_requested(self) -> bool:
        """Whether the run's folder holds a request for a checkpoint, or Ray announced that a node will be preempted.

        After an announcement the answer is yes at once, and again every ``NOTICE_SECONDS`` until the node is gone.
        """
        notice = ray.train.get_preemption_info()  # a barrier over all ranks
        self._ask()
        return self._save or (notice is not None and time.monotonic() - self._saved >= NOTICE_SECONDS)

    def saved(self) -> None:
        """Remove the request for a checkpoint, which has been written."""
        self._saved = time.monotonic()
        if self._save:
            self._run.withdraw("save")
            self._save = False

    def report(self, metrics: Mapping[str, float], checkpoint: str) -> None:
        """Report to Ray Train, with a pointer to the checkpoint as Ray's checkpoint; a barrier over all ranks."""
        with self.watch.waiting(), tempfile.TemporaryDirectory() as folder:
            if self.rank == 0:
                write_pointer(folder, checkpoint)
            ray.train.report(dict(metrics), None if self.rank else ray.train.Checkpoint(folder))

    def _ask(self) -> None:
        if self.rank or time.monotonic() - self._looked < ASK_SECONDS:
            return
        self._looked = time.monotonic()
        self._stop = self._stop or self._run.requested("stop")
        self._save = self._save or self._run.requested("save")


class _Forward(ray.train.UserCallback):
    """Puts the metrics that rank 0 reports into a queue."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Called by Ray Train's controller, in a process of its own."""
        self._queue.put(metrics[0])


def _save_before_resize(run: Run, min_workers: int) -> Any:
    """The callback that an elastic run hands to Ray Train.

    Raises:
        FatalError: This version of Ray does not have the private modules that the callback needs.
    """
    try:
        # Imports private modules of Ray, so only where they are needed.
        from posefleet.platform.training.elastic import SaveBeforeResize
    except ImportError as error:
        raise FatalError(
            f"scaling.min_workers {min_workers} needs private modules of Ray Train that Ray {ray.__version__} does not "
            f"have ({error}); elastic runs were tried with Ray {RAY_TRIED}: install it (constraints.txt), or set "
            "scaling.min_workers to 0 for a fixed number of workers"
        ) from error
    return SaveBeforeResize(run)


def train_on_ray(experiment: Experiment, run: Run, report: ReportMetrics | None) -> Outcome:
    """Train an open run on Ray's workers and wait for its end; ``report`` gets the metrics of every evaluation."""
    scaling = experiment.scaling
    try:
        callbacks: list[Any] = [_save_before_resize(run, scaling.min_workers)] if scaling.elastic else []
    except FatalError as error:
        return Outcome(error=str(error))
    start_ray()
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # workers: it prints what is said to a redirected stdout
    beside_us = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    reports = Queue(actor_options={"num_cpus": 0, "label_selector": beside_us}) if report else None
    callbacks += [_Forward(reports)] if reports else []
    workers: Any = (scaling.min_workers, scaling.num_workers) if scaling.elastic else scaling.num_workers
    resources = {"CPU": scaling.cpus_per_worker} | ({"GPU": 1} if scaling.use_gpu else {})
    settings = to_dict(experiment, passwords=True)

    def work(shown: dict[str, Any]) -> Any:
        return _ray_worker(settings, run)

    trainer = TorchTrainer(
        work,
        train_loop_config=to_dict(experiment),  # only for Ray's dashboard: without passwords
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            elastic_resize_monitor_interval_s=scaling.grow_every,
            use_gpu=scaling.use_gpu,
            resources_per_worker=resources,
            label_selector=dict(TRAINING),  # type: ignore[call-arg]  # it is the newer kind
        ),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=run.folder,
            failure_config=ray.train.FailureConfig(max_failures=scaling.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=experiment.train.keep_checkpoints,
                checkpoint_score_attribute="AP" if experiment.data.eval else None,
            ),
            callbacks=callbacks,  # of the newer kind
        ),
    )
    # Ray Train's own SIGINT handler kills the workers; in a thread it installs none, and ours asks them to save first.
    outcome: list[Outcome] = []

    def wait() -> None:
        try:
            result: Any = trainer.fit()
            outcome.append(Outcome(**result.return_value))
        except ray.train.TrainingFailedError as error:
            outcome.append(Outcome(error=str(error)))

    thread = threading.Thread(target=wait, name="trainer", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.5)
        while reports and report and not reports.empty():
            report(reports.get())
    sweep()  # of workers on this machine that were killed
    return outcome[0] if outcome else Outcome(error="Ray Train ended without a result; see the lines above")


def _ray_worker(settings: dict[str, Any], run: Run) -> Any:
    """Train in one worker process; returns the fields of its :class:`Outcome`."""
    claim()
    collect_garbage_rarely()
    for name in ("ray", "ray.train", REPORT_LOGGER):
        logging.getLogger(name).setLevel(logging.WARNING)
    trust(settings["method"])  # the driver has imported it
    experiment = build_experiment(settings)
    torch.set_num_threads(experiment.scaling.threads_per_worker)
    rank = ray.train.get_context().get_world_rank()
    with (
        logs.log_to_folder(run.folder, f"rank{rank}", run=experiment.run.name, terminal=logging.INFO),
        RunLogger(run, experiment=experiment) if rank == 0 else nullcontext() as sink,
    ):
        worker = RayWorker(run, sink)
        log.debug("rank %d of %d begins on %s", rank, worker.world_size, worker.node)
        outcome = fit_or_report(experiment, worker, run, sink)
        log.debug("rank %d ends: %s", rank, outcome.error or "finished")
    return dataclasses.asdict(outcome)
