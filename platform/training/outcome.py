"""Reports from the workers to the driver how a training ended."""

import dataclasses
from collections.abc import Callable

from posefleet.memory import keep_freed_memory
from posefleet.platform.checkpoints.format import CheckpointError
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.loading import to_yaml
from posefleet.platform.runtime.worker import FatalError, LocalWorker
from posefleet.platform.training.loop import Stopped, fit
from posefleet.platform.training.run import Run, RunLogger

ReportMetrics = Callable[[dict[str, float]], None]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    """Metrics of the last evaluation."""
    error: str = ""
    """Why the run did not reach its end; empty: it did."""
    stopped: bool = False
    """Whether the run was asked to stop."""


def fit_or_report(experiment: Experiment, worker: LocalWorker, run: Run, sink: RunLogger | None) -> Outcome:
    """Call ``fit`` and turn errors that every rank meets alike into an outcome: if raised, Ray would retry."""
    keep_freed_memory()
    store = run.store(experiment)
    outcome = Outcome()
    if sink:
        sink.log_bytes("experiment.yaml", to_yaml(experiment).encode())
    try:
        outcome = Outcome(metrics=fit(experiment, worker, store, provenance={"run_id": run.run_id}))
    except (FatalError, ValueError, CheckpointError, OSError) as error:
        again = isinstance(error, OSError) and worker.replaced_on_failure  # the storage may answer later
        if again or (worker.world_size > 1 and not isinstance(error, FatalError)):
            raise  # perhaps only this rank met it, and the others wait for it, so the group must end
        outcome = Outcome(error=str(error))
    except Stopped as stopped:
        outcome = Outcome(error=str(stopped), stopped=True)
    if sink and not outcome.error and (best := store.best() or store.latest()):
        sink.log_checkpoint(best)
    return outcome
