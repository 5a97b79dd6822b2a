"""Workers that die, or stand still most of the time, while their node lives."""

import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from case import Case, Ending
from processes import send

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200), pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize(
    ("plan", "place"),
    [
        ({"kill": "step", "rank": 1, "step": 10}, "in a step"),
        ({"kill": "evaluation", "rank": 0, "step": 6}, "in an evaluation"),
        ({"kill": "checkpoint", "rank": 0, "step": 8}, "while it writes a checkpoint"),
        ({"kill": "saved", "rank": 0, "step": 6}, "just after a checkpoint"),
    ],
    ids=["step", "evaluation", "checkpoint", "saved"],
)
def test_a_killed_worker_is_replaced(
    plan: dict[str, Any], place: str, case: Case, undisturbed: Ending, tell: Callable[..., None]
) -> None:
    assert case.run(**plan) == 0, case.said
    case.assert_killed()
    case.assert_nothing_lost(undisturbed)
    tell(f"kill -9 of a worker {place}", "nothing", case.repeated(), "nothing", case.recovery())


def test_a_slow_worker_slows_all_and_changes_nothing(
    case: Case, undisturbed: Ending, tell: Callable[..., None]
) -> None:
    command = case.start()
    case.wait_for_step(2)
    slow = psutil.Process(case.worker(1))
    stopper = threading.Thread(target=stop_nine_tenths_of_the_time, args=(slow, command))
    stopper.start()
    assert case.wait(command) == 0, case.said
    stopper.join()
    case.assert_nothing_lost(undisturbed)
    assert case.repeated() == 0
    assert re.search(r"rank 1 on \S+ \(\S+\) is slow", case.said), case.said
    tell("one rank stands still 9/10 of the time (SIGSTOP, SIGCONT); it is named", "nothing", 0, "nothing", None)


def stop_nine_tenths_of_the_time(process: psutil.Process, command: subprocess.Popen) -> None:
    while command.poll() is None and process.is_running():
        send([process], signal.SIGSTOP)
        time.sleep(0.9)
        send([process], signal.SIGCONT)
        time.sleep(0.1)
