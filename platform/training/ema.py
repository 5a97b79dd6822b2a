"""Averages the parameters over the steps (exponential moving average); the averages are evaluated and served."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class AveragedWeights:
    """Keeps ``average = decay * average + (1 - decay) * weight`` for every trained parameter.

    Early in a run the decay is min(decay, (1 + steps) / (10 + steps)), so that the average does not stay near
    the random start. Buffers and frozen parameters are not averaged; the model's own are used.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after optimiser step ``step`` (from 0) to the average."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.values()), list(self._parameters.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averaged weights into the model while the context lasts."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.data, self.average[name] = self.average[name], parameter.data
