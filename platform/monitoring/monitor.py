"""What is around training: the watchdog, the comparison of ranks, the profile. None of it changes a weight."""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from posefleet.models.parts.ops import losses
from posefleet.platform.config.experiment import Experiment, Profile
from posefleet.platform.monitoring.profiler import profiled
from posefleet.platform.monitoring.stragglers import StragglerDetector
from posefleet.platform.monitoring.watchdog import Watchdog
from posefleet.platform.runtime.activity import StepTimer
from posefleet.platform.runtime.worker import LocalWorker

log = logging.getLogger(__name__)


class TrainingMonitor:
    """Of one rank; its ranks' paces travel with the losses, in the one reduction of a look."""

    def __init__(self, worker: LocalWorker, nodes: Sequence[str]) -> None:
        self._worker = worker
        self._ranks = StragglerDetector(nodes)

    def pace(self) -> list[float]:
        """(2 * ranks) own and data seconds of every rank; this rank's are filled in, so a sum over ranks has all."""
        worker = self._worker
        if worker.watch.stopwatch is None:
            return []
        row = [0.0] * (2 * worker.world_size)
        row[2 * worker.rank : 2 * worker.rank + 2] = own, data = worker.watch.stopwatch.take()
        log.debug("step %d: %.4f s of own work for a batch, %.4f s of it for data", worker.watch.step, own, data)
        return row

    def compare(self, paces: Sequence[float]) -> Mapping[str, float]:
        """Metrics of what :meth:`pace` summed up to; a slow rank is told on rank 0."""
        metrics, line = self._ranks.compare(paces[::2], paces[1::2])
        if line and self._worker.rank == 0:
            log.warning(line)
        return metrics


@contextlib.contextmanager
def supervised(
    experiment: Experiment, worker: LocalWorker, network: nn.Module, optimizer: torch.optim.Optimizer, *, step: int
) -> Iterator[TrainingMonitor]:
    """Within, ``worker`` trains; all ranks enter.

    Args:
        network: As the worker wrapped it.
        step: That the run stands at.
    """
    watch, train = worker.watch, experiment.train
    watch.step = step
    watch.beat()
    watch.beats = 0
    nodes = worker.broadcast(worker.gather(worker.node)) if worker.world_size > 1 else [worker.node]
    with contextlib.ExitStack() as stack:
        if worker.world_size > 1:
            watch.stopwatch = StepTimer(worker.device)
            stack.enter_context(watch.attached(network, optimizer))
            if not train.compile:  # a compiled network would break in two here
                stack.enter_context(losses.around_reductions(watch.waiting))
        if train.stall_s:
            dog = Watchdog(
                watch,
                stall_s=train.stall_s,
                end_s=train.stall_end_s,
                rank=worker.rank,
                world_size=worker.world_size,
                node=worker.node,
                folder=worker.folder,
            )
            stack.enter_context(dog.watching())
        profile = Profile.parse(experiment.run.profile) if experiment.run.profile else None
        stack.enter_context(profiled(profile, worker))
        try:
            yield TrainingMonitor(worker, nodes)
        finally:
            watch.stopwatch = None
