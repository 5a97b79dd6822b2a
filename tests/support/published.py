"""The facts in ``tests/published``: weights that a recipe draws under the authors' names, and what their code computed.

Also files in the authors' formats, which tests of the import read instead of the authors' own.
"""

import json
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from posefleet.data.structures import People

FOLDER = Path(__file__).resolve().parents[1] / "published"
SEED = 7
"""Of the weights of SMPR and InsPose."""


@cache
def golden(method: str) -> dict[str, np.ndarray]:
    """Inputs and outputs of the released code of a method, by the names in its file."""
    with np.load(FOLDER / f"golden_{method}.npz", allow_pickle=False) as file:
        return dict(file)


def array(method: str, name: str) -> Tensor:
    """One array of :func:`golden` as a tensor."""
    return torch.from_numpy(golden(method)[name])


def golden_people(method: str) -> People:
    """The people with which the golden losses of SMPR and InsPose were computed, in pixels of the input."""
    keypoints = array(method, "gt_keypoints")
    return People(
        keypoints[..., :2],
        keypoints[..., 2].byte(),
        array(method, "gt_boxes"),
        array(method, "gt_areas"),
        torch.zeros(len(keypoints), dtype=torch.bool),
    )


def golden_levels(method: str) -> list[Tensor]:
    """The golden input of the head of SMPR and InsPose: P3..P7, each (1, 256, h, w)."""
    rng, (height, width) = np.random.RandomState(11), golden(method)["input_hw"]
    shapes = [(1, 256, -(-height // stride), -(-width // stride)) for stride in (8, 16, 32, 64, 128)]
    return [torch.from_numpy(rng.standard_normal(shape).astype(np.float32)) for shape in shapes]


def assert_golden(found: Tensor, method: str, name: str) -> None:
    """Check that a map equals the released code's up to 1e-4 of the size of its values."""
    expected = array(method, name)
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max()), name


def draw(keys: list[tuple[str, list[int]]], seed: int = SEED) -> dict[str, Tensor]:
    """Weights of the shapes ``keys``, drawn as the entry ``recipe`` of the golden files says, without its ``after``."""
    rng = np.random.RandomState(seed)
    weights: dict[str, Tensor] = {}
    for name, shape in keys:
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(0)
            continue
        if len(shape) == 4:
            values = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith("running_var"):
            values = 0.5 + rng.random_sample(shape)
        elif name.endswith("running_mean"):
            values = 0.2 * rng.standard_normal(shape)
        elif name.endswith(".scale"):
            values = 0.7 + 0.6 * rng.random_sample(shape)
        elif name.endswith("weight"):
            values = 0.8 + 0.4 * rng.random_sample(shape)
        else:
            values = 0.1 * rng.standard_normal(shape)
        weights[name] = torch.from_numpy(np.asarray(values, dtype=np.float32))
    return weights


def released_keys(method: str) -> list[tuple[str, list[int]]]:
    """Names and shapes of the released state dict of SMPR or InsPose, in its order."""
    return [(name, shape) for name, shape in json.loads(str(golden(method)["keys"]))]


@cache
def inspose_weights() -> dict[str, Tensor]:
    """The weights with which the released code of InsPose computed its golden outputs."""
    weights = draw(released_keys("inspose"))
    weights["bbox_head.conv_cls.bias"] -= 2.0
    weights["bbox_head.controller.weight"] *= 0.3
    return weights


@cache
def smpr_weights() -> dict[str, Tensor]:
    """The weights with which the released code of SMPR computed its golden outputs."""
    weights = draw(released_keys("smpr"))
    weights["bbox_head.fcos_cls.bias"] -= 1.0
    return weights


@cache
def logocap_weights(backbone: str = "hrnet_w32") -> dict[str, Tensor]:
    """The weights with which the released code of LOGO-CAP computed its golden outputs; others with HRNet-W48."""
    entries = json.loads((FOLDER / "keys_logocap.json").read_text())["models"][backbone.replace("_", "-")]
    weights = {entry["key"]: torch.from_numpy(_draw_alone(entry["key"], entry["shape"])) for entry in entries}
    replaced = {name.removeprefix("w:"): value for name, value in golden("logocap").items() if name.startswith("w:")}
    return weights | {
        name: torch.from_numpy(value) for name, value in replaced.items() if weights[name].shape == value.shape
    }


def _draw_alone(name: str, shape: list[int]) -> np.ndarray:
    """A weight of LOGO-CAP, from a generator of its own that its name seeds."""
    rng, last = np.random.default_rng(zlib.crc32(name.encode())), name.rpartition(".")[2]
    if last == "num_batches_tracked":
        return np.asarray(0)
    if last == "running_var":
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if last == "weight" and len(shape) == 1:
        return rng.uniform(0.3, 0.7, shape).astype(np.float32)
    normal = rng.standard_normal(shape)
    if last == "weight":
        normal /= np.sqrt(np.prod(shape[1:]))
    elif last == "weight_":
        normal = 0.1 + 0.02 * normal
    else:  # biases and running means
        normal *= 0.1
    return normal.astype(np.float32)


def save_mmdet(path: Path, weights: Mapping[str, Tensor], **extra: Any) -> Path:
    """Write a checkpoint as mmdetection's runner does: weights beside its notes and the optimiser's state."""
    meta = {"epoch": 36, "iter": 1000, "mmdet_version": "2.8.0", "CLASSES": ("person",), "hook_msgs": {}}
    content = {"meta": meta, "state_dict": dict(weights), "optimizer": {"state": {}, "param_groups": []}, **extra}
    torch.save(content, path)
    return path


def recorded_keys(method: str, model: str = "hrnet-w32") -> list[tuple[str, list[int]]]:
    """Names and shapes of every weight in a released file; ``model`` chooses one of LOGO-CAP's."""
    entries = json.loads((FOLDER / f"keys_{method}.json").read_text())
    entries = entries["models"][model] if isinstance(entries, dict) else entries
    return [(entry.get("released") or entry["key"], entry["shape"]) for entry in entries]


def hollow(keys: list[tuple[str, list[int]]]) -> dict[str, Tensor]:
    """Zeros of the given names and shapes that share one number each: a file of them takes a few hundred kB."""
    return {name: torch.zeros(()).expand(shape) for name, shape in keys}
