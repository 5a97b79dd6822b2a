"""Defines the data structures: annotated people, predicted poses, a sample (image with people), a batch of samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

STRIDE = 32
"""Batches are padded to multiples of this many pixels, the coarsest stride of the backbones."""

MASK_STRIDE = 4
"""Pixels per cell of a mask of ignored regions; cell j is at pixel 4 j. No map that a method trains is finer."""

PAD_COLOUR = (124, 116, 104)
"""RGB of the padding: the ImageNet mean, so that normalised padding is about zero."""


_ROW_NAMES: dict[type, tuple[str, ...]] = {}
"""``row_names`` of the classes that were asked for it; each of many small objects asks."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """Tensors of equal length, one row for each person or pose."""

    OF_IMAGE: ClassVar[tuple[str, ...]] = ()
    """Names of fields that belong to the image instead of its rows; tensors, or None."""

    def __post_init__(self) -> None:
        lengths = {name: rows.shape[0] for name, rows in self._rows().items() if rows is not None}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{type(self).__name__}: tensors must have equal lengths, got {lengths}")

    @classmethod
    def row_names(cls) -> tuple[str, ...]:
        """Names of the fields that have one row for each person or pose, in order."""
        if cls not in _ROW_NAMES:
            _ROW_NAMES[cls] = tuple(field.name for field in fields(cls) if field.name not in cls.OF_IMAGE)
        return _ROW_NAMES[cls]

    def _rows(self) -> dict[str, Tensor | None]:
        return {name: getattr(self, name) for name in self.row_names()}

    def __getitem__(self, index: Tensor | slice | list[int]) -> Self:
        """Some rows; what belongs to the image is kept."""
        return replace(self, **{name: None if rows is None else rows[index] for name, rows in self._rows().items()})

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with every tensor changed."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return type(self)(**{name: None if value is None else change(value) for name, value in tensors.items()})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same on another device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """All rows of ``parts`` (at least one), in order, without what belongs to an image."""
        names = [name for name, rows in parts[0]._rows().items() if rows is not None]
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


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
    outlined: Tensor = field(default=None)  # type: ignore[assignment]  # see __post_init__
    """(M,) bool, True for those whose segmentation is part of ``mask``. Default: nobody."""
    centres: Tensor = field(default=None)  # type: ignore[assignment]  # see __post_init__
    """(M, 2) float32 xy, the centre of the whole person, which a crop may leave outside the image. Default: the mean of
    the labelled keypoints; of a person without any, the middle of the box."""
    mask: Tensor | None = None
    """(h, w) bool, True in cells inside the segmentation of a crowd or of a person without keypoints; cell (y, x) is at
    pixel (``MASK_STRIDE`` y, ``MASK_STRIDE`` x). Losses of maps skip these cells, and the boxes of those who are not
    ``outlined``. None: nobody is outlined."""
    supervised: Tensor | None = None
    """(M, K) bool, the keypoints that the person's annotators label where they see them. Several sources of data may
    label different keypoints; losses skip those that a person's source does not label. None: everybody's are all."""
    supervised_maps: Tensor | None = None
    """(2, 2, K) bool, the same for the image itself: upper left, upper right, lower left and lower right part, which
    meet at ``seam`` and differ in a mosaic of several sources. Losses of maps skip all other keypoints there. None:
    all, everywhere."""
    seam: Tensor | None = None
    """(2,) float32 xy, pixels; infinite if the image is one part. None: as ``supervised_maps``."""
    OF_IMAGE: ClassVar = ("mask", "supervised_maps", "seam")

    def __post_init__(self) -> None:
        if self.outlined is None:
            object.__setattr__(self, "outlined", torch.zeros_like(self.crowd))  # type: ignore[unreachable]
        if self.centres is None:
            object.__setattr__(self, "centres", self._middles())  # type: ignore[unreachable]
        _Rows.__post_init__(self)

    def __len__(self) -> int:
        return len(self.keypoints)

    def _middles(self) -> Tensor:
        labelled = (self.visibility > 0)[..., None]
        counts = labelled.sum(1)
        means = self.keypoints.where(labelled, 0.0).sum(1) / counts.clamp(min=1)
        return means.where(counts > 0, (self.boxes[:, :2] + self.boxes[:, 2:]) / 2)

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
class Detections(_Rows):
    """Detected people of one image, best first."""

    boxes: Tensor
    """(N, 4) float32 xyxy, pixels."""
    scores: Tensor
    """(N,) float32 in [0, 1], descending."""

    def __len__(self) -> int:
        return len(self.boxes)


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
    outlines: tuple[str | None, ...] = ()
    """The segmentation of each person of a stored image as COCO's compressed run lengths, None for those who have
    none; empty: nobody has one. ``TrainTransform`` draws them into ``people.mask``."""


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
    masks: Tensor | None = None
    """(B, H / ``MASK_STRIDE``, W / ``MASK_STRIDE``) bool, the masks of :class:`People`; None: no image has one."""
    supervised_maps: Tensor | None = None
    """(B, 2, 2, K) bool, see :class:`People`; None: all keypoints of all images."""
    seams: Tensor | None = None
    """(B, 2) float32, see :class:`People`; None: as ``supervised_maps``."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def people(self) -> list[People]:
        """The people of each image, as views. ``counts`` is on the host, so this does not wait for a device."""
        parts, start = [], 0
        of_images = (self.masks, self.supervised_maps, self.seams)
        rows = [[None] * len(self) if values is None else values.unbind() for values in of_images]
        for count, mask, maps, seam in zip(self.counts.tolist(), *rows, strict=True):
            people = self.packed_people[start : start + count]
            parts.append(replace(people, mask=mask, supervised_maps=maps, seam=seam))
            start += count
        return parts

    def part(self, rows: Sequence[int], shape: tuple[int, int]) -> "Batch":
        """The images in ``rows``, cut to ``shape`` (H, W), which must be large enough for all of them."""
        people, index = self.people, torch.tensor(rows)
        images = self.images[index, :, : shape[0], : shape[1]]
        height, width = mask_shape(*shape)
        return Batch(
            images.contiguous(memory_format=torch.channels_last),
            People.cat([people[row] for row in rows]),
            self.counts[index],
            self.image_ids[index],
            self.matrices[index],
            self.original_sizes[index],
            None if self.masks is None else self.masks[index, :height, :width],
            None if self.supervised_maps is None else self.supervised_maps[index],
            None if self.seams is None else self.seams[index],
        )

    def to(self, device: torch.device | str) -> "Batch":
        """The batch with images, people and masks on ``device``; the other tensors stay on the host."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The batch with images, people and masks in page-locked memory, from where a copy to a GPU need not wait."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with all tensors changed that a model reads."""
        names = ("masks", "supervised_maps", "seams")
        more = {name: change(values) for name in names if (values := getattr(self, name)) is not None}
        return replace(self, images=change(self.images), packed_people=self.packed_people.map(change), **more)


