"""What goes wrong inside a training process, at a place that a test chooses; workers import this."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from steps import recorded_steps, steps_taken

Place = Literal["nowhere", "step", "evaluation", "checkpoint", "saved", "opening"]
"""Where a process is killed: before it takes a step; between two batches of an evaluation; when half of the training's
state is written; when a checkpoint has just become one; when MLflow has opened the run and its folder does not know."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a training process does besides training."""

    log: str
    """Folder for the steps taken, see ``steps``, and the file ``fault`` that says the fault has happened."""
    kill: Place = "nowhere"
    """Where the process ends by SIGKILL, once."""
    rank: int = 0
    """Of the process that does."""
    step: int = 0
    """Steps that it must have taken before."""
    pace: float = 0.0
    """Seconds that every step takes longer, so that a test can act between steps."""
    slow_disk: float = 0.0
    """Seconds that every file takes longer to reach the disk."""


def train_worker(plan: Plan) -> Callable[..., Any]:
    """What Ray's workers run instead of ``train._ray_worker``: the same, with the plan."""

    def planned(*settings: Any) -> Any:
        import ray.train

        from posefleet.platform.training import ray_trainer as train

        with carried_out(plan, ray.train.get_context().get_world_rank()):
            return train._ray_worker(*settings)

    return planned


@contextmanager
def carried_out(plan: Plan, rank: int = 0) -> Iterator[None]:
    """Within, this process records its steps and meets what is planned for it."""
    with recorded_steps(Path(plan.log), rank), contextlib.ExitStack() as stack:
        _Process(plan, rank).change(stack)
        yield


class _Process:
    """The places of one process at which something may happen."""

    def __init__(self, plan: Plan, rank: int) -> None:
        self._plan, self._rank = plan, rank
        self._steps = 0
        self._batches = 0

    def change(self, stack: contextlib.ExitStack) -> None:
        """Put this between the platform and what it calls, until ``stack`` is left."""
        from posefleet.platform.inference.predictor import Predictor
        from posefleet.platform.training import loop, run

        take, predict, remember, sync, rename = loop.train_step, Predictor.predict, run._remember, os.fsync, os.rename

        def train_step(network: Any, batches: Any, optimizer: Any, *args: Any, **options: Any) -> Any:
            self._steps = steps_taken(optimizer)
            self._reach("step")
            time.sleep(self._plan.pace)
            result = take(network, batches, optimizer, *args, **options)
            self._steps += 1
            self._batches = 0
            return result

        def predict_batch(predictor: Any, batches: Any) -> Any:
            if self._batches:
                self._reach("evaluation")
            self._batches += 1
            return predict(predictor, batches)

        def fsync(descriptor: int) -> None:
            time.sleep(self._plan.slow_disk)
            if os.readlink(f"/proc/self/fd/{descriptor}").endswith("state.pt"):
                self._reach("checkpoint", lambda: os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2))
            sync(descriptor)

        def put(source: Any, target: Any, **options: Any) -> None:
            rename(source, target, **options)
            if Path(target).name.startswith("step-"):
                self._reach("saved")

        def note(*args: Any) -> None:
            self._reach("opening")
            remember(*args)

        for owner, name, replacement in (
            (loop, "train_step", train_step),
            (Predictor, "predict", predict_batch),
            (os, "fsync", fsync),
            (os, "rename", put),
            (run, "_remember", note),
        ):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, replacement)

    def _reach(self, place: Place, before: Callable[[], object] = int) -> None:
        plan = self._plan
        if (place, self._rank) != (plan.kill, plan.rank) or self._steps < plan.step:
            return
        with contextlib.suppress(FileExistsError), Path(plan.log, "fault").open("x"):
            before()
            os.kill(os.getpid(), signal.SIGKILL)
