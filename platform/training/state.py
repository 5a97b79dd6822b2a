"""What changes while a run trains, and how it is kept and found again."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from posefleet.platform.checkpoints.format import CheckpointError, Meta, read_meta, read_state
from posefleet.platform.checkpoints.load import build_model, load_weights
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.runtime.activity import Phase
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.training.ema import AveragedWeights
from posefleet.platform.training.optim import build_optimizer


@dataclass
class TrainingState:
    """All that changes while training, and nothing else."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedWeights | None
    step: int = 0
    """Optimiser steps taken."""
    position: int = 0
    """Samples seen by all workers."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of an evaluation at this very step; empty otherwise."""

    def save(self, store: CheckpointStore, experiment: Experiment, provenance: Mapping[str, str]) -> str:
        """Write a checkpoint whose weights are those that were evaluated."""
        state: dict[str, object] = {"optimizer": self.optimizer.state_dict()}
        with self.average.applied() if self.average else contextlib.nullcontext():
            weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        if self.average:
            trained = {name for name, p in self.model.named_parameters() if p.requires_grad}
            state["raw"] = {name: value for name, value in self.model.state_dict().items() if name in trained}
        meta = Meta(
            experiment=experiment,
            step=self.step,
            position=self.position,
            metrics=self.metrics,
            provenance=dict(provenance),
        )
        return store.save(meta, weights, state)

    def restore(self, path: str, experiment: Experiment) -> None:
        """Go back to the state that ``save`` wrote."""
        meta, state = read_meta(path), read_state(path)
        load_weights(self.model, path, method=experiment.method, schema=experiment.schema)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            parameters = dict(self.model.named_parameters())
            if set(state.get("raw", {})) != set(self.average.average):
                raise CheckpointError(f"{path} has no averaged weights for train.ema_decay; give the run another name")
            for name, raw in state["raw"].items():
                self.average.average[name].copy_(parameters[name].detach())
                parameters[name].data.copy_(raw)
        self.step, self.position, self.metrics = meta.step, meta.position, meta.metrics


def initial_state(experiment: Experiment, worker: LocalWorker, store: CheckpointStore) -> TrainingState:
    """A fresh model, or where the run stood."""
    train = experiment.train
    torch.manual_seed(experiment.seed)
    latest = worker.broadcast(store.latest() if worker.rank == 0 else None)
    start = latest or experiment.run.init_from
    problem = None
    try:
        model = build_model(experiment, pretrained=not start)
    except ValueError as error:  # such as weights that are not installed there; other ranks wait for this one
        problem = str(error)
    worker.agree(problem)
    memory_format = torch.channels_last if train.channels_last else torch.contiguous_format
    model = model.to(worker.device, memory_format=memory_format)  # type: ignore[call-overload]
    if train.compile:
        model.compile()
    optimizer = build_optimizer(model, experiment.optim)
    if start and not latest:
        load_weights(model, start, method=experiment.method, schema=experiment.schema)
    state = TrainingState(model, optimizer, AveragedWeights(model, train.ema_decay) if train.ema_decay else None)
    if latest:
        state.restore(latest, experiment)
    return state


class Saver:
    """Rank 0 writes, all ranks learn whether it went well."""

    def __init__(
        self,
        state: TrainingState,
        experiment: Experiment,
        worker: LocalWorker,
        store: CheckpointStore,
        provenance: Mapping[str, str],
    ) -> None:
        self._state, self._experiment, self._worker = state, experiment, worker
        self._store, self._provenance = store, provenance

    def __call__(self) -> None:
        problem = None
        self._worker.watch.enter(Phase.CHECKPOINT)
        if self._worker.sink:
            self._worker.sink.store()  # a run that goes on from here does not log again what came before
        if self._worker.rank == 0:
            try:
                self._state.save(self._store, self._experiment, self._provenance)
            except CheckpointError as error:
                problem = str(error)
        self._worker.agree(problem)
        self._worker.saved()
        self._worker.watch.beat()
