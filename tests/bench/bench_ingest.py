"""Images per second from shards to uint8 batches of 512 x 512, at equal work, of

    stream      posefleet.data.loading.shard_dataset
    colour      the same, with random brightness, contrast, saturation and hue
    mosaic      the same, with a mosaic of four images in every input
    webdataset  the webdataset library in a torch DataLoader, its usual way
    bare        processes that decode and transform bytes in memory and keep nothing
    tuned       the same, with the C library keeping freed memory, as in our loaders: what the processor can do
    shared      the bare loop, but collated into new shared memory: what a loader with processes usually does

    python tests/bench/bench_ingest.py [--workers 2] [--rounds 8] [--images FOLDER_OF_JPEGS]

All call the same decode and transform functions in the same number of processes. They take turns in short
windows of one run, so that whatever else the machine does meets all alike; ratios are medians over the rounds.
On a machine that is busy with other things too, compare images per second of processor time: it counts what the
workers and the consumer spent, not what they waited for.
"""

import argparse
import functools
import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import cv2
import numpy as np
import psutil
import torch
import webdataset
from torch.utils.data import DataLoader

from posefleet.data.coco.records import decode_record, encode_record, make_record
from posefleet.data.images import decode_image, encode_jpeg
from posefleet.data.loading.loader import training_batches
from posefleet.data.loading.shard_dataset import ShardDataset
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.shards.layout import Manifest, write_manifest, write_shard
from posefleet.data.shards.plan import shard_name
from posefleet.data.structures import Batch, Sample, collate
from posefleet.data.transforms import Augment, Resize, TrainTransform
from posefleet.memory import keep_freed_memory

TRANSFORM = TrainTransform(Resize(short_side=512, long_side=4096), Augment(crop=512, flip=0.5), COCO17)
COLOUR = replace(TRANSFORM, augment=replace(TRANSFORM.augment, brightness=0.3, contrast=0.3, saturation=0.3, hue=15.0))
MOSAIC = replace(TRANSFORM, augment=replace(TRANSFORM.augment, mosaic=1.0))
BATCH, PREFETCH = 32, 2
SAMPLES, SHARDS = 640, 4

Stored = tuple[str, bytes, dict]


@dataclass(frozen=True)
class Design:
    """One way to do the work."""

    name: str
    run: Callable[[int], None]
    """Takes that many batches beyond those that were ready."""
    ready: int
    """Batches that its workers keep ready."""
    workers: list[psutil.Process]

    def processor_seconds(self) -> float:
        return time.process_time() + sum(sum(worker.cpu_times()[:2]) for worker in self.workers)

    def wait_until_idle(self) -> None:
        """Return when the queues are full."""
        before, now = -1.0, self.processor_seconds()
        while now - before > 0.02:
            time.sleep(0.4)
            before, now = now, self.processor_seconds()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--batches", type=int, default=16, help="batches of a window")
    parser.add_argument("--images", type=Path, help="folder of JPEGs; default: made up ones of 640 x 480")
    args = parser.parse_args()

    samples = list(itertools.islice(itertools.cycle(stored_samples(args.images)), SAMPLES))
    samples = [(f"{number:06d}", image, record) for number, (_, image, record) in enumerate(samples)]
    size = statistics.mean(len(image) for _, image, _ in samples)
    print(f"{len(samples)} JPEGs of {size / 1000:.0f} kB on average, {args.workers} workers, batches of {BATCH}")
    with ExitStack() as stack:
        root = stack.enter_context(tempfile.TemporaryDirectory())
        write_shards(root, samples)
        ready = args.workers * PREFETCH
        designs: list[Design] = []
        for name, transform in (("stream", TRANSFORM), ("colour", COLOUR), ("mosaic", MOSAIC)):
            dataset = ShardDataset(root, COCO17, transform)
            ours = training_batches(dataset, batch_size=BATCH, workers=args.workers, prefetch=PREFETCH)
            stack.enter_context(ours)
            designs.append(Design(name, functools.partial(consume, ours, ready), ready, new_workers(designs)))
        theirs = webdataset_batches(root, args.workers)
        run = functools.partial(consume, theirs, ready)
        designs.append(Design("webdataset", run, ready, new_workers(designs)))
        for name, work in (("bare", decode_only), ("tuned", decode_only), ("shared", decode_and_share)):
            processes = stack.enter_context(Processes(work, samples, args.workers, keep=name == "tuned"))
            designs.append(Design(name, processes.run, 0, new_workers(designs)))
        report(*measure(designs, args.rounds, args.batches))


def new_workers(designs: list[Design]) -> list[psutil.Process]:
    known = {worker.pid for design in designs for worker in design.workers}
    return [psutil.Process(p.pid) for p in multiprocessing.active_children() if p.pid not in known]


Speeds = dict[str, list[float]]


def measure(designs: list[Design], rounds: int, batches: int) -> tuple[Speeds, Speeds]:
    """Images per second, and per second of processor time, of each design in each round after a first one."""
    clock: Speeds = {design.name: [] for design in designs}
    processor: Speeds = {design.name: [] for design in designs}
    for number in range(rounds + 1):
        for design in designs:
            design.wait_until_idle()
            spent, start = design.processor_seconds(), time.perf_counter()
            design.run(batches)
            seconds = time.perf_counter() - start
            design.wait_until_idle()
            if number:
                clock[design.name].append(batches * BATCH / seconds)
                spent = design.processor_seconds() - spent
                processor[design.name].append((batches + design.ready) * BATCH / spent)
    return clock, processor


