"""What the workers of an elastic run trained on, step by step; workers import this."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SEEDS_A_RUN = 1_000_003
"""Steps of run seed s have the seeds from s times this on."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one worker computed of one optimiser step that was taken."""

    time: float
    """Seconds since 1970 when it was over."""
    step: int
    """From 0; one that is taken again has its number again."""
    rank: int
    workers: int
    images: dict[int, tuple[int, ...]]
    """Micro-batch -> ids of its images."""
    loss: float
    """This worker's part of the step's; their mean over workers is the step's."""


def recording_worker(folder: Path, pace: float) -> Callable[..., Any]:
    """What Ray's workers run instead of ``train._ray_worker``: the same, with a record in ``folder``.

    Args:
        pace: Seconds that a step takes longer while there is a file ``slow`` in ``folder``.
    """

    def worker(*settings: Any) -> Any:
        from posefleet.platform.training import loop
        from posefleet.platform.training import ray_trainer as train

        take = loop.train_step
        file = (folder / f"worker-{os.getpid()}.jsonl").open("a", buffering=1)

        def train_step(network: Any, batches: Any, optimizer: Any, *, share: Any, seed: int, **options: Any) -> Any:
            if (folder / "slow").exists():
                time.sleep(pace)
            losses, norm = take(network, batches, optimizer, share=share, seed=seed, **options)
            images = {m: tuple(b.image_ids.tolist()) for m, b in zip(share.mine, batches, strict=True)}
            loss = sum(float(value) for value in losses.values())
            part = Part(time.time(), seed % SEEDS_A_RUN, share.rank, share.workers, images, loss)
            file.write(json.dumps(asdict(part)) + "\n")
            return losses, norm

        loop.train_step = train_step
        try:
            return train._ray_worker(*settings)
        finally:
            loop.train_step = take

    return worker


def read_parts(folder: Path) -> list[Part]:
    """All that were left so far, in the order of time."""
    lines = [line for file in folder.glob("worker-*.jsonl") for line in file.read_text().splitlines(keepends=True)]
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    parts = [Part(**{**p, "images": {int(m): tuple(ids) for m, ids in p["images"].items()}}) for p in found]
    return sorted(parts, key=lambda part: part.time)


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step, as it was last taken."""

    workers: int
    images: tuple[tuple[int, ...], ...]
    """Of each micro-batch."""
    loss: float
    times: int
    """How often it was taken."""


def last_taken(parts: list[Part]) -> dict[int, Step]:
    """Step -> how it was taken for the last time, by however many workers.

    Raises:
        AssertionError: A micro-batch was computed by two workers of a step, or with other images when it was taken
            again.
    """
    steps: dict[int, Step] = {}
    for number in sorted({part.step for part in parts}):
        these = [part for part in parts if part.step == number]
        seen: dict[int, set[tuple[int, ...]]] = {}
        for part in these:
            for micro_batch, images in part.images.items():
                seen.setdefault(micro_batch, set()).add(images)
        assert all(len(images) == 1 for images in seen.values()), (
            f"step {number} was taken with different images: {seen}"
        )
        firsts = [part for part in these if part.rank == 0]
        workers = firsts[-1].workers
        group = {part.rank: part for part in these if part.workers == workers}
        computed = [m for part in group.values() for m in part.images]
        assert sorted(computed) == sorted(seen), f"step {number}: micro-batches {computed} of {sorted(seen)}"
        steps[number] = Step(
            workers=workers,
            images=tuple(next(iter(seen[m])) for m in sorted(seen)),
            loss=sum(part.loss for part in group.values()) / workers,
            times=len(firsts),
        )
    return steps
