"""Maps of which one cell should fire."""

import math

import pytest
import torch

from posefleet.models.inspose.keypoint_maps import cell_cross_entropy, keypoint_cells, peaks, rescale


def test_a_keypoint_belongs_to_the_cell_below_it_and_on_the_border_to_the_last() -> None:
    keypoints = torch.tensor([[203.7, 95.2], [512.0, 0.0], [0.0, 256.0], [511.9, 255.9]])
    row_column = [(11, 25), (0, 63), (31, 0), (31, 63)]
    assert keypoint_cells(keypoints, (32, 64), 8).tolist() == [row * 64 + column for row, column in row_column]


def test_cross_entropy_of_one_cell_that_is_ten_times_as_likely() -> None:
    maps = torch.zeros(1, 1, 2, 3)
    maps[0, 0, 1, 2] = math.log(10)
    assert cell_cross_entropy(maps, torch.tensor([[5]])).item() == pytest.approx(math.log(15 / 10))
    assert cell_cross_entropy(maps, torch.tensor([[0]])).item() == pytest.approx(math.log(15))


def test_peaks_are_columns_rows_and_probabilities() -> None:
    maps = torch.zeros(1, 1, 2, 3)
    maps[0, 0, 1, 2] = math.log(10)
    column, row, score = peaks(maps)
    assert (column.item(), row.item()) == (2, 1)
    assert score.item() == pytest.approx(10 / 15)


def test_half_as_many_cells_are_means_of_four() -> None:
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    assert rescale(maps, 0.5).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert rescale(maps, 1) is maps
    assert rescale(maps[:0], 2, "bicubic").shape == (0, 1, 8, 8)
