"""When a run evaluates, logs, saves and ends, computed from its settings alone."""

import math
from dataclasses import dataclass

from posefleet.platform.config.experiment import Experiment
from posefleet.platform.training.optim import learning_rate


@dataclass(frozen=True, slots=True)
class Schedule:
    """Turns positions (samples seen by all workers) and optimiser steps into what is due.

    Samples rather than steps decide about evaluations and the end, so a run keeps its schedule when it resumes with
    another number of workers.
    """

    experiment: Experiment
    epoch_size: int
    """Samples of an epoch."""
    images_per_step: int
    """Images of one optimiser step, over all workers."""

    @property
    def end(self) -> int:
        """Samples of the whole run, rounded up to whole steps."""
        return self._whole_steps(self.experiment.train.epochs * self.epoch_size)

    @property
    def thaw(self) -> int:
        """Samples after which the parts of ``train.freeze`` learn, in whole steps; 0: they are frozen to the end."""
        return self._whole_steps(self.experiment.train.freeze_epochs * self.epoch_size)

    def frozen(self, position: int) -> bool:
        """Whether the parts of ``train.freeze`` are frozen in the step that starts after ``position`` samples."""
        return bool(self.experiment.train.freeze) and (not self.thaw or position < self.thaw)

    def epoch(self, position: int) -> float:
        """Epochs that ``position`` samples are."""
        return position / self.epoch_size

    def learning_rate(self, step: int, position: int) -> float:
        """Learning rate of optimiser step ``step`` (from 0), which starts after ``position`` samples."""
        return learning_rate(
            self.experiment.optim,
            step=step,
            epoch=self.epoch(position),
            epochs=self.experiment.train.epochs,
            images_per_step=self.images_per_step,
        )

    def next_evaluation(self, position: int) -> int:
        """Samples after which the first evaluation later than ``position`` is due, at most :attr:`end`."""
        return min(self.end, self._evaluation_after(position))

    def next_thaw(self, position: int) -> int:
        """Samples after which the model has to be prepared anew because frozen parts thaw; :attr:`end` if never."""
        return self.thaw if self.thaw > position else self.end

    def evaluation_due(self, position: int) -> bool:
        """Whether an evaluation is due at exactly ``position`` samples."""
        return position > 0 and position in (self._evaluation_after(position - self.images_per_step), self.end)

    def log_due(self, step: int) -> bool:
        """Whether the losses are logged after optimiser step ``step`` (from 1)."""
        return step % self.experiment.train.log_every == 0

    def save_due(self, step: int) -> bool:
        """Whether a checkpoint is written after optimiser step ``step`` (from 1), besides the one of an evaluation."""
        every = self.experiment.train.checkpoint_every
        return bool(every) and step % every == 0

    def _evaluation_after(self, position: int) -> int:
        every = self.experiment.train.eval_every * self.epoch_size
        count = position // every + 1
        if self._whole_steps(count * every) <= position:  # the product was rounded down, and position // every with it
            count += 1
        return self._whole_steps(count * every)

    def _whole_steps(self, samples: float) -> int:
        return -(-math.ceil(samples) // self.images_per_step) * self.images_per_step
