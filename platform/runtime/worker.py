"""The seam between training and whatever runs it.

``loop.fit`` is handed a worker and asks it who it is (rank, world size, device), to wrap the model, to exchange small
things with the other workers, to log, and to report once per evaluation. :class:`LocalWorker` answers for one process,
or for the processes of torchrun; ``train.RayWorker`` adds what Ray Train wants to know.
"""

import os
import platform
import warnings
from collections.abc import Mapping
from typing import Any, Protocol

import fsspec
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from posefleet.platform.runtime.activity import Activity


class Sink(Protocol):
    """Where rank 0 leaves what should be kept of a run; ``tracker.Tracker`` is one."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None: ...
    def log_bytes(self, name: str, data: bytes) -> None: ...
    def store(self) -> None: ...


class FatalError(RuntimeError):
    """Trying again would fail the same way: bad input, a loss that is not finite, a full disk."""


class LocalWorker:
    """One training process: alone, or one of torchrun's."""

    replaced_on_failure = False
    """Whether whoever started this worker starts it again after an error, so that trying again may help."""

    def __init__(self, *, device: torch.device | str | None = None, sink: Sink | None = None, folder: str = "") -> None:
        """
        Args:
            device: Default: a GPU where there is one.
            sink: Of rank 0.
            folder: Of the run, where all ranks may leave files; empty: nowhere.
        """
        if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        if device is None:
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self.sink = sink
        self.folder = folder
        self.watch = Activity()
        self.reports: list[dict[str, float]] = []

    @property
    def rank(self) -> int:
        """Index of this process among the workers."""
        return dist.get_rank() if dist.is_initialized() else 0

    @property
    def world_size(self) -> int:
        """Number of workers."""
        return dist.get_world_size() if dist.is_initialized() else 1

    @property
    def node(self) -> str:
        """The machine, for people who look for it."""
        return platform.node()

    def prepare(self, model: nn.Module) -> nn.Module:
        """Wrap ``model``, already on ``device``, so that gradients are averaged over workers."""
        if self.world_size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the new name of broadcast_buffers is not in torch 2.11
            return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True, broadcast_buffers=False)

    def reduce(self, values: Tensor) -> Tensor:
        """Sum of ``values`` over workers."""
        if self.world_size > 1:
            with self.watch.waiting():
                dist.all_reduce(values)
        return values

    def gather(self, item: Any) -> list[Any] | None:
        """The ``item`` of every rank, on rank 0; None on the others."""
        if self.world_size == 1:
            return [item]
        items: list[Any] | None = [None] * self.world_size if self.rank == 0 else None
        with self.watch.waiting():
            dist.gather_object(item, items)
        return items

    def broadcast(self, item: Any) -> Any:
        """Rank 0's ``item``, on every rank."""
        box = [item]
        if self.world_size > 1:
            with self.watch.waiting():
                dist.broadcast_object_list(box)
        return box[0]

    def agree(self, problem: str | None) -> None:
        """Raise ``FatalError`` on every rank if any rank has a problem; all ranks must call it."""
        problems: list[str | None] = [problem]
        if self.world_size > 1:
            problems = [None] * self.world_size
            with self.watch.waiting():
                dist.all_gather_object(problems, problem)
        told = [text for text in problems if text]
        if told:
            raise FatalError("\n".join(dict.fromkeys(told)))

    def stop_requested(self) -> bool:
        """Someone asked this run to stop; asked on every rank, answered yes on any."""
        return False

    def checkpoint_requested(self) -> bool:
        """A checkpoint is wanted soon, as workers are about to go or come; asked on every rank at every look at the
        losses, answered yes on any."""
        return False

    def saved(self) -> None:
        """A checkpoint was written; every rank learns it."""

    def leave(self, name: str, data: bytes) -> None:
        """Keep a small file of this rank, such as ``profile/rank1.txt``: under ``report`` of the run's folder, and from
        rank 0 as an artifact."""
        if self.sink:
            self.sink.log_bytes(name, data)
        elif self.folder:
            with fsspec.open(f"{self.folder}/report/{name}", "wb", auto_mkdir=True) as stream:
                stream.write(data)

    def report(self, metrics: Mapping[str, float]) -> None:
        """Tell the launcher how the run stands; every rank calls it equally often."""
        self.reports.append(dict(metrics))
