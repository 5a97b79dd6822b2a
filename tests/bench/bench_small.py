"""What a prediction of one small image costs on a CPU, here and in another checkout.

    git worktree add /tmp/before v0.9
    python tests/bench/bench_small.py --against /tmp/before [--sizes 128 512] [--methods smpr] [--rounds 5]

Every measurement is a process of its own with one thread, and the two checkouts take turns (A B A B). Both load the
same checkpoint: --checkpoint, or the network of jobs/configs/METHOD_demo.yaml with random weights, whose 50 best cells
of each level become poses. Prints medians of CPU milliseconds, so other work on the machine matters less than it would
to elapsed time: of the whole prediction from a decoded image to poses, of the network in it, and how far the poses of
the two are apart. Needs ONNX, ONNX Script and ONNX Runtime, except with --backends torch.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from posefleet.data.structures import Poses, collate
from posefleet.data.synthetic.scenes import SceneConfig, render_scene
from posefleet.models import available_methods
from posefleet.platform.checkpoints.format import Meta
from posefleet.platform.checkpoints.load import build_model
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.config.loading import build_experiment, read_yaml
from posefleet.platform.inference.agreement import Agreement
from posefleet.platform.inference.predictor import Predictor
from posefleet.platform.visualization.tables import table

HERE = Path(__file__).resolve().parents[2]
BACKENDS = ("torch", "onnxruntime")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, metavar="PATH", help="folder of the other checkout")
    parser.add_argument("--methods", nargs="+", choices=available_methods(), default=["smpr"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[128], help="sides of the image, px (default: 128)")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--rounds", type=int, default=3, help="processes of each checkout (default: 3)")
    parser.add_argument("--calls", type=int, default=40, help="timed calls of a process (default: 40)")
    parser.add_argument("--checkpoint", default="", help="measured instead of random weights")
    parser.add_argument("--alone", metavar="FILE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        sys.stdout.write(json.dumps(measure(args.checkpoint, args.backends[0], args.sizes[0], args.calls, args.alone)))
        return
    sides = {"before": args.against.resolve(), "here": HERE} if args.against else {"here": HERE}
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for method in args.methods:
            checkpoint = args.checkpoint or random_checkpoint(method, f"{folder}/{method}")
            for backend in args.backends:
                for size in args.sizes:
                    options = ["--checkpoint", str(Path(checkpoint).resolve()), "--backends", backend]
                    options += ["--sizes", str(size), "--calls", str(args.calls)]
                    found = [
                        {side: in_a_process(path, options, f"{folder}/{side}") for side, path in sides.items()}
                        for _ in range(args.rounds)
                    ]
                    lines.append([method, backend, str(size), *columns(found, folder)])
                    print("  ".join(lines[-1]), file=sys.stderr, flush=True)
    names = ["whole, ms", "network, ms"]
    head = [f"{what} {side}" for side in sides for what in names]
    print(table(["method", "library", "px", *head, *(["ratio", "poses"] if args.against else [])], lines))


def random_checkpoint(method: str, folder: str) -> str:
    """A checkpoint of the method's network for laptops with random weights."""
    torch.manual_seed(0)
    configs = HERE / "jobs" / "configs"
    path = next(p for p in (configs / f"{method}_demo.yaml", configs / f"{method}.yaml") if p.exists())
    settings = read_yaml(path)
    settings["model"]["backbone"] = settings["model"].get("backbone", {}) | {"pretrained": False, "weights": ""}
    if method == "detposenet":
        del settings["model"]["backbone"]
    experiment = build_experiment(settings | {"schema": "coco17"})
    config: Any = experiment.model
    if hasattr(config.decode, "top_k"):
        config = dataclasses.replace(config, decode=dataclasses.replace(config.decode, score_floor=0.0, top_k=50))
    experiment = dataclasses.replace(experiment, model=config)
    model = build_model(experiment, pretrained=False)
    meta = Meta(experiment=experiment, step=0, position=0, metrics={}, provenance={})
    return str(CheckpointStore(folder).save(meta, model.state_dict(), {}))


def in_a_process(checkout: Path, options: list[str], folder: str) -> dict[str, float]:
    """Measure one checkout in a new process; its poses are left in ``folder``."""
    Path(folder).mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": folder}
    command = [sys.executable, __file__, *options, "--alone", f"{folder}/poses.npz"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def columns(rounds: list[dict[str, dict[str, float]]], folder: str) -> list[str]:
    """Medians of both sides; the median of the quotients of each round, and how far poses are apart."""
    sides = rounds[0].keys()
    cells = [f"{statistics.median(r[side][name] for r in rounds):.1f}" for side in sides for name in rounds[0][side]]
    if "before" not in sides:
        return cells
    ratio = statistics.median(r["here"]["whole"] / r["before"]["whole"] for r in rounds)
    before, here = ([poses_of(f"{folder}/{side}/poses.npz")] for side in ("before", "here"))
    return [*cells, f"{ratio:.2f}", str(Agreement.of(before, here))]


def poses_of(path: str) -> Poses:
    """The poses that a process left."""
    with np.load(path) as stored:
        return Poses(*(torch.from_numpy(stored[name]) for name in ("keypoints", "keypoint_scores", "scores")))


def measure(checkpoint: str, backend: Any, size: int, calls: int, out: str) -> dict[str, float]:
    """Median CPU milliseconds of a prediction and of its network."""
    torch.set_num_threads(1)
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu", backend=backend)
    predictor.resizes = [dataclasses.replace(predictor.resizes[0], short_side=size, long_side=size)]
    config = SceneConfig(width=(size, size), height=(size, size), people=(2, 2), scale=(0.5, 1.0), crowd_rate=0)
    image = render_scene(config, 3)[0]
    (poses,) = predictor.predict_images([image])
    np.savez(out, **{name: getattr(poses, name).numpy() for name in ("keypoints", "keypoint_scores", "scores")})
    model: Any = predictor.model
    images = collate(predictor.prepare(image)).images
    with torch.inference_mode():
        network = median_ms(lambda: model.forward_features(images), calls)
    return {"whole": median_ms(lambda: predictor.predict_images([image]), calls), "network": network}


def median_ms(run: Callable[[], object], calls: int) -> float:
    """Median CPU milliseconds of a call, after three that do not count."""
    times = []
    for _ in range(3 + calls):
        start = time.process_time()
        run()
        times.append(1e3 * (time.process_time() - start))
    return statistics.median(times[3:])


if __name__ == "__main__":
    main()
