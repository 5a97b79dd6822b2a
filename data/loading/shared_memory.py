"""Sends batches from a loader process to the training process in shared memory that is reused.

Allocating shared memory for every batch is slow: the kernel clears each page and maps it in both processes. So a
loader process keeps a few buffers. The first byte of a buffer is 1 while its batch is in use: the loader process sets
it, and the training process clears it when the last tensor that shares the memory is gone. Batches may be kept for any
time: if all buffers are in use, the loader process allocates new ones.
"""

import weakref
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from torch import Tensor

from posefleet.data.structures import Batch, People

_HEADER = 64  # bytes before the pixels, a cache line
_FREE, _IN_USE = 0, 1


class BufferPool:
    """The shared memory buffers of one loader process.

    Args:
        keep: Buffers that are kept and reused; if more are in use at once, the others are used once and freed.
    """

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self._kept: list[Tensor] = []

    def allocate(self, count: int, height: int, width: int) -> Tensor:
        """(count, height, width, 3) uint8 of any content, not reused before the tensors of its batch are gone."""
        size = _HEADER + count * height * width * 3
        buffer = self._free_buffer(size)
        buffer[0] = _IN_USE
        return buffer[_HEADER:size].view(count, height, width, 3)

    def _free_buffer(self, size: int) -> Tensor:
        free = [index for index, buffer in enumerate(self._kept) if buffer[0] == _FREE]
        for index in free:
            if len(self._kept[index]) >= size:
                return self._kept[index]
        new = _shared_memory(size)
        if free:
            self._kept[free[0]] = new
        elif len(self._kept) < self.keep:
            self._kept.append(new)
        return new


@dataclass(frozen=True, slots=True)
class SharedBatch:
    """A batch to send to another process: its pixels stay in shared memory, the small rest goes through the pipe."""

    buffer: Tensor
    """(bytes,) uint8, the whole buffer."""
    shape: tuple[int, ...]
    """Shape of the pixels: (B, H, W, 3)."""
    people: tuple[np.ndarray | None, ...]
    """The rows of the packed :class:`People`, field by field, in order."""
    rest: tuple[np.ndarray | None, ...]
    """The fields of the :class:`Batch` after these two, in order."""

    @classmethod
    def pack(cls, batch: Batch) -> Self:
        """Pack a batch whose images are in memory from :meth:`BufferPool.allocate`."""
        buffer = torch.empty(0, dtype=torch.uint8).set_(batch.images.untyped_storage())
        people = tuple(_array(getattr(batch.packed_people, name)) for name in People.row_names())
        rest = tuple(_array(getattr(batch, field.name)) for field in fields(Batch)[2:])
        return cls(buffer, tuple(batch.images.permute(0, 2, 3, 1).shape), people, rest)

    def unpack(self) -> Batch:
        """The batch; the buffer may be reused once no tensor shares its memory."""
        end = _HEADER + int(np.prod(self.shape))
        pixels = self.buffer.numpy()[_HEADER:end]
        # torch keeps a reference to this array as long as any tensor uses its memory.
        weakref.finalize(pixels, self.buffer.__setitem__, 0, _FREE).atexit = False
        images = torch.from_numpy(pixels).view(self.shape).permute(0, 3, 1, 2)
        people = People(**dict(zip(People.row_names(), map(_tensor, self.people), strict=True)))  # type: ignore[arg-type]
        return Batch(images, people, *map(_tensor, self.rest))  # type: ignore[arg-type]  # few may be None

    def pin_memory(self) -> Batch:
        """The batch copied to page-locked memory, which frees the buffer; torch's loader calls this."""
        return self.unpack().pin_memory()


def _array(tensor: Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.numpy()


def _tensor(array: np.ndarray | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(array)


def _shared_memory(size: int) -> Tensor:
    storage = torch.UntypedStorage._new_shared(size)  # as torch's own default_collate does
    buffer = torch.empty(0, dtype=torch.uint8).set_(storage)
    buffer[0] = _FREE
    return buffer
