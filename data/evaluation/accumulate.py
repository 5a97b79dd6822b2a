"""What some images add to the numbers of a data set.

Matching is the work of an evaluation, and needs one image at a time. So each process matches its own images
(:func:`match_images`); what comes of it, some sixty bytes a pose, is put together (:meth:`ImageStats.join`), and only
then looked at in order of score (``evaluate.summarize``).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from posefleet.data.errors import DataError
from posefleet.data.evaluation.error_analysis import analyse_errors
from posefleet.data.evaluation.ground_truth import GroundTruth, PoseTable, refuse_twice
from posefleet.data.evaluation.matching import match
from posefleet.data.evaluation.precision_recall import MatchFlags
from posefleet.data.keypoints import KeypointSchema
from posefleet.data.structures import Poses


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageStats:
    """Of I images with D poses that were matched, and K keypoints."""

    image_ids: np.ndarray
    """(I,) int64, ascending."""
    people: np.ndarray
    """(I,) int64, keypoint people: those to be found."""
    oks: np.ndarray
    """(I,) float64, mean OKS of those people with the poses matched to them, 0 for a missed one; NaN without people."""
    crowd_index: np.ndarray
    """(I,) float64, see ``GroundTruth``."""
    image: np.ndarray
    """(D,) int64, each pose's image as a row of ``image_ids``."""
    scores: np.ndarray
    """(D,) float64."""
    pose_kinds: np.ndarray
    """(D,) int8, see ``Diagnosis``."""
    areas: MatchFlags | None
    """By COCO's matching, of the areas all, medium and large; None where something else does that."""
    keypoints: MatchFlags
    """On every keypoint alone."""
    errors: np.ndarray
    """(K, 5) int64, see ``Diagnosis``."""
    similarity: np.ndarray
    """(K,) float64, the same."""
    empty_images: int
    """Images without anybody, ignored people included."""
    ignored_people: int
    unpredicted: int
    """Images without a prediction; one of nobody is one, too."""
    strangers: tuple[int, ...]
    """Predicted images that are not among the evaluated."""
    placed: int
    """Predicted keypoints in images of known size."""
    outside: int
    """Those outside their image."""

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Of all images of some parts, the same in whatever parts they were; poses are sorted, the best first.

        Raises:
            DataError: An image is in two of them.
        """
        ids = np.concatenate([part.image_ids for part in parts])
        by_id = np.argsort(ids, kind="stable")
        ids = ids[by_id]
        refuse_twice(ids)
        new_row = np.empty_like(by_id)
        new_row[by_id] = np.arange(len(by_id))
        starts = np.cumsum([0, *(len(part.image_ids) for part in parts)])
        image = new_row[np.concatenate([part.image + start for part, start in zip(parts, starts, strict=False)])]
        scores = np.concatenate([part.scores for part in parts])
        best_first = np.lexsort((image, -scores))  # as COCOeval has it: of equals the one in the first image
        areas = [part.areas for part in parts if part.areas is not None]
        return cls(
            image_ids=ids,
            people=np.concatenate([part.people for part in parts])[by_id],
            oks=np.concatenate([part.oks for part in parts])[by_id],
            crowd_index=np.concatenate([part.crowd_index for part in parts])[by_id],
            image=image[best_first],
            scores=scores[best_first],
            pose_kinds=np.concatenate([part.pose_kinds for part in parts])[best_first],
            areas=MatchFlags.join(areas, best_first) if len(areas) == len(parts) else None,
            keypoints=MatchFlags.join([part.keypoints for part in parts], best_first),
            errors=np.sum([part.errors for part in parts], axis=0),
            similarity=np.sum([part.similarity for part in parts], axis=0),
            empty_images=sum(part.empty_images for part in parts),
            ignored_people=sum(part.ignored_people for part in parts),
            unpredicted=sum(part.unpredicted for part in parts),
            strangers=tuple(image_id for part in parts for image_id in part.strangers),
            placed=sum(part.placed for part in parts),
            outside=sum(part.outside for part in parts),
        )


def match_images(
    truth: GroundTruth, predictions: Mapping[int, Poses], schema: KeypointSchema, *, max_poses: int
) -> ImageStats:
    """Match the poses of some images to their people.

    Args:
        truth: The people of those images.
        predictions: Poses by image id, in pixels of the original images; an image may lack.
        schema: The keypoints of both.
        max_poses: How many poses of an image count, best first.

    Raises:
        DataError: Truth or predictions do not fit the schema, or are not finite.
    """
    truth = with_keypoints_of(schema, truth)
    poses = PoseTable.pack(predictions, truth, schema, max_poses)
    return collect_stats(truth, poses, predictions.keys(), schema, match(truth, poses, schema))


def collect_stats(
    truth: GroundTruth, poses: PoseTable, predicted: Collection[int], schema: KeypointSchema, areas: MatchFlags | None
) -> ImageStats:
    """What :func:`match_images` finds, of poses and people in tables.

    Args:
        predicted: Ids of images with predictions, be they of nobody.
        areas: What COCO's matching found.
    """
    found = analyse_errors(truth, poses, schema)
    images = len(truth.image_ids)
    counts = ~truth.ignored
    people = np.bincount(truth.image[counts], minlength=images)
    oks = np.bincount(truth.image[counts], found.person_oks[counts], minlength=images)
    evaluated = set(truth.image_ids.tolist())
    sizes = truth.sizes[poses.image]
    outside = ((poses.keypoints < 0) | (poses.keypoints > sizes[:, None])).any(2)[(sizes > 0).all(1)]
    return ImageStats(
        image_ids=truth.image_ids,
        people=people,
        oks=np.divide(oks, people, out=np.full(images, np.nan), where=people > 0),
        crowd_index=truth.crowd_index,
        image=poses.image,
        scores=poses.scores,
        pose_kinds=found.pose_kinds,
        areas=areas,
        keypoints=found.keypoints,
        errors=found.errors,
        similarity=found.similarity,
        empty_images=images - len(np.unique(truth.image)),
        ignored_people=int(truth.ignored.sum()),
        unpredicted=len(evaluated - set(predicted)),
        strangers=tuple(sorted(set(predicted) - evaluated)),
        placed=outside.size,
        outside=int(outside.sum()),
    )


def with_keypoints_of(schema: KeypointSchema, truth: GroundTruth) -> GroundTruth:
    """The same people, if their keypoints are those of the schema.

    Raises:
        DataError: They are not.
    """
    keypoints = truth.keypoints.shape[1]
    if keypoints == len(schema):
        return truth
    if keypoints == 0:  # not one annotation has keypoints
        shape = (len(truth.image), len(schema))
        return replace(truth, keypoints=np.zeros((*shape, 2)), visibility=np.zeros(shape))
    raise DataError(f"the ground truth has {keypoints} keypoints, {schema.name} has {len(schema)}")
