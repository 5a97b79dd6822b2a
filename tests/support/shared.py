"""What is costly to start, and what consecutive files of tests therefore share: a Ray, a server.

A process of pytest runs the files of a group one after the other (``tests/conftest.py``). What they share is started by
the first test that uses it and ended before the first test of another file.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TypeVar

GROUPS = {
    "local_ray": (
        "data/shards/test_build.py",
        "integration/test_own_data_page.py",
        "integration/test_parts_page.py",
        "integration/test_unsharded_search.py",
        "platform/prediction/test_batch.py",
        "platform/training/test_launch.py",
        "platform/tuning/test_ray_tuner.py",
    ),
    "server": ("serve/test_app.py", "serve/test_rollout.py"),
}
"""What is shared -> the files below ``tests/`` that share it."""

T = TypeVar("T")

_running: dict[str, tuple[object, object, ExitStack]] = {}
"""What runs -> its variant, what the tests get of it, and how it ends."""

_file_of_tests: list[Path | None] = [None]
"""The file whose tests run now."""


def group_of(file: Path) -> str | None:
    """What a file of tests shares with others, if anything."""
    found = (group for group, files in GROUPS.items() if file.as_posix().endswith(tuple(f"tests/{f}" for f in files)))
    return next(found, None)


def use(group: str, start: Callable[[], AbstractContextManager[T]], variant: object = None) -> T:
    """What the files of ``group`` share, started if it does not run in this variant."""
    if group in _running and _running[group][0] != variant:
        end_others(None)
    if group not in _running:
        stack = ExitStack()
        _running[group] = (variant, stack.enter_context(start()), stack)
    return _running[group][1]  # type: ignore[return-value]


def end_others(group: str | None) -> None:
    """End what the files of other groups share."""
    for other in [name for name in _running if name != group]:
        _running.pop(other)[2].close()


def refuse_a_forgotten_ray(file: Path) -> None:
    """Fail where an earlier file left this process connected to a Ray: tests after it would depend on their order."""
    before, _file_of_tests[0] = _file_of_tests[0], file
    ray = sys.modules.get("ray")
    if file != before and not _running and ray is not None and ray.is_initialized():
        ray.shutdown()
        raise RuntimeError(f"{before} or a file before it left Ray running in this process")
