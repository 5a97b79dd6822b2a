"""Writes checkpoints in a thread, while the training goes on with the next steps.

The training waits only while a copy of the state is made in the host's memory. One checkpoint at most is being written;
the next one waits for it, so memory holds one copy. Files, digests and their order are those of
:class:`~posefleet.platform.checkpoints.store.CheckpointStore`.
"""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from posefleet.platform.checkpoints.format import CheckpointError, Meta
from posefleet.platform.checkpoints.store import CheckpointStore


class BackgroundSaver:
    """Saves checkpoints of one run into ``store``.

    As a context manager it finishes a checkpoint that is being written when an error ends the training; whether that
    one can be written changes nothing about the error.
    """

    def __init__(self, store: CheckpointStore, written: Callable[[int, float], None] | None = None) -> None:
        """
        Args:
            written: Called in the thread when a checkpoint is written, with its step and the seconds since the copy.
        """
        self.store = store
        self._written = written
        self._thread: threading.Thread | None = None
        self._error: CheckpointError | None = None
        self._pinned: dict[str, Tensor] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._thread:
            self._thread.join()

    @property
    def failed(self) -> bool:
        """Whether a checkpoint could not be written, and :meth:`wait` would raise."""
        return self._error is not None

    def copy(self, values: Mapping[str, Any], kind: str) -> dict[str, Any]:
        """A copy of nested dicts and lists whose tensors are in the host's memory, for :meth:`save`.

        Tensors of a GPU are copied in the order of its work, without waiting for it: later steps may change them. The
        copy of a ``kind``, such as ``weights``, replaces the one before, so the checkpoint before must be written.

        Raises:
            CheckpointError: The checkpoint before could not be written.
        """
        self.wait()
        copied: dict[str, Any] = self._copy(values, kind)
        return copied

    def save(self, meta: Meta, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Begin to write a checkpoint of copies that :meth:`copy` made."""
        done = torch.cuda.Event() if torch.cuda.is_initialized() else None
        if done:
            done.record()
        work = (meta, weights, state, done, time.monotonic())
        self._thread = threading.Thread(target=self._write, args=work, name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            CheckpointError: The last checkpoint could not be written; those before are unchanged.
        """
        if self._thread:
            self._thread.join()
            self._thread = None
        if error := self._error:
            self._error = None
            raise error

    def _write(
        self, meta: Meta, weights: Mapping[str, Tensor], state: Mapping[str, Any], done: Any, copied: float
    ) -> None:
        try:
            if done:
                done.synchronize()
            self.store.save(meta, weights, state)
            if self._written:
                self._written(meta.step, time.monotonic() - copied)
        except CheckpointError as error:
            self._error = error
        except Exception as error:  # a thread has nobody to raise to
            self._error = CheckpointError(f"cannot write checkpoint {self.store.path_of(meta.step)}: {error!r}")

    def _copy(self, value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            return self._copy_tensor(value.detach(), name)
        if isinstance(value, Mapping):
            return {key: self._copy(part, f"{name}/{key}") for key, part in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._copy(part, f"{name}/{i}") for i, part in enumerate(value))
        return value

    def _copy_tensor(self, tensor: Tensor, name: str) -> Tensor:
        if tensor.device.type != "cuda":
            return tensor.clone()
        kept = self._pinned.get(name)  # allocating pinned memory is slow
        if kept is None or (kept.shape, kept.dtype, kept.stride()) != (tensor.shape, tensor.dtype, tensor.stride()):
            kept = self._pinned[name] = torch.empty_like(tensor, device="cpu", pin_memory=True)
        return kept.copy_(tensor, non_blocking=True)
