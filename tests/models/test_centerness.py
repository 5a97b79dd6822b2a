"""Centre-ness of cells."""

import pytest
import torch

from posefleet.models.pfs import centerness

BOX = torch.tensor([100.0, 100, 220, 340])


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (160, 220, 1.0),
        (144, 208, 0.688247),  # sqrt(44 / 76 * 108 / 132)
        (100, 220, 0.0),
        (90, 220, 0.0),
    ],
)
def test_centerness(x: float, y: float, expected: float) -> None:
    assert centerness(torch.tensor([x, y]), BOX).item() == pytest.approx(expected, abs=1e-6)


def test_a_box_without_extent_has_no_centre() -> None:
    point = torch.tensor([4.0, 4.0])
    assert centerness(point, torch.tensor([4.0, 4, 4, 4])).item() == 0
