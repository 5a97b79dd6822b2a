"""The exported network in ONNX Runtime against the same one in PyTorch, on the CPU.

Weights are random. Per method the published network (R50 where the method leaves the choice) at 512 px, and that of the
demo at 128 px; one image at a time, PyTorch in channels_last memory as it is served. Numbers are medians of A B A B;
above 1 ONNX Runtime is faster. "network" is what the file holds, "prediction" is all of it with decoding, which is
PyTorch on both sides; nobody is found in noise, so with people in the image the two are nearer to each other.
"""

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "support")]
from methods import paper_config
from small_models import shipped

from posefleet.models import available_methods
from posefleet.platform.checkpoints.format import Meta
from posefleet.platform.checkpoints.load import build_model
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.config.loading import build_experiment
from posefleet.platform.inference.onnx import export_onnx, load_onnx


def pair(method: str, config: object, folder: str) -> tuple[Any, Any, float]:
    """The same model with its network in PyTorch and in ONNX Runtime, and the seconds that the export took."""
    torch.manual_seed(0)
    experiment = build_experiment({"method": method, "data": {"train": "none"}})
    experiment = dataclasses.replace(experiment, model=config)
    ours = build_model(experiment, pretrained=False)
    meta = Meta(experiment=experiment, step=0, position=0, metrics={}, provenance={})
    checkpoint = CheckpointStore(folder).save(meta, ours.state_dict(), {})
    start = time.perf_counter()
    path = Path(folder, "model.onnx")
    path.write_bytes(export_onnx(checkpoint))
    seconds = time.perf_counter() - start
    return ours.to(memory_format=torch.channels_last).eval(), load_onnx(str(path))[0], seconds


def take_turns(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """Median seconds of each, and the median of their quotients, first by second."""
    ours(), theirs()
    times = []
    for _ in range(rounds):
        clock = [time.perf_counter()]
        for run in (ours, theirs):
            run()
            clock.append(time.perf_counter())
        times.append((clock[1] - clock[0], clock[2] - clock[1]))
    first, second = zip(*times, strict=True)
    return statistics.median(first), statistics.median(second), statistics.median(a / b for a, b in times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=available_methods(), choices=available_methods())
    parser.add_argument(
        "--sizes", nargs="+", type=int, default=[128, 512], help="side of the images; the demo's networks below 256 px"
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sys.stdout.write(
        f"{options.threads} threads, {options.rounds} rounds; ms in PyTorch, ms in ONNX Runtime, ratio\n"
        f"{'':16s}| {'network':24s} | {'prediction':24s} | export, s\n"
    )
    for size in options.sizes:
        for method in options.methods:
            config = shipped(method) if size < 256 else paper_config(method)
            images = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8)
            with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False):
                ours, theirs, seconds = pair(method, config, folder)
            with torch.inference_mode():
                network = take_turns(
                    lambda: ours.forward_features(images),  # noqa: B023
                    lambda: theirs.forward_features(images),  # noqa: B023
                    options.rounds,
                )
                whole = take_turns(lambda: ours.predict(images), lambda: theirs.predict(images), options.rounds)  # noqa: B023
            columns = (f"{1e3 * a:8.1f} {1e3 * b:8.1f} {ratio:5.2f}x" for a, b, ratio in (network, whole))
            sys.stdout.write(f"{method:11s}{size:4d} | {' | '.join(columns)} | {seconds:5.1f}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
