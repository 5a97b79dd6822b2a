"""Write a checkpoint as a file for ONNX Runtime, OpenVINO or TensorRT, if the file finds the same people as PyTorch.

posefleet export --checkpoint models:/smpr@champion --out smpr.onnx
posefleet export --checkpoint runs/smpr-a --out smpr.xml --source /data/coco --split val2017
posefleet export --checkpoint runs/smpr-a --out smpr-int8.onnx --precision int8 --source /data/coco --split val2017

A float32 file is written if its poses are PyTorch's, an INT8 or float16 file if its AP on annotated images is about
PyTorch's.
Settings come from the checkpoint's experiment; options change them in the written file. docs/export.md describes
the files.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from posefleet.command_line import Given, Place, report_error
from posefleet.platform.config.cli import override, parse_with_settings
from posefleet.platform.promotion.thresholds import ExportThresholds
from posefleet.platform.runtime.errors import PlatformError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from posefleet.platform.config.experiment import Experiment
    from posefleet.platform.inference.split import Split
    from posefleet.platform.promotion.gate import GateReport


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to export, and which images to check it on."""

    checkpoint: Annotated[str, Place("PATH")]
    """A checkpoint, a run's folder, or models:/NAME@ALIAS."""
    out: Annotated[str, Place("FILE")]
    """File to write: FILE.onnx for ONNX Runtime, FILE.xml (and FILE.bin) for OpenVINO, FILE.trt.onnx for TensorRT on a
    GPU. It is written only after the check passes."""
    precision: Literal["float32", "float16", "int8"] = "float32"
    """int8: quantise convolutions and matrix products of a file for ONNX Runtime. It is smaller, and faster on
    processors with instructions for it. float16: TensorRT computes in half precision, which is faster. Both lose AP;
    the check needs annotated images."""
    calibration: Annotated[str, Place("PATH")] = ""
    """INT8: shards or FOLDER@SPLIT with images like those that will be predicted; the ranges of the network's values
    are measured on them. Default: the images that the checkpoint was trained on."""
    calibration_images: int = 128
    """INT8: number of these images. More cover rarer values, and take longer."""
    source: Annotated[str, Place("PATH")] = ""
    """Check on the images of a data set in COCO's layout or of an annotation file. Default: those of --data.eval SHARDS
    if that is given, else rendered people, for INT8 those that the checkpoint was evaluated on."""
    split: Annotated[str, "NAME"] = ""
    """Split of --source. Default: val2017 if it is there, else the only one."""
    images: Annotated[str, Place("PATH")] = ""
    """Image folder, if --source is an annotation file."""
    category: Annotated[tuple[str, ...], "NAME"] = ()
    """Categories of --source whose annotations are read; all: every one that lists keypoints. Default: the only one
    that can be meant."""
    tracking: Annotated[str, "URI"] = ""
    """MLflow store of registered models. Default: as for training."""
    check: ExportThresholds = field(default_factory=ExportThresholds)
    """How the file is compared with PyTorch."""

    def __post_init__(self) -> None:
        if not self.out.endswith((".onnx", ".xml")):
            raise ValueError(f"--out must end in .onnx, .xml or .trt.onnx, not {self.out}")
        tensorrt = self.out.endswith(".trt.onnx")
        if self.precision == "int8" and (tensorrt or not self.out.endswith(".onnx")):
            raise ValueError(f"--precision int8 is for ONNX Runtime: --out must end in .onnx, not in {self._ending}")
        if self.precision == "float16" and not tensorrt:
            raise ValueError(f"--precision float16 is for TensorRT: --out must end in .trt.onnx, not in {self._ending}")
        if self.precision != "int8" and self.calibration:
            raise ValueError("--calibration goes with --precision int8")
        if self.calibration_images < 1:
            raise ValueError(f"--calibration-images {self.calibration_images} must be at least 1")

    @property
    def _ending(self) -> str:
        return ".trt.onnx" if self.out.endswith(".trt.onnx") else Path(self.out).suffix


def main(arguments: Sequence[str] | None = None) -> int:
    """Export a checkpoint. Exit status: 0 written, 1 a check failed and nothing is written, 2 bad input."""
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

    from posefleet.platform.checkpoints.format import read_meta
    from posefleet.platform.checkpoints.resolve import find_checkpoint
    from posefleet.platform.exports.backends import backend_of, export_network, write_exported
    from posefleet.platform.promotion.gate import run_export_gate

    checkpoint = find_checkpoint(options.checkpoint, tracking=options.tracking)
    experiment = override(read_meta(checkpoint).experiment, overrides)
    split, what, images = None, "", list["np.ndarray"]()
    if options.precision != "float32":
        split = _annotated(options, experiment)
        what = str(split)
        if options.precision == "int8":
            calibration, views = _calibration(options, experiment)
    else:
        what, images = _check_images(options, experiment, chosen="data.eval" in overrides)
    backend = backend_of(options.out)
    assert backend
    files = export_network(checkpoint, backend, experiment=experiment, precision=options.precision)
    if options.precision == "int8":
        from posefleet.platform.exports.quantize import quantize_onnx

        files = {".onnx": quantize_onnx(files[".onnx"], views, calibration=calibration)}
    with tempfile.TemporaryDirectory() as folder:
        candidate = str(Path(folder, f"candidate{list(files)[-1]}"))
        write_exported(candidate, files)
        report = run_export_gate(checkpoint, candidate, experiment, options.check, images=images, split=split)
    size = sum(map(len, files.values())) / 2**20
    sys.stdout.write(f"{checkpoint}\n{options.precision} for {backend} against PyTorch on {what}\n{report}\n")
    if report.failed:
        sys.stderr.write(f"not exported: {_reasons(report)}; nothing was written to {options.out}\n")
        return 1
    write_exported(options.out, files)
    sys.stdout.write(f"{options.out}, {size:.1f} MiB\n")
    return 0


def _reasons(report: "GateReport") -> str:
    return "; ".join(f"{check.name}: {check.value} [{check.bound}]" for check in report.checks if not check.passed)


def _annotated(options: Options, experiment: "Experiment") -> "Split":
    from posefleet.platform.inference.split import Split

    if not (options.source or experiment.data.eval):
        raise ValueError(
            f"--precision {options.precision} changes the poses, so its AP is compared with PyTorch's: give annotated "
            "images with --source PATH or --data.eval SHARDS"
        )
    return Split.of_command(options, experiment.data)


def _calibration(options: Options, experiment: "Experiment") -> tuple[str, "Iterator[Tensor]"]:
    """A description of the images to calibrate with, and the images as the network gets them."""
    from posefleet.data.errors import DataError
    from posefleet.data.structures import collate
    from posefleet.data.transforms import EvalTransform
    from posefleet.platform.config.sources import paths
    from posefleet.platform.inference.split import Split

    path = options.calibration or paths(experiment.data.train)[0]
    schema = experiment.keypoints
    try:
        source = Split(shards=path, partial=True).open(schema, EvalTransform(experiment.data.resize, schema))
    except (DataError, OSError) as error:
        raise ValueError(
            f"no images to calibrate INT8 with; give them with --calibration SHARDS or FOLDER@SPLIT ({error})"
        ) from None
    count = min(options.calibration_images, len(source))
    rows = [row * len(source) // count for row in range(count)]
    return f"{count} images of {path}", (collate([source.samples([row])[0]]).images for row in rows)


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
