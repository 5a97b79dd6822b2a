"""The state of a training, and how a checkpoint saves and restores it."""

import contextlib
import logging
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from posefleet.models.parts.layers.published import check_published
from posefleet.platform.checkpoints.format import STATE, CheckpointError, Meta, read_meta, read_state
from posefleet.platform.checkpoints.load import build_model, load_weights
from posefleet.platform.checkpoints.saver import BackgroundSaver
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.checkpoints.transfer import same_keypoints, start_from
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.inference.execution import compile_network
from posefleet.platform.runtime.activity import Phase
from posefleet.platform.runtime.leftovers import keep_compiled
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.training.ema import AveragedWeights
from posefleet.platform.training.optim import Freezing, build_optimizer, build_scaler

log = logging.getLogger(__name__)


@dataclass
class TrainingState:
    """All that changes while a run trains: what a checkpoint must hold so that the run resumes exactly."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedWeights | None
    """None without ``train.ema_decay``."""
    step: int = 0
    """Optimiser steps taken."""
    position: int = 0
    """Samples seen by all workers."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Results of the evaluation at this very step; empty where there was none."""
    copied: tuple[str, ...] = ()
    """Parameters that came whole from ``run.init_from``; ``optim.copied_lr`` is theirs."""
    partial: tuple[str, ...] = ()
    """Parameters of which ``run.init_from`` had some channels, or none."""
    best: float = -math.inf
    """Highest AP so far."""
    stale: int = 0
    """Evaluations since the one with that AP."""
    scaler: GradScaler | None = None
    """Scales the loss in float16."""

    def step_taken(self, images: int) -> None:
        """Count an optimiser step over ``images`` images of all workers, and average the weights it led to."""
        if self.average:
            self.average.update(self.step)
        self.step += 1
        self.position += images
        self.metrics = {}

    def evaluated(self, metrics: dict[str, float]) -> None:
        """Take the results of an evaluation at this very step."""
        self.metrics = metrics
        better = metrics.get("AP", math.nan) > self.best  # an AP that is no number is not better
        self.best, self.stale = (metrics["AP"], 0) if better else (self.best, self.stale + 1)

    def averaged(self) -> AbstractContextManager[None]:
        """Within, the model has the averaged weights, if the run averages them."""
        return self.average.applied() if self.average else contextlib.nullcontext()

    def save(self, saver: BackgroundSaver, experiment: Experiment, provenance: Mapping[str, str]) -> None:
        """Begin to write a checkpoint; its weights are the ones that get evaluated (averaged, if any).

        Raises:
            CheckpointError: The checkpoint before could not be written.
        """
        with self.averaged():
            weights = saver.copy(self.model.state_dict(), "weights")
        state: dict[str, object] = {
            "optimizer": self.optimizer.state_dict(),
            "copied": list(self.copied),
            "partial": list(self.partial),
            "best": self.best,
            "stale": self.stale,
        }
        if self.scaler:
            state["scaler"] = self.scaler.state_dict()
        if self.average:
            averaged = self.average.average
            state["raw"] = {name: value for name, value in self.model.state_dict().items() if name in averaged}
        meta = Meta(
            experiment=experiment,
            step=self.step,
            position=self.position,
            metrics=dict(self.metrics),
            provenance=dict(provenance),
        )
        saver.save(meta, weights, saver.copy(state, "state"))

    def restore(self, path: str, experiment: Experiment, state: Mapping[str, Any]) -> None:
        """Load what :meth:`save` wrote to ``path``; ``state`` is the training state in it.

        Raises:
            CheckpointError: The checkpoint does not fit, or has no averaged weights although the experiment averages.
        """
        meta = read_meta(path)
        load_weights(self.model, path, method=experiment.method, schema=experiment.keypoints)
        try:
            self._restore_optimizer(state)
            if self.average:
                self._restore_average(self.average, state, path)
            if self.scaler and "scaler" in state:  # a run may go on in another precision
                self._restore_scaler(self.scaler, state["scaler"])
            best, stale = float(state.get("best", self.best)), int(state.get("stale", self.stale))
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise error if isinstance(error, CheckpointError) else _unfit_state(path, error) from None
        self.step, self.position, self.metrics = meta.step, meta.position, meta.metrics
        self.best, self.stale = best, stale

    def _restore_optimizer(self, state: Mapping[str, Any]) -> None:
        fused = [group["fused"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, value in zip(self.optimizer.param_groups, fused, strict=True):
            group["fused"] = value  # it belongs to the precision, which may have changed
        for parameter, values in self.optimizer.state.items():
            for name, value in values.items():
                if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                    text = f"{name} is {tuple(value.shape)} for a parameter of shape {tuple(parameter.shape)}"
                    raise ValueError(f"the optimiser's {text}")

    def _restore_scaler(self, scaler: GradScaler, saved: Mapping[str, Any]) -> None:
        scale, steps = float(saved["scale"]), int(saved["_growth_tracker"])
        if not (0 < scale < math.inf and steps >= 0):
            raise ValueError(f"the loss is scaled by {scale} since {steps} steps")
        scaler.load_state_dict({**scaler.state_dict(), "scale": scale, "_growth_tracker": steps})

    def _restore_average(self, average: AveragedWeights, state: Mapping[str, Any], path: str) -> None:
        parameters = dict(self.model.named_parameters())
        if set(state.get("raw", {})) != set(average.average):
            raise CheckpointError(f"{path} has no averaged weights for train.ema_decay; give the run another name")
        for name, raw in state["raw"].items():
            if raw.shape != parameters[name].shape:
                raise ValueError(f"{name} is {tuple(raw.shape)}, expected {tuple(parameters[name].shape)}")
            average.average[name].copy_(parameters[name].detach())
            parameters[name].data.copy_(raw)


def _unfit_state(path: str, error: Exception) -> CheckpointError:
    reason = (str(error).splitlines() or [""])[0][:200]
    return CheckpointError(f"{path}/{STATE} does not fit the configured training: {type(error).__name__}: {reason}")


def initial_state(experiment: Experiment, worker: LocalWorker, store: CheckpointStore) -> TrainingState:
    """The state of the run's last checkpoint, or a new model (with the weights of ``run.init_from``, if it is set).

    Raises:
        FatalError: Any rank cannot build the model; every rank raises.
        CheckpointError: The checkpoint does not fit the experiment.
    """
    train = experiment.train
    torch.manual_seed(experiment.seed)
    latest = worker.broadcast(store.latest() if worker.rank == 0 else None)
    start = latest or experiment.run.init_from
    problem = None
    try:
        if not start:
            check_published(experiment.model)
        model = build_model(experiment, pretrained=not start)
    except ValueError as error:  # such as weights that are not installed on this node; agree tells all ranks
        problem = str(error)
    worker.agree(problem)
    memory_format = torch.channels_last if train.channels_last else torch.contiguous_format
    model = model.to(worker.device, memory_format=memory_format)  # type: ignore[call-overload]
    if train.compile:
        keep_compiled()
        compile_network(model)
    stored: Mapping[str, Any] = read_state(latest) if latest else {}
    copied, partial = tuple(stored.get("copied", ())), tuple(stored.get("partial", ()))
    if start and not latest:
        transfer = start_from(model, start, experiment)
        copied, partial = transfer.copied, transfer.partial
        if worker.rank == 0 and transfer.rows:
            log.info("weights from %s, schema %s:\n%s", start, experiment.keypoints.name, transfer.table())
            worker.save_file("transfer.txt", transfer.table().encode())
    optimizer = build_optimizer(model, experiment.optim, copied, precision=train.precision)
    scaler = build_scaler(train.precision, worker.device)
    average = AveragedWeights(model, train.ema_decay) if train.ema_decay else None
    state = TrainingState(model, optimizer, average, copied=copied, partial=partial, scaler=scaler)
    if latest:
        state.restore(latest, experiment, stored)
    return state


def check_start(experiment: Experiment) -> None:
    """Check what a new run starts from and freezes, with names and shapes alone, before any worker starts.

    Raises:
        CheckpointError: ``run.init_from``, an existing checkpoint, does not fit.
        ValueError: ``train.freeze`` does not fit.
    """
    start, freeze = experiment.run.init_from, experiment.train.freeze
    other_schema = bool(start) and not same_keypoints(start, experiment)
    if not other_schema and not freeze:
        return
    with torch.device("meta"):
        model = build_model(experiment, pretrained=False)
    Freezing(model, freeze, new=start_from(model, start, experiment).partial if other_schema else ())


def save_checkpoint(
    state: TrainingState,
    experiment: Experiment,
    worker: LocalWorker,
    saver: BackgroundSaver,
    provenance: Mapping[str, str],
    *,
    wait: bool = False,
) -> None:
    """Begin to write a checkpoint on rank 0; all ranks call this.

    Args:
        wait: Until it is written. Otherwise the training goes on meanwhile, and an error is raised by the next call.

    Raises:
        FatalError: Rank 0 could not write this checkpoint, or the one before; every rank raises.
    """
    problem = None
    worker.watch.enter(Phase.CHECKPOINT)
    if worker.sink:
        worker.sink.store()  # a run that goes on from here does not log again what came before
    if worker.rank == 0:
        try:
            state.save(saver, experiment, provenance)
            if wait:
                saver.wait()
        except CheckpointError as error:
            problem = str(error)
    worker.agree(problem)
    if wait:
        worker.saved()
    worker.watch.beat()


def finish_saving(worker: LocalWorker, saver: BackgroundSaver) -> None:
    """Wait until the last checkpoint is written; all ranks call this.

    Raises:
        FatalError: Rank 0 could not write it; every rank raises.
    """
    problem = None
    worker.watch.enter(Phase.CHECKPOINT)
    try:
        saver.wait()
    except CheckpointError as error:
        problem = str(error)
    worker.agree(problem)
    worker.watch.beat()
