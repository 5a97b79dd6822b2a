"""Affinity fields: which cells, which direction, and what poses they make of peaks."""

import numpy as np
import pytest
import torch

from posefleet.data.schemas.shipped import COCO17
from posefleet.models.detposenet.paf import PafConfig, assemble, group_poses, paf_targets
from posefleet.models.parts.ops.heatmaps import draw_gaussians

EDGES = COCO17.edges
TEMPLATE = torch.tensor(
    [
        (50, 10), (54, 6), (46, 6), (60, 8), (40, 8), (70, 40), (30, 40), (78, 70), (22, 70), (80, 100), (20, 100),
        (62, 100), (38, 100), (64, 140), (36, 140), (66, 180), (34, 180),
    ],
    dtype=torch.float32,
)  # fmt: skip


def field(*limbs: tuple[tuple[float, float], tuple[float, float]]) -> torch.Tensor:
    """The field (2, 20, 30) of one limb of several people, 8 px wide to each side, stride 4."""
    keypoints = torch.tensor(limbs)[None]
    return paf_targets(keypoints, torch.ones(1, len(limbs), 2, dtype=torch.bool), [(0, 1)], (20, 30), 4, 8.0)[0]


def test_a_limb_fills_the_cells_along_it() -> None:
    x, y = field(((40.0, 40.0), (80.0, 40.0)))
    expected = torch.zeros(20, 30)
    expected[8:13, 10:21] = 1  # y 32..48 px, x 40..80 px: 5 x 11 cells
    torch.testing.assert_close(x, expected)
    assert not y.any()


def test_a_slanted_limb_has_unit_vectors_near_its_line_only() -> None:
    found = field(((16.0, 16.0), (64.0, 64.0)))
    inside = found.square().sum(0) > 0
    torch.testing.assert_close(found[:, inside], torch.full((2, int(inside.sum())), 0.5**0.5))
    row, column = inside.nonzero().unbind(1)
    assert ((row - column).abs() * 4 / 2**0.5).max() <= 8
    assert ((row + column) * 4).min() >= 32 and ((row + column) * 4).max() <= 128


def test_opposite_people_on_the_same_cells_average_to_nothing() -> None:
    assert not field(((40.0, 40.0), (80.0, 40.0)), ((80.0, 40.0), (40.0, 40.0))).any()


def test_people_elsewhere_do_not_dilute_the_average() -> None:
    x, _ = field(((40.0, 40.0), (80.0, 40.0)), ((10.0, 8.0), (30.0, 8.0)))
    assert x[10, 15] == 1 and x[2, 5] == 1


def test_limbs_without_length_or_labels_are_not_drawn() -> None:
    assert not field(((40.0, 40.0), (40.0, 40.0))).any()
    keypoints = torch.tensor([[[[40.0, 40.0], [80.0, 40.0]]]])
    labelled = torch.tensor([[[True, False]]])
    assert not paf_targets(keypoints, labelled, [(0, 1)], (20, 30), 4, 8.0).any()


def test_an_overhang_goes_on_beyond_both_ends() -> None:
    keypoints = torch.tensor([[[[40.0, 40.0], [80.0, 40.0]]]])
    labelled = torch.ones(1, 1, 2, dtype=torch.bool)
    x, _ = paf_targets(keypoints, labelled, [(0, 1)], (20, 30), 4, 8.0, overhang=7.0)[0]
    expected = torch.zeros(20, 30)
    expected[8:13, 9:22] = 1  # x 33..87 px: one cell more to each side
    torch.testing.assert_close(x, expected)


@pytest.mark.parametrize(("overhang", "found"), [(0.0, 0), (2.0, 1)])
def test_a_short_limb_is_found_again_with_half_a_cell_of_overhang(overhang: float, found: int) -> None:
    """Ends at x 41 and 47 px have their peaks at 40 and 48; only 44 lies between them, which is 4 of 10 samples."""
    people = torch.tensor([[[[41.0, 40.0], [47.0, 40.0]]]])
    labelled = torch.ones(1, 1, 2, dtype=torch.bool)
    heat = draw_gaussians(people / 4, labelled, torch.tensor(1.0), torch.tensor(3.0), (20, 30), reach=3)
    field = paf_targets(people, labelled, [(0, 1)], (20, 30), 4, 8.0, overhang)
    assert len(group_poses(heat, field, [(0, 1)], 4, 80, PafConfig())[0]) == found


