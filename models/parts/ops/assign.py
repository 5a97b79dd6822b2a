"""Assignment of cells to people, for all images at once: a level rule, a region rule and an overlap rule.

People of a batch are padded to one tensor (B, M, ...); cells are flat (P), see ``cells``. A cell is positive for a
person if its level suits the person's size and it lies in the person's region. Where regions overlap, the smallest
pseudo box wins. A pseudo box is the tight box of a person's labelled keypoints. Nothing here waits for the device.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from posefleet.data.structures import MASK_STRIDE, People
from posefleet.models.parts.ops.cells import Cells

LevelRule = Literal["fcos", "reppoints"]
Region = Literal["center", "pseudo"]


@dataclass(frozen=True, slots=True)
class PaddedPeople:
    """People of B images, each padded to M (at least 1)."""

    keypoints: Tensor
    """(B, M, K, 2) float32 xy, pixels."""
    labelled: Tensor
    """(B, M, K) bool; all False for padding and for people without keypoints."""
    areas: Tensor
    """(B, M) float32, square pixels."""
    boxes: Tensor
    """(B, M, 4) xyxy pixels: the box that chooses the cells of a person with keypoints; zero for others."""
    valid: Tensor
    """(B, M) bool, True for people with keypoints; no crowds, no padding."""
    annotated_boxes: Tensor
    """(B, M, 4) xyxy pixels: the annotated box of every person and crowd; zero for padding."""
    counted: Tensor
    """(B, M) bool, True for single people, with keypoints or without; no crowds, no padding."""
    centres: Tensor
    """(B, M, 2) xy pixels, see :class:`People`; may be outside the image; zero for padding."""
    count: int
    """Number of people in all images together, known on the host."""
    outlined: Tensor
    """(B, M) bool, True for crowds and people without keypoints whose segmentation is part of ``masks``."""
    masks: Tensor | None
    """(B, h, w) bool, the masks of :class:`posefleet.data.structures.People`; None: nobody is outlined."""
    supervised: Tensor | None = None
    """(B, M, K) bool, keypoints that the annotators of a person label; None: everybody's are all."""
    supervised_maps: Tensor | None = None
    """(B, 2, 2, K) bool, the same for the images; None: all, everywhere."""
    seams: Tensor | None = None
    """(B, 2) xy pixels, where the four parts of an image meet."""

    @property
    def unlabelled_boxes(self) -> Tensor:
        """(B, M, 4) xyxy pixels: the annotated box of a crowd or of a person without keypoints of whom there is no
        segmentation; zero for others."""
        return self.annotated_boxes.where(~(self.valid | self.outlined)[..., None], 0.0)


@dataclass(frozen=True, slots=True)
class Positives:
    """N rows, each a cell, usually a positive one. N is a fixed capacity; rows that are not ``used`` are padding."""

    index: Tensor
    """(N,) int64 index into (B * P)."""
    image: Tensor
    """(N,) int64 in [0, B)."""
    cell: Tensor
    """(N,) int64 in [0, P)."""
    person: Tensor
    """(N,) int64 in [0, M); 0 where the cell is not positive."""
    used: Tensor
    """(N,) bool."""


