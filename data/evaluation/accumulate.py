"""Matches the poses of some images to their people, and merges the results of several processes.

Matching takes most of the time of an evaluation, and needs one image at a time. So each process matches its own images
(:func:`match_images`). The results, about sixty bytes a pose, are merged (:meth:`ImageStats.merge`) and then
accumulated in order of score (``evaluate.summarize``).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from posefleet.data.errors import DataError
from posefleet.data.evaluation.error_analysis import analyse_errors
from posefleet.data.evaluation.ground_truth import GroundTruth, PoseTable, check_unique
from posefleet.data.evaluation.matching import match
from posefleet.data.evaluation.parts import parts_of, people_part, poses_part, schema_part, with_body_areas
from posefleet.data.evaluation.precision_recall import MatchFlags
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.structures import Poses


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageStats:
    """The match results of I images with D poses, and K keypoints."""

    image_ids: np.ndarray
    """(I,) int64, ascending."""
    people: np.ndarray
    """(I,) int64, keypoint people of each image: those to be found."""
    oks: np.ndarray
    """(I,) float64, mean OKS of those people with the poses matched to them, 0 for a missed one; NaN without people."""
    crowd_index: np.ndarray
    """(I,) float64, CrowdPose's ``crowdIndex``; NaN where the image has none."""
    image: np.ndarray
    """(D,) int64, each pose's image as a row of ``image_ids``."""
    scores: np.ndarray
    """(D,) float64, score of each pose."""
    pose_kinds: np.ndarray
    """(D,) int8, see ``Diagnosis``."""
    areas: MatchFlags | None
    """Match flags of COCO's matching, for the areas all, medium and large; None where faster-coco-eval matches."""
    keypoints: MatchFlags
    """Match flags of each keypoint alone."""
    errors: np.ndarray
    """(K, 5) int64, see ``Diagnosis``."""
    similarity: np.ndarray
    """(K,) float64, see ``Diagnosis``."""
    images_without_people: int
    """Images without anybody; an ignored person is somebody."""
    ignored_people: int
    """Crowds and people without labelled keypoints."""
    images_without_predictions: int
    """Images that no prediction names; a prediction with zero poses names its image."""
    unknown_images: tuple[int, ...]
    """Ids of predicted images that are not evaluated."""
    framed_keypoints: int
    """Predicted keypoints in images of known size."""
    keypoints_outside: int
    """Those of ``framed_keypoints`` that lie outside their image."""
    parts: dict[str, MatchFlags] = field(default_factory=dict)
    """Match flags of COCO's matching of each part of the body, as ``areas``; empty for most schemas, and where
    faster-coco-eval matches."""

    @classmethod
    def merge(cls, parts: Sequence[Self]) -> Self:
        """The results of all images of ``parts``, independent of how the images were divided; best pose first.

        Raises:
            DataError: An image is in two parts.
        """
        ids = np.concatenate([part.image_ids for part in parts])
        by_id = np.argsort(ids, kind="stable")
        ids = ids[by_id]
        check_unique(ids)
        new_row = np.empty_like(by_id)
        new_row[by_id] = np.arange(len(by_id))
        starts = np.cumsum([0, *(len(part.image_ids) for part in parts)])
        image = new_row[np.concatenate([part.image + start for part, start in zip(parts, starts, strict=False)])]
        scores = np.concatenate([part.scores for part in parts])
        best_first = np.lexsort((image, -scores))  # of equal scores the first image comes first, as in COCOeval
        areas = [part.areas for part in parts if part.areas is not None]
        return cls(
            image_ids=ids,
            people=np.concatenate([part.people for part in parts])[by_id],
            oks=np.concatenate([part.oks for part in parts])[by_id],
            crowd_index=np.concatenate([part.crowd_index for part in parts])[by_id],
            image=image[best_first],
            scores=scores[best_first],
            pose_kinds=np.concatenate([part.pose_kinds for part in parts])[best_first],
            areas=MatchFlags.merge(areas, best_first) if len(areas) == len(parts) else None,
            keypoints=MatchFlags.merge([part.keypoints for part in parts], best_first),
            errors=np.sum([part.errors for part in parts], axis=0),
            similarity=np.sum([part.similarity for part in parts], axis=0),
            images_without_people=sum(part.images_without_people for part in parts),
            ignored_people=sum(part.ignored_people for part in parts),
            images_without_predictions=sum(part.images_without_predictions for part in parts),
            unknown_images=tuple(image_id for part in parts for image_id in part.unknown_images),
            framed_keypoints=sum(part.framed_keypoints for part in parts),
            keypoints_outside=sum(part.keypoints_outside for part in parts),
            parts={
                name: MatchFlags.merge([part.parts[name] for part in parts], best_first)
                for name in parts[0].parts
                if all(name in part.parts for part in parts)
            },
        )