def perfect(people: torch.Tensor, size: tuple[int, int] = (50, 100)) -> tuple[torch.Tensor, torch.Tensor]:
    """Keypoint maps and fields of people (M, K, 2) that a perfect network would give."""
    labelled = torch.ones(1, len(people), 17, dtype=torch.bool)
    heat = draw_gaussians(people[None] / 4, labelled, torch.tensor(1.75), torch.tensor(7.0), size, reach=7)
    return heat, paf_targets(people[None], labelled, EDGES, size, 4, 8.0)


def test_perfect_maps_of_two_people_give_both_poses_back() -> None:
    template = (TEMPLATE / 4).round() * 4
    people = torch.stack([template, template + torch.tensor([200.0, 8.0])])
    (poses,) = group_poses(*perfect(people), EDGES, 4, 400, PafConfig())
    assert len(poses) == 2 and poses.identified.all()
    order = poses.keypoints[:, 0, 0].argsort()
    torch.testing.assert_close(poses.keypoints[order], people)
    torch.testing.assert_close(poses.scores, torch.ones(2, 17))


def test_an_image_without_peaks_has_no_poses() -> None:
    found = group_poses(torch.zeros(2, 17, 20, 20), torch.zeros(2, 38, 20, 20), EDGES, 4, 80, PafConfig())
    assert [len(poses) for poses in found] == [0, 0]
    assert found[0].keypoints.shape == (0, 17, 2)


def test_limbs_of_more_than_half_the_image_lose_score() -> None:
    """A field of exactly .5 along a limb of twice half the height: .5 + (.5 * H / d - 1) = 0, no limb."""
    people = torch.zeros(1, 1, 2, 2)
    people[0, 0, 1, 0] = 80.0
    labelled = torch.ones(1, 1, 2, dtype=torch.bool)
    heat = draw_gaussians(people / 4, labelled, torch.tensor(1.0), torch.tensor(3.0), (20, 30), reach=3)
    half = paf_targets(people, labelled, [(0, 1)], (20, 30), 4, 8.0) / 2
    assert [len(group_poses(heat, half, [(0, 1)], 4, height, PafConfig())[0]) for height in (79, 82)] == [0, 1]


def scores(*pairs: tuple[int, int, float], limbs: int = 1) -> np.ndarray:
    """(limb, L) tables of 3 candidates; ``pairs`` of the only limb."""
    table = np.zeros((limbs, 3, 3))
    for a, b, value in pairs:
        table[0, a, b] = value
    return table


def test_a_candidate_is_used_once_and_the_best_pair_first() -> None:
    assert assemble(scores((0, 0, 0.5), (0, 1, 0.9), (1, 1, 0.8)), [(0, 1)], 2).tolist() == [[0, 1]]
    assert assemble(scores((0, 0, 0.5), (0, 1, 0.9), (1, 0, 0.3)), [(0, 1)], 2).tolist() == [[0, 1], [1, 0]]


def test_poses_grow_join_and_keep_apart() -> None:
    table = np.zeros((4, 3, 3))
    table[0, 0, 0] = 0.9  # 0-1
    table[1, 0, 0] = 0.9  # 2-3 opens another pose
    table[2, 0, 0] = 0.9  # 1-2 joins them
    grown = assemble(table, [(0, 1), (2, 3), (1, 2), (3, 4)], 5)
    assert grown.tolist() == [[0, 0, 0, 0, -1]]
    table[3, 0, 2] = 0.5  # 3-4 attaches
    assert assemble(table, [(0, 1), (2, 3), (1, 2), (3, 4)], 5).tolist() == [[0, 0, 0, 0, 2]]


def test_a_limb_that_contradicts_is_dropped() -> None:
    table = np.zeros((3, 3, 3))
    table[0, 0, 0] = 0.9  # 0-1
    table[1, 0, 0] = 0.9  # 1-2
    table[2, 0, 1] = 0.9  # 0-2 wants another candidate of 2
    assert assemble(table, [(0, 1), (1, 2), (0, 2)], 3).tolist() == [[0, 0, 0]]


def test_swapped_shoulders_leave_two_whole_poses() -> None:
    """The limbs from the left hip cross over to the other person's shoulder; all others are right."""
    table = np.stack([np.eye(2)] * len(EDGES))
    crossed = EDGES.index((COCO17.keypoints.index("left_shoulder"), COCO17.keypoints.index("left_hip")))
    table[crossed] = table[crossed][::-1]
    found = assemble(table, EDGES, 17)
    assert (found >= 0).sum(1).tolist() == [17, 17]
    assert sorted(found.sum(0).tolist()) == [1] * 17  # each candidate is in one pose
