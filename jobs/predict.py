"""Predict poses in a folder of images, in videos or in a COCO data set: on this machine or on a Ray cluster.

posefleet predict --model models:/smpr@champion --input photos/ --output poses/
posefleet predict --model runs/smpr-r50 --input 'clips/*.mp4' --output poses/ --overlays
posefleet predict --model runs/smpr-r50 --input /data/coco --split val2017 --output poses/
posefleet predict --model runs/smpr-r50 --input rtsp://USER:PASSWORD@camera/stream --output poses/ --overlays
ray job submit --working-dir . -- python jobs/predict.py --model models:/smpr@champion \\
    --input s3://bucket/photos --output s3://bucket/poses

Writes to OUTPUT: poses.parquet (one row per pose, in videos with the number of the person), images.parquet (one row per
image or frame), results.json (COCO results), bad_images.json (images that could not be read, and why), other_files.json
(files that are no images) and summary.json. To finish an interrupted run, run the same command again; only images that
were in progress are predicted again. See docs/prediction.md.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from posefleet.command_line import Place, fail, parse, report_error
from posefleet.platform.runtime.errors import PlatformError

if TYPE_CHECKING:
    from posefleet.platform.prediction.batch import BatchResult
    from posefleet.platform.prediction.worker import PredictionOptions


@dataclass(frozen=True, kw_only=True)
class Options:
    """The model, its input and output, the poses to keep, and the workers."""

    model: Annotated[str, "MODEL"]
    """models:/NAME@ALIAS, the folder of a run, a checkpoint, or an exported file."""
    input: Annotated[str, Place("PATH")]
    """A folder, a pattern in quotes, an image, a video, a COCO annotation file, COCO's layout or that of a label tool
    (with --split), or a folder of shards; on a disk that every node sees, s3://, gs://. Or a camera (0, /dev/video0)
    or stream (rtsp://...)."""
    output: Annotated[str, Place("FOLDER")]
    """Folder for all results."""
    seconds: float | None = None
    """Of a camera or stream: end after so many seconds. Default: at Ctrl-C or SIGTERM."""
    live: bool = False
    """The input is a stream at an http(s) address, and not a file there."""
    split: Annotated[str, "NAME"] = ""
    """Split of a data set in COCO's layout: val2017, ..."""
    images: Annotated[str, Place("PATH")] = ""
    """Image folder of a COCO data set, if it is not at its usual place."""
    category: Annotated[tuple[str, ...], "NAME"] = ()
    """Categories of a COCO data set whose keypoints the model's are compared with, where they have different ones."""
    score_threshold: float | None = None
    """Leave out poses with a lower score, 0..1. Raise it for fewer false poses, lower it to miss fewer people. Default:
    keep all."""
    max_people: int | None = None
    """Keep at most this many poses of an image, best first. Default: all."""
    overlays: bool = False
    """Also draw the poses: a JPEG for each image, a WebM for each video."""
    track: bool = True
    """Number the people of a video: a person has the same number in all frames."""
    smooth: float = 0.0
    """Smooth the keypoints of tracked people in videos: cutoff of the filter, Hz. 1 is smooth, 5 hardly. 0: off."""
    keypoint_threshold: float = 0.0
    """Do not draw keypoints with a lower score, 0..1."""
    most_pixels: int = 100_000_000
    """Images with more pixels count as bad images; this bounds memory."""
    batch_size: int | None = None
    """Images in a forward pass. More images use more memory; the poses stay the same. Default: the model's own."""
    workers: int | None = None
    """Largest number of worker processes. Default: what the cluster has room for now."""
    cpus_per_worker: float = 1.0
    """CPU cores reserved for each worker."""
    gpus_per_worker: float | None = None
    """GPUs reserved for each worker; with 0.5 two workers share one. Default: 1 where the cluster has GPUs, else 0."""
    readers: int = 4
    """Images that are read and decoded at once for each worker. More hide a slow store; give the worker more CPUs, too,
    if decoding holds the network up."""
    reader_cpus: float = 0.0
    """Read and decode each image in a Ray task that reserves so many CPUs, on any node, such as CPU nodes beside GPU
    workers; then raise --readers. 0: threads of the workers do it."""
    in_process: bool = False
    """Predict in this process without Ray, for a few images."""
    tracking: Annotated[str, "URI"] = ""
    """MLflow store of registered models. Default: as for training."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict poses. Exit status: 0 finished, even if some images are bad, 1 no image could be read or a file failed to
    be read or written, 2 bad arguments."""
    options, _ = parse(Options, arguments, command="predict", about=__doc__ or "")
    from posefleet.platform.prediction.batch import WorkerPool, predict_images
    from posefleet.platform.prediction.inputs import list_images  # imports torch, which --help does not need
    from posefleet.platform.prediction.stream import is_stream
    from posefleet.platform.prediction.worker import PredictionOptions

    output = options.output.rstrip("/")
    try:
        wanted = PredictionOptions(
            score_threshold=options.score_threshold,
            keypoint_threshold=options.keypoint_threshold,
            max_people=options.max_people,
            most_pixels=options.most_pixels,
            overlays=options.overlays,
            track=options.track,
            smooth=options.smooth,
        )
        if is_stream(options.input, live=options.live):
            return _predict_live(options, output, wanted)
        if options.seconds is not None:
            raise ValueError(f"--seconds {options.seconds} ends a camera or stream, and the input is neither")
        images = list_images(
            options.input, split=options.split, images=options.images, category=options.category, ignore=output
        )
        sys.stderr.write(f"{images.about}\n" if images.about else "")
        result = predict_images(
            images,
            output,
            options.model,
            options=wanted,
            batch_size=options.batch_size,
            tracking=options.tracking,
            pool=WorkerPool(
                workers=options.workers,
                cpus=options.cpus_per_worker,
                gpus=options.gpus_per_worker,
                readers=options.readers,
                reader_cpus=options.reader_cpus,
            ),
            parallel=not options.in_process,
        )
    except (ValueError, PlatformError) as error:
        fail(error)
    except OSError as error:
        report_error(error)
        sys.stderr.write("Once that is mended, the same command goes on from there.\n")
        return 1
    sys.stdout.write(_summary(result, output))
    counts = result.counts
    if not counts.images + counts.frames:
        sys.stderr.write(f"error: none of the {counts.bad:,} files could be read; see {output}/bad_images.json\n")
        return 1
    return 0


def _predict_live(options: Options, output: str, wanted: "PredictionOptions") -> int:
    """Predict a camera or stream in this process, until it is ended."""
    from posefleet.platform.prediction.live import predict_stream

    for name in ("split", "images", "category"):
        if getattr(options, name):
            raise ValueError(f"--{name} goes with a data set, and the input is a camera or stream")
    seconds = math.inf if options.seconds is None else options.seconds
    result = predict_stream(
        options.input, output, options.model, options=wanted, seconds=seconds, tracking=options.tracking
    )
    sys.stdout.write(_summary(result, output))
    return 0


def _summary(result: "BatchResult", output: str) -> str:
    counts = result.counts
    inputs = f"{counts.images:,} images" + (f" and {counts.frames:,} frames of videos" if counts.frames else "")
    lines = [f"{output}: {counts.poses:,} poses in {inputs}, {counts.with_nobody:,} of them with nobody"]
    if counts.bad:
        lines.append(f"  {counts.bad:,} could not be read: {output}/bad_images.json says why")
    if result.other:
        lines.append(
            f"  {result.other:,} other files are neither images nor videos: {output}/other_files.json names them"
        )
    if result.predicted:
        speed = result.predicted / result.seconds
        lines.append(f"  predicted {result.predicted:,} in {result.seconds:.1f} s, {speed:,.1f} images/s")
    else:
        lines.append("  nothing was left to predict")
    if result.note:
        lines.append(f"  note of the model: {result.note}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
