"""Evaluation of the parts of the body as COCO-WholeBody's authors do it (github.com/jin-s13/COCO-WholeBody).

Every part is COCO's protocol for the keypoints of that part alone, with the area of the whole person and the score of
the whole pose; people of whom no keypoint of the part is labelled are ignored. Whether an unmatched pose is medium or
large depends on the box of its body's keypoints, for every part and for the whole.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from posefleet.data.evaluation.ground_truth import GroundTruth, PoseTable
from posefleet.data.schemas.schema import KeypointSchema

PARTS = ("body", "foot", "face", "left_hand", "right_hand")
"""Groups of a schema that are evaluated apart, if it has all of them."""


def parts_of(schema: KeypointSchema) -> dict[str, list[int]]:
    """The parts of a schema that are evaluated apart, and the indices of their keypoints; none for most schemas."""
    return {part: schema.group(part) for part in PARTS} if schema.groups.keys() >= set(PARTS) else {}


def with_body_areas(poses: PoseTable, schema: KeypointSchema) -> PoseTable:
    """The poses with the areas of their bodies, if the schema is evaluated by parts; else as they are."""
    if not (parts := parts_of(schema)):
        return poses
    return replace(poses, areas=np.ptp(poses.keypoints[:, parts["body"]], axis=1).prod(1))


def people_part(ground_truth: GroundTruth, keypoints: Sequence[int]) -> GroundTruth:
    """The same people with some keypoints only, given by indices."""
    visibility = ground_truth.visibility[:, keypoints]
    counts = np.count_nonzero(visibility > 0, axis=1)
    return replace(
        ground_truth, keypoints=ground_truth.keypoints[:, keypoints], visibility=visibility, num_keypoints=counts
    )


def poses_part(poses: PoseTable, keypoints: Sequence[int]) -> PoseTable:
    """The same poses with some keypoints only; their areas stay."""
    return replace(poses, keypoints=poses.keypoints[:, keypoints])


def schema_part(schema: KeypointSchema, part: str) -> KeypointSchema:
    """The keypoints of one group of a schema as a schema without skeleton and pairs."""
    rows = schema.group(part)
    return KeypointSchema(
        name=f"{schema.name} {part}",
        keypoints=tuple(schema.keypoints[row] for row in rows),
        sigmas=tuple(schema.sigmas[row] for row in rows),
    )
