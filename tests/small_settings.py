"""Settings of a run that takes seconds; shared by fixtures of several scopes."""

from pathlib import Path
from typing import Any


def small_settings(shards: Path, storage: Path) -> dict[str, Any]:
    """24 images of 64 px, an untrained backbone, one epoch of 6 steps; the run is STORAGE/small."""
    return {
        "method": "smpr",
        "model": {
            "backbone": {"name": "resnet18", "pretrained": False},
            "neck": "fpn",
            "head": {"channels": 16, "tower_depth": 1, "heatmap_channels": 16},
        },
        "data": {
            "train": str(shards / "train2017"),
            "eval": str(shards / "val2017"),
            "resize": {"short_side": 64, "long_side": 64},
            "augment": {"crop": 64},
            "batch_size": 4,
            "loaders": 0,
            "labelled_only": False,
        },
        "optim": {"name": "adamw", "lr": 1e-3, "schedule": "cosine", "warmup_steps": 2},
        "train": {"epochs": 1, "log_every": 2},
        "evaluate": {"overlays": 2},
        "scaling": {"num_workers": 0},
        "run": {"name": "small", "storage": str(storage)},
    }
