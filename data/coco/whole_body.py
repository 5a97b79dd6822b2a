"""Annotations of COCO-WholeBody: the keypoints of a person are in five lists, with a flag for each part but the body
(github.com/jin-s13/COCO-WholeBody, data_format.md). Here they become one list, as the schema ``coco_wholebody133`` has
it, which every other file of this package understands.
"""

from collections.abc import Mapping
from typing import Any

from posefleet.data.coco.annotations import Annotation, are_numbers
from posefleet.data.errors import DataError

_LISTS = {"keypoints": 17, "foot_kpts": 6, "face_kpts": 68, "lefthand_kpts": 21, "righthand_kpts": 21}
"""The lists in the order of the schema, and how many keypoints each has."""
_FLAGS = {part: part.replace("_kpts", "_valid") for part in _LISTS if part != "keypoints"}
"""The flag that says whether a part could be labelled."""

COUNT = sum(_LISTS.values())
"""Keypoints of a whole body."""


def is_whole_body(annotation: Annotation) -> bool:
    """Whether an annotation has the keypoints of a whole body in several lists."""
    return any(part in annotation for part in _FLAGS)


def join_parts(annotation: Annotation) -> Mapping[str, Any]:
    """The annotation with all keypoints in the list ``keypoints``, and their number in ``num_keypoints``.

    A part that is missing or whose flag is false has no labelled keypoints. Labels of feet, faces and hands are
    confidences in some files: a keypoint counts as labelled if its number is above 0.

    Raises:
        DataError: A list is no list of numbers, or has another length.
    """
    keypoints: list[float] = []
    for part, count in _LISTS.items():
        values = annotation.get(part) or [0] * (3 * count)
        if not are_numbers(values) or len(values) != 3 * count:
            what = f"{len(values)} values" if isinstance(values, list) else repr(values)
            raise DataError(f"annotation {annotation.get('id')}: {part} has {what}, expected {count} times x, y, v")
        if part in _FLAGS and not annotation.get(_FLAGS[part], True):
            values = [0] * (3 * count)
        keypoints += values
    for place in range(2, len(keypoints), 3):
        if 0 < keypoints[place] < 1:
            keypoints[place] = 1
    counted = sum(v > 0 for v in keypoints[2::3])
    rest = {key: value for key, value in annotation.items() if key not in _FLAGS}
    return rest | {"keypoints": keypoints, "num_keypoints": counted}
