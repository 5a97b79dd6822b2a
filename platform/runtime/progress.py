"""The progress display of rank 0: a live bar on a terminal, a plain line from time to time elsewhere."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

PLAIN_SECONDS = 30.0
"""Seconds between two plain lines where the stream is not a terminal."""


class ProgressLine:
    """Shows how many samples of a total are done, and a line of text; prints nothing unless ``active`` (rank 0)."""

    def __init__(self, total: int, *, done: int = 0, active: bool = True, stream: TextIO | None = None) -> None:
        self._total = total
        self._done = done
        self._start = done, time.monotonic()
        self._stream = stream or sys.stderr
        self._active = active
        self._next_plain = 0.0
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if active and self._stream.isatty():
            self._bar = Progress(
                BarColumn(20),
                TextColumn("{task.percentage:3.0f}%"),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
                console=Console(file=self._stream),
            )
            self._task = self._bar.add_task("", total=total, completed=done)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, done: int, text: str) -> None:
        """Show that ``done`` samples of the total are processed, with ``text``, such as the current losses."""
        self._done = done
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=done, description=text)
        elif self._active and time.monotonic() >= self._next_plain:
            self._next_plain = time.monotonic() + PLAIN_SECONDS
            self._write(f"{100 * done // max(1, self._total):3d}%  {text}  ETA {self._remaining()}")

    def say(self, text: str) -> None:
        """Print a line that stays, such as the result of an evaluation."""
        if self._bar:
            self._bar.console.print(text, highlight=False)
        elif self._active:
            self._write(text)

    def _write(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def _remaining(self) -> str:
        first, since = self._start
        if self._done <= first:
            return "-"
        seconds = int((time.monotonic() - since) * (self._total - self._done) / (self._done - first))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def losses_text(losses: Mapping[str, float]) -> str:
    """The losses as short text: ``cls 0.120  init 0.300``."""
    return "  ".join(f"{name.removeprefix('loss/')} {value:.3f}" for name, value in losses.items())
