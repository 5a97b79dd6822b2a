"""Images per second of the synthetic renderer, JPEG and files included, on one core.

    python tests/bench/bench_synthetic.py [--count 100] [--windows 5]

Imports and textures are made before the clock starts. The rate by CPU time is what one undisturbed core would do;
the rate by wall time is what this machine gave.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from posefleet.data.synthetic.dataset import write_dataset
from posefleet.data.synthetic.scenes import SceneConfig


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=100, help="images in a window")
    parser.add_argument("--windows", type=int, default=5)
    chosen = parser.parse_args()
    for side in (256, 512):
        config = SceneConfig(width=(side, side), height=(side, side))
        with tempfile.TemporaryDirectory() as folder:
            write_dataset(Path(folder), "warm", 3, config)
            by_cpu, by_wall = [], []
            for window in range(chosen.windows):
                cpu, wall = time.process_time(), time.perf_counter()
                write_dataset(Path(folder), "bench", chosen.count, config, seed=window)
                by_cpu.append(chosen.count / (time.process_time() - cpu))
                by_wall.append(chosen.count / (time.perf_counter() - wall))
        print(
            f"{side} px: {statistics.median(by_cpu):.1f} images per CPU second (best {max(by_cpu):.1f}), "
            f"{statistics.median(by_wall):.1f} images/s on the clock (best {max(by_wall):.1f}); "
            f"medians of {chosen.windows} windows of {chosen.count} images"
        )


if __name__ == "__main__":
    main()