def pad_people(
    people: Sequence[People], device: torch.device, *, boxes: Literal["pseudo", "annotated"] = "pseudo"
) -> PaddedPeople:
    """Pack the people of all images into padded tensors on ``device``.

    Args:
        boxes: The box that chooses the cells of a person: that of the labelled keypoints, or the annotated one. People
            of a schema with a single keypoint always have the annotated one, and so have those whose annotators do not
            label all keypoints: the keypoints of one source are not where those of another are. A box of keypoints that
            are a point, or on a horizontal or vertical line, has no cells, as in the authors' code.
    """
    counts = [len(p) for p in people]
    most = max(1, *counts)
    slots = torch.tensor(
        [image * most + i for image, count in enumerate(counts) for i in range(count)], dtype=torch.int64
    ).to(device, non_blocking=True)

    def pack(rows: list[Tensor]) -> Tensor:
        return torch.cat(rows).to(device, non_blocking=True)

    def pad(rows: Tensor) -> Tensor:
        padded = rows.new_zeros(len(people) * most, *rows.shape[1:]).index_copy_(0, slots, rows)
        return padded.view(len(people), most, *rows.shape[1:])

    keypoints = pack([p.keypoints for p in people]).float()
    labelled = pack([p.visibility for p in people]) > 0
    single = ~pack([p.crowd for p in people])
    valid = single & labelled.any(1)
    labelled = labelled & valid[:, None]
    annotated = pack([p.boxes for p in people]).float()
    if boxes == "pseudo" and keypoints.shape[1] > 1:
        known = pseudo_boxes(keypoints, labelled)
    else:
        known = _widen(annotated).where(valid[:, None], 0.0)
    supervised = pack(rows) if (rows := [p.supervised for p in people if p.supervised is not None]) else None
    if supervised is not None:
        known = known.where(supervised.all(1, keepdim=True) | ~valid[:, None], _widen(annotated))
    return PaddedPeople(
        pad(keypoints),
        pad(labelled),
        pad(pack([p.areas for p in people]).float()),
        pad(known),
        pad(valid),
        pad(annotated),
        pad(single),
        pad(pack([p.centres for p in people]).float()),
        sum(counts),
        pad(pack([p.outlined for p in people])),
        _stack_masks(people, device),
        None if supervised is None else pad(supervised),
        *supervision_of(people, device),
    )


