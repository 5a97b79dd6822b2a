"""Chooses images that show how runs differ, and draws them with the ground truth and every run's poses."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from posefleet.data.images import encode_jpeg
from posefleet.data.structures import Poses
from posefleet.data.transforms import EvalTransform, Resize, move_poses
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.inference.evaluate import evaluation_set
from posefleet.platform.visualization.report import OVERLAY_SIDE, draw_best_poses, draw_ground_truth

DIFFERING, AT_RANDOM = 6, 4
"""Images on which the runs differ most, and images drawn at random."""

QUALITY = 82
"""JPEG quality; lower than usual, since a page holds many images."""


@dataclass(frozen=True, slots=True)
class GalleryImage:
    """One image with the ground truth and with the poses of every run."""

    image_id: int
    spread: float | None
    """Highest minus lowest OKS of the runs; None where the image was drawn at random."""
    ground_truth: bytes
    """JPEG with the annotated people."""
    predictions: dict[str, bytes]
    """Run -> JPEG with its poses."""


def choose(
    runs: Sequence[Mapping[int, float]], *, differing: int = DIFFERING, at_random: int = AT_RANDOM
) -> dict[int, float | None]:
    """Image id -> spread of OKS, for the images with the largest spread; then some at random, with None.

    Args:
        runs: ``Evaluation.image_oks`` of every run, on the same images.
        differing: How many with the largest spread; fewer where the runs differ on fewer.
        at_random: How many others; always the same of the same images.
    """
    spread = {i: max(oks[i] for oks in runs) - min(oks[i] for oks in runs) for i in sorted(runs[0])}
    most = sorted((i for i in spread if spread[i] > 0), key=lambda i: -spread[i])[:differing]
    others = [i for i in spread if i not in most]
    drawn = random.Random(0).sample(others, min(at_random, len(others)))
    return {**{i: spread[i] for i in most}, **dict.fromkeys(sorted(drawn))}


def draw(
    chosen: Mapping[int, float | None], poses: Mapping[str, Mapping[int, Poses]], experiment: Experiment
) -> list[GalleryImage]:
    """Draw the chosen images.

    Args:
        chosen: Image id -> spread, from :func:`choose`.
        poses: Run -> image id -> poses, in pixels of the original images.
        experiment: Settings of a run that was scored on these images.

    Raises:
        DataError: An image cannot be read.
    """
    schema = experiment.keypoints
    source = evaluation_set(experiment, EvalTransform(Resize(short_side=OVERLAY_SIDE, long_side=OVERLAY_SIDE), schema))
    rows = {record["image_id"]: row for row, record in enumerate(source.records())}
    drawn = []
    for image_id, spread in chosen.items():
        (sample,) = source.samples([rows[image_id]])
        moved = {run: move_poses(found[image_id].to("cpu"), sample.matrix) for run, found in poses.items()}
        predictions = {
            run: encode_jpeg(draw_best_poses(sample.image, found, schema), QUALITY) for run, found in moved.items()
        }
        ground_truth = encode_jpeg(draw_ground_truth(sample.image, sample.people, schema), QUALITY)
        drawn.append(GalleryImage(image_id, spread, ground_truth, predictions))
    return drawn
