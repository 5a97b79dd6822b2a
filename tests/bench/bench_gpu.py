"""The five methods on a GPU: training, prediction, memory, waits of the host, by precision, memory format and compiler.

    python tests/bench/bench_gpu.py --out FOLDER                       # all of it: about 20 minutes on one GPU
    python tests/bench/bench_gpu.py --methods smpr --variants bf16 fp16 --size 640 --batch 16
    python tests/bench/bench_gpu.py --device cpu --size 64 --batch 2 --people 3 --rounds 1     # whether it runs

The models are those of jobs/configs/METHOD.yaml (InsPose: inspose_paper.yaml) with random weights; 20 people are
painted into the image and planted into the networks' outputs, see methods.py. Columns:

* images/s: a training step of the platform (forward, backward, clipping, optimiser) on images that are on the device.
* ceiling: FLOPs of that step (convolutions and matrix products) a second, as a share of what a large matrix product of
  the same precision reaches here.
* memory: peak of the step, allocated by PyTorch.
* ms at 1 and 8: a prediction of one image, and of eight.
* waits: how often the host waits for the GPU in a step, and in a prediction, as PyTorch reports it; the lines that wait
  are below the table. On a CPU tests/models/test_contract.py counts them instead.

Medians of ``--rounds``. It reports and does not judge: the exit status is 0.
"""

import argparse
import gc
import json
import statistics
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from methods import Clock, Scene, paint_scene, paper_config, plant
from torch.utils.flop_counter import FlopCounterMode

from posefleet.data.schemas.shipped import COCO17
from posefleet.models import available_methods, load_method
from posefleet.platform.config.experiment import OptimConfig, Precision
from posefleet.platform.inference.execution import autocast, compile_network
from posefleet.platform.training.optim import build_optimizer, build_scaler
from posefleet.platform.training.step import train_step
from posefleet.platform.visualization.tables import table

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WARM_UP = 3
"""Runs before those that are timed."""


class Variant(NamedTuple):
    """How a network runs."""

    precision: Precision
    channels_last: bool = True
    compiled: bool = False


VARIANTS = {
    "bf16": Variant("bfloat16"),
    "fp16": Variant("float16"),
    "fp32": Variant("float32"),
    "bf16, channels first": Variant("bfloat16", channels_last=False),
    "bf16, compiled": Variant("bfloat16", compiled=True),
}


@dataclass
class Row:
    """What was measured of a method in a variant."""

    method: str
    variant: str
    images_per_second: float
    tflops: float
    """10^12 FLOP a second of the training step."""
    ceiling: float
    """0..1, those divided by a matrix product's."""
    memory_gib: float
    predict_1_ms: float
    predict_8_ms: float
    step_waits: int | None
    """None where the device cannot say."""
    predict_waits: int | None
    lines: list[str] = field(default_factory=list)
    """Where the host waited."""

    def cells(self) -> list[str]:
        """Of the table."""
        return [
            self.method,
            self.variant,
            f"{self.images_per_second:.1f}",
            f"{self.tflops:.2f}",
            f"{100 * self.ceiling:.0f} %",
            f"{self.memory_gib:.2f}",
            f"{self.predict_1_ms:.1f}",
            f"{self.predict_8_ms:.1f}",
            *("-" if count is None else str(count) for count in (self.step_waits, self.predict_waits)),
        ]


HEAD = [
    "method",
    "variant",
    "images/s",
    "TFLOP/s",
    "ceiling",
    "memory, GiB",
    "ms at 1",
    "ms at 8",
    "waits",
    "predicting",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=available_methods(), choices=available_methods())
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--size", type=int, default=512, help="side of the images, a multiple of 64 (default: 512)")
    parser.add_argument("--batch", type=int, default=8, help="images of a training step (default: 8)")
    parser.add_argument("--people", type=int, default=20, help="people in the image (default: 20)")
    parser.add_argument("--rounds", type=int, default=10, help="timed runs of each (default: 10)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", default="", help="folder for gpu.json and gpu.md; written after every row")
    options = parser.parse_args()
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    ceilings = {dtype: matmul_tflops(dtype, device) for dtype in DTYPES}
    reached = ", ".join(f"{dtype} {value:.3g}" for dtype, value in ceilings.items())
    about = (
        f"{name}, PyTorch {torch.__version__}, {options.size} px, {options.people} people, batches of {options.batch}"
    )
    about += f"; TFLOP/s of matrix products: {reached}"
    print(about, flush=True)
    rows: list[Row] = []
    for method in options.methods:
        for variant in options.variants:
            try:
                rows.append(measured(method, variant, options, device, ceilings))
            except torch.OutOfMemoryError as error:
                print(f"{method}, {variant}: {error}", flush=True)
                continue
            gc.collect()  # the model before
            print(" | ".join(rows[-1].cells()), flush=True)
            if options.out:
                write(Path(options.out), about, rows)
    print("\n" + report(rows))


