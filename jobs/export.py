"""Write a checkpoint as an ONNX file, and check that ONNX Runtime finds the poses that PyTorch finds.

python jobs/export.py --checkpoint models:/smpr@champion --out smpr.onnx
python jobs/export.py --checkpoint runs/smpr-a --out smpr.onnx --source /data/coco --split val2017
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from posefleet.data.loading.memory import collect_garbage_rarely

if TYPE_CHECKING:
    import numpy as np

    from posefleet.platform.config.experiment import Experiment


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 when written, 1 when poses differ too much (nothing is written), 2 on bad input."""
    collect_garbage_rarely()
    options, overrides = _parse(arguments)
    from posefleet.platform.checkpoints.format import CheckpointError  # after --help: torch takes seconds

    try:
        return _export(options, overrides)
    except (ValueError, OSError, CheckpointError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def _parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="jobs/export.py",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Other options, such as --data.eval SHARDS or --model.decode.nms hard, change the checkpoint's "
        "experiment; what is exported has them. docs/export.md says what lies in the file.",
    )
    parser.add_argument(
        "--checkpoint", metavar="PATH", required=True, help="a checkpoint, a run's folder, or models:/NAME@ALIAS"
    )
    parser.add_argument("--out", metavar="FILE.onnx", required=True, help="the file, which appears when it was checked")
    parser.add_argument(
        "--source",
        metavar="PATH",
        help="check on images of COCO's layout or of an annotation file; default: those of --data.eval SHARDS, "
        "if that is given, else rendered people",
    )
    parser.add_argument("--split", metavar="NAME", default="val2017", help="split of --source (%(default)s)")
    parser.add_argument("--images", metavar="PATH", help="image folder, where --source is an annotation file")
    check = parser.add_argument_group("check")
    check.add_argument("--check.images", type=int, default=16, metavar="N", help="images to check on (%(default)s)")
    check.add_argument(
        "--check.pixels",
        type=float,
        default=0.1,
        metavar="PX",
        help="a coordinate may differ by that many pixels of the original image (%(default)s)",
    )
    check.add_argument(
        "--check.scores", type=float, default=1e-3, metavar="X", help="a score may differ by that much (%(default)s)"
    )
    options, overrides = parser.parse_known_args(arguments)
    if not options.out.endswith(".onnx"):
        parser.error(f"--out must end in .onnx, not {options.out}")
    if getattr(options, "check.images") < 1:
        parser.error("--check.images must be at least 1")
    return options, overrides


def _export(options: argparse.Namespace, overrides: list[str]) -> int:
    import tempfile

    from posefleet.data.io.files import write_file
    from posefleet.platform.checkpoints.format import read_meta
    from posefleet.platform.checkpoints.load import load_model
    from posefleet.platform.checkpoints.resolve import find_checkpoint
    from posefleet.platform.config.cli import override
    from posefleet.platform.inference.onnx import Agreement, export_onnx
    from posefleet.platform.inference.predictor import Predictor
    from posefleet.platform.runtime.paths import resolve_path

    checkpoint = find_checkpoint(resolve_path(options.checkpoint))
    experiment = override(read_meta(checkpoint).experiment, overrides)
    what, pictures = _pictures(options, experiment, chosen=any("data.eval" in option for option in overrides))
    graph = export_onnx(checkpoint, experiment=experiment)
    exact = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, precision="float32"))
    expected = Predictor(load_model(checkpoint, experiment=exact)[0], exact, device="cpu").predict_images(pictures)
    with tempfile.TemporaryDirectory() as folder:
        candidate = Path(folder, "candidate.onnx")
        candidate.write_bytes(graph)
        found = Predictor.from_checkpoint(str(candidate), bfloat16=False).predict_images(pictures)
    agreement = Agreement.of(expected, found)
    pixels, scores = getattr(options, "check.pixels"), getattr(options, "check.scores")
    sys.stdout.write(
        f"{checkpoint}\nONNX Runtime against PyTorch on {what}: {agreement}; allowed: {pixels:g} px and {scores:g}\n"
    )
    if not agreement.poses or not agreement.within(pixels, scores):
        reason = "the poses differ too much" if agreement.poses else "no pose was found, so nothing could be compared"
        sys.stderr.write(f"not exported: {reason}; nothing was written to {options.out}\n")
        return 1
    out = resolve_path(options.out)
    write_file(out, graph)
    sys.stdout.write(f"{out}, {len(graph) / 2**20:.1f} MiB\n")
    return 0


def _pictures(options: argparse.Namespace, experiment: "Experiment", *, chosen: bool) -> tuple[str, "list[np.ndarray]"]:
    """Decoded images to check on, and what they are."""
    from posefleet.data.coco.source import find_source
    from posefleet.data.keypoints import load_schema
    from posefleet.data.synthetic.scenes import SceneConfig, render_scene
    from posefleet.platform.inference.split import Split
    from posefleet.platform.runtime.paths import resolve_path

    count = getattr(options, "check.images")
    if options.source:
        images = resolve_path(options.images) if options.images else None
        split = Split(source=find_source(resolve_path(options.source), options.split, images))
    elif chosen:
        split = Split(shards=resolve_path(experiment.data.eval))
    else:
        resize = experiment.data.resize
        config = SceneConfig(width=(resize.short_side, resize.long_side), height=(resize.short_side, resize.short_side))
        return f"{count} rendered images", [render_scene(config, seed)[0] for seed in range(count)]
    samples = split.open(load_schema(experiment.schema), lambda sample, _: sample)
    positions = range(min(count, len(samples)))
    return str(split), [sample.image for sample in samples.samples(positions)]


if __name__ == "__main__":
    raise SystemExit(main())
