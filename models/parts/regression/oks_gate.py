"""The OKS gate: cells whose first pose has a high enough OKS train the second stage.

Letters: B images, M people of an image (padded), N rows of cells, K keypoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from posefleet.models.parts.ops.assign import PaddedPeople, Positives
from posefleet.models.parts.ops.cells import Cells, decode_offsets, flatten_levels
from posefleet.models.parts.ops.oks import oks, oks_and_rank

Match = Literal["max", "assigned"]
KeepBest = Literal["image", "assigned", "none"]
"""Which cells pass the gate whatever their OKS: the best one of the whole image for each person (if it is assigned to
anybody), the best one of the cells that are assigned to the person, or none."""


@dataclass(frozen=True, slots=True)
class OksMatch:
    """The OKS of the poses of N rows, and which of them pass the gate."""

    oks: Tensor
    """(N,) OKS with the matched person; 0 in unused rows."""
    kept: Tensor
    """(N,) bool, True for cells that train the second stage."""
    match: Tensor
    """(N,) int64 in [0, M), the matched person."""


@torch.no_grad()
def oks_gate(
    poses: Tensor,
    rows: Positives,
    people: PaddedPeople,
    sigmas: Tensor,
    *,
    threshold: Tensor | float,
    match: Match = "max",
    keep_best: bool = False,
    anyway: Tensor | None = None,
) -> OksMatch:
    """Match poses (N, K, 2), pixels, with the people of their image, and keep those with a high OKS.

    Args:
        threshold: A cell passes if its OKS is at least this, 0..1.
        match: Person whose OKS counts: the most similar one (``max``), or the one to whom the cell is assigned.
        keep_best: Also pass the best of the cells that are assigned to a person, whatever its OKS.
        anyway: (N,) bool, rows that also pass, whatever their OKS.
    """
    similarity, rank = oks_and_rank(
        poses[:, None], people.keypoints[rows.image], people.labelled[rows.image], people.areas[rows.image], sigmas
    )  # (N, M)
    if match == "max":
        best, person = similarity.max(1)
        # Where every OKS is 0, no person is the most similar one: take the assigned person.
        person = person.where(best > 0, rows.person)
    else:
        best, person = similarity.gather(1, rows.person[:, None])[:, 0], rows.person
    kept = best >= threshold
    if keep_best:
        rank = rank.gather(1, rows.person[:, None])[:, 0].where(rows.used, -torch.inf)
        slot = rows.image * people.valid.shape[1] + rows.person
        best_rank = torch.full_like(people.areas, -torch.inf).flatten().scatter_reduce(0, slot, rank, "amax")
        kept |= rank == best_rank[slot]
    if anyway is not None:
        kept |= anyway
    return OksMatch(best.where(rows.used, 0.0), kept & rows.used, person)


@torch.no_grad()
def best_cells_of_image(levels: Sequence[Tensor], cells: Cells, people: PaddedPeople, sigmas: Tensor) -> Tensor:
    """The cells whose pose is, for some person, the most similar one of the whole image, assigned to the person or not.

    Args:
        levels: Offsets (B, 2K, h, w) of the poses of all levels, cells.

    Returns:
        (B, P) bool; several cells of a person where poses are equally good.
    """
    poses = decode_offsets(cells.points, cells.strides, flatten_levels(levels))  # (B, P, K, 2)
    best = torch.zeros(poses.shape[:2], dtype=torch.bool, device=poses.device)
    # One person at a time: all pairs of cells and people would need B * P * M * K numbers.
    for person in range(people.valid.shape[1]):
        _, rank = oks_and_rank(
            poses,
            people.keypoints[:, None, person],
            people.labelled[:, None, person],
            people.areas[:, None, person],
            sigmas,
        )  # (B, P)
        best |= (rank == rank.amax(1, keepdim=True)) & people.valid[:, person, None]
    return best


@torch.no_grad()
def best_oks(poses: Tensor, rows: Positives, people: PaddedPeople, sigmas: Tensor) -> Tensor:
    """(N,) OKS of poses (N, K, 2) with the most similar person of their image; 0 in unused rows."""
    similarity = oks(
        poses[:, None], people.keypoints[rows.image], people.labelled[rows.image], people.areas[rows.image], sigmas
    )  # (N, M)
    return similarity.amax(1).where(rows.used, 0.0)


@torch.no_grad()
def assignment_stats(rows: Positives, gated: OksMatch) -> dict[str, Tensor]:
    """Statistics to log, 0-dim tensors: ``initial_oks`` (mean over the cells), ``kept`` (share of cells that train the
    second stage), ``swapped`` (share of cells whose pose is more similar to another person than to the assigned one).
    """
    total = rows.used.sum().clamp(min=1)
    return {
        "initial_oks": gated.oks.sum() / total,
        "kept": gated.kept.sum() / total,
        "swapped": ((gated.match != rows.person) & rows.used).sum() / total,
    }
