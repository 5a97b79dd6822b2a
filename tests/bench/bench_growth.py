"""How costs grow with samples, and with ranks, checkpoints, runs and trials.

    python tests/bench/bench_growth.py --plot docs/growth.png             # all of it: over ten CPU minutes
    python tests/bench/bench_growth.py --sizes 1000 10000 --counts 1 8
    python tests/bench/bench_growth.py --measure shard doctor --sizes 1000000

Each measure runs once at each size, in a process of its own, so that its peak of resident memory is that of the thing
measured. CPU seconds count all threads; the clock's stand beside them. Growth is the exponent p of CPU seconds ~ size^p
between the two largest sizes: 1 or less means that one more costs no more than the last one did, 0 that it costs
nothing.

Where pictures do not matter there are none: annotations are as large as COCO's, image files are holes with a size,
shards of a million samples are the same thousand tiny pictures under other names. Ranks are played one after the other
in one process. It measures and does not judge: the exit status is 0.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from growth.measures import MEASURES, Measure, Prepare, quietly
from growth.points import Point, figure, table

SIZES = (1_000, 10_000, 100_000, 1_000_000)
COUNTS = (1, 8, 64, 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs="+", choices=MEASURES, default=list(MEASURES), help="default: all")
    parser.add_argument("--sizes", nargs="+", type=int, help="samples; default: 1000 to 1000000, scoring to 100000")
    parser.add_argument("--counts", nargs="+", type=int, help="ranks, checkpoints, runs, trials; default: 1 to 512")
    parser.add_argument("--plot", default="", help="PNG that is written")
    parser.add_argument("--json", default="", help="file that the numbers are written to")
    parser.add_argument("--alone", nargs=3, metavar=("MEASURE", "SIZE", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        name, size, folder = args.alone
        print(json.dumps(measured(name, int(size), Path(folder))))
        return
    points = []
    for prepare, names in itertools.groupby(args.measure, lambda name: MEASURES[name].prepare):
        points += measured_on(prepare, list(names), {"samples": args.sizes, "counts": args.counts})
    points.sort(key=lambda point: (args.measure.index(point.measure), point.size))
    print(table(points))
    if args.json:
        Path(args.json).write_text(json.dumps([point._asdict() for point in points], indent=1) + "\n")
    if args.plot:
        from posefleet.platform.visualization.plots import save_png

        save_png(figure(points), args.plot)


def measured_on(prepare: Prepare, names: list[str], asked: Mapping[str, list[int] | None]) -> Iterator[Point]:
    """Measures of the same material, which is made once for each size."""
    sizes = {name: asked[MEASURES[name].axis] or usual(MEASURES[name]) for name in names}
    for size in sorted(set(itertools.chain.from_iterable(sizes.values()))):
        with tempfile.TemporaryDirectory(prefix="posefleet-bench-") as parent:
            folder = Path(parent, "material")
            prepare(folder, size)
            for name in names:
                if size in sizes[name]:
                    yield in_its_own_process(name, size, folder)


def usual(measure: Measure) -> list[int]:
    """The sizes that are measured when no others are asked for."""
    return [size for size in (SIZES if measure.axis == "samples" else COUNTS) if size <= measure.largest]


def in_its_own_process(name: str, size: int, folder: Path) -> Point:
    """Run a measure in a fresh interpreter."""
    command = [sys.executable, __file__, "--alone", name, str(size), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} at {size} failed:\n{done.stderr}")
    point = Point(name, size, **json.loads(done.stdout.splitlines()[-1]))
    print(f"{MEASURES[name].what}: {size} in {point.cpu:.2f} CPU s, {point.peak:.0f} MB", file=sys.stderr, flush=True)
    return point


def measured(name: str, size: int, folder: Path) -> dict[str, float]:
    """Seconds, CPU seconds, and MB of resident memory before and at the peak."""
    work = MEASURES[name].begin(folder, size)
    before, start, cpu = megabytes(), time.perf_counter(), time.process_time()
    quietly(work)
    return {
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - cpu,
        "before": before,
        "peak": megabytes(),
    }


def megabytes() -> float:
    """Peak of resident memory so far; Linux counts what the parent had in ru_maxrss, but not here."""
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
