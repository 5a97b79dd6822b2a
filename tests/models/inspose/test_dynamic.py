"""Networks with predicted weights: sizes, coordinates, and that all at once is each alone."""

import math

import pytest
import torch
import torch.nn.functional as F

from posefleet.models.inspose.dynamic import DynamicConfig, directions, run_instances
from posefleet.models.inspose.keypoint_maps import cell_cross_entropy

K = 17
PLAIN = DynamicConfig()


def run(theta: torch.Tensor, features: torch.Tensor, config: DynamicConfig = PLAIN, stride: float = 8) -> torch.Tensor:
    """Instances of the first image, located at (52, 36)."""
    n = len(theta)
    points, strides = torch.tensor([[52.0, 36.0]]).expand(n, 2), torch.full((n,), float(stride))
    where = directions(points, strides, tuple(features.shape[-2:]), 8, config)
    return run_instances(theta, features, torch.zeros(n, dtype=torch.int64), where, config, K)


def test_three_layers_have_313_parameters() -> None:
    assert PLAIN.sizes(K) == [80, 8, 64, 8, 136, 17]
    assert [sum(DynamicConfig(depth=depth).sizes(K)) for depth in (1, 2, 3, 4)] == [187, 241, 313, 385]
    assert DynamicConfig(rel_coords=False).sizes(K)[0] == 64


def test_coordinates_are_the_grid_minus_the_location_in_units_of_64_pixels_on_p3() -> None:
    where = directions(torch.tensor([[4.0, 4.0]]), torch.tensor([8.0]), (3, 4), 8, PLAIN)
    assert where.across.tolist() == [[0, 0.125, 0.25, 0.375]]
    assert where.down.tolist() == [[0, 0.125, 0.25]]
    where = directions(torch.tensor([[16.0, 16.0]]), torch.tensor([32.0]), (3, 4), 8, PLAIN)
    assert where.across[0, 0].item() == -12 / 256
    near, next_cell = (
        directions(torch.tensor([[x, 16.0]]), torch.tensor([32.0]), (3, 4), 8, PLAIN).across for x in (16.0, 48.0)
    )
    torch.testing.assert_close(next_cell, near - 1 / 8)


def test_the_unit_of_coordinates_can_be_the_same_for_all_levels() -> None:
    config = DynamicConfig(coordinate_scale=16, scale_by_level=False)
    where = directions(torch.tensor([[16.0, 16.0]]), torch.tensor([32.0]), (3, 4), 8, config)
    assert where.across[0, 0].item() == -12 / 128


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("coordinates", [True, False])
def test_all_at_once_is_a_loop_of_convolutions(depth: int, coordinates: bool) -> None:
    config = DynamicConfig(depth=depth, width=5, features=4, rel_coords=coordinates)
    torch.manual_seed(0)
    features, image = torch.randn(2, 4, 6, 7), torch.tensor([1, 0, 1])
    theta = torch.randn(3, sum(config.sizes(K))) * 0.3
    points, strides = torch.rand(3, 2) * 50, torch.tensor([8.0, 16.0, 32.0])
    where = directions(points, strides, (6, 7), 8, config)
    found = run_instances(theta, features, image, where, config, K)
    for i in range(3):
        x = features[image[i]]
        if coordinates:
            xs, ys = torch.meshgrid(where.across[i], where.down[i], indexing="xy")
            x = torch.cat([x, xs[None], ys[None]])
        parts = theta[i].split(config.sizes(K))
        for layer, (out, into) in enumerate(config.layers(K)):
            x = F.relu(x) if layer else x
            x = F.conv2d(x[None], parts[2 * layer].view(out, into, 1, 1), parts[2 * layer + 1])[0]
        torch.testing.assert_close(found[i], x, atol=1e-5, rtol=1e-5)


def test_a_constant_map_costs_the_logarithm_of_its_cells() -> None:
    theta = torch.zeros(2, 313)
    theta[:, -K:] = 3.5
    maps = run(theta, torch.randn(1, 8, 100, 136))
    assert (maps == 3.5).all()
    loss = cell_cross_entropy(maps, torch.randint(0, 13_600, (2, K)))
    torch.testing.assert_close(loss, torch.full((2, K), 9.5178), atol=1e-4, rtol=0)
    assert math.log(13_600) == pytest.approx(9.5178, abs=1e-4)


def test_a_network_that_reads_x_alone_rises_to_the_right_of_its_location() -> None:
    theta = torch.zeros(1, 313)
    theta[0, 8] = 1  # w1[0, X]
    theta[0, 88] = 1  # w2[0, 0]
    theta[0, 160 : 160 + 8 * K : 8] = 1  # w3[k, 0]
    maps = run(theta, torch.randn(1, 8, 5, 10))
    expected = ((8 * torch.arange(10) + 4 - 52) / 64).relu()
    torch.testing.assert_close(maps, expected.expand(1, K, 5, 10))


def test_nobody_is_an_instance_too() -> None:
    features = torch.randn(1, 8, 5, 10, requires_grad=True)
    maps = run(torch.zeros(0, 313), features)
    assert maps.shape == (0, K, 5, 10)
    maps.sum().backward()
    assert (features.grad == 0).all()


def test_settings_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match=r"depth must be 1\.\.4, not 5"):
        DynamicConfig(depth=5)
    with pytest.raises(ValueError, match="features even, not 8 and 7"):
        DynamicConfig(features=7)
    with pytest.raises(ValueError, match="coordinate_scale must be above 0, not 0"):
        DynamicConfig(coordinate_scale=0)
