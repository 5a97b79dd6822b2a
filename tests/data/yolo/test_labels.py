"""Lines of YOLO's label files."""

import numpy as np
import pytest

from posefleet.data.yolo.labels import LabelFormat, Object, format_object, parse_labels
from posefleet.data.yolo.problems import Problems

THREE = LabelFormat(classes=2, keypoints=2, values=3)
TWO = LabelFormat(classes=1, keypoints=2, values=2)
GOOD = "1 0.5 0.5 0.25 0.5  0.25 0.5 2  0 0 0"


def parse(text: str, form: LabelFormat = THREE) -> tuple[list[Object], Problems]:
    problems = Problems()
    return parse_labels(text, form, (200, 100), "labels/a.txt", problems), problems


def test_a_line_becomes_pixels() -> None:
    (thing,), problems = parse(GOOD + "\n\n")
    assert thing == Object(1, [75.0, 25.0, 50.0, 50.0], [50.0, 50.0, 2, 0, 0, 0])
    assert len(problems) == 0


def test_with_two_values_a_keypoint_at_the_origin_is_not_labelled() -> None:
    (thing,), _ = parse("0 0.5 0.5 0.25 0.5 0.25 0.5 0 0", TWO)
    assert thing.keypoints == [50.0, 50.0, 2, 0, 0, 0]


@pytest.mark.parametrize(
    ("line", "kind", "what"),
    [
        ("0 0.5 0.5 0.2 0.2 0.1 0.1 2", "lines with a wrong number of columns", "8 columns; 2 keypoints of 3"),
        (GOOD + " 1", "lines with a wrong number of columns", "12 columns"),
        (GOOD.replace("0.25", "x", 1), "lines that are not numbers", "'x' is not a number"),
        (GOOD.replace("0.25", "nan", 1), "lines that are not finite", "nan is not a finite number"),
        (GOOD.replace("0.25", "-inf", 1), "lines that are not finite", "-inf is not"),
        ("2" + GOOD[1:], "classes out of range", "class 2, expected 0 to 1"),
        ("-1" + GOOD[1:], "classes out of range", "class -1"),
        ("0.5" + GOOD[1:], "classes out of range", "class 0.5"),
        (GOOD.replace("0.5 0.5", "0.5 1.2", 1), "coordinates outside 0..1", "coordinate 1.2, expected a fraction"),
        (GOOD.replace("0.25 0.5 2", "55 0.5 2"), "coordinates outside 0..1", "coordinate 55,"),
        (GOOD.replace("0.25 0.5 2", "-0.1 0.5 1"), "coordinates outside 0..1", "coordinate -0.1,"),
        (GOOD.replace("0.5 2", "0.5 3"), "wrong visibilities", "visibility 3, expected 0, 1 or 2"),
        (GOOD.replace("0.5 2", "0.5 0.7"), "wrong visibilities", "visibility 0.7"),
        (GOOD.replace("0.25 0.5", "0 0.5", 1), "boxes without area", "box of 0 x 0.5, expected more than 0"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_named_and_counted_and_the_others_are_read(line: str, kind: str, what: str) -> None:
    found, problems = parse(f"{GOOD}\n\n{line}\n{GOOD}")
    assert len(found) == 2
    assert problems.counts == {kind: 1}
    assert problems.lines[0].startswith("labels/a.txt:3: ") and what in problems.lines[0]


def test_an_unlabelled_keypoint_may_be_anywhere_and_a_rounded_one_on_the_border() -> None:
    (thing,), problems = parse("0 0.5 0.5 0.25 0.5 1.0000005 0.5 2.0 7 -7 0")
    assert thing.keypoints[2:] == [2, 0, 0, 0] and abs(thing.keypoints[0] - 200) < 1e-3
    assert len(problems) == 0


def test_pixels_survive_a_line_to_a_thousandth_of_a_pixel() -> None:
    rng = np.random.default_rng(0)
    for size in ((64, 48), (4032, 3024), (50_001, 7)):
        for _ in range(50):
            low, high = np.sort(rng.uniform(0, size, (2, 2)), axis=0)
            points = [(*rng.uniform(0, size).tolist(), int(rng.integers(1, 3))) for _ in range(3)]
            before = Object(0, [*low.tolist(), *(high - low).tolist()], [value for point in points for value in point])
            problems = Problems()
            (after,) = parse_labels(format_object(before, size), LabelFormat(1, 3, 3), size, "", problems)
            assert np.abs(np.subtract(after.box, before.box)).max() < 5e-4
            assert np.abs(np.subtract(after.keypoints, before.keypoints)).max() < 5e-4
