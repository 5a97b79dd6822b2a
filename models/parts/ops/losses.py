"""Losses from logits or offsets, in float32. Every loss returns a SUM, which the method divides by a global count.

The count is averaged over ranks (:func:`mean_counts`). DDP averages gradients, so n ranks then get the gradients of one
process with the whole batch. If fewer ranks compute that batch in several parts, one after the other, another source
supplies the counts (:func:`counts_from`).
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

CountSource = Callable[[Tensor], tuple[Tensor, int]]
"""A function from the counts of one part of a batch to their sums over all parts, and the number of parts."""

_source: CountSource | None = None
_around: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext


@contextlib.contextmanager
def counts_from(source: CountSource) -> Iterator[None]:
    """Inside this context :func:`mean_counts` gets its sums from ``source`` instead of the other ranks."""
    global _source
    # A source stores the counts that it is called with, which must not be traced.
    before, _source = _source, torch.compiler.disable(source)
    try:
        yield
    finally:
        _source = before


@contextlib.contextmanager
def around_reductions(context: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Inside this context every reduction over ranks runs within ``context()``, for example a timer."""
    global _around
    before, _around = _around, context
    try:
        yield
    finally:
        _around = before


def sum_over_ranks(values: Tensor) -> None:
    """Replace ``values`` by their sums over all ranks, in place."""
    with _around():
        dist.all_reduce(values)


def mean_counts(counts: Tensor, minimum: Tensor | float = 1.0) -> Tensor:
    """Average counts over all ranks, with one reduction for all of them.

    Args:
        counts: (n,) counts of this rank, e.g. of positives; no gradient flows through them.
        minimum: Lower limit of each count's sum over ranks, which prevents division by zero.

    Returns:
        (n,) float32.
    """
    total = counts.detach().float().clone()
    ranks = 1
    if _source is not None:
        total, ranks = _source(total)
    elif dist.is_available() and dist.is_initialized():
        sum_over_ranks(total)
        ranks = dist.get_world_size()
    return total.maximum(torch.as_tensor(minimum, device=total.device)) / ranks


def focal_loss(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, *, alpha: float | None = 0.25, gamma: float = 2.0
) -> Tensor:
    """Sum of the sigmoid focal loss (Lin et al.).

    Args:
        logits: (...) any shape.
        targets: (...) 0 or 1.
        weights: (...) weight of each element, 1 if absent.
        alpha: 0..1, weight of positives; 1 - alpha is that of negatives. None weights both with 1.
    """
    logits, targets = logits.float(), targets.float()
    balance = torch.ones_like(targets) if alpha is None else (1 - alpha) + (2 * alpha - 1) * targets
    return _focal(logits * (1 - 2 * targets), balance, weights, gamma)


def gaussian_focal_loss(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, *, gamma: float = 2.0, beta: float = 4.0
) -> Tensor:
    """Sum of the focal loss for maps of Gaussians (Law & Deng). A negative counts less near a peak.

    Args:
        logits: (...) any shape.
        targets: (...) in [0, 1]; exactly 1 is a positive, any other t is a negative of weight (1 - t)^``beta``.
        weights: (...) weight of each element, 1 if absent.
    """
    logits, targets = logits.float(), targets.float()
    positive = targets == 1
    return _focal(torch.where(positive, -logits, logits), (1 - targets).pow(beta).where(~positive, 1.0), weights, gamma)


def varifocal_loss(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, *, alpha: float = 0.75, gamma: float = 2.0
) -> Tensor:
    """Sum of the varifocal loss (Zhang et al.): positives learn their quality and are weighted by it.

    Args:
        logits: (...) any shape.
        targets: (...) in [0, 1]: quality of a positive, 0 for a negative.
        weights: (...) weight of each element, 1 if absent.
    """
    logits, targets = logits.float(), targets.float()
    balance = torch.where(targets > 0, targets, alpha * logits.sigmoid() ** gamma)
    return bce_loss(logits, targets, balance if weights is None else balance * weights)


def _focal(signed: Tensor, balance: Tensor, weights: Tensor | None, gamma: float) -> Tensor:
    """``signed`` is z for a negative and -z for a positive; softplus and sigmoid of it never overflow."""
    loss = balance * torch.sigmoid(signed) ** gamma * F.softplus(signed)
    return loss.sum() if weights is None else (loss * weights).sum()


def bce_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of the binary cross-entropy with soft targets in [0, 1]; all (...)."""
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    return (losses * weights).sum()


def l1_loss(predictions: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of absolute differences; ``weights`` broadcasts."""
    return ((predictions.float() - targets).abs() * weights).sum()


def l2_loss(predictions: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of squared differences; ``weights`` broadcasts."""
    return ((predictions.float() - targets).square() * weights).sum()


def smooth_l1_loss(predictions: Tensor, targets: Tensor, weights: Tensor, *, beta: float = 1 / 9) -> Tensor:
    """Weighted sum of e^2 / (2 beta) where |e| < beta, else |e| - beta / 2; ``weights`` broadcasts."""
    losses = F.smooth_l1_loss(predictions.float(), targets, reduction="none", beta=beta)
    return (losses * weights).sum()
