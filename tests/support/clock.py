"""An event loop with a virtual clock: sleeps take no time, and a busy machine does not make them longer."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class _Jumping(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """Where it would wait for a moment, that moment is now."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:  # only another thread can go on
            return super().select(None)
        found = super().select(0)
        if not found:
            self.now += max(timeout, 0.0)
        return found


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run_at_once(work: Coroutine[Any, Any, Result]) -> Result:
    """Like ``asyncio.run``, but time passes only while everything sleeps. Nothing in it may use threads."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(work)


def now() -> float:
    """Seconds of the running loop's clock."""
    return asyncio.get_running_loop().time()
