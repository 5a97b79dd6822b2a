"""posefleet: COCO keypoints to a served multi-person pose estimator, on a Ray cluster.

The import has no side effects on the importing process.
"""

from pathlib import Path as _Path

__version__ = "0.1.0"
"""Version of the package; pyproject.toml reads it from here."""

_folder = _Path(__file__).parent
_lost = [name for name in ("data", "models", "platform", "serve", "jobs") if not (_folder / name).is_dir()]
if _lost:
    raise ImportError(
        f"{_folder / _lost[0]} is not a folder: this copy of posefleet lost its symbolic links, as ZIP downloads and "
        "checkouts on Windows do. Clone the repository with git on Linux or macOS, or install posefleet from its wheel"
    )
