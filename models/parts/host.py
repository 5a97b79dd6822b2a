"""A number of the device that the host needs to know."""

from collections.abc import Callable

import torch
from torch import Tensor


def send_to_host(number: Tensor) -> Callable[[], int]:
    """Start to copy a 0-dim tensor; what is returned waits for the copy and gives the number.

    The wait ends once the device has got as far as this call. Ask before the network and read after it has been
    queued, and the device never runs dry.
    """
    if number.device.type == "cpu":
        return lambda: int(number)
    copy = number.to("cpu", non_blocking=True)
    arrived = torch.Event(number.device)
    arrived.record()

    def read() -> int:
        arrived.synchronize()
        return int(copy)

    return read
