"""What one training process is doing and for how long: a few clock readings a step, and nothing that waits.

The loop says what it enters; collective operations say so themselves. From this come the phases that ``watchdog``
tells, the time that a rank spends on its own work (:class:`StepTimer`, compared in ``ranks``), and the ranges of a
profile (``profiling``).
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any

import torch
from torch import nn


class Phase(StrEnum):
    """What a training process is at."""

    START = "starting"
    DATA = "waiting for data"
    COMPUTE = "forward and backward"
    OTHERS = "all-reduce, waiting for other ranks"
    LOOK = "reading losses from the device"
    EVALUATION = "evaluation"
    CHECKPOINT = "checkpoint"


class StepTimer:
    """Seconds of a rank's own work in each step: without the time in which it waits for other ranks.

    On a GPU the marks are events in its stream, read when they have passed: nobody waits for them.
    In the second step of a start DDP synchronises ranks inside its forward; that one wait counts as own work.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_device = device.type == "cuda"
        self._running = False
        self._opened: Any = None
        self._spans: list[tuple[Any, Any]] = []
        self._steps: list[tuple[list[tuple[Any, Any]], float, int]] = []

    def start(self) -> None:
        """A step begins."""
        self._running, self._spans = True, []
        self.resume()

    def pause(self) -> None:
        """From here on others are waited for."""
        if self._opened is not None:
            self._spans.append((self._opened, self._mark()))
            self._opened = None

    def resume(self) -> None:
        """Own work again."""
        if self._running and self._opened is None:
            self._opened = self._mark()

    def stop(self, waited: float, parts: int) -> None:
        """The step is over: ``parts`` micro-batches, for whose data it waited so many seconds."""
        self.pause()
        self._running = False
        self._steps.append((self._spans, waited, parts))

    def take(self) -> tuple[float, float]:
        """Mean seconds of own work for a micro-batch since the last call, and those of them that data was waited for.

        (0, 0) where no step has ended on the device yet.
        """
        ended = next((i for i, step in enumerate(self._steps) if not self._passed(step[0][-1][1])), len(self._steps))
        steps, self._steps = self._steps[:ended], self._steps[ended:]
        parts = sum(step[2] for step in steps)
        if not parts:
            return 0.0, 0.0
        own = sum(self._between(*span) for step in steps for span in step[0])
        return own / parts, sum(step[1] for step in steps) / parts

    def _mark(self) -> Any:
        if not self._on_device:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _passed(self, mark: Any) -> bool:
        return not self._on_device or bool(mark.query())

    def _between(self, first: Any, second: Any) -> float:
        return float(first.elapsed_time(second) / 1e3 if self._on_device else second - first)


class Activity:
    """Of one process; the watchdog reads it from another thread."""

    def __init__(self) -> None:
        self.phase = Phase.START
        self.since = self.last = time.monotonic()
        """When the phase began, and when something was last completed."""
        self.beats = 0
        """Steps, evaluated batches and checkpoints that were completed."""
        self.step = 0
        self.stopwatch: StepTimer | None = None
        self.after_step: Callable[[], None] | None = None
        self.mark_range: Callable[[str], None] | None = None
        """Called with the phase that begins, while a profile is taken."""
        self._waited = 0.0

    def enter(self, phase: Phase) -> None:
        """Something else begins."""
        now = time.monotonic()
        if self.phase is Phase.DATA:
            self._waited += now - self.since
        if phase is Phase.DATA and self.stopwatch:
            self.stopwatch.start()
        self.phase, self.since = phase, now
        if self.mark_range:
            self.mark_range(phase.value)

    def beat(self) -> None:
        """Something was completed, so nothing hangs."""
        self.beats += 1
        self.last = time.monotonic()

    def step_ended(self, step: int, parts: int) -> None:
        """That step, of ``parts`` micro-batches on this rank."""
        self.step = step
        self.beat()
        if self.stopwatch:
            self.stopwatch.stop(self._waited, parts)
        self._waited = 0.0
        if self.after_step:
            self.after_step()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Within, other ranks are waited for."""
        before = self.phase
        if before is Phase.OTHERS:
            yield
            return
        self._others()
        try:
            yield
        finally:
            self._own(before)

    @contextlib.contextmanager
    def attached(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Within, the end of the own backward pass is seen: what follows is the wait for the other ranks' gradients."""

        def begin(module: nn.Module, arguments: Any) -> None:
            self._own(Phase.COMPUTE)

        def ahead_of_the_reduction(module: nn.Module, arguments: Any, losses: dict[str, torch.Tensor]) -> None:
            first = next((loss for loss in losses.values() if loss.requires_grad), None)
            if first is not None:
                # Called back in the order of the queue, and DDP queues its wait later, when the gradients are there.
                first.register_hook(lambda _: torch.autograd.Variable._execution_engine.queue_callback(self._others))

        def step(*_: Any) -> None:
            self._own(Phase.COMPUTE)

        hooks = (
            network.register_forward_pre_hook(begin),
            network.register_forward_hook(ahead_of_the_reduction),
            optimizer.register_step_pre_hook(step),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _others(self) -> None:
        if self.stopwatch:
            self.stopwatch.pause()
        self.enter(Phase.OTHERS)

    def _own(self, phase: Phase) -> None:
        if self.phase is Phase.OTHERS:
            if self.stopwatch:
                self.stopwatch.resume()
            self.phase, self.since = phase, time.monotonic()
            if self.mark_range:
                self.mark_range(phase.value)
