"""A log of what training consumed, step by step: what "every sample of every epoch once" is counted in."""

import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from posefleet.platform.training import loop


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One worker's part of one optimiser step that was taken."""

    time: float
    """Seconds since 1970 when it was over."""
    process: int
    rank: int
    number: int
    """As the optimiser counts, from 1; a step that is taken again after a fault has its number again."""
    image_ids: tuple[int, ...]


@contextmanager
def recorded_steps(folder: Path, rank: int = 0) -> Iterator[None]:
    """Within, every training step of this process leaves a :class:`Step` in ``folder``."""
    take = loop.train_step
    with (folder / f"steps-{os.getpid()}.jsonl").open("a", buffering=1) as file:

        def recording(network: Any, batches: Any, optimizer: torch.optim.Optimizer, **options: Any) -> Any:
            result = take(network, batches, optimizer, **options)
            step = Step(
                time=time.time(),
                process=os.getpid(),
                rank=rank,
                number=steps_taken(optimizer),
                image_ids=tuple(i for batch in batches for i in batch.image_ids.tolist()),
            )
            file.write(json.dumps(asdict(step)) + "\n")
            return result

        loop.train_step = recording
        try:
            yield
        finally:
            loop.train_step = take


def steps_taken(optimizer: torch.optim.Optimizer) -> int:
    """What Adam counts, over all lives of a run; 0 where the optimiser counts nothing."""
    return max((int(state["step"]) for state in optimizer.state.values() if "step" in state), default=0)


def read_steps(folder: Path) -> list[Step]:
    """All that were left so far, in the order of time."""
    lines = [line for file in folder.glob("steps-*.jsonl") for line in file.read_text().splitlines(keepends=True)]
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    return sorted((Step(**{**step, "image_ids": tuple(step["image_ids"])}) for step in whole), key=lambda s: s.time)


def samples_seen(steps: list[Step]) -> Counter[int]:
    """How often each image was trained on, where a step that was taken again counts once.

    Raises:
        AssertionError: It was taken again with other images.
    """
    parts: dict[tuple[int, int], set[tuple[int, ...]]] = defaultdict(set)
    for step in steps:
        parts[step.number, step.rank].add(step.image_ids)
    for (number, rank), images in parts.items():
        assert len(images) == 1, f"step {number} of rank {rank} was taken with different images: {images}"
    return Counter(image for (images,) in parts.values() for image in images)
