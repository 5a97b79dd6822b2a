"""How a batch gets from a loader process to the process that trains: in shared memory that is used again and again.

New shared memory for every batch is dear: the kernel clears each of its pages and maps it, in both processes. So a
loader keeps a few buffers. The first byte of each says whether somebody still looks at what lies in it: the loader
sets it, and the other process clears it when the last tensor that shares the memory is gone. Whoever keeps batches
loses nothing: a loader whose buffers are all in use makes new ones.
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
    """The shared memory of one loader process.

    Args:
        keep: Buffers that are used again; when more are in use at once, these are new and given up afterwards.
    """

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self._kept: list[Tensor] = []

    def images(self, count: int, height: int, width: int) -> Tensor:
        """(count, height, width, 3) uint8 of any content; nobody else's until its :class:`SharedBatch` is opened."""
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
    """A batch on its way: its pixels stay where they are, the rest is small and goes through the pipe."""

    buffer: Tensor
    """(bytes,) uint8, the whole buffer."""
    shape: tuple[int, ...]
    """Of the pixels: (B, H, W, 3)."""
    people: tuple[np.ndarray, ...]
    """The fields of the packed :class:`People`, in order."""
    rest: tuple[np.ndarray, ...]
    """The fields of the :class:`Batch` after these two, in order."""

    @classmethod
    def of(cls, batch: Batch) -> Self:
        """Pack a batch whose images :meth:`Buffers.images` gave."""
        buffer = torch.empty(0, dtype=torch.uint8).set_(batch.images.untyped_storage())
        people = tuple(getattr(batch.packed_people, field.name).numpy() for field in fields(People))
        rest = tuple(getattr(batch, field.name).numpy() for field in fields(Batch)[2:])
        return cls(buffer, tuple(batch.images.permute(0, 2, 3, 1).shape), people, rest)

    def open(self) -> Batch:
        """The batch. Its loader may use the memory again once no tensor shares it."""
        end = _HEADER + int(np.prod(self.shape))
        pixels = self.buffer.numpy()[_HEADER:end]
        # torch holds this very array for as long as any tensor uses its memory.
        weakref.finalize(pixels, self.buffer.__setitem__, 0, _FREE).atexit = False
        images = torch.from_numpy(pixels).view(self.shape).permute(0, 3, 1, 2)
        people = People(*map(torch.from_numpy, self.people))
        return Batch(images, people, *map(torch.from_numpy, self.rest))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; torch's loader calls this. The buffer is free at once."""
        return self.open().pin_memory()


def _shared_memory(size: int) -> Tensor:
    storage = torch.UntypedStorage._new_shared(size)  # as torch's own default_collate does
    buffer = torch.empty(0, dtype=torch.uint8).set_(storage)
    buffer[0] = _FREE
    return buffer
