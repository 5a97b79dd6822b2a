"""Finds ports to listen on."""

import contextlib
import socket


def free_ports(count: int) -> list[int]:
    """``count`` different ports on which nobody listens now, on any address of this machine."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("", 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in listeners]
