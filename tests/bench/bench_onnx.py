"""The network in ONNX Runtime, in INT8 and in OpenVINO against the same one in PyTorch, on the CPU.

``--backends tensorrt`` compares TensorRT with PyTorch on a GPU instead.

Weights are random. Per method the published network (R50 where the method leaves the choice) at 512 px, and that of the
demo at 128 px; one image at a time, PyTorch in channels_last memory as it is served. Numbers are medians of turns
(PyTorch, and each backend after it); above 1 the backend is faster. "network" is what the file holds, "prediction" is
all of it with decoding, which is PyTorch everywhere; nobody is found in noise, so with people in the image they are
nearer to each other. INT8 is calibrated on noise: it says how fast it is, and nothing of its AP.
"""

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
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
from posefleet.platform.exports.backends import Backend, export_network, open_model, write_exported
from posefleet.platform.exports.quantize import quantize_onnx

BACKENDS = ("onnxruntime", "int8", "openvino")
ON_GPU = "tensorrt"


def models(method: str, config: object, size: int, folder: str, backends: list[str]) -> dict[str, Any]:
    """The same model with its network in PyTorch, and in each of the backends."""
    torch.manual_seed(0)
    experiment = build_experiment({"method": method, "schema": "coco17", "data": {"train": "none"}})
    experiment = dataclasses.replace(experiment, model=config)
    ours = build_model(experiment, pretrained=False)
    meta = Meta(experiment=experiment, step=0, position=0, metrics={}, provenance={})
    checkpoint = CheckpointStore(folder).save(meta, ours.state_dict(), {})
    device = "cuda" if ON_GPU in backends else "cpu"
    found = {"torch": ours.to(device, memory_format=torch.channels_last).eval()}
    exported = {}
    for backend in backends:
        library: Backend = "onnxruntime" if backend == "int8" else backend  # type: ignore[assignment]
        files = exported.get(library) or export_network(checkpoint, library)
        exported[library] = files
        if backend == "int8":
            noise = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8)
            files = {".onnx": quantize_onnx(files[".onnx"], noise.split(1), calibration="noise")}
        path = f"{folder}/{backend}{list(files)[-1]}"
        write_exported(path, files)
        found[backend] = open_model(path)[0].to(device)
    return found


def take_turns(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """Median seconds of each, and the median of the quotients of the first one's by its own."""
    for run in runs.values():
        run(), run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    first = times[next(iter(runs))]
    return {
        name: (statistics.median(own), statistics.median(a / b for a, b in zip(first, own, strict=True)))
        for name, own in times.items()
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=available_methods(), choices=available_methods())
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS), choices=(*BACKENDS, ON_GPU))
    parser.add_argument(
        "--sizes", nargs="+", type=int, default=[128, 512], help="side of the images; the demo's networks below 256 px"
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if ON_GPU in options.backends and len(options.backends) > 1:
        parser.error(f"{ON_GPU} is compared with PyTorch on the GPU, the others on the CPU: give it alone")
    torch.set_num_threads(options.threads)
    columns = "".join(f"{name:>14s}" for name in options.backends)
    sys.stdout.write(
        f"{options.threads} threads, {options.rounds} rounds; ms in PyTorch, then times as fast as PyTorch\n"
        f"{'':16s}| {'network':8s}{columns} | {'prediction':8s}{columns}\n"
    )
    for size in options.sizes:
        for method in options.methods:
            config = shipped(method) if size < 256 else paper_config(method)
            images = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8)
            images = images.to("cuda" if ON_GPU in options.backends else "cpu")
            with tempfile.TemporaryDirectory() as folder:
                found = models(method, config, size, folder, options.backends)
            with torch.inference_mode():
                parts = []
                for part in ("forward_features", "predict"):
                    runs = {name: partial(getattr(model, part), images) for name, model in found.items()}
                    times = take_turns(runs, options.rounds)
                    ratios = "".join(f"{times[name][1]:13.2f}x" for name in options.backends)
                    parts.append(f"{1e3 * times['torch'][0]:8.1f}{ratios}")
            sys.stdout.write(f"{method:11s}{size:4d} | {' | '.join(parts)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
