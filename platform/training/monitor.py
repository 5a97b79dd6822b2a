"""Observes one rank while it trains: losses, speed, stragglers, watchdog, profile. None of it changes a weight."""

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from posefleet.data.evaluation.evaluate import Evaluation
from posefleet.data.structures import Batch
from posefleet.models.parts.ops.losses import around_reductions
from posefleet.platform.config.experiment import Experiment, Profile
from posefleet.platform.monitoring.interruptions import Interruption
from posefleet.platform.monitoring.profiler import profiled
from posefleet.platform.monitoring.stragglers import StragglerDetector
from posefleet.platform.monitoring.watchdog import Watchdog
from posefleet.platform.runtime.activity import Phase, StepTimer
from posefleet.platform.runtime.progress import ProgressLine, losses_text
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.training.schedule import Schedule
from posefleet.platform.training.state import TrainingState

log = logging.getLogger(__name__)

LEAST_SCALE = 2.0**-10
"""What the loss is scaled by in float16 after 26 steps in a row without finite gradients."""


class TrainingMonitor:
    """Keeps the losses of every step on the device until :meth:`read_losses` checks and logs them on the host.

    Only :meth:`read_losses` waits for the device and for other ranks.
    """

    def __init__(
        self,
        experiment: Experiment,
        worker: LocalWorker,
        state: TrainingState,
        schedule: Schedule,
        line: ProgressLine,
        nodes: Sequence[str],
    ) -> None:
        self._train, self._worker, self._state, self._schedule = experiment.train, worker, state, schedule
        self._line, self._stragglers = line, StragglerDetector(nodes)
        self.restart()

    def restart(self) -> None:
        """Forget the steps so far and start the clock; time before this call does not count as training time."""
        self._losses: list[Tensor] = []
        self._names: list[str] = []
        self._image_ids: list[list[int]] = []
        self._rate, self._norm = 0.0, torch.zeros(())
        self._started, self._waited = time.perf_counter(), 0.0

    def next_batches(self, batches: Iterator[Batch], count: int) -> list[Batch]:
        """The next ``count`` micro-batches, on the worker's device; the wait for them is logged as ``data_wait``."""
        before = time.perf_counter()
        self._worker.watch.enter(Phase.DATA)
        taken = list(itertools.islice(batches, count))
        self._waited += time.perf_counter() - before
        self._worker.watch.enter(Phase.COMPUTE)
        return [batch.to(self._worker.device) for batch in taken]

    def add_step(self, losses: Mapping[str, Tensor], norm: Tensor, rate: float, taken: Sequence[Batch]) -> None:
        """Record a step that the state already counts.

        Args:
            losses: This rank's, on the device; their average over ranks is the step's.
            norm: Of all gradients before clipping, on the device.
            rate: Learning rate of the step.
            taken: This rank's micro-batches.
        """
        self._worker.watch.step_ended(self._state.step, len(taken))
        self._names = list(losses)
        self._losses.append(torch.stack([losses[name].float() for name in self._names]))
        self._image_ids.append([i for batch in taken for i in batch.image_ids.tolist()])
        self._rate, self._norm = rate, norm

    def read_losses(self, *, save_wanted: bool = False) -> tuple[bool, bool]:
        """Bring the losses since the last call to the host, check and log them; all ranks call this.

        One reduction over ranks carries the losses, the requests of every rank and their paces.

        Args:
            save_wanted: Whether this rank asks for a checkpoint, although the worker was not asked for one.

        Returns:
            Whether any rank was asked to stop, and whether any rank was asked for a checkpoint.

        Raises:
            FatalError: A loss of any rank is not finite, or gradients are not, whatever the loss is scaled by.
        """
        worker, steps = self._worker, len(self._losses)
        worker.watch.enter(Phase.READ_LOSSES)
        losses = torch.stack(self._losses)  # (steps, names)
        requests = losses.new_tensor([worker.stop_requested(), worker.checkpoint_requested() or save_wanted])
        not_finite = (~losses.isfinite()).any().float()[None]
        paces = losses.new_tensor(self._paces())
        sums = worker.reduce(torch.cat([not_finite, requests, losses.mean(0), paces])).tolist()
        bad, stop, save, *sums = sums
        if bad:
            worker.agree(self._describe_bad(losses.cpu()))
        if (scale := self._loss_scale()) < LEAST_SCALE:
            worker.agree(
                f"gradients are not finite in float16 up to step {self._state.step}, though the loss is scaled by "
                f"only {scale:g}. Lower optim.lr, or try train.precision bfloat16 or float32."
            )
        means = [value / worker.world_size for value in sums[: len(self._names)]]
        named = {f"loss/{name}": mean for name, mean in zip(self._names, means, strict=True)}
        self._log(named, self._compare_ranks(sums[len(self._names) :]), steps, time.perf_counter() - self._started)
        self.restart()
        return bool(stop), bool(save)

    def _loss_scale(self) -> float:
        return float(self._state.scaler.get_scale()) if self._state.scaler else 1.0

    def log_evaluation(self, result: Evaluation) -> None:
        """Log the evaluation that the state's metrics are of, before the end in one line; called on rank 0."""
        state = self._state
        self._line.say(
            f"step {state.step}  {result.brief}"
            if state.position < self._schedule.end
            else f"step {state.step}\n{result}"
        )
        log.debug("step %d: AP %.4f", state.step, state.metrics["AP"])
        if self._worker.sink:
            self._worker.sink.log_metrics(state.metrics, state.step)

    def _log(self, losses: Mapping[str, float], ranks: Mapping[str, float], steps: int, seconds: float) -> None:
        """Log mean losses and speed of ``steps`` steps that took ``seconds``."""
        state, total = self._state, sum(losses.values())
        epoch = self._schedule.epoch(state.position)
        speed, data_wait = steps * self._schedule.images_per_step / seconds, self._waited / seconds
        if self._worker.sink:
            extra = {"loss": total, "lr": self._rate, "images_per_second": speed}
            norm = float(self._norm)
            extra |= {"grad_norm": norm} if math.isfinite(norm) else {}  # in float16 a step may be skipped
            extra |= {"loss_scale": self._loss_scale()} if state.scaler else {}
            diagnostics: Mapping[str, Tensor] = getattr(state.model, "diagnostics", {})
            extra |= {f"diagnostics/{name}": float(value) for name, value in diagnostics.items()}
            self._worker.sink.log_metrics(
                {**losses, **extra, **ranks, "data_wait": data_wait, "epoch": epoch}, state.step
            )
        text = (
            f"epoch {epoch:.2f}/{self._train.epochs:g}  step {state.step}  {speed:.1f} images/s  "
            f"data {100 * data_wait:.0f}%  loss {total:.3f}  {losses_text(losses)}"
        )
        self._line.update(state.position, text)
        if self._worker.rank == 0:
            log.debug(text)

    def _describe_bad(self, losses: Tensor) -> str | None:
        """Error message about this rank's first loss that is not finite; None where all are.

        Args:
            losses: (steps, names) on the host.
        """
        bad = (~losses.isfinite()).any(1).nonzero().flatten().tolist()
        if not bad:
            return None
        first = bad[0]
        values = {name: round(value, 4) for name, value in zip(self._names, losses[first].tolist(), strict=True)}
        advice = "" if self._train.precision == "float32" else ", or try train.precision float32"
        return (
            f"loss is not finite at step {self._state.step - len(losses) + first + 1}: {values} on images "
            f"{self._image_ids[first]}. Look at these images and their people, or lower optim.lr{advice}; "
            "the last checkpoint is from before."
        )

    def _paces(self) -> list[float]:
        """(2 * ranks) own and data seconds of every rank; this rank fills in its own, so a sum over ranks has all."""
        worker = self._worker
        if worker.watch.stopwatch is None:
            return []
        row = [0.0] * (2 * worker.world_size)
        row[2 * worker.rank : 2 * worker.rank + 2] = own, data = worker.watch.stopwatch.take()
        log.debug("step %d: %.4f s of own work for a batch, %.4f s of it for data", worker.watch.step, own, data)
        return row

    def _compare_ranks(self, paces: Sequence[float]) -> Mapping[str, float]:
        """Metrics of what :meth:`_paces` summed up to; rank 0 warns about a slow rank."""
        metrics, line = self._stragglers.compare(paces[::2], paces[1::2])
        if line and self._worker.rank == 0:
            log.warning(line)
        return metrics


