"""Writes the files that later versions must still read: shards, runs, an MLflow store, a search and results.

python tests/written_before/make.py

What the archive holds was written by commit 45a00df, before the files of the project were ordered anew. Do not write
it anew with later code: that would test nothing. Where a format gains something, put another archive beside it.

Networks are as small as their settings allow. The pretrained backbones, which no setting makes small, are frozen, and
their weights repeat a short pattern, so that 13 MB of them compress to nothing.
"""

import json
import lzma
import os
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from written import ARCHIVE, METHODS, REFERENCE, ROOT, SPACE, STATE_DICTS, one_step_more

from posefleet.data.coco.source import find_source
from posefleet.data.loading.shard_dataset import ShardDataset
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.shards.build import shard_coco
from posefleet.data.structures import Sample
from posefleet.data.synthetic.dataset import write_dataset
from posefleet.data.synthetic.scenes import SceneConfig
from posefleet.jobs import evaluate, promote, tune
from posefleet.platform.checkpoints.format import Meta, read_meta
from posefleet.platform.checkpoints.load import build_model
from posefleet.platform.checkpoints.resolve import find_checkpoint
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.config.loading import build_experiment, read_yaml, to_dict
from posefleet.platform.inference.predictor import Predictor
from posefleet.platform.tracking.runs import read_metrics
from posefleet.platform.training.launch import train
from posefleet.platform.training.loop import training_set
from posefleet.platform.training.run import read_run

CONFIGS = Path(__file__).resolve().parents[2] / "jobs" / "configs"
BACKBONE = {"name": "tf_efficientnet_lite0", "pretrained": False, "frozen_stages": 4}
POSE_HEAD = {"channels": 8, "tower_depth": 1, "heatmap_channels": 8, "offset_groups": 2}

MODELS: dict[str, dict[str, Any]] = {
    "smpr": {"backbone": BACKBONE, "neck": "fpn", "head": POSE_HEAD, "decode": {"score_floor": 0.0, "max_poses": 10}},
    "pfs": {
        "backbone": BACKBONE,
        "head": {**POSE_HEAD, "centerness": True},
        "decode": {"score_floor": 0.0, "max_poses": 10},
    },
    "inspose": {
        "backbone": BACKBONE,
        "head": {
            "channels": 8,
            "tower_depth": 1,
            "feature_channels": 8,
            "feature_depth": 1,
            "map_channels": 8,
            "controller_std": 0.1,
        },
        "decode": {"score_floor": 0.0, "top_k": 50, "max_poses": 10},
    },
    "logocap": {
        "backbone": BACKBONE,
        "head": {"heat_channels": 8, "offset_channels": 16, "embedding_channels": 8, "norm": "group"},
        "adapt": {"kem_size": 5, "message_channels": [16, 16, 8], "mixture": 4, "window": 13, "instances": 4},
        "target": {"heat_sigma": 1.0, "centre_sigma": 1.0, "offset_radius": 2, "refined_sigma": 1.0, "min_area": 16},
        "decode": {"centres": 16, "min_centre": 0.0},
    },
    "detposenet": {
        "coarse": {"width": 16, "depth": 2, "norm": "group"},
        "detector": {"width": 16, "hidden": 16, "proposals": 8, "per_level": 16},
        "filter": {"mode": "nms"},
        "prs": {"width": 16, "depth": 2, "size": 32, "stacks": 1, "norm": "group", "crops_per_image": 2},
        "output": {"keypoint_floor": 0.0},
    },
}
AVERAGED = ("inspose", "smpr")
"""Methods whose runs average their weights."""


def settings(method: str) -> dict[str, Any]:
    """Two steps of two images each, of the three steps of an epoch."""
    return {
        "method": method,
        "model": MODELS[method],
        "data": {
            "train": f"{ROOT}/shards/train2017",
            "eval": f"{ROOT}/shards/val2017",
            "resize": {"short_side": 64, "long_side": 64},
            "augment": {"crop": 64},
            "batch_size": 2,
            "loaders": 0,
            "labelled_only": False,
        },
        "optim": {"name": "adamw", "lr": 1e-3, "warmup_steps": 2},
        "train": {"epochs": 2 / 3, "log_every": 1, "ema_decay": 0.9 if method in AVERAGED else 0.0},
        "evaluate": {"overlays": 0},
        "scaling": {"num_workers": 0},
        "run": {"name": method, "storage": f"{ROOT}/runs", "init_from": f"{ROOT}/start/{method}"},
    }


def write_shards() -> None:
    """Rendered people: six images to train on, three to evaluate on, two shards of each."""
    config = SceneConfig(width=(64, 96), height=(64, 96), people=(1, 3), jpeg_quality=80)
    for split, count, seed in (("train2017", 6, 1), ("val2017", 3, 2)):
        write_dataset(Path(ROOT, "coco"), split, count, config, seed=seed, workers=1)
        shard_coco(find_source(f"{ROOT}/coco", split), f"{ROOT}/shards/{split}", COCO17, shard_mib=0.01, parallel=False)


