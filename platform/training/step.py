"""One optimiser step, however many workers share it.

A step of a run is always the same micro-batches: one for each worker that the run was made for, times
``train.accumulate``. With fewer workers, each computes more of them (:class:`StepShare`), and the result
of the step is the same up to the order of its sums:

* Losses are weighted so that the average over workers, which DDP takes, is the mean over all micro-batches.
* A loss is divided by counts (positives, say) over the micro-batches that all planned workers would compute
  at the same time. Fewer workers get these counts from a pass without gradients, before the pass with them.
* The random numbers of a micro-batch depend on its index, not on the worker that computes it.
* Running statistics (BatchNorm's) advance once a step, by the mean over all micro-batches; counters advance by one.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import clip_grad_norm_

from posefleet.data.structures import Batch
from posefleet.models.parts.ops.losses import counts_from, sum_over_ranks
from posefleet.platform.config.experiment import Precision
from posefleet.platform.inference.execution import autocast

Losses = dict[str, Tensor]

MOST_MICRO_BATCHES = 4_099
"""A step has fewer micro-batches; more would share random numbers with the next step."""


@dataclass(frozen=True, slots=True)
class StepShare:
    """The micro-batches of every step that one worker computes."""

    rank: int = 0
    workers: int = 1
    """Workers that are running."""
    planned_workers: int = 1
    """Workers that the run was made for, at least as many as are running."""
    accumulate: int = 1
    """Micro-batches of each worker when all planned workers are running."""

    def __post_init__(self) -> None:
        if not self.rank < self.workers <= self.planned_workers or self.micro_batches >= MOST_MICRO_BATCHES:
            raise ValueError(
                f"rank {self.rank} of {self.workers} workers cannot train a run that was made for "
                f"{self.planned_workers} workers with train.accumulate {self.accumulate}: start at most that many, "
                f"and fewer than {MOST_MICRO_BATCHES} micro-batches a step"
            )

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step, over all workers."""
        return self.planned_workers * self.accumulate

    @property
    def mine(self) -> range:
        """Indices of the micro-batches that this worker computes."""
        return range(self.rank, self.micro_batches, self.workers)

    @property
    def divisor(self) -> float:
        """Divides every loss: their average over workers is then the mean over all micro-batches."""
        return self.micro_batches / self.workers