def report(clock: Speeds, processor: Speeds) -> None:
    for unit, speeds in (("second", clock), ("processor second", processor)):
        print(f"\nimages per {unit}")
        for name, values in speeds.items():
            print(f"  {name:19s} {statistics.median(values):6.0f}   {' '.join(f'{v:.0f}' for v in values)}")
        for other in list(speeds)[1:]:
            ratios = [ours / theirs for ours, theirs in zip(speeds["stream"], speeds[other], strict=True)]
            print(f"  stream / {other:10s} {statistics.median(ratios):6.3f}   {' '.join(f'{r:.2f}' for r in ratios)}")


def consume(batches: Iterator[Batch], ready: int, count: int) -> None:
    """Take ``count`` batches beyond those that were ready."""
    for batch in itertools.islice(batches, ready + count):
        assert batch.images.shape == (BATCH, 3, 512, 512)


# ---------------------------------------------------------------------------------------------------- webdataset


def webdataset_batches(root: str, workers: int) -> Iterator[Batch]:
    urls = sorted(str(path) for path in Path(root).glob("*.tar"))
    dataset = (
        webdataset.WebDataset(urls, shardshuffle=len(urls), empty_check=False)
        .shuffle(256)
        .map(decode_sample)
        .batched(BATCH, collation_fn=collate, partial=False)
        .repeat()
    )
    loader = DataLoader(
        dataset, batch_size=None, num_workers=workers, prefetch_factor=PREFETCH, multiprocessing_context="forkserver"
    )
    return iter(loader)


def decode_sample(stored: dict[str, bytes]) -> Sample:
    image_id, original_size, people, outlines = decode_record(stored["json"], COCO17)
    sample = Sample(decode_image(stored["jpg"]), people, image_id, np.eye(2, 3), original_size, outlines)
    return TRANSFORM(sample, np.random.default_rng(image_id))


# ---------------------------------------------------------------------------------------------------- processes


class Processes:
    """Processes that each work through their part of the samples, over and over, a batch at a time."""

    def __init__(
        self, work: Callable[[list[Sample]], object], samples: list[Stored], processes: int, keep: bool
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        self._connections: list[Connection] = []
        for number in range(processes):
            mine, theirs = context.Pipe()
            part = [{"jpg": image, "json": encode_record(record)} for _, image, record in samples[number::processes]]
            context.Process(target=_work_on_demand, args=(theirs, work, part, keep), daemon=True).start()
            self._connections.append(mine)

    def run(self, batches: int) -> None:
        for connection in self._connections:
            connection.send(batches // len(self._connections))
        for connection in self._connections:
            connection.recv()

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections:
            connection.send(0)


def decode_only(samples: list[Sample]) -> None:
    """Nothing more is done with the samples."""


def decode_and_share(samples: list[Sample]) -> None:
    collate(samples, new_shared_memory)


def new_shared_memory(count: int, height: int, width: int) -> torch.Tensor:
    storage = torch.UntypedStorage._new_shared(count * height * width * 3)
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(count, height, width, 3)


def _work_on_demand(
    connection: Connection, work: Callable[[list[Sample]], object], stored: list[dict[str, bytes]], keep: bool
) -> None:
    if keep:
        keep_freed_memory()
    endless = itertools.cycle(stored)
    while count := connection.recv():
        for _ in range(count):
            work([decode_sample(next(endless)) for _ in range(BATCH)])
        connection.send(count)


# ---------------------------------------------------------------------------------------------------- samples


def stored_samples(folder: Path | None) -> list[Stored]:
    if folder is None:
        files = [made_up_image(number) for number in range(64)]
    else:
        files = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
    return [(f"{number:06d}", data, record(number, data)) for number, data in enumerate(files)]


def made_up_image(seed: int) -> bytes:
    """A JPEG of 640 x 480 with the 1/f spectrum of photographs and about their size in bytes."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(480)[:, None], np.fft.rfftfreq(640)[None])
    spectrum = np.fft.rfft2(rng.normal(size=(3, 480, 640))) / np.maximum(frequency, 1 / 640) ** 1.1
    image = np.fft.irfft2(spectrum, s=(480, 640)).transpose(1, 2, 0)
    image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    return encode_jpeg(image, 90)


def record(image_id: int, data: bytes) -> dict:
    """Three people with keypoints, as in an average labelled image of COCO."""
    height, width = decode_image(data).shape[:2]
    rng = np.random.default_rng(image_id)
    people = []
    for number in range(3):
        xy = rng.uniform(0.2, 0.8, (17, 2)) * (width, height)
        keypoints = np.concatenate([xy, np.full((17, 1), 2)], 1).round().astype(int)
        box = [*map(float, xy.min(0)), *map(float, np.ptp(xy, axis=0))]
        people.append({"id": number, "keypoints": keypoints.ravel().tolist(), "bbox": box, "area": box[2] * box[3] / 2})
    image = {"id": image_id, "file_name": f"{image_id}.jpg", "width": width, "height": height}
    return make_record(image, people)


def write_shards(root: str, samples: list[Stored]) -> None:
    infos = [write_shard(root, shard_name(number), samples[number::SHARDS]) for number in range(SHARDS)]
    write_manifest(root, Manifest(1, "bench", COCO17, "0" * 64, tuple(infos), {}, ()))


if __name__ == "__main__":
    main()