def match_images(
    ground_truth: GroundTruth, predictions: Mapping[int, Poses], schema: KeypointSchema, *, max_poses: int
) -> ImageStats:
    """Match the poses of some images to their people.

    Args:
        ground_truth: The people of those images.
        predictions: Poses by image id, in pixels of the original images; images may be missing.
        schema: The keypoints of both.
        max_poses: How many poses of an image count, best first.

    Raises:
        DataError: Ground truth or predictions do not fit the schema, or a prediction is not finite.
    """
    ground_truth = check_schema(ground_truth, schema)
    poses = with_body_areas(PoseTable.pack(predictions, ground_truth, schema, max_poses), schema)
    stats = collect_stats(ground_truth, poses, predictions.keys(), schema, match(ground_truth, poses, schema))
    parts = {
        part: match(people_part(ground_truth, rows), poses_part(poses, rows), schema_part(schema, part))
        for part, rows in parts_of(schema).items()
    }
    return replace(stats, parts=parts)


def collect_stats(
    ground_truth: GroundTruth,
    poses: PoseTable,
    predicted: Collection[int],
    schema: KeypointSchema,
    areas: MatchFlags | None,
) -> ImageStats:
    """The same as :func:`match_images`, for packed people and poses whose areas are matched already.

    Args:
        ground_truth: The people of some images.
        poses: The poses that count there.
        predicted: Ids of the images that have a prediction, even one with zero poses.
        schema: The keypoints of both.
        areas: Match flags of COCO's matching; None where faster-coco-eval matches.
    """
    found = analyse_errors(ground_truth, poses, schema)
    images = len(ground_truth.image_ids)
    counts = ~ground_truth.ignored
    people = np.bincount(ground_truth.image[counts], minlength=images)
    oks = np.bincount(ground_truth.image[counts], found.person_oks[counts], minlength=images)
    evaluated = set(ground_truth.image_ids.tolist())
    sizes = ground_truth.sizes[poses.image]
    outside = ((poses.keypoints < 0) | (poses.keypoints > sizes[:, None])).any(2)[(sizes > 0).all(1)]
    return ImageStats(
        image_ids=ground_truth.image_ids,
        people=people,
        oks=np.divide(oks, people, out=np.full(images, np.nan), where=people > 0),
        crowd_index=ground_truth.crowd_index,
        image=poses.image,
        scores=poses.scores,
        pose_kinds=found.pose_kinds,
        areas=areas,
        keypoints=found.keypoints,
        errors=found.errors,
        similarity=found.similarity,
        images_without_people=images - len(np.unique(ground_truth.image)),
        ignored_people=int(ground_truth.ignored.sum()),
        images_without_predictions=len(evaluated - set(predicted)),
        unknown_images=tuple(sorted(set(predicted) - evaluated)),
        framed_keypoints=outside.size,
        keypoints_outside=int(outside.sum()),
    )


def check_schema(ground_truth: GroundTruth, schema: KeypointSchema) -> GroundTruth:
    """``ground_truth``, once its keypoints are as many as those of ``schema``; unlabelled ones where it has none.

    Raises:
        DataError: It has another number of keypoints.
    """
    keypoints = ground_truth.keypoints.shape[1]
    if keypoints == len(schema):
        return ground_truth
    if keypoints == 0:  # not one annotation has keypoints
        shape = (len(ground_truth.image), len(schema))
        return replace(ground_truth, keypoints=np.zeros((*shape, 2)), visibility=np.zeros(shape))
    raise DataError(f"the ground truth has {keypoints} keypoints, {schema.name} has {len(schema)}")
