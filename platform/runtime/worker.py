"""The interface between the training loop and the launcher of its processes.

``loop.fit`` takes a worker. The worker gives its rank, world size and device, wraps the model, exchanges small objects
with the other workers, logs, and reports once per evaluation. :class:`LocalWorker` works in a single process and under
torchrun; ``ray_trainer.RayWorker`` also reports to Ray Train.
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
    """Where rank 0 logs the metrics and files of a run, such as ``tracker.Tracker``."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None: ...
    def log_bytes(self, name: str, data: bytes) -> None: ...
    def store(self) -> None: ...


class FatalError(RuntimeError):
    """An error that a retry would meet again: bad input, a loss that is not finite, a full disk."""


class LocalWorker:
    """A single training process, or one of the processes of torchrun."""

    replaced_on_failure = False
    """Whether the launcher starts this worker again after an error, so that a retry may help."""

    def __init__(self, *, device: torch.device | str | None = None, sink: Sink | None = None, folder: str = "") -> None:
        """
        Args:
            device: Default: the GPU of this local rank, or the CPU where there is no GPU.
            sink: Where rank 0 logs; None on other ranks.
            folder: Folder of the run, to which every rank may write files. Empty: none.
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
        """Host name of the machine."""
        return platform.node()

    def prepare(self, model: nn.Module) -> nn.Module:
        """Wrap ``model``, already on ``device``, so that gradients are averaged over workers."""
        if self.world_size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch 2.11 lacks the new name of broadcast_buffers
            return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True, broadcast_buffers=False)

    def reduce(self, values: Tensor) -> Tensor:
        """Sum of ``values`` over workers, in place; every rank must call it."""
        if self.world_size > 1:
            with self.watch.waiting():
                dist.all_reduce(values)
        return values

    def gather(self, item: Any) -> list[Any] | None:
        """The ``item`` of every rank in a list on rank 0, None on other ranks; every rank must call it."""
        if self.world_size == 1:
            return [item]
        items: list[Any] | None = [None] * self.world_size if self.rank == 0 else None
        with self.watch.waiting():
            dist.gather_object(item, items)
        return items

    def broadcast(self, item: Any) -> Any:
        """The ``item`` of rank 0, on every rank; every rank must call it."""
        box = [item]
        if self.world_size > 1:
            with self.watch.waiting():
                dist.broadcast_object_list(box)
        return box[0]

    def agree(self, problem: str | None) -> None:
        """Raise ``FatalError`` on every rank if any rank has a ``problem``; every rank must call it."""
        problems: list[str | None] = [problem]
        if self.world_size > 1:
            problems = [None] * self.world_size
            with self.watch.waiting():
                dist.all_gather_object(problems, problem)
        messages = [text for text in problems if text]
        if messages:
            raise FatalError("\n".join(dict.fromkeys(messages)))

    def stop_requested(self) -> bool:
        """Whether the run should stop. Every rank calls it; one rank that returns True stops all."""
        return False

    def checkpoint_requested(self) -> bool:
        """Whether to write a checkpoint soon, because workers are about to leave or join.

        Every rank calls it on each step that logs the losses; one rank that returns True is enough.
        """
        return False

    def saved(self) -> None:
        """Called on every rank after a checkpoint was written."""

    def save_file(self, name: str, data: bytes) -> None:
        """Keep a small file of this rank, such as ``profile/rank1.txt``.

        Rank 0 logs it as an artifact through ``sink``. A rank without a sink writes it under ``report`` in the folder
        of the run.
        """
        if self.sink:
            self.sink.log_bytes(name, data)
        elif self.folder:
            with fsspec.open(f"{self.folder}/report/{name}", "wb", auto_mkdir=True) as stream:
                stream.write(data)

    def report(self, metrics: Mapping[str, float], checkpoint: str) -> None:
        """Report an evaluation to the launcher; every rank must call it equally often.

        Args:
            metrics: Of the evaluation, and where in the training it was.
            checkpoint: Path of the checkpoint with the evaluated weights, which may still be being written.
        """
        self.reports.append(dict(metrics))
