"""Identifies processes beyond their id, which the system uses again: by the machine and the time of their start."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process of any machine."""

    machine: str
    """The machine since its last boot, and its space of process ids, as a container has its own."""
    pid: int
    started: str
    """When the process started, in units of its machine; no clock that can be set has a part in it on Linux."""

    @classmethod
    def current(cls) -> Self:
        """This process."""
        return cls(machine(), os.getpid(), start_time(os.getpid()))

    def is_gone(self) -> bool:
        """Whether the process has certainly ended; False for one of another machine, which cannot be seen from here."""
        return self.machine == machine() and start_time(self.pid) != self.started


def machine() -> str:
    """Name of this machine since its last boot and of the space of process ids that this process sees."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return f"{platform.node()} {psutil.boot_time():.0f}"


def start_time(pid: int) -> str:
    """When the process ``pid`` of this machine started; empty if there is none, or it has ended and is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return _start_time_elsewhere(pid)
    except OSError:
        return ""
    state, *fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
    return "" if state in "ZX" else fields[18]  # ticks since boot


def _start_time_elsewhere(pid: int) -> str:
    """:func:`start_time` on a system without /proc."""
    if Path("/proc/self").exists():
        return ""
    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else repr(process.create_time())
    except psutil.Error:
        return ""
