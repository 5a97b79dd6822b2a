"""Starts a training from the driver: in this process or on Ray, with its signals, run and outcome."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from posefleet.command_line import report_error
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.monitoring.interruptions import Losses, read_interruptions
from posefleet.platform.runtime import logs
from posefleet.platform.runtime.errors import PlatformError
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.tracking.client import pages
from posefleet.platform.training.loop import check_data
from posefleet.platform.training.outcome import Outcome, ReportMetrics, fit_or_report
from posefleet.platform.training.ray_trainer import train_on_ray
from posefleet.platform.training.run import Run, RunLogger, open_run

log = logging.getLogger(__name__)


class InterruptibleWorker(LocalWorker):
    """The worker of a run in this process; a signal asks it to stop."""

    def __init__(self, stop: threading.Event, sink: RunLogger, report: ReportMetrics, *, folder: str) -> None:
        super().__init__(sink=sink, folder=folder)
        self._stop = stop
        self._report = report

    def stop_requested(self) -> bool:
        """Whether a signal asked this process to stop."""
        return self._stop.is_set()

    def report(self, metrics: Mapping[str, float], checkpoint: str) -> None:
        """Pass the metrics to the caller of :func:`run_training`."""
        self._report(dict(metrics))


def train(experiment: Experiment) -> int:
    """Train to the end, print where the results are, and return the exit status of the job.

    Returns:
        0 when finished, 1 on failure, 130 when stopped by a signal (the same command resumes the run).
    """
    try:
        check_data(experiment)
        experiment, run = open_run(experiment)
    except (ValueError, OSError, PlatformError) as error:
        report_error(error)
        return 1
    sys.stderr.write(f"run {experiment.run.name}: {run.folder}\n")
    outcome = run_training(experiment, run)
    _print_outcome(experiment, run, outcome)
    return 130 if outcome.stopped else 1 if outcome.error else 0


def run_training(
    experiment: Experiment,
    run: Run,
    *,
    report: ReportMetrics | None = None,
) -> Outcome:
    """Train an open run to its end, close it, and release its lock.

    Args:
        experiment: With absolute paths, as ``open_run`` returns it.
        run: The open run.
        report: Called in this thread with the metrics of every evaluation; a SystemExit from it ends the training and
            leaves the run open.
    """
    try:
        outcome = _train_open(experiment, run, report)
        if not run.taken_over():  # otherwise the run goes on elsewhere
            run.finish("KILLED" if outcome.stopped else "FAILED" if outcome.error else "FINISHED")
        return outcome
    finally:
        run.release()


def _train_open(experiment: Experiment, run: Run, report: ReportMetrics | None) -> Outcome:
    """Train an open run; an error closes it."""
    process = "driver" if experiment.scaling.num_workers else "rank0"
    try:
        with (
            logs.log_to_folder(run.folder, process, run=experiment.run.name, terminal=logging.INFO),
            _signals(run) as stop,
        ):
            log.debug("begins in process %d: %s", os.getpid(), run.folder)
            if experiment.scaling.num_workers:
                outcome = train_on_ray(experiment, run, report)
            else:
                with RunLogger(run, experiment=experiment) as sink:
                    worker = InterruptibleWorker(stop, sink, report or (lambda metrics: None), folder=run.folder)
                    outcome = fit_or_report(experiment, worker, run, sink)
            log.debug("ends: %s", outcome.error or "finished")
        return outcome
    except SystemExit:
        run.request("stop")  # workers may run on for a moment after this process has ended
        raise
    except BaseException:
        if not run.taken_over():
            run.finish("FAILED")
        raise


@contextmanager
def _signals(run: Run) -> Iterator[threading.Event]:
    """Within, the first SIGINT or SIGTERM asks the workers to save and end; the second ends this process at once."""
    stop = threading.Event()

    def ask(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        run.request("stop")
        os.write(2, b"stopping: the workers write a checkpoint first; again to end at once\n")

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before: dict[int, Callable[..., Any] | int | None] = {
        n: signal.signal(n, ask) for n in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_outcome(experiment: Experiment, run: Run, outcome: Outcome) -> None:
    again = "; the same command goes on from there" if outcome.stopped else ""
    if outcome.error:
        sys.stderr.write(f"{'' if outcome.stopped else 'error: '}{outcome.error}{again}\n")
    store, best, what = run.store(experiment), None, ""
    with suppress(OSError):  # the storage may be what failed
        if (best := store.best()) and outcome.stopped:
            what = ", the best so far"
        best = best or store.latest()
    lines = [f"AP {outcome.metrics['AP']:.3f}"] if "AP" in outcome.metrics else []
    lines += [f"checkpoint  {best}{what}"] if best else []
    lost = Losses.of(read_interruptions(run.folder))
    lines += [f"interrupted {lost}"] if lost.count else []
    lines += [f"images      {run.folder}/report", f"tracking    {pages(run.tracking_uri)}"]
    sys.stderr.write("\n".join(lines) + "\n")
