"""What more keypoints cost: a training step and a prediction of every method with 17 and with 133 keypoints.

    python tests/bench/bench_keypoints.py [--size 320] [--rounds 3] [--methods smpr ...]

Every measurement is a process of its own, so its peak of memory is its own, and the numbers of keypoints take turns.
The models are those of jobs/configs/METHOD.yaml with random weights; they find 10 people, as in methods.py. Prints
medians of the CPU seconds of a training step on two images and of a prediction of one, the parameters, and the peak of
memory of the steps above that of the libraries. About 12 minutes on one core.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from methods import Scene, paper_config, plant, stepper

from posefleet.data.schemas.shipped import load_schema
from posefleet.data.structures import People
from posefleet.models import available_methods, load_method
from posefleet.platform.visualization.tables import table

SCHEMAS = ("coco17", "coco_wholebody133")
PEOPLE, BATCH = 10, 2


class Cost(NamedTuple):
    """What one process measured."""

    step: float
    """CPU seconds of a training step."""
    predict: float
    """CPU seconds of a prediction."""
    parameters: float
    """Millions."""
    memory: float
    """MiB, peak of the steps."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=available_methods(), default=available_methods())
    parser.add_argument("--size", type=int, default=320, help="sides of the images, px (default: 320)")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind (default: 3)")
    parser.add_argument("--alone", metavar="SCHEMA", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        sys.stdout.write(json.dumps(measure(args.methods[0], args.alone, args.size)))
        return
    lines = []
    for method in args.methods:
        costs: dict[str, list[Cost]] = {schema: [] for schema in SCHEMAS}
        for _ in range(args.rounds):
            for schema in SCHEMAS:
                costs[schema].append(in_a_process(method, schema, args.size))
        few, many = (Cost(*map(statistics.median, zip(*costs[schema], strict=True))) for schema in SCHEMAS)
        lines.append([method, *(f"{a:.3g}, {b:.3g} ({b / a:.2f})" for a, b in zip(few, many, strict=True))])
        print("  ".join(lines[-1]), file=sys.stderr, flush=True)
    print(table(["method", "step, CPU s", "prediction, CPU s", "parameters, M", "memory of a step, MiB"], lines))


def in_a_process(method: str, schema: str, size: int) -> Cost:
    """Measure in a new process."""
    command = [sys.executable, __file__, "--methods", method, "--size", str(size), "--alone", schema]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return Cost(*json.loads(done.stdout.splitlines()[-1]))


def measure(method: str, name: str, size: int) -> Cost:
    """Build a method for a shipped schema; time three steps and five predictions after one of each."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    schema = load_schema(name)
    scene = Scene(torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8), people_of(len(schema), size))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model: Any = load_method(method).Model(paper_config(method), schema)
    images, people = scene.image.expand(BATCH, -1, -1, -1), [scene.people] * BATCH
    step = median_seconds(stepper(model, lambda: model.train()(images, people)), 3)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    plant(method, model, scene)
    model.eval()
    with torch.inference_mode():
        predict = median_seconds(lambda: model.predict(scene.image), 5)
    return Cost(step, predict, sum(p.numel() for p in model.parameters()) / 1e6, memory / 2**10)


def people_of(count: int, size: int) -> People:
    """PEOPLE with ``count`` keypoints at random places of boxes in two rows."""
    random = torch.Generator().manual_seed(0)
    columns = PEOPLE // 2
    corners = torch.tensor([[x * size / columns, y * size / 2] for y in range(2) for x in range(columns)])
    side = torch.tensor([0.9 * size / columns, 0.45 * size])
    points = corners[:, None] + side * torch.rand(PEOPLE, count, 2, generator=random)
    boxes = torch.cat([corners, corners + side], 1)
    visible = torch.full((PEOPLE, count), 2, dtype=torch.uint8)
    return People(points, visible, boxes, side.prod().expand(PEOPLE).clone(), torch.zeros(PEOPLE, dtype=torch.bool))


def median_seconds(run: Callable[[], object], rounds: int) -> float:
    """Median CPU seconds of a call, after one that does not count."""
    run()
    found = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return statistics.median(found)


if __name__ == "__main__":
    main()
