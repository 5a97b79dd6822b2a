"""Write a checkpoint as an ONNX file, and check that ONNX Runtime predicts the same poses as PyTorch.

posefleet export --checkpoint models:/smpr@champion --out smpr.onnx
posefleet export --checkpoint runs/smpr-a --out smpr.onnx --source /data/coco --split val2017

Settings come from the checkpoint's experiment; options change them in the written file. docs/export.md describes
the file.
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from posefleet.command_line import Given, Place, report_error
from posefleet.platform.config.cli import override, parse_with_settings
from posefleet.platform.runtime.errors import PlatformError

if TYPE_CHECKING:
    import numpy as np

    from posefleet.platform.config.experiment import Experiment


@dataclass(frozen=True, kw_only=True)
class Check:
    """How ONNX Runtime is compared with PyTorch."""

    images: int = 16
    """Number of images on which the poses are compared."""
    pixels: float = 0.1
    """Largest allowed difference of a coordinate, pixels of the original image. Lower is stricter."""
    scores: float = 1e-3
    """Largest allowed difference of a score, 0..1. Lower is stricter."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to export, and which images to check it on."""

    checkpoint: Annotated[str, Place("PATH")]
    """A checkpoint, a run's folder, or models:/NAME@ALIAS."""
    out: Annotated[str, Place("FILE.onnx")]
    """File to write; it is written only after the check passes."""
    source: Annotated[str, Place("PATH")] = ""
    """Check on the images of a data set in COCO's layout or of an annotation file. Default: those of --data.eval SHARDS
    if that is given, else rendered people."""
    split: Annotated[str, "NAME"] = ""
    """Split of --source. Default: val2017 if it is there, else the only one."""
    images: Annotated[str, Place("PATH")] = ""
    """Image folder, if --source is an annotation file."""
    category: Annotated[tuple[str, ...], "NAME"] = ()
    """Categories of --source whose annotations are read; all: every one that lists keypoints. Default: the only one
    that can be meant."""
    tracking: Annotated[str, "URI"] = ""
    """MLflow store of registered models. Default: as for training."""
    check: Check = field(default_factory=Check)
    """How ONNX Runtime is compared with PyTorch."""

    def __post_init__(self) -> None:
        if not self.out.endswith(".onnx"):
            raise ValueError(f"--out must end in .onnx, not {self.out}")
        if self.check.images < 1:
            raise ValueError(f"--check.images {self.check.images} must be at least 1")


def main(arguments: Sequence[str] | None = None) -> int:
    """Export a checkpoint. Exit status: 0 written, 1 poses differ too much and nothing is written, 2 bad input."""
    options, overrides = parse_with_settings(
        Options, arguments, command="export", about=__doc__ or "", shown=("data.eval", "evaluate.flip")
    )
    try:
        return _export(options, overrides)
    except (ValueError, OSError, PlatformError) as error:
        report_error(error)
        return 2


def _export(options: Options, overrides: Given) -> int:
    import tempfile

    from posefleet.data.io.files import write_file
    from posefleet.platform.checkpoints.format import read_meta
    from posefleet.platform.checkpoints.load import load_model
    from posefleet.platform.checkpoints.resolve import find_checkpoint
    from posefleet.platform.inference.onnx import Agreement, export_onnx
    from posefleet.platform.inference.predictor import Predictor

    checkpoint = find_checkpoint(options.checkpoint, tracking=options.tracking)
    experiment = override(read_meta(checkpoint).experiment, overrides)
    what, images = _check_images(options, experiment, chosen="data.eval" in overrides)
    graph = export_onnx(checkpoint, experiment=experiment)
    exact = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, precision="float32"))
    expected = Predictor(load_model(checkpoint, experiment=exact)[0], exact, device="cpu").predict_images(images)
    with tempfile.TemporaryDirectory() as folder:
        candidate = Path(folder, "candidate.onnx")
        candidate.write_bytes(graph)
        found = Predictor.from_checkpoint(str(candidate), precision="float32").predict_images(images)
    agreement = Agreement.of(expected, found)
    pixels, scores = options.check.pixels, options.check.scores
    sys.stdout.write(
        f"{checkpoint}\nONNX Runtime against PyTorch on {what}: {agreement}; allowed: {pixels:g} px and {scores:g}\n"
    )
    if not agreement.poses or not agreement.within(pixels, scores):
        reason = "the poses differ too much" if agreement.poses else "no pose was found, so nothing could be compared"
        sys.stderr.write(f"not exported: {reason}; nothing was written to {options.out}\n")
        return 1
    write_file(options.out, graph)
    sys.stdout.write(f"{options.out}, {len(graph) / 2**20:.1f} MiB\n")
    return 0


def _check_images(options: Options, experiment: "Experiment", *, chosen: bool) -> tuple[str, "list[np.ndarray]"]:
    """A description of the images to check on, and the decoded images."""
    from posefleet.data.synthetic.scenes import SceneConfig, render_scene
    from posefleet.platform.inference.split import Split

    count = options.check.images
    if not (options.source or chosen):
        resize = experiment.data.resize
        config = SceneConfig(width=(resize.short_side, resize.long_side), height=(resize.short_side, resize.short_side))
        return f"{count} rendered images", [render_scene(config, seed)[0] for seed in range(count)]
    split = Split.of_command(options, experiment.data)
    samples = split.open(experiment.keypoints, lambda sample, _: sample)
    positions = range(min(count, len(samples)))
    return str(split), [sample.image for sample in samples.samples(positions)]


if __name__ == "__main__":
    raise SystemExit(main())
