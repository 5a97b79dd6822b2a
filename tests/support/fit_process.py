"""What the processes of the training tests run; importable, because spawned processes import it."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from processes import free_port, in_ranks

from posefleet.platform.checkpoints.load import load_model
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.config.loading import build_experiment
from posefleet.platform.inference import evaluate
from posefleet.platform.runtime import logs
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.training import loop


class StoppingWorker(LocalWorker):
    """``should_stop`` returns True from its ``looks``-th call on; 0: never."""

    def __init__(self, looks: int, folder: str = "") -> None:
        super().__init__(device="cpu", folder=folder)
        self._looks = looks or 1_000_000

    def stop_requested(self) -> bool:
        self._looks -= 1
        return self._looks <= 0


@contextmanager
def recorded_ids(path: Path) -> Iterator[None]:
    """Every image id that takes part in a training step goes to ``path``, one a line."""
    step = loop.train_step
    with path.open("a", buffering=1) as file:

        def recording(network: Any, batches: Any, *args: Any, **kwargs: Any) -> Any:
            file.writelines(f"{i}\n" for batch in batches for i in batch.image_ids.tolist())
            return step(network, batches, *args, **kwargs)

        loop.train_step = recording
        try:
            yield
        finally:
            loop.train_step = step


@contextmanager
def in_trouble(trouble: str) -> Iterator[None]:
    """Steps take four times as long (``slow``), or the third never ends (``hang``), ``in data`` or ``in compute``."""
    kind, _, place = trouble.partition(" in ")
    step, open_batches, calls, usual = loop.train_step, loop.training_batches, 0, 0.3

    def wait() -> None:
        nonlocal calls
        calls += 1
        if kind == "slow":
            time.sleep(3 * usual)
        elif calls == 3:
            time.sleep(1000)

    def slow_step(*args: Any, **kwargs: Any) -> Any:
        nonlocal usual
        if place == "compute":
            wait()
        start = time.monotonic()
        result = step(*args, **kwargs)
        usual = max(0.1, time.monotonic() - start)
        return result

    @contextmanager
    def slow_batches(*args: Any, **kwargs: Any) -> Iterator[Any]:
        with open_batches(*args, **kwargs) as batches:
            yield (wait() or batch for batch in batches)  # type: ignore[func-returns-value]

    if place:
        loop.train_step = slow_step
    if place == "data":
        loop.training_batches = slow_batches  # type: ignore[assignment]
    try:
        yield
    finally:
        loop.train_step, loop.training_batches = step, open_batches


@contextmanager
def gloo(rank: int, world_size: int, port: int) -> Iterator[None]:
    """This process as one of a group."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def evaluate_rank(rank: int, world_size: int, port: int, settings: str, checkpoint: str, file: str) -> None:
    """One of the processes that evaluate a checkpoint; the first leaves the numbers in ``file``."""
    with gloo(rank, world_size, port):
        model, _ = load_model(checkpoint)
        result = evaluate.evaluate(model, build_experiment(json.loads(settings)), LocalWorker(device="cpu"))
        assert (result is None) == (rank > 0)
        if result:
            Path(file).write_text(json.dumps({"numbers": result.as_dict(), "notes": result.notes}))


def fit_rank(rank: int, world_size: int, port: int, settings: str, folder: str, looks: int, trouble: str = "") -> None:
    """One of ``world_size`` gloo processes that train on ``settings`` (json) with checkpoints under ``folder``.

    The last one is in ``trouble``, if there is any.
    """
    with (
        contextlib.suppress(loop.Stopped),
        gloo(rank, world_size, port),
        recorded_ids(Path(folder, f"ids-{world_size}-{rank}")),
        logs.log_to_folder(folder, f"rank{rank}"),
        in_trouble(trouble if rank == world_size - 1 else ""),
    ):
        experiment, store = build_experiment(json.loads(settings)), CheckpointStore(f"{folder}/checkpoints")
        loop.fit(experiment, StoppingWorker(looks, folder), store)


def in_processes(world_size: int, settings: dict[str, Any], folder: Path, *, looks: int = 0, trouble: str = "") -> None:
    """Run ``fit_rank`` in ``world_size`` gloo processes."""
    folder.mkdir(exist_ok=True)
    arguments = (world_size, free_port(), json.dumps(settings), str(folder), looks, trouble)
    in_ranks(fit_rank, arguments, world_size)
