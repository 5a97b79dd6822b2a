"""Logs what people look at while a run goes on: figures and images of evaluations, curves, training targets."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from posefleet.data.evaluation.evaluate import Evaluation
from posefleet.data.images import encode_jpeg
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.structures import Batch, People, Poses, TargetPoints
from posefleet.data.transforms import move_points, move_poses
from posefleet.platform.runtime.worker import Sink
from posefleet.platform.visualization import figures
from posefleet.platform.visualization.drawing import draw_people, draw_poses, draw_targets, grid, side_by_side
from posefleet.platform.visualization.plots import png_bytes

OVERLAY_SIDE, OVERLAY_COLUMNS = 480, 2
"""Pixels of the long side of a drawn image; pairs of them in a row."""

DRAWN_FROM = 0.5
"""Poses are drawn if they have this share of their image's best score: methods differ in how high they score."""


def log_evaluation(
    sink: Sink,
    evaluation: Evaluation,
    shown: Sequence[tuple[Batch, list[Poses]]],
    schema: KeypointSchema,
    *,
    step: int,
    most: int,
) -> None:
    """Log an evaluation's table, its figures, and some of its images with ground truth and prediction side by side.

    Args:
        sink: Receives the files.
        evaluation: What to show.
        shown: Batches as they went into the network, with their poses in pixels of the original images.
        schema: The keypoints of both.
        step: The training step, part of the files' names.
        most: Images that are drawn at most.
    """
    folder = f"evaluation/step-{step:07d}"
    sink.log_bytes(f"{folder}/table.txt", str(evaluation).encode())
    for figure in (figures.precision_recall, figures.keypoint_ap_bars, figures.error_split_bars):
        sink.log_bytes(f"{folder}/{figure.__name__}.png", png_bytes(figure(evaluation)))
    pairs = [
        _ground_truth_and_prediction(batch, index, poses[index], schema)
        for batch, poses in shown
        for index in range(len(batch))
    ][:most]
    if pairs:
        sink.log_bytes(f"{folder}/overlays.jpg", encode_jpeg(grid(pairs, OVERLAY_COLUMNS)))


def log_curves(
    sink: Sink, names: Iterable[str], read: Callable[[Iterable[str]], dict[str, list[tuple[int, float]]]]
) -> None:
    """Log the curves of a whole run, restarts included: losses over steps, AP over epochs.

    Args:
        sink: Receives the files.
        names: Names of all metrics of the run.
        read: Returns the (step, value) pairs of the metrics that are named.
    """
    known = set(names)
    losses = _by_step(read(sorted(name for name in known if name.startswith("loss"))))
    if losses:
        sink.log_bytes("curves/loss.png", png_bytes(figures.loss_curves(losses)))
    scores = _by_step(read([name for name in ("AP", "AP50", "AP75", "epoch") if name in known]))
    by_epoch = [(values.pop("epoch"), values) for _, values in scores if "AP" in values]
    if by_epoch:
        sink.log_bytes("curves/ap.png", png_bytes(figures.ap_curve(by_epoch)))


def _by_step(metrics: Mapping[str, list[tuple[int, float]]]) -> list[tuple[float, dict[str, float]]]:
    steps: dict[float, dict[str, float]] = {}
    for name, points in metrics.items():
        for step, value in points:
            steps.setdefault(step, {})[name] = value
    return sorted(steps.items(), key=lambda item: item[0])


def log_targets(sink: Sink, batch: Batch, targets: Sequence[Sequence[TargetPoints]], schema: KeypointSchema) -> None:
    """Log a contact sheet of training images with the places that the method trains.

    Args:
        sink: Receives the file.
        batch: The images with their people.
        targets: Targets of each image, in its pixels.
        schema: The keypoints of the people.
    """
    drawn = []
    for image, people, points in zip(batch.images, batch.people, targets, strict=True):
        pixels = image.permute(1, 2, 0).numpy()
        drawn.append(draw_targets(pixels, points, people, schema, zoom=_zoom(pixels)))
    sink.log_bytes("targets/first_images.jpg", encode_jpeg(grid(drawn, 2 * OVERLAY_COLUMNS)))


def _ground_truth_and_prediction(batch: Batch, index: int, poses: Poses, schema: KeypointSchema) -> np.ndarray:
    matrix = batch.matrices[index]
    width, height = move_points(batch.original_sizes[index].double()[None], matrix)[0].round().int().tolist()
    image = batch.images[index, :, :height, :width].permute(1, 2, 0).numpy()  # without the padding
    prediction = draw_best_poses(image, move_poses(poses.to("cpu"), matrix), schema)
    return side_by_side(draw_ground_truth(image, batch.people[index], schema), prediction)


def draw_ground_truth(image: np.ndarray, people: People, schema: KeypointSchema) -> np.ndarray:
    """Draw ``people`` on their (H, W, 3) uint8 image; the long side of the result is ``OVERLAY_SIDE`` pixels."""
    return draw_people(image, people, schema, zoom=_zoom(image))


def draw_best_poses(image: np.ndarray, poses: Poses, schema: KeypointSchema) -> np.ndarray:
    """Draw the poses that score at least ``DRAWN_FROM`` of the best one; sizes as :func:`draw_ground_truth`."""
    threshold = DRAWN_FROM * float(poses.scores.max()) if len(poses) else 0.0
    return draw_poses(image, poses, schema, score_threshold=threshold, zoom=_zoom(image))


def _zoom(image: np.ndarray) -> float:
    """Factor that brings the long side to ``OVERLAY_SIDE``."""
    return OVERLAY_SIDE / float(max(image.shape[:2]))