@dataclass(frozen=True, slots=True)
class Frames:
    """Where B images lie in their padded batch, and how they were resized. What a prediction of an image says must not
    depend on the padding."""

    boxes: Tensor
    """(B, 4) float32 xyxy, pixels of the batch: each image without its padding."""
    ratios: Tensor
    """(B, 2) float32, pixels of the batch per pixel of the original image, in x and y."""
    nominal: Tensor
    """(B,) float32, the scale of the resize before sizes were rounded to whole pixels."""
    mirrored: bool = False
    """Whether the batch is mirrored, so that padding is at the left."""

    @classmethod
    def whole(cls, images: int, size: tuple[int, int]) -> Self:
        """Frames of ``images`` images that fill a batch of ``size`` (height, width) and were not resized."""
        box = torch.tensor([0.0, 0.0, size[1], size[0]])
        return cls(box.expand(images, 4), torch.ones(images, 2), torch.ones(images))

    def to(self, device: torch.device | str) -> Self:
        """The same frames on another device."""
        boxes, ratios, nominal = (t.to(device, non_blocking=True) for t in (self.boxes, self.ratios, self.nominal))
        return replace(self, boxes=boxes, ratios=ratios, nominal=nominal)

    def mirror(self, width: int) -> Self:
        """The frames after a horizontal flip of the batch, which is ``width`` pixels wide."""
        left, top, right, bottom = self.boxes.unbind(1)
        boxes = torch.stack([width - right, top, width - left, bottom], dim=1)
        return replace(self, boxes=boxes, mirrored=not self.mirrored)


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
        _pad_masks([sample.people.mask for sample in samples], mask_shape(height, width)),
        _stacked([sample.people.supervised_maps for sample in samples]),
        _stacked([sample.people.seam for sample in samples]),
    )


def _stacked(values: Sequence[Tensor | None]) -> Tensor | None:
    """Values that all samples have, or none of them."""
    known = [value for value in values if value is not None]
    return torch.stack(known) if known else None


def _pad_masks(masks: Sequence[Tensor | None], shape: tuple[int, int]) -> Tensor | None:
    """Masks of B images in one (B, h, w) tensor of ``shape`` (h, w), False where nothing is known."""
    if all(mask is None for mask in masks):
        return None
    padded = torch.zeros(len(masks), *shape, dtype=torch.bool)
    for slot, mask in zip(padded, masks, strict=True):
        if mask is not None:
            slot[: mask.shape[0], : mask.shape[1]] = mask
    return padded


def mask_shape(height: int, width: int) -> tuple[int, int]:
    """(h, w) of the mask of an image of ``height`` x ``width`` pixels."""
    return -(-height // MASK_STRIDE), -(-width // MASK_STRIDE)


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
