"""Times of models: taken in turns, with an interval, and with a warning on a busy machine."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from posefleet.platform.inference import latency
from posefleet.platform.inference.latency import BUSY, Others, Timing, time_in_turns


def test_the_interval_of_a_median_by_hand() -> None:
    timing = Timing.of([0.009, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.007, 0.008], busy=0.0)
    assert (timing.ms, timing.low, timing.high) == pytest.approx((5, 2, 8))  # 1 - 2 * 10 / 512 = 0.961
    assert str(timing) == "5.0 ms (2.0..8.0)" and not timing.warning
    few = Timing.of([0.003, 0.001, 0.002], busy=BUSY)
    assert (few.ms, few.low, few.high) == pytest.approx((2, 1, 3))
    assert few.warning.startswith("other processes used 10% of this machine's cores")


@pytest.mark.parametrize("count", [6, 9, 15, 30])
def test_the_interval_holds_the_median_as_often_as_it_says(count: int) -> None:
    rng = np.random.default_rng(count)
    runs = rng.exponential(1.0, (4000, count))
    skip = latency._left_out(count)
    ordered = np.sort(runs, axis=1)
    held = (ordered[:, skip] <= np.log(2)) & (np.log(2) <= ordered[:, -1 - skip])
    assert held.mean() >= 0.94
    inner = (ordered[:, skip + 1] <= np.log(2)) & (np.log(2) <= ordered[:, -2 - skip])
    assert inner.mean() < 0.96, "a narrower interval would do"


def test_models_take_turns() -> None:
    """So a machine that becomes slower makes all of them slower."""
    calls: list[str] = []
    found = time_in_turns({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=3)
    assert calls == ["a", "b"] * 4 and list(found) == ["a", "b"]  # one round warms up


def test_what_other_processes_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks of the test's own: the machine worked 6 s on 4 cores in 2 s, this process 1 s of it."""
    readings = iter([(0.0, 10.0, 1.0), (2.0, 16.0, 2.0)])
    monkeypatch.setattr(latency, "_used", lambda: next(readings))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    with Others() as others:
        pass
    assert others.share == pytest.approx(5 / 8)


def test_a_busy_process_is_seen_and_the_own_work_is_not() -> None:
    """Real clocks; other tests may run beside it, so only what they cannot change is compared."""
    command = "import time\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
    before = latency._used()
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    subprocess.run([sys.executable, "-c", command], check=True)
    wall, machine, own = (now - then for now, then in zip(latency._used(), before, strict=True))
    assert own >= 0.79, "the work of this process, and of its children that have ended, is its own"
    assert machine >= own - 0.1 and wall > 0
