"""Tracking on rendered films whose identities are known: OKS and motion against boxes and no tracking.

    python tests/bench/bench_tracking.py [--films 20] [--checkpoint runs/demo]

People walk past each other and behind things (``python -m posefleet.data.synthetic --film``). Without a checkpoint
the poses are simulated: those of everyone who shows at least a third of the keypoints, off by 3 % of the person's
height, 5 % of them missed, more where they are covered, and one pose of nobody in every tenth frame. With one, they are
the model's. Scores are those of motmetrics; a pose is right where its OKS is at least .5 (.3 with a checkpoint).

    tracker   what ``posefleet predict`` does to videos
    boxes     the same, by intersection over union of boxes instead of OKS
    still     the same as tracker, where people are expected to stay where they were
    ranks     no tracking: the first pose of a frame is person 0, and so on
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import motmetrics
import numpy as np
import torch

from posefleet.data.schemas.shipped import COCO17
from posefleet.data.structures import Poses
from posefleet.data.synthetic.films import FilmConfig, FilmFrame, render_film
from posefleet.platform.prediction import tracker
from posefleet.platform.prediction.tracker import UNTRACKED, PoseTracker, TrackOptions, box_iou
from posefleet.platform.visualization.tables import table

Tracker = Callable[[Poses, float], np.ndarray]
SHOWN = ("mota", "idf1", "num_switches", "num_fragmentations", "num_misses", "num_false_positives")


class Seen(NamedTuple):
    """A frame as the tracker gets it, and the truth."""

    seconds: float
    poses: Poses
    annotations: list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=20, help="number of films (default: 20)")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each (default: 8)")
    parser.add_argument("--rates", type=float, nargs="+", default=[15.0, 5.0], help="frames a second (default: 15 5)")
    parser.add_argument("--people", type=int, nargs=2, default=(3, 6), help="people in a film (default: 3 6)")
    parser.add_argument("--checkpoint", default="", help="model whose poses are tracked")
    args = parser.parse_args()
    for rate in args.rates:
        config = FilmConfig(seconds=args.seconds, rate=rate, people=tuple(args.people))
        films = [list(film(config, seed, args.checkpoint)) for seed in range(args.films)]
        print(f"\n{args.films} films of {args.seconds:g} s at {rate:g} frames a second\n")
        print(report(films, least=0.3 if args.checkpoint else 0.5))


def film(config: FilmConfig, seed: int, checkpoint: str) -> Iterator[Seen]:
    """The poses of every frame."""
    rng, model = np.random.default_rng(seed), None
    if checkpoint:
        from posefleet.platform.inference.predictor import Predictor

        model = Predictor.from_checkpoint(checkpoint)
    for index, frame in enumerate(render_film(config, seed)):
        poses = model.predict_images([frame.image])[0] if model else simulated(frame, rng)
        yield Seen(index / config.rate, poses, frame.annotations)


def simulated(frame: FilmFrame, rng: np.random.Generator) -> Poses:
    """What a fair model would find."""
    found = []
    for annotation in frame.annotations:
        keypoints = np.array(annotation["keypoints"], float).reshape(-1, 3)
        shown, there = (keypoints[:, 2] == 2).mean(), keypoints[:, 2] > 0
        if shown < 1 / 3 or rng.random() < 0.05 + 0.3 * (1 - shown):
            continue
        points = np.where(there[:, None], keypoints[:, :2], keypoints[there, :2].mean(0))
        height = np.ptp(points[:, 1])
        found.append((0.5 + 0.5 * shown - 0.1 * rng.random(), points + rng.normal(0, 0.03 * height, points.shape)))
    if rng.random() < 0.1:
        height, width = frame.image.shape[:2]
        size = rng.uniform(0.2, 0.6) * height
        found.append((rng.uniform(0.1, 0.5), rng.uniform(0, (width, height)) + size * rng.normal(0, 0.3, (17, 2))))
    found.sort(key=lambda one: -one[0])
    if not found:
        return Poses.empty(len(COCO17))
    scores = torch.tensor([score for score, _ in found], dtype=torch.float32)
    points = torch.from_numpy(np.stack([points for _, points in found])).float()
    return Poses(points, scores[:, None].expand(-1, len(COCO17)), scores)


def trackers() -> dict[str, Callable[[], Tracker]]:
    """Name -> makes a tracker for a film."""

    def still() -> Tracker:
        made = PoseTracker(COCO17.sigmas)
        plain = made.__call__

        def run(poses: Poses, seconds: float) -> np.ndarray:
            for track in made._tracks:
                track.velocity = np.zeros(2)
            return plain(poses, seconds)

        return run

    options = TrackOptions(least_similarity=0.2)
    return {
        "tracker": lambda: PoseTracker(COCO17.sigmas),
        "boxes": lambda: PoseTracker(COCO17.sigmas, options, similarity=box_iou),
        "still": still,
        "ranks": lambda: lambda poses, _: np.arange(len(poses), dtype=np.int32),
    }


def report(films: list[list[Seen]], least: float) -> str:
    """A line for each tracker, over all films."""
    lines, metrics = [], motmetrics.metrics.create()
    for name, make in trackers().items():
        whole = [accumulated(frames, make(), least) for frames in films]
        names = [str(number) for number in range(len(whole))]
        found = metrics.compute_many(whole, metrics=list(SHOWN), names=names, generate_overall=True).loc["OVERALL"]
        cells = [f"{found[metric]:.3f}" if metric in ("mota", "idf1") else f"{int(found[metric])}" for metric in SHOWN]
        lines.append([name, *cells])
    head = ["tracker", "MOTA", "IDF1", "switches", "fragments", "missed", "of nobody"]
    return table(head, lines)


def accumulated(frames: list[Seen], follow: Tracker, least: float) -> motmetrics.MOTAccumulator:
    """The events of a film; poses without a number are no hypotheses."""
    events = motmetrics.MOTAccumulator(auto_id=True)
    for frame in frames:
        numbers = follow(frame.poses, frame.seconds)
        kept = numbers != UNTRACKED
        points = frame.poses.keypoints.double().numpy()[kept]
        truth = [a for a in frame.annotations if a["num_keypoints"]]
        distances = np.array([[1 - oks_of(annotation, pose) for pose in points] for annotation in truth])
        distances = distances.reshape(len(truth), len(points))
        distances[distances > 1 - least] = np.nan
        events.update([a["track_id"] for a in truth], numbers[kept].tolist(), distances)
    return events


def oks_of(annotation: dict[str, Any], pose: np.ndarray) -> float:
    """COCO's OKS."""
    keypoints = np.array(annotation["keypoints"], float).reshape(-1, 3)
    labelled = keypoints[:, 2] > 0
    distance2 = ((pose - keypoints[:, :2]) ** 2).sum(-1)
    exponents = distance2 / (2 * (2 * np.array(COCO17.sigmas)) ** 2 * (annotation["area"] + tracker.LEAST_SIDE))
    return float(np.exp(-exponents)[labelled].mean())


if __name__ == "__main__":
    main()
