"""Training and evaluation: the same on a laptop, under torchrun and in a Ray worker.

Knows neither Ray nor MLflow: who runs it is a ``LocalWorker`` (or its Ray kind), what it leaves goes to the worker's
sink and to a checkpoint store. A run is a function of its experiment: randomness depends on (seed, step, micro-batch),
the data on the position, so a run that is killed and started again ends with the weights of one that was not.
"""

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from posefleet.data.loading.loader import Batches, training_batches
from posefleet.data.loading.shard_dataset import ShardDataset
from posefleet.data.shards.layout import read_manifest
from posefleet.data.transforms import EvalTransform, TrainTransform
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.inference.evaluate import evaluate, evaluation_set
from posefleet.platform.monitoring.monitor import TrainingMonitor, supervised
from posefleet.platform.runtime.activity import Phase
from posefleet.platform.runtime.progress import ProgressLine, losses_text
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.training.optim import learning_rate, set_learning_rate
from posefleet.platform.training.state import Saver, TrainingState, initial_state
from posefleet.platform.training.step import StepShare, train_step

log = logging.getLogger(__name__)


class Stopped(RuntimeError):
    """Someone asked the run to stop; its state is in a checkpoint."""


def fit(
    experiment: Experiment, worker: LocalWorker, store: CheckpointStore, *, provenance: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Train (or go on training) and return the metrics of the last evaluation.

    Raises:
        FatalError: The loss is not finite, or a checkpoint cannot be written; trying again would not help.
        Stopped: The worker was asked to stop; a checkpoint holds the state.
        DataError: The shards cannot be used.
        ValueError: There are more workers than the run was made for.
    """
    dataset = training_set(experiment)
    state = initial_state(experiment, worker, store)
    provenance = {**(provenance or {}), "data": read_manifest(experiment.data.train).fingerprint}
    save = Saver(state, experiment, worker, store, provenance)
    share = share_of(experiment, worker)
    training = Training(experiment, worker, share, state, worker.prepare(state.model), len(dataset), save)
    _log_targets(experiment, worker, dataset, state.model)
    with (
        training_batches(
            dataset,
            batch_size=experiment.data.batch_size,
            rank=worker.rank,
            world_size=worker.world_size,
            per_step=share.micro_batches,
            position=state.position,
            workers=experiment.data.loaders,
            pin_memory=worker.device.type == "cuda",
        ) as batches,
        ProgressLine(training.end, done=state.position, active=worker.rank == 0) as line,
        supervised(experiment, worker, training.network, state.optimizer, step=state.step) as supervision,
    ):
        while state.position < training.end or training.owes_evaluation:
            training.advance(training.next_evaluation, batches, line, supervision)
            if experiment.data.eval:
                with state.average.applied() if state.average else contextlib.nullcontext():
                    result = evaluate(state.model, experiment, worker, step=state.step)
                state.metrics = worker.broadcast(result.as_dict() if result else None)
                if result:
                    line.say(f"step {state.step}\n{result}")
                    log.debug("step %d: AP %.4f", state.step, state.metrics["AP"])
                    if worker.sink:
                        worker.sink.log_metrics(state.metrics, state.step)
            save()
            worker.report({**state.metrics, "step": state.step, "epoch": training.epoch})
    return state.metrics


def check_data(experiment: Experiment) -> None:
    """Open the shards that the experiment names, before any worker starts.

    Raises:
        DataError: They are missing, empty or of another schema.
    """
    training_set(experiment)
    if experiment.data.eval:
        evaluation_set(experiment, EvalTransform(experiment.data.resize, experiment.keypoints))


# ---------------------------------------------------------------------------------------------------- steps


@dataclass
class _Recent:
    """The steps since the host last looked at the losses."""

    losses: list[Tensor] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    image_ids: list[list[int]] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    """Seconds without data."""
    rate: float = 0.0
    """Learning rate of the last step."""
    norm: Tensor = field(default_factory=lambda: torch.zeros(()))
    """Of the last step's gradients."""

    def add(self, losses: Mapping[str, Tensor], image_ids: list[int]) -> None:
        self.names = list(losses)
        self.losses.append(torch.stack([losses[name].float() for name in self.names]))
        self.image_ids.append(image_ids)


@dataclass
class Training:
    """A run under way."""

    experiment: Experiment
    worker: LocalWorker
    share: StepShare
    state: TrainingState
    network: nn.Module
    """The model, as the worker wrapped it."""
    epoch_size: int
    """Samples of an epoch."""
    save: Callable[[], None]
    """Writes a checkpoint; all ranks call it."""

    @property
    def images_per_step(self) -> int:
        """Images of one optimiser step, over all workers."""
        return self.experiment.data.batch_size * self.share.micro_batches

    @property
    def epoch(self) -> float:
        """Where the run stands."""
        return self.state.position / self.epoch_size

    @property
    def end(self) -> int:
        """Samples of the whole run, in whole steps."""
        return self._whole_steps(self.experiment.train.epochs * self.epoch_size)

    @property
    def next_evaluation(self) -> int:
        """Samples seen when the next evaluation is due."""
        return self.state.position if self.owes_evaluation else min(self.end, self._boundary(1))

    @property
    def owes_evaluation(self) -> bool:
        """A run that was stopped where an evaluation was due, and saved before it, makes up for it."""
        due = self.state.position in (self._boundary(0), self.end)
        return bool(due and self.state.position and self.experiment.data.eval and not self.state.metrics)

    def _boundary(self, ahead: int) -> int:
        """Samples seen at the last evaluation that was due (0), or at the next one (1)."""
        every = self.experiment.train.eval_every * self.epoch_size
        return self._whole_steps((self.state.position // every + ahead) * every)

    def _whole_steps(self, samples: float) -> int:
        return -(-math.ceil(samples) // self.images_per_step) * self.images_per_step

    def advance(self, boundary: int, batches: Batches, line: ProgressLine, supervision: TrainingMonitor) -> None:
        """Optimiser steps until ``boundary`` samples are seen."""
        train, state, worker = self.experiment.train, self.state, self.worker
        self.network.train()
        state.metrics = {}
        recent = _Recent()
        while state.position < boundary:
            self._step(batches, recent)
            looks = state.step % train.log_every == 0 or state.position >= boundary
            saves = bool(train.checkpoint_every) and state.step % train.checkpoint_every == 0
            if looks or saves or (worker.world_size == 1 and worker.stop_requested()):
                stop, wanted = self._look(recent, line, supervision)
                recent = _Recent()
                if ((saves or wanted) and state.position < boundary) or stop:
                    self.save()
                if stop:
                    raise Stopped(f"stopped at step {state.step} on request")

    def _step(self, batches: Batches, recent: _Recent) -> None:
        experiment, state, worker = self.experiment, self.state, self.worker
        recent.rate = learning_rate(
            experiment.optim,
            step=state.step,
            epoch=self.epoch,
            epochs=experiment.train.epochs,
            images_per_step=self.images_per_step,
        )
        set_learning_rate(state.optimizer, recent.rate)
        before = time.perf_counter()
        worker.watch.enter(Phase.DATA)
        taken = list(itertools.islice(batches, len(self.share.mine)))
        recent.waited += time.perf_counter() - before
        worker.watch.enter(Phase.COMPUTE)
        losses, recent.norm = train_step(
            self.network,
            [batch.to(worker.device) for batch in taken],
            state.optimizer,
            share=self.share,
            seed=experiment.seed * 1_000_003 + state.step,
            clip_norm=experiment.optim.clip_norm,
            bfloat16=experiment.train.precision == "bfloat16",
        )
        if state.average:
            state.average.update(state.step)
        state.step += 1
        state.position += self.images_per_step
        worker.watch.step_ended(state.step, len(taken))
        recent.add(losses, [i for batch in taken for i in batch.image_ids.tolist()])

    def _look(self, recent: _Recent, line: ProgressLine, supervision: TrainingMonitor) -> tuple[bool, bool]:
        """Bring the recent losses to the host, check and log them.

        Returns:
            Whether any worker was asked to stop, and whether any wants a checkpoint.
        """
        state, worker, train = self.state, self.worker, self.experiment.train
        worker.watch.enter(Phase.LOOK)
        losses = torch.stack(recent.losses)  # (steps, names)
        asked = torch.tensor([worker.stop_requested(), worker.checkpoint_requested()], device=losses.device).float()
        flags = torch.cat([(~losses.isfinite()).any().float()[None], asked])
        pace = losses.new_tensor(supervision.pace())
        bad, stop, wanted, *told = worker.reduce(torch.cat([flags, losses.mean(0), pace])).tolist()
        means, ranks = told[: len(recent.names)], supervision.compare(told[len(recent.names) :])
        if bad:
            worker.agree(_describe_bad(losses.cpu(), recent, state.step, train.precision))
        seconds = time.perf_counter() - recent.started
        named = {f"loss/{name}": mean / worker.world_size for name, mean in zip(recent.names, means, strict=True)}
        total, speed = sum(named.values()), len(recent.losses) * self.images_per_step / seconds
        waits = recent.waited / seconds
        if worker.sink:
            extra = {"loss": total, "lr": recent.rate, "grad_norm": float(recent.norm), "images_per_second": speed}
            diagnostics: Mapping[str, Tensor] = getattr(state.model, "diagnostics", {})
            extra |= {f"diagnostics/{name}": float(value) for name, value in diagnostics.items()}
            worker.sink.log_metrics({**named, **extra, **ranks, "data_wait": waits, "epoch": self.epoch}, state.step)
        text = (
            f"epoch {self.epoch:.2f}/{train.epochs:g}  step {state.step}  {speed:.1f} images/s  "
            f"data {100 * waits:.0f}%  loss {total:.3f}  {losses_text(named)}"
        )
        line.update(state.position, text)
        if worker.rank == 0:
            log.debug(text)
        return bool(stop), bool(wanted)


def _describe_bad(losses: Tensor, recent: _Recent, step: int, precision: str) -> str | None:
    bad = (~losses.isfinite()).any(1).nonzero().flatten().tolist()
    if not bad:
        return None
    first = bad[0]
    values = {name: round(value, 4) for name, value in zip(recent.names, losses[first].tolist(), strict=True)}
    advice = "" if precision == "float32" else ", or try train.precision float32"
    return (
        f"loss is not finite at step {step - len(losses) + first + 1}: {values} on images {recent.image_ids[first]}. "
        f"Look at these images and their people, or lower optim.lr{advice}; the last checkpoint is from before."
    )


# ---------------------------------------------------------------------------------------------------- set-up


def training_set(experiment: Experiment) -> ShardDataset:
    """The shards that the experiment trains on, augmented as it says."""
    data, schema = experiment.data, experiment.keypoints
    return ShardDataset(
        data.train,
        schema,
        TrainTransform(data.resize, data.augment, schema),
        seed=experiment.seed,
        window=data.window,
        labelled_only=data.labelled_only,
    )


def share_of(experiment: Experiment, worker: LocalWorker) -> StepShare:
    """What the worker computes of every step.

    Raises:
        ValueError: There are more workers than the run was made for.
    """
    scaling = experiment.scaling
    crew = scaling.num_workers if scaling.elastic else worker.world_size
    return StepShare(worker.rank, worker.world_size, crew, experiment.train.accumulate)


def _log_targets(experiment: Experiment, worker: LocalWorker, dataset: ShardDataset, model: nn.Module) -> None:
    """Draw the first training images with their targets, so that wrong targets are seen before training ends."""
    if worker.sink is None or worker.rank or not hasattr(model, "target_points"):
        return
    from posefleet.platform.visualization.report import log_targets

    batch = dataset.batch(range(min(len(dataset), 8)))
    log_targets(worker.sink, batch, model.target_points(batch.images.shape[-2:], batch.people), dataset.schema)  # type: ignore[operator]