def supervision_of(people: Sequence[People], device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """The ``supervised_maps`` (B, 2, 2, K) and seams (B, 2) of images; None and None if all keypoints are supervised.

    Raises:
        ValueError: Some of the images say which keypoints are supervised, and others do not.
    """
    maps = [p.supervised_maps for p in people if p.supervised_maps is not None]
    seams = [p.seam for p in people if p.seam is not None]
    if not maps:
        return None, None
    if not len(maps) == len(seams) == len(people):
        raise ValueError(
            f"{len(maps)} of {len(people)} images say which keypoints are supervised; expected all or none"
        )
    return torch.stack(maps).to(device, non_blocking=True), torch.stack(seams).to(device, non_blocking=True)


def supervised_cells(
    maps: Tensor | None, seams: Tensor | None, size: tuple[int, int], stride: int, *, centred: bool = True
) -> Tensor | None:
    """Which keypoints are supervised in the cells of a map.

    Args:
        maps: (B, 2, 2, K) bool, from :func:`supervision_of`.
        seams: (B, 2) xy, pixels.
        size: (height, width) of the map, cells.
        stride: Pixels per cell.
        centred: Cell j is at pixel ``stride`` j + ``stride`` // 2, as in a pyramid; otherwise at ``stride`` j.

    Returns:
        (B, K, height, width) bool; None if ``maps`` is None.
    """
    if maps is None or seams is None:
        return None
    start = stride // 2 if centred else 0
    y, x = (torch.arange(cells, device=maps.device) * stride + start for cells in size)
    right, below = x >= seams[:, :1], y >= seams[:, 1:]  # (B, w), (B, h)
    part = (2 * below[:, :, None].long() + right[:, None]).flatten(1)  # (B, h * w)
    found: Tensor = maps.flatten(1, 2).gather(1, part[..., None].expand(-1, -1, maps.shape[-1]))
    cells: Tensor = found.transpose(1, 2).unflatten(2, size)
    return cells


def _stack_masks(people: Sequence[People], device: torch.device) -> Tensor | None:
    """The masks of B images in one (B, h, w) tensor; False where an image has none."""
    some = next((p.mask for p in people if p.mask is not None), None)
    if some is None:
        return None
    masks = [torch.zeros_like(some) if p.mask is None else p.mask for p in people]
    return torch.stack(masks).to(device, non_blocking=True)


_LEAST_SIDE = 16.0
"""Side, pixels, of a box whose annotation has none there: the finest cells of a pyramid have half of it."""


def _widen(boxes: Tensor) -> Tensor:
    """The xyxy boxes (N, 4) with their empty sides widened to ``_LEAST_SIDE``."""
    low, high = boxes.split(2, dim=-1)
    more = (high - low <= 0) * (_LEAST_SIDE / 2)
    return torch.cat([low - more, high + more], dim=-1)


def pseudo_boxes(keypoints: Tensor, labelled: Tensor) -> Tensor:
    """Tight boxes (..., 4) xyxy of keypoints (..., K, 2), labelled ones only; zero where none is labelled."""
    low = keypoints.where(labelled[..., None], torch.inf).amin(-2)
    high = keypoints.where(labelled[..., None], -torch.inf).amax(-2)
    return torch.cat([low, high], dim=-1).where(labelled.any(-1, keepdim=True), 0.0)


def assign_people(
    cells: Cells,
    people: PaddedPeople,
    *,
    level_rule: LevelRule = "fcos",
    region: Region = "center",
    center_half_side: float = 1.5,
    force_one: bool = False,
) -> Tensor:
    """Assign a person to every cell.

    Args:
        level_rule: ``fcos``: the largest distance from the cell to a side of the pseudo box lies in the level's
            range (P3 up to 64 px, doubling; both ends count). ``reppoints``: the size of a person chooses one level.
        region: ``center``: a square around the centre of the pseudo box, cut by that box; ``pseudo``: the whole box.
        center_half_side: Half the side of the square, in strides of the cell's level.
        force_one: A person without any cell gets the cell of a suitable level that is nearest to the centre.

    Returns:
        (B, P) int64 in [-1, M), the person; -1 where no person matches. Of equally small boxes the lower index wins.
    """
    x1, y1, x2, y2 = people.boxes[:, None].unbind(-1)  # each (B, 1, M)
    x, y = cells.points[:, :1], cells.points[:, 1:]  # (P, 1)
    centre_x, centre_y = (x1 + x2) / 2, (y1 + y2) / 2
    suits = _suitable_levels(cells, people, level_rule) & people.valid[:, None]  # (B, P, M)

    inside = (x > x1) & (x < x2) & (y > y1) & (y < y2)
    if region == "center":
        reach = center_half_side * cells.strides[:, None]
        inside &= ((x - centre_x).abs() < reach) & ((y - centre_y).abs() < reach)
    matches = inside & suits
    if force_one:
        distance = ((x - centre_x).square() + (y - centre_y).square()).where(suits, torch.inf)
        nearest_distance, nearest = distance.min(1, keepdim=True)  # (B, 1, M)
        lonely = ~matches.any(1, keepdim=True) & nearest_distance.isfinite()
        matches = matches.scatter(1, nearest, matches.gather(1, nearest) | lonely)

    areas = (x2 - x1) * (y2 - y1)
    rank = areas.sort(dim=-1, stable=True).indices.argsort(-1)  # (B, 1, M), unique, so the minimum is too
    best_rank, person = rank.expand_as(matches).where(matches, matches.shape[-1]).min(-1)
    return person.where(best_rank < matches.shape[-1], -1)


def positive_cells(assignment: Tensor, capacity: int) -> Positives:
    """The positive cells of an assignment (B, P) as ``capacity`` rows, in flat order, without a wait for the device."""
    found = torch.nonzero_static(assignment.flatten() >= 0, size=capacity, fill_value=-1)[:, 0]
    return rows_of_cells(assignment, found.clamp(min=0), found >= 0)


def rows_of_cells(assignment: Tensor, index: Tensor, used: Tensor) -> Positives:
    """Any cells of an assignment (B, P) as rows: ``index`` (N,) into (B * P), ``used`` (N,) bool."""
    cells = assignment.shape[1]
    return Positives(index, index // cells, index % cells, assignment.flatten()[index].clamp(min=0), used)


def positives_bound(cells: int, people: int, *, level_rule: LevelRule, center_half_side: float) -> int:
    """Upper bound of the number of positives that an assignment by centre regions makes.

    An open square of 2h strides contains at most ceil(2h) points per side. A person of half size v matches FCOS levels
    with (4 - h) s <= v <= 8 s, which are at most 1 + log2(8 / (4 - h)). ``force_one`` adds one cell.
    """
    levels = 1
    if level_rule == "fcos":
        levels = 1 + math.floor(math.log2(8 / (4 - center_half_side))) if center_half_side < 3 else 5
    return min(cells, people * (levels * math.ceil(2 * center_half_side) ** 2 + 1))


def thin_out(assignment: Tensor, limit: int) -> Tensor:
    """Keep at most ``limit`` positive cells of each image, evenly spread over the flat order.

    Args:
        assignment: (B, P) person of each cell, -1 for none.

    Returns:
        (B, P), with -1 in the cells that were removed.
    """
    positive = assignment >= 0
    total = positive.sum(1, keepdim=True)
    last = positive.cumsum(1)  # positive i is kept where floor(i * limit / total) increases
    spread = (last * limit).div(total.clamp(min=1), rounding_mode="floor")
    before = ((last - 1) * limit).div(total.clamp(min=1), rounding_mode="floor")
    return assignment.where((spread > before) | (total <= limit), -1)


def ignored_cells(points: Tensor, people: PaddedPeople, drawn: Tensor) -> Tensor:
    """Cells whose loss is skipped, because they show people of whom no keypoint is known.

    These are the cells inside the segmentation of a crowd or of a person without keypoints, as in the papers. Of whom
    there is no segmentation, the box is taken instead. It covers much that is known, so it leaves cells alone that a
    labelled person needs.

    Args:
        points: (P, 2) xy of the cells, pixels.
        people: Of B images.
        drawn: (B, P) bool, cells in which a keypoint or the centre of a labelled person is drawn, or that are positive.

    Returns:
        (B, P) bool.
    """
    x1, y1, x2, y2 = people.unlabelled_boxes[:, None].unbind(-1)
    x, y = points[:, :1], points[:, 1:]
    ignored = ((x > x1) & (x < x2) & (y > y1) & (y < y2)).any(-1) & ~drawn
    if people.masks is None:
        return ignored
    height, width = people.masks.shape[1:]
    column, row = (points / MASK_STRIDE + 0.5).long().unbind(1)  # nearest cell of the mask
    inside = (column < width) & (row < height)  # coarse levels reach beyond the image
    cell = row.clamp(max=height - 1) * width + column.clamp(max=width - 1)
    return ignored | (people.masks.flatten(1).index_select(1, cell) & inside)


def reppoints_level(boxes: Tensor, levels: int = 5) -> Tensor:
    """Index of the level (0 is P3) of boxes (..., 4): trunc((log2(w / 4) + log2(h / 4)) / 2), clamped to P3..P7."""
    width, height = (boxes[..., 2:] - boxes[..., :2]).unbind(-1)
    return ((width * height / 16).log2() / 2).trunc().sub(3).clamp(0, levels - 1).long()


def _suitable_levels(cells: Cells, people: PaddedPeople, level_rule: LevelRule) -> Tensor:
    """(B, P, M) bool, True where the level of a cell suits the size of a person."""
    if level_rule == "reppoints":
        return cells.levels[:, None] == reppoints_level(people.boxes, len(cells.sizes))[:, None]
    x1, y1, x2, y2 = people.boxes[:, None].unbind(-1)
    x, y = cells.points[:, :1], cells.points[:, 1:]
    largest = torch.maximum(torch.maximum(x - x1, x2 - x), torch.maximum(y - y1, y2 - y))
    first, last = cells.levels == 0, cells.levels == len(cells.sizes) - 1
    low = (4 * cells.strides).where(~first, -1.0)[:, None]
    high = (8 * cells.strides).where(~last, torch.inf)[:, None]
    return (largest >= low) & (largest <= high)