def log_interruption(worker: LocalWorker, interruption: Interruption | None) -> None:
    """Log what an interruption cost, as metrics over the number of the interruption."""
    if interruption is None:
        return
    log.info(
        "interruption %d: %d steps are done again from step %d, %.1f device seconds lost",
        interruption.number,
        interruption.steps_again,
        interruption.resumed_from,
        interruption.device_seconds,
    )
    if worker.sink:
        values = {"steps_again": interruption.steps_again, "device_seconds": interruption.device_seconds}
        named = {f"interruptions/{name}": value for name, value in values.items()}
        worker.sink.log_metrics(named, interruption.number)


@contextlib.contextmanager
def monitored(
    experiment: Experiment, worker: LocalWorker, network: nn.Module, state: TrainingState, schedule: Schedule
) -> Iterator[TrainingMonitor]:
    """Within, the training of ``worker`` is observed; all ranks enter.

    Args:
        network: The model as the worker wrapped it.
    """
    watch, train = worker.watch, experiment.train
    watch.step = state.step
    watch.beat()
    watch.beats = 0
    nodes = worker.broadcast(worker.gather(worker.node)) if worker.world_size > 1 else [worker.node]
    with contextlib.ExitStack() as stack:
        line = stack.enter_context(ProgressLine(schedule.end, done=state.position, active=worker.rank == 0))
        if worker.world_size > 1:
            watch.stopwatch = StepTimer(worker.device)
            stack.enter_context(watch.attached(network, state.optimizer))
            if not train.compile:  # a compiled network would break in two here
                stack.enter_context(around_reductions(watch.waiting))
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
            yield TrainingMonitor(experiment, worker, state, schedule, line, nodes)
        finally:
            watch.stopwatch = None
