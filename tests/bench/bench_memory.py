"""Resident memory of the stream, on 1,000 and on 100,000 samples in shards of 1,000.

    python tests/bench/bench_memory.py [--batches 400] [--workers 1]

Each size is streamed in a fresh process, one rank of eight, so that the batches touch every shard. Fails (exit
status 1) if the larger data set takes over 10 % more, summed over the process and its workers.
"""

import argparse
import itertools
import subprocess
import sys
import tempfile

import numpy as np
import psutil

from posefleet.data.coco.records import make_record
from posefleet.data.images import encode_jpeg
from posefleet.data.loading.loader import training_batches
from posefleet.data.loading.shard_dataset import ShardDataset
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.shards.layout import Manifest, write_manifest, write_shard
from posefleet.data.shards.plan import shard_name
from posefleet.data.transforms import EvalTransform, Resize

PER_SHARD = 1000
BATCH, RANKS = 32, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=400)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--stream", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stream:
        stream(args.stream, args.batches, args.workers)
        return

    memory = {}
    for samples in (1_000, 100_000):
        with tempfile.TemporaryDirectory() as root:
            write_samples(root, samples)
            command = [sys.executable, __file__, "--stream", root]
            command += ["--batches", str(args.batches), "--workers", str(args.workers)]
            memory[samples] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"{samples:7d} samples: {memory[samples]:.1f} MB after {args.batches} batches of {BATCH}")
    ratio = memory[100_000] / memory[1_000]
    print(f"ratio {ratio:.3f}")
    sys.exit(ratio > 1.1)


def stream(root: str, count: int, workers: int) -> None:
    """Stream and print the MB of this process and its workers."""
    dataset = ShardDataset(root, COCO17, EvalTransform(Resize(short_side=64, long_side=64), COCO17))
    with training_batches(dataset, batch_size=BATCH, world_size=RANKS, workers=workers) as batches:
        for _ in itertools.islice(batches, count):
            pass
        this = psutil.Process()
        print(sum(process.memory_info().rss for process in (this, *this.children(recursive=True))) / 1e6)


def write_samples(root: str, count: int) -> None:
    """The same tiny image under ``count`` keys."""
    image = encode_jpeg(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    record = make_record({"id": 0, "file_name": "0.jpg", "width": 32, "height": 32}, [])
    shards = []
    for number in range(count // PER_SHARD):
        keys = range(number * PER_SHARD, (number + 1) * PER_SHARD)
        shards.append(write_shard(root, shard_name(number), ((f"{key:012d}", image, record) for key in keys)))
    write_manifest(root, Manifest(1, "bench", "coco17", "0" * 64, tuple(shards), {}, ()))


if __name__ == "__main__":
    main()
