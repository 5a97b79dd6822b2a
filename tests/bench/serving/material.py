"""What is served and what is sent: checkpoints with random weights, photographs of a given size in bytes."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from posefleet.data.images import encode_image
from posefleet.data.synthetic.scenes import SceneConfig, render_scene
from posefleet.platform.checkpoints.format import Meta
from posefleet.platform.checkpoints.load import build_model
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.config.loading import build_experiment, read_yaml

CONFIGS = Path(__file__).resolve().parents[3] / "jobs" / "configs"

PIXELS = {0.1: (640, 480), 1.0: (1920, 1440), 5.0: (4032, 3024)}
"""(width, height) of photographs of that many megabytes: a thumbnail, a screenful, a phone's camera."""


def untrained(config: str, folder: Path, short_side: int | None = None) -> str:
    """A checkpoint of ``jobs/configs/CONFIG.yaml`` with random weights, which finds ten poses in every image."""
    settings = read_yaml(CONFIGS / f"{config}.yaml")
    model: dict[str, Any] = settings["model"]
    model["backbone"] |= {"pretrained": False}
    model["backbone"].pop("weights", None)
    model["decode"] = {"score_floor": 0.0, "top_k": 20, "max_poses": 10}  # as few candidates as a trained one has
    settings["train"]["precision"] = "float32"
    settings["schema"] = "coco17"
    if short_side:
        settings["data"]["resize"] = {"short_side": short_side, "long_side": 2 * short_side}
    experiment = build_experiment(settings)
    torch.manual_seed(0)
    meta = Meta(experiment=experiment, step=1, position=1, metrics={}, provenance={"data": "0" * 64})
    weights = build_model(experiment).state_dict()
    return CheckpointStore(str(folder / config)).save(meta, weights, {"optimizer": {}})


def photographs(count: int, megabytes: float = 0.1) -> list[bytes]:
    """JPEGs of rendered people with a camera's noise, as large as asked for to within some percent."""
    return [_photograph(seed, megabytes) for seed in range(count)]


def _photograph(seed: int, megabytes: float) -> bytes:
    scene, _ = render_scene(SceneConfig(width=(640, 640), height=(480, 480), people=(3, 6)), seed)
    sharp = cv2.resize(scene, PIXELS[megabytes], interpolation=cv2.INTER_CUBIC)
    noise = np.random.default_rng(seed).normal(0, 8, sharp.shape)
    noisy = np.clip(sharp + noise, 0, 255).astype(np.uint8)
    low, high = 30, 100
    while high - low > 1:
        quality = (low + high) // 2
        data = encode_image(noisy, ".jpg", (cv2.IMWRITE_JPEG_QUALITY, quality))
        low, high = (quality, high) if len(data) < 1e6 * megabytes else (low, quality)
    return encode_image(noisy, ".jpg", (cv2.IMWRITE_JPEG_QUALITY, low))
