"""Records what a training process is doing and since when. A step costs a few clock readings and never waits.

The training loop reports each phase that it enters; collective operations report their own waits. Three modules of
``monitoring`` use the records: ``watchdog`` reports the phase of a stalled process, ``stragglers`` compares the time
that each rank spends on its own work (:class:`StepTimer`), and ``profiler`` names the ranges of a trace.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any

import torch
from torch import nn


class Phase(StrEnum):
    """What a training process is doing."""

    START = "starting"
    DATA = "waiting for data"
    COMPUTE = "forward and backward"
    OTHERS = "all-reduce, waiting for other ranks"
    READ_LOSSES = "reading losses from the device"
    EVALUATION = "evaluation"
    CHECKPOINT = "checkpoint"


class StepTimer:
    """Measures the seconds of a rank's own work in each step, without the time that it waits for other ranks.

    On a GPU, events in its stream mark the times. They are read after they have completed, so the host never waits.
    In the second step after a start, DDP synchronises the ranks inside its forward; that wait counts as own work.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_device = device.type == "cuda"
        self._running = False
        self._opened: Any = None
        self._spans: list[tuple[Any, Any]] = []
        self._steps: list[tuple[list[tuple[Any, Any]], float, int]] = []

    def start(self) -> None:
        """Start a step, which starts with own work."""
        self._running, self._spans = True, []
        self.resume()

    def pause(self) -> None:
        """Stop counting own work: the rank starts to wait for other ranks."""
        if self._opened is not None:
            self._spans.append((self._opened, self._mark()))
            self._opened = None

    def resume(self) -> None:
        """Count own work again after a wait; no effect between steps."""
        if self._running and self._opened is None:
            self._opened = self._mark()

    def stop(self, waited: float, parts: int) -> None:
        """End the step.

        Args:
            waited: Seconds that the step waited for data.
            parts: Micro-batches of the step.
        """
        self.pause()
        self._running = False
        self._steps.append((self._spans, waited, parts))

    def take(self) -> tuple[float, float]:
        """Mean seconds of own work per micro-batch since the last call, and how many of them were a wait for data.

        (0, 0) if no step has ended on the device since then.
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
    """The phase and the progress of one process; the watchdog reads it from another thread."""

    def __init__(self) -> None:
        self.phase = Phase.START
        self.since = self.last = time.monotonic()
        """When the phase began, and when a step, batch or checkpoint was last completed; monotonic seconds."""
        self.beats = 0
        """Number of completed steps, evaluated batches and checkpoints."""
        self.step = 0
        self.stopwatch: StepTimer | None = None
        self.after_step: Callable[[], None] | None = None
        self.mark_range: Callable[[str], None] | None = None
        """Called with the name of each phase that begins; set while a profile is recorded."""
        self._waited = 0.0

    def enter(self, phase: Phase) -> None:
        """Record that ``phase`` begins now."""
        now = time.monotonic()
        if self.phase is Phase.DATA:
            self._waited += now - self.since
        if phase is Phase.DATA and self.stopwatch:
            self.stopwatch.start()
        self.phase, self.since = phase, now
        if self.mark_range:
            self.mark_range(phase.value)

    def beat(self) -> None:
        """Record that a step, evaluated batch or checkpoint was completed, so the process does not hang."""
        self.beats += 1
        self.last = time.monotonic()

    def step_ended(self, step: int, parts: int) -> None:
        """Record the end of optimiser step ``step``, which had ``parts`` micro-batches on this rank."""
        self.step = step
        self.beat()
        if self.stopwatch:
            self.stopwatch.stop(self._waited, parts)
        self._waited = 0.0
        if self.after_step:
            self.after_step()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Context in which this rank waits for other ranks."""
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
        """Context in which the time after this rank's own backward pass counts as a wait for other ranks' gradients.

        Args:
            network: The model as the loop calls it, wrapped in DDP where there are several ranks.
            optimizer: Its step ends the wait.
        """

        def before_forward(module: nn.Module, arguments: Any) -> None:
            self._own(Phase.COMPUTE)

        def after_forward(module: nn.Module, arguments: Any, losses: dict[str, torch.Tensor]) -> None:
            first = next((loss for loss in losses.values() if loss.requires_grad), None)
            if first is not None:
                # Callbacks run in the order they were queued; DDP queues its wait later, when gradients are ready.
                first.register_hook(lambda _: torch.autograd.Variable._execution_engine.queue_callback(self._others))

        def before_step(*_: Any) -> None:
            self._own(Phase.COMPUTE)

        hooks = (
            network.register_forward_pre_hook(before_forward),
            network.register_forward_hook(after_forward),
            optimizer.register_step_pre_hook(before_step),
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
