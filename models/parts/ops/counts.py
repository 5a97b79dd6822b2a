"""Numbers of keypoints in settings, which are stated for COCO's schema."""

_STATED_FOR = 17
"""Keypoints of the schema for which the papers state their numbers."""


def in_proportion(count: int, keypoints: int) -> int:
    """The same share of ``keypoints`` that ``count`` is of COCO's 17, rounded."""
    return round(count * keypoints / _STATED_FOR)
