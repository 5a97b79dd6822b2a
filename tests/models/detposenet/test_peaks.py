"""Points of maps: which cell, which quarter, which neighbours."""

import torch

from posefleet.models.detposenet.paf import best_points
from posefleet.models.parts.ops.heatmaps import draw_gaussians, local_peaks


def draw(*points: tuple[float, float], size: tuple[int, int] = (64, 64)) -> torch.Tensor:
    """One map (1, K, h, w) for each point, in cells, deviation 1."""
    centres = torch.tensor(points)[None, None]
    return draw_gaussians(
        centres, torch.ones(1, 1, len(points), dtype=torch.bool), torch.tensor(1.0), torch.tensor(5.0), size, reach=5
    )


def test_a_point_on_the_grid_comes_back_exactly() -> None:
    points, values = best_points(draw((25.0, 15.0)))  # pixel (100, 60) of a crop
    assert points.tolist() == [[[25.0, 15.0]]]
    assert values.tolist() == [[1.0]]


def test_a_point_between_cells_moves_a_quarter_towards_the_larger_neighbour() -> None:
    points, _ = best_points(draw((25.625, 15.0)))  # pixel 102.5: cell 26, neighbour 25
    assert points.tolist() == [[[25.75, 15.0]]]
    assert (points[0, 0, 0] * 4).item() == 103.0


def test_no_point_is_off_by_more_than_a_pixel_of_four_per_cell() -> None:
    truth = torch.rand(200, 2, generator=torch.Generator().manual_seed(0)) * 50 + 5
    points, _ = best_points(draw(*map(tuple, truth.tolist())))
    assert ((points[0] - truth).abs() * 4).max() <= 1.0 + 1e-4


def test_peaks_on_the_border_stay_there() -> None:
    maps = torch.zeros(4, 3, 5)
    for index, (row, column) in enumerate(((0, 0), (2, 4), (1, 0), (2, 2))):
        maps[index, row, column] = 1
        maps[index, row, max(column - 1, 0)] += 0.5
    points, _ = best_points(maps)
    assert points[:3].tolist() == [[0, 0], [4, 2], [0, 1]]
    assert points[3].tolist() == [1.75, 2]


def test_local_peaks_are_above_the_threshold_and_sorted() -> None:
    maps = torch.zeros(1, 1, 8, 8)
    maps[0, 0, 1, 1], maps[0, 0, 1, 2], maps[0, 0, 5, 6], maps[0, 0, 7, 0] = 0.5, 0.4, 0.9, 0.05
    cells, values = local_peaks(maps, 0.1, 3)
    assert cells[0, 0, :2].tolist() == [[6, 5], [1, 1]]
    torch.testing.assert_close(values[0, 0], torch.tensor([0.9, 0.5, -torch.inf]))
    assert local_peaks(maps, 0.1, 100)[1].shape == (1, 1, 64)