def write_start(method: str) -> None:
    """The checkpoint that a run starts from: a fresh model whose frozen weights compress."""
    experiment = build_experiment(settings(method))
    torch.manual_seed(0)
    model = build_model(experiment)
    tile = torch.randn(1021)  # a prime, so that the pattern falls differently on every filter
    for name, weight in model.named_parameters():
        if method == "logocap" and name == "offset.2.weight":
            weight.data.mul_(5)  # else all keypoints of a pose lie on one spot
        if not weight.requires_grad:
            repeats = -(-weight.numel() // len(tile))
            values = tile.repeat(repeats)[: weight.numel()].view_as(weight)
            weight.data.copy_(values * (2 / weight[0].numel()) ** 0.5)
    meta = Meta(experiment=experiment, step=0, position=0, metrics={}, provenance={})
    CheckpointStore(f"{ROOT}/start/{method}/checkpoints").save(meta, model.state_dict(), {"optimizer": {}})


def write_search() -> None:
    """Two trials of decoding on the checkpoint of SMPR."""
    space = Path(ROOT, "space.yaml")
    space.write_text(yaml.safe_dump(SPACE))
    checkpoint = ["--decode-only", "--checkpoint", f"{ROOT}/runs/smpr"]
    status = tune.main([*checkpoint, "--space", str(space), "--samples", "2", "--out", f"{ROOT}/runs/search"])
    assert status == 0, f"the search ended with {status}"


def write_results() -> None:
    """Predictions of SMPR on the split in COCO's format."""
    sys.argv = ["evaluate.py", "--checkpoint", f"{ROOT}/runs/smpr", "--out", f"{ROOT}/results/smpr.json"]
    assert evaluate.main() == 0


def first_image() -> np.ndarray:
    """(H, W, 3) uint8: the first image of the evaluation split."""
    (sample,) = stored("val2017").samples([0])
    image: np.ndarray = sample.image
    return image


def stored(split: str) -> ShardDataset:
    """The images of a split in their stored order, as they are."""

    def same(sample: Sample, _: np.random.Generator) -> Sample:
        return sample

    return ShardDataset(f"{ROOT}/shards/{split}", COCO17, same, seed=None)


def reference() -> dict[str, np.ndarray]:
    """The numbers that must come out again; changes the runs, each of which goes on for one step."""
    image = first_image()
    numbers: dict[str, np.ndarray] = {"image": image}
    for split in ("train2017", "val2017"):
        numbers[f"{split}/ids"] = np.array([record["image_id"] for record in stored(split).records()])
    (record, *_) = stored("val2017").records()
    numbers["first/record"] = np.array(json.dumps(record, sort_keys=True))
    for method in METHODS:
        (poses,) = Predictor.from_checkpoint(f"{ROOT}/runs/{method}", device="cpu").predict_images([image])
        inside = ((poses.keypoints > 0) & (poses.keypoints < torch.tensor(image.shape[1::-1]))).all(-1).float().mean()
        sys.stdout.write(f"{method}: {len(poses)} poses, {inside:.0%} of keypoints not clipped to the image\n")
        assert len(poses) >= 3 and inside > 0.3 and poses.scores[0] > 0, method
        numbers[f"{method}/keypoints"] = poses.keypoints.numpy()
        numbers[f"{method}/keypoint_scores"] = poses.keypoint_scores.numpy()
        numbers[f"{method}/scores"] = poses.scores.numpy()
        experiment = read_meta(find_checkpoint(f"{ROOT}/runs/{method}")).experiment
        assert train(one_step_more(experiment)) == 0
        run = read_run(f"{ROOT}/runs/{method}")
        assert run is not None
        for metric in ("loss", "lr"):
            points = read_metrics(run.tracking_uri, run.run_id, [metric])[metric]
            assert [step for step, _ in points] == [1, 2, 3]
            numbers[f"{method}/{metric}"] = np.array([value for _, value in points])
    order = training_set(experiment)
    batch = order.batch(list(range(6)))
    numbers["train2017/order"] = batch.image_ids.numpy()
    return numbers


def state_dicts() -> dict[str, Any]:
    """Of every shipped configuration: all its settings, and the names and shapes of its weights."""
    found = {}
    for path in sorted(CONFIGS.glob("*.yaml")):
        experiment = build_experiment(read_yaml(path))
        weights = build_model(experiment, pretrained=False).state_dict()
        shapes = {name: list(value.shape) for name, value in weights.items()}
        found[path.stem] = {"experiment": to_dict(experiment), "weights": shapes}
    return found


def write_archive() -> None:
    """All files that code reads again; equal ones come one after the other, where xz finds them."""
    parts = [path for name in ("shards", "runs", "results") for path in Path(ROOT, name).rglob("*") if path.is_file()]
    parts = [path for path in parts if path.suffix not in (".png", ".jpg", ".lock")]
    with tarfile.open(ARCHIVE, "w:xz", preset=9) as archive:
        for path in sorted(parts, key=lambda path: (path.name, path.stat().st_size, path)):
            archive.add(path, path.relative_to(ROOT))


def main() -> int:
    """Exit status 0; asserts on the way."""
    if Path(ROOT).exists():
        raise SystemExit(f"{ROOT} exists; remove it first")
    Path(ROOT).mkdir()
    os.chdir(ROOT)  # MLflow notes the current folder as the place of an experiment that nobody uses
    torch.set_num_threads(1)
    write_shards()
    for method in METHODS:
        write_start(method)
        assert train(build_experiment(settings(method))) == 0
    quick = ("--gate.latency_people", "1", "--gate.served_images", "1", "--gate.tolerance", "1")
    assert promote.main(["--run", f"{ROOT}/runs/smpr", "--to", "champion", *quick]) == 0
    write_search()
    write_results()
    write_archive()
    np.savez_compressed(REFERENCE, **reference())
    STATE_DICTS.write_bytes(lzma.compress(json.dumps(state_dicts()).encode(), preset=9))
    os.chdir("/")
    shutil.rmtree(ROOT)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
