"""Structure-aware loss: the sum over neighbours is a weight for each keypoint."""

import pytest
import torch

from posefleet.data.schemas.shipped import COCO17
from posefleet.models.detposenet.refinement import structure_aware_loss, structure_weights

WEIGHTS = structure_weights(COCO17.edges, 17, 0.5)


def test_weights_of_coco_grow_with_the_number_of_neighbours() -> None:
    groups = {"nose": 2.0, "eye": 2.5, "ear": 2.0, "shoulder": 3.0, "elbow": 2.0, "wrist": 1.5, "hip": 2.5}
    groups |= {"knee": 2.0, "ankle": 1.5}
    for name, weight in zip(COCO17.keypoints, WEIGHTS.tolist(), strict=True):
        assert weight == groups[name.split("_")[-1]], name
    assert WEIGHTS.mean().item() == pytest.approx(36 / 17)


def test_degrees_of_coco_and_of_mpii() -> None:
    assert (structure_weights(COCO17.edges, 17, 1.0) - 1).tolist() == [
        2,
        3,
        3,
        2,
        2,
        4,
        4,
        2,
        2,
        1,
        1,
        3,
        3,
        2,
        2,
        1,
        1,
    ]
    mpii = [(0, 1), (1, 2), (2, 6), (3, 6), (2, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 9), (10, 11), (11, 12)]
    mpii += [(12, 7), (7, 13), (13, 14), (14, 15)]
    assert (structure_weights(mpii, 16, 1.0) - 1).sum() == 2 * 16


def test_weights_equal_the_sum_over_neighbours() -> None:
    random = torch.Generator().manual_seed(0)
    maps, targets = torch.rand(3, 17, 8, 8, generator=random), torch.rand(3, 17, 8, 8, generator=random)
    errors = (maps - targets).square().mean((2, 3))
    expected = torch.zeros(())
    for sample in errors:
        for n in range(17):
            neighbours = [b if a == n else a for a, b in COCO17.edges if n in (a, b)]
            expected += (sample[n] + 0.5 * sample[neighbours].sum()) / 17
    found = structure_aware_loss(maps, targets, torch.ones(3, 17), WEIGHTS)
    torch.testing.assert_close(found, expected)


def test_an_error_of_one_everywhere_costs_the_mean_weight() -> None:
    found = structure_aware_loss(torch.ones(1, 17, 4, 4), torch.zeros(1, 17, 4, 4), torch.ones(1, 17), WEIGHTS)
    assert found.item() == pytest.approx(2.117647, abs=1e-6)


def test_without_neighbours_it_is_the_mean_square() -> None:
    maps, targets = torch.rand(2, 17, 8, 8), torch.rand(2, 17, 8, 8)
    plain = structure_aware_loss(maps, targets, torch.ones(2, 17), structure_weights(COCO17.edges, 17, 0.0))
    torch.testing.assert_close(plain / 2, torch.nn.functional.mse_loss(maps, targets))


def test_the_plain_norm_is_the_length_of_the_difference() -> None:
    maps = torch.full((1, 17, 2, 2), 3.0)
    found = structure_aware_loss(maps, torch.zeros_like(maps), torch.ones(1, 17), torch.ones(17), norm="plain")
    assert found.item() == pytest.approx(6.0)


def test_hidden_keypoints_teach_nothing() -> None:
    maps = torch.rand(1, 17, 8, 8, requires_grad=True)
    labelled = (torch.arange(17) != 4).float()[None]
    for norm in ("squared", "plain"):
        maps.grad = None
        structure_aware_loss(maps, torch.zeros(1, 17, 8, 8), labelled, WEIGHTS, norm=norm).backward()
        taught = maps.grad.abs().sum((0, 2, 3)) > 0
        assert taught.tolist() == labelled[0].bool().tolist()
