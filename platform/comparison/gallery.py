"""The same images for every run: those that tell most about how the runs differ, drawn with truth and predictions."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from posefleet.data.images import encode_jpeg
from posefleet.data.structures import Poses
from posefleet.data.transforms import EvalTransform, Resize, move_poses
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.inference.evaluate import evaluation_set
from posefleet.platform.visualization.report import OVERLAY_SIDE, prediction_picture, truth_picture

TELLING, AT_RANDOM = 6, 4
"""Images where the runs differ most, and others."""

QUALITY = 82
"""Of JPEGs on a page, which has many."""

ImageOks = Mapping[int, float]
"""See ``Evaluation.image_oks``."""


@dataclass(frozen=True, slots=True)
class GalleryImage:
    """One image as every run sees it."""

    image_id: int
    spread: float | None
    """Highest minus lowest OKS of the runs, where that is why the image was chosen; else it was drawn at random."""
    truth: bytes
    """JPEG with the annotated people."""
    predictions: dict[str, bytes]
    """Run -> JPEG with its poses."""


def choose(runs: Sequence[ImageOks], *, telling: int = TELLING, at_random: int = AT_RANDOM) -> dict[int, float | None]:
    """Image ids, first those where the runs differ most, each with the spread of their OKS; then some at random.

    Args:
        runs: Of the same images.
        telling: How many of the first kind, if the runs differ on so many.
        at_random: How many others; for the same images always the same.
    """
    ids = sorted(runs[0])
    spread = {i: max(oks[i] for oks in runs) - min(oks[i] for oks in runs) for i in ids}
    most = sorted((i for i in ids if spread[i] > 0), key=lambda i: -spread[i])[:telling]
    others = [i for i in ids if i not in most]
    drawn = random.Random(0).sample(others, min(at_random, len(others)))
    return {**{i: spread[i] for i in most}, **dict.fromkeys(sorted(drawn))}


def draw(
    chosen: Mapping[int, float | None], poses: Mapping[str, Mapping[int, Poses]], experiment: Experiment
) -> list[GalleryImage]:
    """Pictures of images.

    Args:
        chosen: See :func:`choose`.
        poses: Run -> image id -> its poses, in pixels of the original images.
        experiment: One that was scored on these images.

    Raises:
        DataError: An image cannot be read.
    """
    schema = experiment.keypoints
    images = evaluation_set(experiment, EvalTransform(Resize(short_side=OVERLAY_SIDE, long_side=OVERLAY_SIDE), schema))
    positions = {record["image_id"]: position for position, record in enumerate(images.records())}
    pictures = []
    for image_id, spread in chosen.items():
        (sample,) = images.samples([positions[image_id]])
        predictions = {
            run: prediction_picture(sample.image, move_poses(found[image_id].to("cpu"), sample.matrix), schema)
            for run, found in poses.items()
        }
        pictures.append(
            GalleryImage(
                image_id,
                spread,
                encode_jpeg(truth_picture(sample.image, sample.people, schema), QUALITY),
                {run: encode_jpeg(picture, QUALITY) for run, picture in predictions.items()},
            )
        )
    return pictures
