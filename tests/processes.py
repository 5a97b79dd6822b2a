"""Processes that tests end."""

import signal

import psutil


def kill_a_child(title: str) -> bool:
    """SIGKILL for one process below this one whose title holds ``title``; whether there was one."""
    for process in psutil.Process().children(recursive=True):
        try:
            if title in " ".join(process.cmdline()):
                process.send_signal(signal.SIGKILL)
                return True
        except psutil.NoSuchProcess:
            continue
    return False
