"""How a training ended, as the workers tell the driver."""

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
    """Of its last evaluation."""
    error: str = ""
    """Why it did not reach its end."""
    stopped: bool = False
    """It was asked to stop."""


def fit_or_report(experiment: Experiment, worker: LocalWorker, run: Run, sink: RunLogger | None) -> Outcome:
    """``fit`` with the errors that every rank sees alike turned into an outcome: Ray would only try again."""
    keep_freed_memory()
    store = run.store(experiment)
    outcome = Outcome()
    if sink:
        sink.log_bytes("experiment.yaml", to_yaml(experiment).encode())
    try:
        outcome = Outcome(metrics=fit(experiment, worker, store, provenance={"run_id": run.run_id}))
    except (FatalError, ValueError, CheckpointError, OSError) as error:
        again = isinstance(error, OSError) and worker.replaced_on_failure  # a storage may answer later
        if again or (worker.world_size > 1 and not isinstance(error, FatalError)):
            raise  # one rank alone may have met it: the others wait for this one, so the group must end
        outcome = Outcome(error=str(error))
    except Stopped as stopped:
        outcome = Outcome(error=str(stopped), stopped=True)
    if sink and not outcome.error and (best := store.best() or store.latest()):
        sink.log_checkpoint(best)
    return outcome
