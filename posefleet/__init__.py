"""posefleet: COCO keypoints to a served multi-person pose estimator, on a Ray cluster.

:func:`train`, :func:`evaluate`, :func:`predict`, :func:`predict_files` and :func:`load` are the commands in Python; see
:mod:`posefleet.api`. The import has no side effects on the importing process, and torch is imported when the first of
them is used.
"""

from pathlib import Path as _Path
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from posefleet.api import TrainedRun, evaluate, load, predict, predict_files, train

__all__ = ["TrainedRun", "evaluate", "load", "predict", "predict_files", "train"]

__version__ = "0.1.0"
"""Version of the package; pyproject.toml reads it from here."""

_folder = _Path(__file__).parent
_lost = [name for name in ("data", "models", "platform", "serve", "jobs") if not (_folder / name).is_dir()]
if _lost:
    raise ImportError(
        f"{_folder / _lost[0]} is not a folder: this copy of posefleet lost its symbolic links, as ZIP downloads and "
        "checkouts on Windows do. Clone the repository with git on Linux or macOS, or install posefleet from its wheel"
    )


def __getattr__(name: str) -> _Any:
    """The functions of :mod:`posefleet.api`."""
    if name in __all__:
        from posefleet import api

        return getattr(api, name)
    raise AttributeError(f"module 'posefleet' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
