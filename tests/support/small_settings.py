"""Settings of a run that takes seconds; shared by fixtures of several scopes."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posefleet.platform.tracking.registry import Release


def small_settings(shards: Path, storage: Path) -> dict[str, Any]:
    """24 images of 64 px, an untrained backbone, one epoch of 6 steps; the run is STORAGE/small."""
    return {
        "method": "smpr",
        "schema": "coco17",
        "model": {
            "backbone": {"name": "test_resnet", "pretrained": False},  # timm's smallest: 0.4 million weights
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


def untrained_checkpoint(
    settings: dict[str, Any], folder: Path, *, seed: int = 0, run_id: str = "", sure: bool = False
) -> str:
    """A checkpoint of a fresh model that finds something in every image, as if its training were at step 6.

    Args:
        sure: Its poses have scores round one half, instead of next to nothing.
    """
    import torch

    from posefleet.platform.checkpoints.format import Meta
    from posefleet.platform.checkpoints.load import build_model
    from posefleet.platform.checkpoints.store import CheckpointStore
    from posefleet.platform.config.loading import build_experiment

    model = {**settings["model"], "decode": {"score_floor": 0.0, "max_poses": 5}}
    experiment = build_experiment({**settings, "model": model})
    torch.manual_seed(seed)
    meta = Meta(experiment=experiment, step=6, position=24, metrics={}, provenance={"run_id": run_id, "data": "d" * 64})
    weights = build_model(experiment).state_dict()
    if sure:
        weights["head.cls.bias"] = torch.zeros(1)
    return CheckpointStore(str(folder / "checkpoints")).save(meta, weights, {"optimizer": {}})


def small_release(settings: dict[str, Any], checkpoint: str, folder: Path) -> "Release":
    """What becomes a version of a registered model; its files lie in the new ``folder``."""
    from posefleet.data.schemas.shipped import COCO17
    from posefleet.platform.checkpoints.format import copy_for_use
    from posefleet.platform.config.loading import build_experiment, to_dict
    from posefleet.platform.tracking.registry import Release
    from posefleet.platform.tracking.runs import DataInput

    copy_for_use(checkpoint, folder / "checkpoint")
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "curve.png").write_bytes(b"a picture")
    return Release(
        folder=folder,
        method="smpr",
        schema=COCO17,
        experiment="posefleet",
        training_run="",
        step=6,
        settings=to_dict(build_experiment(settings)),
        metrics={"AP": 0.5, "AP_keypoint/nose": 0.25, "APL": float("nan")},
        split=DataInput(name="val2017", use="gate", fingerprint="f" * 64, source="/data/val2017"),
        tags={"method": "smpr", "gate": "passed"},
        description="**AP 0.5**",
    )


def with_settings(small_run: dict[str, Any], **sections: dict[str, Any]) -> dict[str, Any]:
    """Settings with some sections changed."""
    settings = copy.deepcopy(small_run)
    for section, values in sections.items():
        settings[section] |= values
    return settings
