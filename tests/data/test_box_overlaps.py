import numpy as np
import pytest

from posefleet.data.boxes import areas, intersections, overlaps


def test_boxes_overlap_by_intersection_over_union() -> None:
    a = np.array([[0.0, 0, 4, 2], [1, 1, 1, 1]])
    b = np.array([[2.0, 0, 6, 2], [10, 10, 11, 11], [1, 1, 1, 1]])
    np.testing.assert_array_equal(intersections(a, b), [[4, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(areas(b), [8, 1, 0])
    assert overlaps(a, b)[0, 0] == pytest.approx(4 / 12)
    np.testing.assert_array_equal(overlaps(a, b)[:, 1:], np.zeros((2, 2)))  # nothing in common, and no area at all
    assert overlaps(np.zeros((0, 4)), b).shape == (0, 3)
