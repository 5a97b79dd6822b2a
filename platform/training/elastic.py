"""What an elastic run needs of Ray Train's private modules: a checkpoint before Ray ends workers to start more.

Ray has no public way to hear of a change in the number of workers before it happens. Only elastic runs import this
file, so that another version of Ray, which may have moved these modules, still trains with a fixed number of workers.
"""

import time

from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import ResizingState

from posefleet.platform.training.run import Run

GROWTH_SECONDS = 60.0
"""Ray waits at most this long for the checkpoint before it starts more workers."""


class SaveBeforeResize(ControllerCallback):
    """Lets the workers write a checkpoint before Ray ends them to start another number of them."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def after_controller_state_update(self, previous_state: object, current_state: object) -> None:
        """Called by Ray Train's controller, which ends no worker until this returns."""
        if not isinstance(current_state, ResizingState):
            return
        self._run.request_checkpoint()
        end = time.monotonic() + GROWTH_SECONDS
        while self._run.checkpoint_requested() and time.monotonic() < end:
            time.sleep(0.1)
        self._run.checkpoint_written()  # the next workers need not answer this request