def write(folder: Path, about: str, rows: Sequence[Row]) -> None:
    """Everything so far."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps({"about": about, "rows": [vars(row) for row in rows]}, indent=1) + "\n")
    (folder / "gpu.md").write_text(f"{about}\n\n{report(rows)}\n")


def report(rows: Sequence[Row]) -> str:
    """The table, and where the host waited."""
    lines = sorted({line for row in rows for line in row.lines})
    places = "\n".join(["", "The host waits at:", *(f"* {line}" for line in lines)]) if lines else ""
    return table(HEAD, [row.cells() for row in rows]) + "\n" + places


def matmul_tflops(precision: str, device: torch.device, seconds: float = 0.5) -> float:
    """10^12 FLOP a second that a large product of two matrices reaches."""
    side, clock = 8192 if device.type == "cuda" else 1024, Clock(device)
    a = torch.randn(side, side, device=device, dtype=DTYPES[precision])
    a @ a
    count = max(1, int(seconds / max(clock.time(lambda: a @ a), 1e-4)))

    def products() -> None:
        for _ in range(count):
            a @ a

    return 2 * side**3 * count / clock.time(products) / 1e12


def measured(
    method: str, name: str, options: argparse.Namespace, device: torch.device, ceilings: dict[str, float]
) -> Row:
    """One row: training first, because planting changes the model."""
    variant, clock = VARIANTS[name], Clock(device)
    scene = paint_scene(options.people, options.size)
    scene = Scene(scene.image.to(device), scene.people.to(device))
    torch.manual_seed(0)
    model: Any = load_method(method).Model(paper_config(method), COCO17)
    layout = torch.channels_last if variant.channels_last else torch.contiguous_format
    model = model.to(device, memory_format=layout)
    if variant.compiled:
        compile_network(model)
    images, everybody = scene.image.expand(options.batch, -1, -1, -1), [scene.people] * options.batch
    batch: Any = SimpleNamespace(images=images, people=everybody)
    optimizer = build_optimizer(model.train(), OptimConfig(lr=1e-6), precision=variant.precision)
    scaler = build_scaler(variant.precision, device)

    def step() -> None:
        train_step(model, [batch], optimizer, clip_norm=10.0, precision=variant.precision, scaler=scaler)

    with FlopCounterMode(display=False) as counter:
        step()
    with peak_memory(device) as peak:
        seconds = median(step, options.rounds, clock)
    step_waits = waits(step, device)
    optimizer.zero_grad(set_to_none=True)
    model.eval()
    plant(method, model, scene)
    one = median(predictor(model, scene, 1, variant), options.rounds, clock)
    predict_waits = waits(predictor(model, scene, 1, variant), device)
    plant(method, model, scene, copies=8)
    eight = median(predictor(model, scene, 8, variant), options.rounds, clock)
    return Row(
        method=method,
        variant=name,
        images_per_second=options.batch / seconds,
        tflops=counter.get_total_flops() / seconds / 1e12,
        ceiling=counter.get_total_flops() / seconds / 1e12 / ceilings[variant.precision],
        memory_gib=peak[0] / 2**30,
        predict_1_ms=1e3 * one,
        predict_8_ms=1e3 * eight,
        step_waits=None if step_waits is None else step_waits.total(),
        predict_waits=None if predict_waits is None else predict_waits.total(),
        lines=[
            *(f"step: {line}" for line in step_waits or ()),
            *(f"prediction: {line}" for line in predict_waits or ()),
        ],
    )


def predictor(model: Any, scene: Scene, count: int, variant: Variant) -> Callable[[], object]:
    """Predicts ``count`` times the scene."""
    images = scene.image.expand(count, -1, -1, -1)

    def run() -> object:
        with torch.inference_mode(), autocast(images.device, variant.precision):
            return model.predict(images)

    return run


def median(run: Callable[[], object], rounds: int, clock: Clock) -> float:
    """Seconds of a run."""
    for _ in range(min(WARM_UP, rounds)):
        run()
    return statistics.median(clock.time(run) for _ in range(rounds))


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[float]]:
    """The most bytes that PyTorch has allocated on the device meanwhile; NaN on a CPU."""
    peak = [float("nan")]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield peak
    if device.type == "cuda":
        peak[0] = torch.cuda.max_memory_allocated(device)


def waits(run: Callable[[], object], device: torch.device) -> Counter[str] | None:
    """Lines in which the host waits for the GPU during a run, and how often; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    synchronous = [warning for warning in found if "synchroniz" in str(warning.message)]
    return Counter(f"{Path(warning.filename).name}:{warning.lineno}" for warning in synchronous)


if __name__ == "__main__":
    main()
