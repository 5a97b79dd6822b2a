"""Figures and tables about runs and evaluations: curves, bars, comparisons; and what an evaluation leaves in a run.

How they look, and how they become pictures, is in ``plots``.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from posefleet.data.evaluation.evaluate import Evaluation
from posefleet.data.images import encode_jpeg
from posefleet.data.keypoints import KeypointSchema
from posefleet.data.structures import Batch, People, Poses, TargetPoints
from posefleet.data.transforms import move_points, move_poses
from posefleet.platform.runtime.worker import Sink
from posefleet.platform.visualization.drawing import draw_people, draw_poses, draw_targets, grid, side_by_side
from posefleet.platform.visualization.figures import (
    ap_curve,
    error_split_bars,
    keypoint_ap_bars,
    loss_curves,
    precision_recall,
)
from posefleet.platform.visualization.plots import png_bytes

OVERLAY_SIDE, OVERLAY_COLUMNS = 480, 2
"""Pixels of the long side of a drawn image; pairs of them in a row."""

DRAWN_FROM = 0.5
"""Poses are drawn from this share of their image's best score: methods differ in how high they score."""


# ----------------------------------------------------------------------------------------------- leaving them


def log_evaluation(
    sink: Sink,
    evaluation: Evaluation,
    shown: Sequence[tuple[Batch, list[Poses]]],
    schema: KeypointSchema,
    *,
    step: int,
    most: int,
) -> None:
    """Leave an evaluation's table, figures, and ``most`` of its images with truth and prediction side by side.

    Args:
        sink: Where to.
        evaluation: What to show.
        shown: Batches as they went into the network, with their poses in pixels of the original images.
        schema: The keypoints of both.
        step: The training step, part of the names.
        most: Images drawn.
    """
    folder = f"evaluation/step-{step:07d}"
    sink.log_bytes(f"{folder}/table.txt", str(evaluation).encode())
    for figure in (precision_recall, keypoint_ap_bars, error_split_bars):
        sink.log_bytes(f"{folder}/{figure.__name__}.png", png_bytes(figure(evaluation)))
    pairs = [
        side_by_side(*_truth_and_prediction(batch, index, poses[index], schema))
        for batch, poses in shown
        for index in range(len(batch))
    ][:most]
    if pairs:
        sink.log_bytes(f"{folder}/overlays.jpg", encode_jpeg(grid(pairs, OVERLAY_COLUMNS)))


def log_curves(
    sink: Sink, names: Iterable[str], read: Callable[[Iterable[str]], dict[str, list[tuple[int, float]]]]
) -> None:
    """Leave the curves of a whole run, restarts included: losses over steps, AP over epochs.

    Args:
        sink: Where to.
        names: Of all metrics of the run.
        read: Gives (step, value) of some of them.
    """
    losses = _by_step(read(sorted(name for name in names if name.startswith("loss"))))
    if losses:
        sink.log_bytes("curves/loss.png", png_bytes(loss_curves(losses)))
    scores = _by_step(read([name for name in ("AP", "AP50", "AP75", "epoch") if name in set(names)]))
    scored = [
        (values["epoch"], {n: v for n, v in values.items() if n != "epoch"}) for _, values in scores if "AP" in values
    ]
    if scored:
        sink.log_bytes("curves/ap.png", png_bytes(ap_curve(scored)))


def _by_step(series: Mapping[str, list[tuple[int, float]]]) -> list[tuple[float, dict[str, float]]]:
    steps: dict[float, dict[str, float]] = {}
    for name, points in series.items():
        for step, value in points:
            steps.setdefault(step, {})[name] = value
    return sorted(steps.items(), key=lambda item: item[0])


def log_targets(sink: Sink, batch: Batch, targets: Sequence[Sequence[TargetPoints]], schema: KeypointSchema) -> None:
    """Leave a contact sheet of training images with the places that the method trains.

    Args:
        sink: Where to.
        batch: The images with their people.
        targets: Of each image, in its pixels.
        schema: The keypoints of the people.
    """
    pictures = []
    for image, people, points in zip(batch.images, batch.people, targets, strict=True):
        pixels = image.permute(1, 2, 0).numpy()
        pictures.append(draw_targets(pixels, points, people, schema, zoom=_zoom(pixels)))
    sink.log_bytes("targets/first_images.jpg", encode_jpeg(grid(pictures, 2 * OVERLAY_COLUMNS)))


def _truth_and_prediction(
    batch: Batch, index: int, poses: Poses, schema: KeypointSchema
) -> tuple[np.ndarray, np.ndarray]:
    matrix = batch.matrices[index]
    width, height = move_points(batch.original_sizes[index].double()[None], matrix)[0].round().int().tolist()
    image = batch.images[index, :, :height, :width].permute(1, 2, 0).numpy()
    poses = move_poses(poses.to("cpu"), matrix)
    return truth_picture(image, batch.people[index], schema), prediction_picture(image, poses, schema)


def truth_picture(image: np.ndarray, people: People, schema: KeypointSchema) -> np.ndarray:
    """(H, W, 3) uint8 with people in its pixels -> the same with them drawn, its long side ``OVERLAY_SIDE``."""
    return draw_people(image, people, schema, zoom=_zoom(image))


def prediction_picture(image: np.ndarray, poses: Poses, schema: KeypointSchema) -> np.ndarray:
    """As :func:`truth_picture`, with the poses that score at least ``DRAWN_FROM`` of the best one."""
    bar = DRAWN_FROM * float(poses.scores.max()) if len(poses) else 0.0
    return draw_poses(image, poses, schema, score_threshold=bar, zoom=_zoom(image))


def _zoom(image: np.ndarray) -> float:
    """Brings the long side to ``OVERLAY_SIDE``."""
    return OVERLAY_SIDE / float(max(image.shape[:2]))
