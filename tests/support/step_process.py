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

from posefleet.data.schemas.shipped import COCO17
from posefleet.models import load_method
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.training.step import StepShare, train_step

PEOPLE = (3, 0, 1, 2)
"""In the one image of each micro-batch."""
GROUPS = {"three workers": (3, 1), "two workers, two batches a step": (2, 2)}
"""Micro-batches that a step may have: workers that the run was made for, and how many each has."""
METHODS = ("detposenet", "logocap with batch norm", "smpr")
"""One that draws random numbers, one that follows its batches, one whose counts depend on its predictions."""


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
    images = small_models.images(len(PEOPLE), 64, 64)
    people = [small_models.people(count, seed=i, size=(64, 64)) for i, count in enumerate(PEOPLE)]
    return [SimpleNamespace(images=images[i : i + 1], people=people[i : i + 1]) for i in range(len(PEOPLE))]


def one_step(network: nn.Module, share: StepShare) -> dict[str, Tensor]:
    """Losses, gradients and buffers after it."""
    model = network.module if isinstance(network, DistributedDataParallel) else network
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses, _ = train_step(network, [micro_batches()[index] for index in share.mine], optimizer, share=share, seed=1)
    for loss in losses.values():
        if share.workers > 1:
            dist.all_reduce(loss)
        loss /= share.workers
    gradients = {f"gradient {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return losses | gradients | {f"buffer {name}": buffer for name, buffer in model.named_buffers()}


def run(rank: int, folder: str) -> None:
    """Join a group of two and let rank 0 write what a step of every group and method leaves into ``folder``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = {}
    for group, (workers, accumulate) in GROUPS.items():
        for method in METHODS:
            network = LocalWorker(device="cpu").prepare(build(method))
            found[group, method] = one_step(network, StepShare(rank, 2, workers, accumulate))
    if rank == 0:
        torch.save(found, Path(folder) / "found.pt")
    dist.destroy_process_group()


def alone(group: str, method: str) -> dict[str, Tensor]:
    """What one process finds."""
    return one_step(build(method), StepShare(0, 1, *GROUPS[group]))
