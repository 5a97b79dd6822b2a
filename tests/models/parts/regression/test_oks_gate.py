"""Poses of cells gated by their OKS: it is 0.646995 with all keypoints 10 px off and an area of 10,000 px^2."""

import pytest
import torch

from posefleet.data.schemas.shipped import COCO17
from posefleet.data.structures import People
from posefleet.models.parts.ops.assign import PaddedPeople, Positives, pad_people, rows_of_cells
from posefleet.models.parts.regression.oks_gate import assignment_stats, best_oks, oks_gate

K = len(COCO17)
SIGMAS = torch.tensor(COCO17.sigmas)


def scene() -> PaddedPeople:
    """A in the image, B far away."""
    a = torch.rand(1, K, 2, generator=torch.Generator().manual_seed(0)) * 100
    return pad_people(
        [
            People(
                torch.cat([a, a + 1000]),
                torch.full((2, K), 2, dtype=torch.uint8),
                torch.zeros(2, 4),
                torch.tensor([10_000.0, 10_000]),
                torch.zeros(2, dtype=torch.bool),
            )
        ],
        torch.device("cpu"),
    )


def rows(count: int, *, unused: int = 0) -> Positives:
    """``count`` cells that are assigned to A."""
    return rows_of_cells(torch.zeros(1, count, dtype=torch.int64), torch.arange(count), torch.arange(count) >= unused)


def right(pixels: list[float]) -> torch.Tensor:
    """Poses of A, displaced to the right."""
    return scene().keypoints[0, 0] + torch.tensor(pixels)[:, None, None] * torch.tensor([1.0, 0.0])


def test_poses_pass_with_the_threshold_or_more() -> None:
    gated = oks_gate(right([0.0, 10, 20]), rows(3), scene(), SIGMAS, threshold=0.5)
    torch.testing.assert_close(gated.oks, torch.tensor([1, 0.646995, 0.331114]), atol=1e-5, rtol=0)
    assert gated.kept.tolist() == [True, True, False] and gated.match.tolist() == [0, 0, 0]
    exact = oks_gate(right([10.0]), rows(1), scene(), SIGMAS, threshold=gated.oks[1])
    assert exact.kept.tolist() == [True]


def test_the_pose_of_somebody_else_matches_them_unless_only_the_assigned_person_counts() -> None:
    pose = scene().keypoints[0, 1:]
    most = oks_gate(pose, rows(1), scene(), SIGMAS, threshold=0.5)
    assert (most.oks.item(), most.kept.item(), most.match.item()) == (1, True, 1)
    own = oks_gate(pose, rows(1), scene(), SIGMAS, threshold=0.5, match="assigned")
    assert own.oks.item() < 1e-6 and not own.kept.item() and own.match.item() == 0


def test_the_best_cell_of_a_person_can_be_kept_whatever_its_oks() -> None:
    poses = right([20.0, 21, 20, 22])
    assert oks_gate(poses, rows(4), scene(), SIGMAS, threshold=0.5, keep_best=True).kept.tolist() == [True, False] * 2
    far = right([5000.0, 6000])  # OKS 0 in float32
    gated = oks_gate(far, rows(2), scene(), SIGMAS, threshold=0.5, keep_best=True)
    assert gated.oks.tolist() == [0, 0] and gated.kept.tolist() == [True, False] and gated.match.tolist() == [0, 0]


def test_unused_rows_say_nothing() -> None:
    cells = rows(2, unused=1)
    gated = oks_gate(right([0.0, 10]), cells, scene(), SIGMAS, threshold=0.0, keep_best=True)
    assert gated.oks.tolist() == pytest.approx([0, 0.646995], abs=1e-5) and gated.kept.tolist() == [False, True]
    assert best_oks(right([0.0, 10]), cells, scene(), SIGMAS).tolist() == pytest.approx([0, 0.646995], abs=1e-5)
    numbers = assignment_stats(cells, gated)
    assert {name: value.item() for name, value in numbers.items()} == pytest.approx(
        {"initial_oks": 0.646995, "kept": 1, "swapped": 0}, abs=1e-5
    )


def test_best_oks_is_that_of_whoever_is_most_similar() -> None:
    poses = torch.cat([right([0.0]), scene().keypoints[0, 1:] + torch.tensor([10.0, 0.0])])
    assert best_oks(poses, rows(2), scene(), SIGMAS).tolist() == pytest.approx([1, 0.646995], abs=1e-4)
    gated = oks_gate(poses, rows(2), scene(), SIGMAS, threshold=0.5)
    assert assignment_stats(rows(2), gated)["swapped"].item() == 0.5
