"""One label file of YOLO's pose format: a line for each object,

    class x_centre y_centre width height  x y v  x y v  ...

with all coordinates as fractions of the width and height of the image as a viewer shows it. With two values a keypoint
there is no v; a keypoint at 0 0 is then not labelled.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from posefleet.data.yolo.problems import Problems

SLACK = 1e-6
"""By how much a coordinate may be outside 0..1: the rounding of six decimals."""

DECIMALS = 9
"""Decimals of written coordinates: a hundred thousandth of a pixel in an image of 10,000 pixels."""


@dataclass(frozen=True, slots=True)
class LabelFormat:
    """What the lines of a data set hold, from its data.yaml."""

    classes: int
    keypoints: int
    values: int
    """Values of a keypoint: 2 (x, y) or 3 (x, y, visibility)."""

    @property
    def columns(self) -> int:
        """Numbers of a line."""
        return 5 + self.keypoints * self.values


@dataclass(frozen=True, slots=True)
class Object:
    """One labelled object, in pixels."""

    class_id: int
    box: list[float]
    """x, y, width, height: COCO's."""
    keypoints: list[float]
    """x, y, v of each keypoint: COCO's."""


def parse_labels(text: str, form: LabelFormat, size: tuple[int, int], place: str, problems: Problems) -> list[Object]:
    """The objects of a label file; lines that are wrong are left out and added to ``problems``.

    Args:
        text: Content of the file.
        form: What each line holds.
        size: (width, height) of the image in pixels.
        place: Path of the file, for ``problems``.
        problems: Gets a line for each wrong one, with its number.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        kind, what, values = _checked(line.split(), form)
        if kind:
            problems.add(kind, f"{place}:{number}", what)
        else:
            found.append(_object(values, form, size))
    return found


def format_object(thing: Object, size: tuple[int, int]) -> str:
    """The line of an object, with three values a keypoint; the inverse of :func:`parse_labels`.

    Args:
        thing: In pixels; its box has its centre in the image, and labelled keypoints are in it.
        size: (width, height) of the image in pixels.
    """
    width, height = size
    x, y, w, h = thing.box
    numbers = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
    words = [str(thing.class_id), *map(_written, numbers)]
    for at in range(0, len(thing.keypoints), 3):
        x, y, v = thing.keypoints[at : at + 3]
        words += [_written(x / width), _written(y / height), str(int(v))] if v > 0 else ["0", "0", "0"]
    return " ".join(words)


def _checked(words: Sequence[str], form: LabelFormat) -> tuple[str, str, list[float]]:
    """Kind of problem and what it is (both empty if there is none), and the numbers of a line."""
    if len(words) != form.columns:
        what = f"{form.keypoints} keypoints of {form.values} values make {form.columns}"
        return "lines with a wrong number of columns", f"{len(words)} columns; {what}", []
    try:
        values = [float(word) for word in words]
    except ValueError:
        wrong = next(word for word in words if not _is_number(word))
        return "lines that are not numbers", f"{wrong!r} is not a number", []
    if not all(map(math.isfinite, values)):
        wrong = next(word for word, value in zip(words, values, strict=True) if not math.isfinite(value))
        return "lines that are not finite", f"{wrong} is not a finite number", []
    class_id, *coordinates = values
    if class_id != int(class_id) or not 0 <= class_id < form.classes:
        return "classes out of range", f"class {words[0]}, expected 0 to {form.classes - 1}", []
    points = coordinates[4:]
    inside, visibility = coordinates[:4], []
    for at in range(0, len(points), form.values):
        visibility += points[at + 2 : at + form.values]
        if form.values == 2 or points[at + 2]:
            inside += points[at : at + 2]
    if wrong_v := [v for v in visibility if v not in (0, 1, 2)]:
        return "wrong visibilities", f"visibility {wrong_v[0]:g}, expected 0, 1 or 2", []
    if outside := [value for value in inside if not -SLACK <= value <= 1 + SLACK]:
        return "coordinates outside 0..1", f"coordinate {outside[0]:g}, expected a fraction of the image, 0 to 1", []
    if min(coordinates[2:4]) <= 0:
        return "boxes without area", f"box of {words[3]} x {words[4]}, expected more than 0", []
    return "", "", values


def _object(values: Sequence[float], form: LabelFormat, size: tuple[int, int]) -> Object:
    width, height = size
    class_id, x, y, w, h = values[:5]
    keypoints: list[float] = []
    for at in range(5, len(values), form.values):
        px, py = values[at : at + 2]
        v = values[at + 2] if form.values == 3 else 2.0 * bool(px or py)
        keypoints += [_rounded(px * width), _rounded(py * height), int(v)] if v else [0, 0, 0]
    box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
    return Object(int(class_id), list(map(_rounded, box)), keypoints)


def _rounded(value: float) -> float:
    return round(value, 5)


def _written(value: float) -> str:
    return f"{value:.{DECIMALS}f}".rstrip("0").rstrip(".")


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
