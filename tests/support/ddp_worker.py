"""One rank of the data-parallel test; in a module of its own because a spawned process imports it by name."""

from pathlib import Path

import small_models
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

COUNTS = (3, 0, 1, 0)
"""People in each image of the whole batch: the first rank has many, the second few."""


def gradients(model: torch.nn.Module, images: slice) -> dict[str, torch.Tensor]:
    """Gradients of the summed losses of some images of the batch."""
    batch = small_models.images(len(COUNTS))[images]
    people = [small_models.people(count, seed=i) for i, count in enumerate(COUNTS)][images]
    sum(model(batch, people).values()).backward()
    named = {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(gradient is not None for gradient in named.values())
    return named


def run(rank: int, method: str, folder: str) -> None:
    """Join the group, take half of the batch, and let rank 0 write its gradients to ``folder``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = DistributedDataParallel(small_models.build(method))
    half = len(COUNTS) // 2
    found = gradients(model, slice(rank * half, (rank + 1) * half))
    if rank == 0:
        torch.save(found, Path(folder) / "gradients.pt")
    dist.destroy_process_group()
