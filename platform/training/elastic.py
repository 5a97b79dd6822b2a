"""Lets an elastic run write a checkpoint before Ray Train restarts its workers in another number.

Ray has no public hook that runs before the number of workers changes, so this uses private modules of Ray. Only elastic
runs import this file: a version of Ray that has moved these modules still trains with a fixed number of workers.
"""

import time

from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import ResizingState

from posefleet.platform.training.run import Run

GROWTH_SECONDS = 60.0
"""Ray waits at most this long for the checkpoint before it restarts the workers."""


class SaveBeforeResize(ControllerCallback):
    """Asks the workers for a checkpoint before Ray ends them to start another number of them."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def after_controller_state_update(self, previous_state: object, current_state: object) -> None:
        """Called by Ray Train's controller, which ends no worker until this returns."""
        if not isinstance(current_state, ResizingState):
            return
        self._run.request("save")
        end = time.monotonic() + GROWTH_SECONDS
        while self._run.requested("save") and time.monotonic() < end:
            time.sleep(0.1)
        self._run.withdraw("save")  # the next workers need not answer this request