def train_step(
    network: nn.Module,
    batches: list[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    share: StepShare | None = None,
    seed: int | None = None,
    clip_norm: float = 0.0,
    precision: Precision = "float32",
    scaler: GradScaler | None = None,
) -> tuple[Losses, Tensor]:
    """One optimiser step over the micro-batches of all workers; nothing here waits for the device.

    Args:
        batches: This worker's micro-batches.
        share: Which of the step's micro-batches these are; default: all of them.
        seed: Seed of the step; None: the global random state is used as it is.
        clip_norm: Norm that gradients are clipped to. 0: they are not.
        precision: Of the network.
        scaler: Scales the loss, and skips the step where a gradient is not finite.

    Returns:
        The named losses, whose average over workers is the step's, and the norm of all gradients before clipping (0
        where nothing is clipped).
    """
    share = share or StepShare(accumulate=len(batches))
    part = list(zip(share.mine, batches, strict=True))
    statistics = _Statistics(network) if share.micro_batches > 1 else None

    def forward(network: nn.Module, index: int, batch: Batch) -> Losses:
        if seed is not None:
            torch.manual_seed(seed * MOST_MICRO_BATCHES + index)
        with autocast(batch.images.device, precision):
            losses: Losses = network(batch.images, batch.people)
        return losses

    counts = None
    if share.workers < share.planned_workers:
        counts = _count(functools.partial(forward, _bare(network)), part, share, statistics)

    optimizer.zero_grad(set_to_none=True)
    sums: Losses = {}
    for index, batch in part:
        with contextlib.ExitStack() as stack:
            if index != share.mine[-1] and hasattr(network, "no_sync"):
                stack.enter_context(network.no_sync())  # type: ignore[operator]
            if counts is not None:
                stack.enter_context(counts_from(_reader(counts[index // share.planned_workers], share.planned_workers)))
            losses = forward(network, index, batch)
            loss = torch.stack(list(losses.values())).sum() / share.divisor
            (scaler.scale(loss) if scaler else loss).backward()
        for name, term in losses.items():
            sums[name] = sums.get(name, 0) + term.detach() / share.divisor
        if statistics:
            statistics.accumulate()
    if statistics:
        statistics.advance(share)
    if scaler:
        scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = clip_grad_norm_(parameters, clip_norm) if clip_norm else torch.zeros(())
    if scaler:
        scaler.step(optimizer)  # a fused optimiser skips on the device; others would make the host wait
        scaler.update()
    else:
        optimizer.step()
    return sums, norm


# ---------------------------------------------------------------------------------------------------- counts


def _count(
    forward: Callable[[int, Batch], Losses],
    part: list[tuple[int, Batch]],
    share: StepShare,
    statistics: "_Statistics | None",
) -> Tensor:
    """(accumulate, n) counters of the losses, a row for what all planned workers compute at a time."""
    rows: dict[int, Tensor] = {}
    for index, batch in part:
        found: list[Tensor] = []

        def note(counts: Tensor, found: list[Tensor] = found) -> tuple[Tensor, int]:
            found.append(counts)
            return counts, 1

        with torch.no_grad(), counts_from(note):
            forward(index, batch)
        if statistics:
            statistics.restore()
        rows[index] = torch.cat(found)
    first = rows[share.mine[0]]
    table = first.new_zeros(share.accumulate, len(first))
    for index, row in rows.items():
        table[index // share.planned_workers] += row
    if share.workers > 1:
        sum_over_ranks(table)
    return table


def _reader(row: Tensor, parts: int) -> Callable[[Tensor], tuple[Tensor, int]]:
    """A function that returns the counters of ``row``, sums over ``parts``, in the order of counting."""
    start = 0

    def read(counts: Tensor) -> tuple[Tensor, int]:
        nonlocal start
        start += len(counts)
        return row[start - len(counts) : start], parts

    return read


# ---------------------------------------------------------------------------------------------------- statistics


class _Statistics:
    """Running statistics and counters of a model during one step; every micro-batch starts from the same values."""

    def __init__(self, network: nn.Module) -> None:
        self._moving = list(_moving(network))
        self._counters = [buffer for buffer in network.buffers() if not buffer.is_floating_point()]
        self._before = [buffer.clone() for buffer in self._buffers]
        self._sums = [torch.zeros_like(buffer) for buffer in self._moving]
        self._counted = self._counters

    @property
    def _buffers(self) -> list[Tensor]:
        return [*self._moving, *self._counters]

    def accumulate(self) -> None:
        """Add up the statistics after a micro-batch's backward pass, and restore those from before the step."""
        for total, buffer in zip(self._sums, self._moving, strict=True):
            total += buffer
        self._counted = [buffer.clone() for buffer in self._counters]
        self.restore()

    def restore(self) -> None:
        """Restore the statistics from before the step."""
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(before)

    def advance(self, share: StepShare) -> None:
        """Put the means over all micro-batches of the step into the model; all workers call it."""
        if self._sums:
            flat = torch.cat([total.flatten() for total in self._sums])
            if share.workers > 1:
                sum_over_ranks(flat)
            means = (flat / share.micro_batches).split([buffer.numel() for buffer in self._moving])
            for buffer, mean in zip(self._moving, means, strict=True):
                buffer.copy_(mean.view_as(buffer))
        for buffer, counted in zip(self._counters, self._counted, strict=True):
            buffer.copy_(counted)


def _moving(network: nn.Module) -> Iterator[Tensor]:
    """Running means and variances of the BatchNorm layers in training mode."""
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module.training and module.running_mean is not None:
            assert module.running_var is not None
            yield module.running_mean
            yield module.running_var


def _bare(network: nn.Module) -> nn.Module:
    """The network without DDP's wrapper."""
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
