"""Defines the data structures: annotated people, predicted poses, a sample (image with people), a batch of samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from torch import Tensor

STRIDE = 32
"""Batches are padded to multiples of this many pixels, the coarsest stride of the backbones."""

PAD_COLOUR = (124, 116, 104)
"""RGB of the padding: the ImageNet mean, so that normalised padding is about zero."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """Tensors of equal length, one row for each person or pose."""

    def __post_init__(self) -> None:
        lengths = {field.name: len(getattr(self, field.name)) for field in fields(self)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{type(self).__name__}: tensors must have equal lengths, got {lengths}")

    def __getitem__(self, index: Tensor | slice | list[int]) -> Self:
        return type(self)(*(getattr(self, field.name)[index] for field in fields(self)))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same rows on another device."""
        return type(self)(*(getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)))

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """All rows of ``parts`` (at least one), in order."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))


@dataclass(frozen=True, slots=True)
class People(_Rows):
    """Annotated people of one image, in pixels of that image."""

    keypoints: Tensor
    """(M, K, 2) float32 xy; (0, 0) where not labelled."""
    visibility: Tensor
    """(M, K) uint8: 0 not labelled, 1 labelled but hidden, 2 visible. Training treats 1 and 2 alike."""
    boxes: Tensor
    """(M, 4) float32 xyxy."""
    areas: Tensor
    """(M,) float32 area of the person's mask in square pixels, which scales OKS."""
    crowd: Tensor
    """(M,) bool, True for a region that covers a group."""

    def __len__(self) -> int:
        return len(self.keypoints)

    @property
    def labelled(self) -> Tensor:
        """(M,) bool, True for a keypoint person: not a crowd, at least one labelled keypoint."""
        return ~self.crowd & (self.visibility > 0).any(1)

    @classmethod
    def empty(cls, num_keypoints: int) -> Self:
        """Nobody."""
        return cls(
            torch.zeros(0, num_keypoints, 2),
            torch.zeros(0, num_keypoints, dtype=torch.uint8),
            torch.zeros(0, 4),
            torch.zeros(0),
            torch.zeros(0, dtype=torch.bool),
        )


@dataclass(frozen=True, slots=True)
class Poses(_Rows):
    """Predicted people of one image, best first, in pixels of that image."""

    keypoints: Tensor
    """(N, K, 2) float32 xy."""
    keypoint_scores: Tensor
    """(N, K) float32 in [0, 1]."""
    scores: Tensor
    """(N,) float32 in [0, 1], descending."""

    def __len__(self) -> int:
        return len(self.keypoints)

    @property
    def boxes(self) -> Tensor:
        """(N, 4) xyxy, the tight box of all keypoints of each pose."""
        return torch.cat([self.keypoints.amin(1), self.keypoints.amax(1)], dim=1)

    @classmethod
    def empty(cls, num_keypoints: int) -> Self:
        """Nobody."""
        return cls(torch.zeros(0, num_keypoints, 2), torch.zeros(0, num_keypoints), torch.zeros(0))


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with its people."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    people: People
    image_id: int
    matrix: np.ndarray
    """(2, 3) float64, maps a point of the original image to a point of ``image`` (see ``transforms``)."""
    original_size: tuple[int, int]
    """(width, height) of the original image."""


@dataclass(frozen=True, slots=True)
class Batch:
    """B samples, padded at the right and bottom to a common size.

    The people of all images are packed into the same tensors, so that few tensors cross processes.
    """

    images: Tensor
    """(B, 3, H, W) uint8 RGB, in channels_last memory; H and W multiples of ``STRIDE``."""
    packed_people: People
    """The people of all images, in order."""
    counts: Tensor
    """(B,) int64, people in each image."""
    image_ids: Tensor
    """(B,) int64."""
    matrices: Tensor
    """(B, 2, 3) float64, maps points of the original image to points of the input image."""
    original_sizes: Tensor
    """(B, 2) int64, (width, height) of the original images."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def people(self) -> list[People]:
        """The people of each image, as views. ``counts`` is on the host, so this does not wait for a device."""
        parts, start = [], 0
        for count in self.counts.tolist():
            parts.append(self.packed_people[start : start + count])
            start += count
        return parts

    def part(self, rows: Sequence[int], shape: tuple[int, int]) -> "Batch":
        """The images in ``rows``, cut to ``shape`` (H, W), which must be large enough for all of them."""
        people, index = self.people, torch.tensor(rows)
        images = self.images[index, :, : shape[0], : shape[1]]
        return Batch(
            images.contiguous(memory_format=torch.channels_last),
            People.cat([people[row] for row in rows]),
            self.counts[index],
            self.image_ids[index],
            self.matrices[index],
            self.original_sizes[index],
        )

    def to(self, device: torch.device | str) -> "Batch":
        """The batch with images and people on ``device``; the other tensors stay on the host."""
        return Batch(
            self.images.to(device, non_blocking=True),
            self.packed_people.to(device, non_blocking=True),
            self.counts,
            self.image_ids,
            self.matrices,
            self.original_sizes,
        )

    def pin_memory(self) -> "Batch":
        """The batch with images and people in page-locked memory, from where a copy to a GPU need not wait."""
        people = self.packed_people
        pinned = People(*(getattr(people, field.name).pin_memory() for field in fields(people)))
        return Batch(self.images.pin_memory(), pinned, self.counts, self.image_ids, self.matrices, self.original_sizes)


def _empty_images(count: int, height: int, width: int) -> Tensor:
    return torch.empty(count, height, width, 3, dtype=torch.uint8)


def collate(samples: Sequence[Sample], empty: Callable[[int, int, int], Tensor] = _empty_images) -> Batch:
    """Pad samples to a common size, the largest height and width rounded up to ``STRIDE``, and pack them into a batch.

    Args:
        samples: At least one.
        empty: Called with B, H and W; returns (B, H, W, 3) uint8 of any content, in any memory.
    """
    height, width = padded_shape(samples)
    images = empty(len(samples), height, width)
    for slot, sample in zip(images.numpy(), samples, strict=True):
        h, w = sample.image.shape[:2]
        slot[:h, :w] = sample.image
        slot[h:] = PAD_COLOUR
        slot[:h, w:] = PAD_COLOUR
    return Batch(
        images.permute(0, 3, 1, 2),
        People.cat([sample.people for sample in samples]),
        torch.tensor([len(sample.people) for sample in samples]),
        torch.tensor([sample.image_id for sample in samples]),
        torch.from_numpy(np.stack([sample.matrix for sample in samples])),
        torch.tensor([sample.original_size for sample in samples]),
    )


def padded_shape(samples: Sequence[Sample]) -> tuple[int, int]:
    """(H, W) of the batch that :func:`collate` makes of ``samples``."""
    height = max(sample.image.shape[0] for sample in samples)
    width = max(sample.image.shape[1] for sample in samples)
    return round_up(height), round_up(width)


def round_up(pixels: int) -> int:
    """The next multiple of ``STRIDE``."""
    return -(-pixels // STRIDE) * STRIDE


@dataclass(frozen=True, slots=True)
class TargetPoints:
    """P points of one image that a method trains for its people, for drawing."""

    name: str
    """What the points are, e.g. "assigned cells"."""
    points: Tensor
    """(P, 2) float32 xy, pixels."""
    person: Tensor
    """(P,) int64 row of the person in the image's ``People``."""
    stride: Tensor
    """(P,) float32, pixels per cell of the map where the point is a cell."""
