"""One rank of the tests of a step; in a module of its own because a spawned process imports it by name."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import small_models
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from posefleet.data.keypoints import COCO17
from posefleet.models import load_method
from posefleet.platform.step import Share, train_step
from posefleet.platform.worker import LocalWorker

PEOPLE = (3, 0, 1, 2)
"""In the one image of each micro-batch."""
CREWS = {"a crew of three": (3, 1), "a crew of two, twice": (2, 2)}
"""Micro-batches that a step may have: workers that the run was made for, and how many each has."""
METHODS = ("detposenet", "inspose", "logocap", "logocap with batch norm", "pfs", "smpr")


def build(method: str) -> nn.Module:
    """A small network of a method."""
    name, _, batch_norm = method.partition(" with ")
    config: Any = small_models.SMALL[name]()
    if batch_norm:
        config = dataclasses.replace(config, head=dataclasses.replace(config.head, norm="batch"))
    torch.manual_seed(0)
    network: nn.Module = load_method(name).Model(config, COCO17)
    return network


def micro_batches() -> list[Any]:
    """Those of one step."""
    images = small_models.images(len(PEOPLE))
    people = [small_models.people(count, seed=i) for i, count in enumerate(PEOPLE)]
    return [SimpleNamespace(images=images[i : i + 1], people=people[i : i + 1]) for i in range(len(PEOPLE))]


def two_steps(network: nn.Module, share: Share) -> dict[str, Tensor]:
    """Gradients of the first and of the second step, losses and buffers after them."""
    model = network.module if isinstance(network, DistributedDataParallel) else network
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    part = [micro_batches()[index] for index in share.mine]
    found: dict[str, Tensor] = {}
    for step in range(2):
        losses, _ = train_step(network, part, optimizer, share=share, seed=step)
        for name, loss in losses.items():
            if share.workers > 1:
                dist.all_reduce(loss)
            found[f"{step} loss {name}"] = loss / share.workers
        grads = {f"{step} gradient {n}": p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found |= grads | {f"{step} buffer {n}": b.clone() for n, b in model.named_buffers()}
    return found


def run(rank: int, folder: str) -> None:
    """Join a group of two and let rank 0 write what two steps of every crew and method leave to ``folder``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = {}
    for crew, (workers, accumulate) in CREWS.items():
        for method in METHODS:
            network = LocalWorker(device="cpu").prepare(build(method))
            found[crew, method] = two_steps(network, Share(rank, 2, workers, accumulate))
    if rank == 0:
        torch.save(found, Path(folder) / "found.pt")
    dist.destroy_process_group()


def alone(crew: str, method: str) -> dict[str, Tensor]:
    """What one process finds."""
    return two_steps(build(method), Share(0, 1, *CREWS[crew]))
