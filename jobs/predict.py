"""Find the people in a folder of photographs, in videos, in a COCO data set: here, or on a Ray cluster.

python jobs/predict.py --model models:/smpr@champion --input photos/ --output poses/
python jobs/predict.py --model runs/smpr-r50 --input 'clips/*.mp4' --output poses/ --overlays
python jobs/predict.py --model runs/smpr-r50 --input /data/coco --split val2017 --output poses/
ray job submit --working-dir . -- python jobs/predict.py --model models:/smpr@champion \\
    --input s3://bucket/photos --output s3://bucket/poses

OUTPUT gets poses.parquet (one row a pose), images.parquet (one row an image or frame), results.json (COCO results),
bad_images.json (what could not be read, and why) and summary.json. A run that is cut off is finished by running the
same command again; nothing is predicted twice but what was under way. docs/prediction.md says more.
"""

import argparse
import sys
from typing import TYPE_CHECKING

from posefleet.data.loading.memory import collect_garbage_rarely

if TYPE_CHECKING:
    from posefleet.platform.prediction.batch import BatchResult


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 finished, bad images or not; 1 nothing could be predicted or written; 2 bad arguments."""
    collect_garbage_rarely()
    options = _parse(arguments)
    from posefleet.platform.checkpoints.format import CheckpointError
    from posefleet.platform.config.cli import fail
    from posefleet.platform.prediction.batch import WorkerPool, predict_images
    from posefleet.platform.prediction.inputs import list_pictures  # imports torch, which --help does without
    from posefleet.platform.prediction.worker import PredictionOptions
    from posefleet.platform.runtime.paths import resolve_path

    output = resolve_path(options.output).rstrip("/")
    try:
        wanted = PredictionOptions(
            score_threshold=options.score_threshold,
            keypoint_threshold=options.keypoint_threshold,
            max_people=options.max_people,
            most_pixels=options.most_pixels,
            overlays=options.overlays,
        )
        result = predict_images(
            list_pictures(
                resolve_path(options.input), split=options.split, images=resolve_path(options.images), ignore=output
            ),
            output,
            options.model,
            wanted=wanted,
            batch_size=options.batch_size,
            tracking=options.tracking,
            crew=WorkerPool(workers=options.workers, cpus=options.cpus_per_worker, gpus=options.gpus_per_worker),
            parallel=not options.in_process,
        )
    except (ValueError, CheckpointError) as error:
        fail(str(error))
    except OSError as error:
        sys.stderr.write(f"error: {error}; give the same command again, and it goes on from there\n")
        return 1
    sys.stdout.write(_summary(result, output))
    counts = result.counts
    if not counts.images + counts.frames:
        sys.stderr.write(f"error: none of the {counts.bad:,} files could be read; see {output}/bad_images.json\n")
        return 1
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="models:/NAME@ALIAS, the folder of a run, or a checkpoint")
    parser.add_argument(
        "--input",
        required=True,
        help="a folder, a pattern in quotes, an image, a video, a COCO annotation file, COCO's layout (with --split), "
        "or a folder of shards; on a disk that every node sees, s3://, gs://",
    )
    parser.add_argument("--output", required=True, help="folder for everything that comes out")
    source = parser.add_argument_group("COCO data sets")
    source.add_argument("--split", default="", help="split of a data set in COCO's layout: val2017, ...")
    source.add_argument("--images", default="", help="image folder, where it is not at its usual place")
    wanted = parser.add_argument_group("what is kept")
    wanted.add_argument("--score-threshold", type=float, help="leave out poses below (default: none)")
    wanted.add_argument("--max-people", type=int, help="at most so many poses of an image, the best (default: all)")
    wanted.add_argument("--overlays", action="store_true", help="also draw them: JPEGs, and an MP4 for each video")
    wanted.add_argument(
        "--keypoint-threshold", type=float, default=0.0, help="do not draw keypoints below (default: %(default)s)"
    )
    wanted.add_argument(
        "--most-pixels", type=int, default=100_000_000, help="larger images are bad ones (default: %(default)s)"
    )
    crew = parser.add_argument_group("who predicts; the result does not depend on it")
    crew.add_argument("--batch-size", type=int, help="images of a forward pass (default: the model's own)")
    crew.add_argument("--workers", type=int, help="at most so many (default: what the cluster has room for now)")
    crew.add_argument("--cpus-per-worker", type=float, default=1.0, help="cores of each (default: %(default)s)")
    crew.add_argument(
        "--gpus-per-worker", type=float, help="0.5: two share one (default: 1 where the cluster has GPUs now, else 0)"
    )
    crew.add_argument("--in-process", action="store_true", help="without Ray, for a few images")
    crew.add_argument("--tracking", default="", help="MLflow store of registered models (default: as for training)")
    return parser.parse_args(arguments)


def _summary(result: "BatchResult", output: str) -> str:
    counts = result.counts
    seen = f"{counts.images:,} images" + (f" and {counts.frames:,} frames of videos" if counts.frames else "")
    lines = [f"{output}: {counts.poses:,} poses in {seen}, {counts.with_nobody:,} of them with nobody"]
    if counts.bad:
        lines.append(f"  {counts.bad:,} could not be read: {output}/bad_images.json says why")
    if result.predicted:
        speed = result.predicted / result.seconds
        lines.append(f"  predicted {result.predicted:,} in {result.seconds:.1f} s, {speed:,.1f} images/s")
    else:
        lines.append("  nothing was left to predict")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
