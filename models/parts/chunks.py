"""Work on many rows in a bounded amount of memory."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def in_chunks(run: Callable[..., tuple[Tensor, ...]], rows: Sequence[Tensor], size: int) -> tuple[Tensor, ...]:
    """What ``run`` makes of N rows, if it treats each alone; at most ``size`` at a time.

    Several chunks keep nothing for the backward pass: it runs them again, one after the other.

    Args:
        run: (n, ...) tensors, one for each of ``rows``, -> (n, ...) tensors.
        rows: (N, ...) tensors; N may be 0.
    """
    parts = list(zip(*(values.split(size) for values in rows), strict=True))
    if len(parts) == 1:
        return run(*parts[0])
    if torch.is_grad_enabled():
        found = [checkpoint(run, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    else:
        found = [run(*part) for part in parts]
    return tuple(torch.cat(values) for values in zip(*found, strict=True))
