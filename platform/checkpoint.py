"""Checkpoints: a directory that describes itself, appears whole or not at all, and is read without pickle.

    step-00000812/
        model.safetensors   the weights that are evaluated and served (averaged ones where the run averages)
        state.pt            what training needs to go on: optimiser, raw weights, average; read with weights_only
        meta.json           experiment, step, position in the data, metrics, revision; sizes and SHA-256 of the others

``meta.json`` is written last, so a directory without it, or whose files differ from it, is not a checkpoint: readers
pass over it and take the one before. Locally the directory is also renamed into place when whole.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import safetensors.torch
import torch
from fsspec.implementations.local import LocalFileSystem
from safetensors import SafetensorError
from torch import Tensor, nn

from posefleet.data.errors import DataError
from posefleet.data.io.files import read_json, write_file
from posefleet.data.keypoints import KeypointSchema, load_schema
from posefleet.models import load_method
from posefleet.models.parts.layers.safe_load import read_tensors
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.loading import build_experiment, to_dict
from posefleet.platform.runtime.paths import MODELS
from posefleet.platform.tracking.client import TrackingError
from posefleet.platform.tracking.registry import find_model

log = logging.getLogger(__name__)

WEIGHTS, STATE, META = "model.safetensors", "state.pt", "meta.json"

_CONTENT = {
    "method": str,
    "schema": str,
    "step": int,
    "position": int,
    "metrics": dict,
    "provenance": dict,
    "experiment": dict,
    "files": dict,
}
"""What ``meta.json`` holds, with its types."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message says which and what is still intact."""


@dataclass(frozen=True, kw_only=True)
class Meta:
    """What ``meta.json`` holds."""

    experiment: Experiment
    step: int
    """Optimiser steps taken."""
    position: int
    """Samples seen, over all epochs."""
    metrics: dict[str, float]
    """Of the evaluation at this step; empty where there was none."""
    provenance: dict[str, str]
    """Git revision, data fingerprint, run id, ..."""


class CheckpointStore:
    """The checkpoints of one run, under a folder or URI."""

    def __init__(self, root: str, *, keep: int = 2) -> None:
        self.root = root.rstrip("/")
        self.keep = keep
        self._fs, self._path = fsspec.url_to_fs(self.root)

    def save(self, meta: Meta, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> str:
        """Write one checkpoint, drop those no longer kept, and return the new one's path.

        Raises:
            CheckpointError: It cannot be written; earlier checkpoints are as they were.
        """
        name = f"step-{meta.step:08d}"
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        files = {
            WEIGHTS: safetensors.torch.save({key: value.detach().cpu().contiguous() for key, value in weights.items()}),
            STATE: buffer.getvalue(),
        }
        sums = {file: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for file, data in files.items()}
        content = {
            "format": 1,
            "method": meta.experiment.method,
            "schema": meta.experiment.schema,
            "step": meta.step,
            "position": meta.position,
            "metrics": meta.metrics,
            "provenance": meta.provenance,
            "experiment": to_dict(meta.experiment),
            "files": sums,
        }
        files[META] = json.dumps(content, indent=1).encode()
        try:
            self._write(name, files)
            self._drop_others(name)
        except OSError as error:
            raise CheckpointError(
                f"cannot write checkpoint {self.root}/{name}: {error}; {self._intact(name)}. Make room (or repair the "
                "storage) and start the same command again: the run goes on from there."
            ) from error
        return f"{self.root}/{name}"

    def _intact(self, new: str) -> str:
        """What is left when ``new`` could not be written."""
        try:
            earlier = [name for name in self.names() if name != new]
        except OSError:
            return "earlier ones are as they were"
        return f"{self.root}/{earlier[-1]} is intact" if earlier else "there is no earlier one"

    def start_from(self, path: str) -> None:
        """Let a run go on from a copy of the checkpoint in the local folder ``path``, and drop its own.

        Raises:
            CheckpointError: It is damaged; the run's own are as they were.
        """
        verify(path)
        meta = read_meta(path)
        name, own = f"step-{meta.step:08d}", self.names()
        self._write(name, {file: Path(path, file).read_bytes() for file in (WEIGHTS, STATE, META)})
        for other in own:
            if other != name:
                self._fs.rm(f"{self._path}/{other}", recursive=True)

    def names(self) -> list[str]:
        """Names of the checkpoint folders that have a ``meta.json``, oldest first; they may still be damaged."""
        self._fs.invalidate_cache()
        found = self._fs.glob(f"{self._path}/step-*/{META}")
        return sorted(str(path).split("/")[-2] for path in found)

    def latest(self) -> str | None:
        """Path of the newest checkpoint that is whole, or None."""
        for name in reversed(self.names()):
            path = f"{self.root}/{name}"
            try:
                verify(path)
            except CheckpointError as error:
                log.warning("%s; using the one before it", error)
            else:
                return path
        return None

    def best(self, metric: str = "AP") -> str | None:
        """Path of the checkpoint with the highest ``metric`` (the newest of equals), or None where none has it."""
        scored = [(value, name) for name, value in self._scores(metric).items()]
        return f"{self.root}/{max(scored)[1]}" if scored else None

    def _scores(self, metric: str) -> dict[str, float]:
        scores = {}
        for name in self.names():
            with contextlib.suppress(CheckpointError):  # damaged: as if it were not there
                scores[name] = read_content(f"{self.root}/{name}")["metrics"].get(metric, math.nan)
        return {name: value for name, value in scores.items() if math.isfinite(value)}

    def _write(self, name: str, files: Mapping[str, bytes]) -> None:
        """Write the files in their order: ``meta.json``, by which a folder is a checkpoint, comes last."""
        if isinstance(self._fs, LocalFileSystem):
            self._write_folder(name, files)
            return
        if self._fs.exists(f"{self._path}/{name}"):
            self._fs.rm(f"{self._path}/{name}", recursive=True)
        for file, data in files.items():
            write_file(f"{self.root}/{name}/{file}", data)

    def _write_folder(self, name: str, files: Mapping[str, bytes]) -> None:
        """On a disk: under another name, flushed, and renamed when whole."""
        final, unfinished = Path(self._path, name), Path(self._path, f".{name}.{os.getpid()}.tmp")
        replaced = unfinished.with_suffix(".old")
        try:
            for left in Path(self._path).glob(".step-*"):  # by killed writers
                shutil.rmtree(left)
            unfinished.mkdir(parents=True, exist_ok=True)
            for file, data in files.items():
                with (unfinished / file).open("wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
            if final.exists():
                final.rename(replaced)
            unfinished.rename(final)
            if replaced.exists():
                shutil.rmtree(replaced)
        except OSError:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise

    def _drop_others(self, newest: str) -> None:
        """Keep the latest ones up to ``newest`` and the best."""
        for name in self.names():
            if name > newest:  # damaged: otherwise the run had gone on from there
                self._fs.rm(f"{self._path}/{name}", recursive=True)
        best = self.best()
        for name in self.names()[: -self.keep]:
            if f"{self.root}/{name}" != best:
                self._fs.rm(f"{self._path}/{name}", recursive=True)


def find_checkpoint(path: str, *, tracking: str = "") -> str:
    """``path`` itself if it is a checkpoint; of a run's folder, or a folder of checkpoints, the best or the latest one.

    Args:
        path: Path or URI; or a version of a registered model, ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
        tracking: Where models are registered, see ``registry.find_model``.

    Raises:
        CheckpointError: There is none.
    """
    if path.startswith(MODELS):
        try:
            return find_model(path, tracking)
        except (ValueError, TrackingError) as error:
            raise CheckpointError(str(error)) from error
    path = path.rstrip("/")
    fs, plain = fsspec.url_to_fs(path)
    if fs.exists(f"{plain}/{META}"):
        return path
    for folder in (f"{path}/checkpoints", path):
        store = CheckpointStore(folder)
        if found := store.best() or store.latest():
            return found
    raise CheckpointError(f"no checkpoint in {path}; expected {META} in it, or folders step-* in {path}/checkpoints")


def read_content(path: str) -> dict[str, Any]:
    """The raw ``meta.json`` of a checkpoint.

    Raises:
        CheckpointError: ``path`` is not a checkpoint.
    """
    try:
        content = read_json(f"{path}/{META}")
    except (OSError, DataError) as error:
        raise CheckpointError(f"{path} is not a checkpoint: no readable {META} ({error})") from None
    if content is None:
        raise CheckpointError(f"{path} is not a checkpoint: no readable {META} (no such file)")
    if not isinstance(content, dict) or content.get("format") != 1:
        raise CheckpointError(f"{path}/{META} is not of checkpoint format 1; it was written by something else")
    if missing := [key for key, kind in _CONTENT.items() if not isinstance(content.get(key), kind)]:
        raise CheckpointError(f"{path}/{META} is damaged: no usable {', '.join(missing)}")
    if not {WEIGHTS} <= set(content["files"]) <= {WEIGHTS, STATE}:
        raise CheckpointError(f"{path}/{META} is damaged: it names the files {', '.join(content['files'])}")
    return content


def read_meta(path: str) -> Meta:
    """What ``meta.json`` says, with the experiment validated.

    Raises:
        CheckpointError: ``path`` is not a checkpoint.
    """
    content = read_content(path)
    return Meta(
        experiment=build_experiment(content["experiment"], where=f"{path}/{META}"),
        step=content["step"],
        position=content["position"],
        metrics=content["metrics"],
        provenance=content["provenance"],
    )


def verify(path: str) -> None:
    """Raise ``CheckpointError`` unless every file of the checkpoint has the recorded size and SHA-256."""
    for file in read_content(path)["files"]:
        _read_file(path, file)


def read_state(path: str) -> dict[str, Any]:
    """``state.pt``, read without running any code from it.

    Raises:
        CheckpointError: It is missing or damaged, or holds more than tensors and plain values.
    """
    try:
        return read_tensors(io.BytesIO(_read_file(path, STATE)), f"{path}/{STATE}")
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def read_weights(path: str) -> dict[str, Tensor]:
    """``model.safetensors``.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    try:
        return safetensors.torch.load(_read_file(path, WEIGHTS))
    except SafetensorError as error:
        raise CheckpointError(f"{path}/{WEIGHTS} is refused: it is no file of safetensors ({error})") from None


def copy_for_use(
    path: str,
    folder: Path,
    *,
    experiment: Experiment | None = None,
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Copy what evaluation and serving need of a checkpoint, which is all but the state of its training.

    Args:
        path: The checkpoint.
        folder: Becomes a checkpoint; made if it is new.
        experiment: What the copy says of its settings (another decoding, say); default: what the checkpoint says.
        metrics: What the copy says of its scores; default: what the checkpoint says.

    Raises:
        CheckpointError: The checkpoint is missing or damaged.
    """
    content = read_content(path)
    content["files"] = {WEIGHTS: content["files"][WEIGHTS]}
    if experiment is not None:
        content["experiment"] = to_dict(experiment)
    if metrics is not None:
        content["metrics"] = dict(metrics)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(_read_file(path, WEIGHTS))
    (folder / META).write_text(json.dumps(content, indent=1))


def load_weights(model: nn.Module, path: str, *, method: str, schema: str) -> None:
    """Put a checkpoint's weights into ``model``.

    Raises:
        CheckpointError: It is of another method or schema, or does not fit; the first misfit is named.
    """
    content = read_content(path)
    for what, expected in (("method", method), ("schema", schema)):
        if content[what] != expected:
            raise CheckpointError(f"{path} is of {what} {content[what]!r}, this experiment's is {expected!r}")
    weights = read_weights(path)
    own = model.state_dict()
    for name in [*own, *weights]:
        if name not in weights or name not in own:
            owner = "the checkpoint" if name not in weights else "the model"
            raise CheckpointError(f"{path} does not fit the configured model: {owner} has no {name!r}")
        if own[name].shape != weights[name].shape:
            raise CheckpointError(
                f"{path} does not fit the configured model: {name!r} is {tuple(weights[name].shape)} in the checkpoint "
                f"and {tuple(own[name].shape)} in the model"
            )
    model.load_state_dict(weights)


def load_model(path: str, *, experiment: Experiment | None = None) -> tuple[nn.Module, Experiment]:
    """The model of a checkpoint on the CPU, in eval mode, and its experiment; nothing else is needed.

    Args:
        path: Checkpoint directory, local or URI.
        experiment: Settings to use instead of the checkpoint's own (another decoding, say); the method must agree.

    Raises:
        CheckpointError: ``path`` is not a whole checkpoint, or the settings do not fit its weights.
    """
    experiment = experiment or read_meta(path).experiment
    model = build_model(experiment, pretrained=False)
    load_weights(model, path, method=experiment.method, schema=experiment.schema)
    return model.eval(), experiment


def build_model(experiment: Experiment, *, pretrained: bool = True) -> nn.Module:
    """A fresh model of the experiment's method.

    Args:
        pretrained: False leaves out published weights, which a checkpoint is about to replace.
    """
    config = experiment.model if pretrained else _untrained(experiment.model)
    schema: KeypointSchema = load_schema(experiment.schema)
    model: nn.Module = load_method(experiment.method).Model(config, schema)
    return model


def _untrained(config: Any) -> Any:
    """The same settings, but no part of the model, however deep, downloads or reads weights."""
    nested = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    changes = {name: _untrained(value) for name, value in nested.items() if dataclasses.is_dataclass(value)}
    if "pretrained" in nested:
        changes |= {"pretrained": False, "weights": ""}
    return dataclasses.replace(config, **changes)


def _read_file(path: str, file: str) -> bytes:
    """The bytes of one file of a checkpoint, checked against ``meta.json``."""
    recorded = read_content(path)["files"].get(file)
    if not isinstance(recorded, dict):
        raise CheckpointError(f"{path} has no {file}")
    try:
        with fsspec.open(f"{path}/{file}", "rb") as stream:
            data: bytes = stream.read()
    except OSError as error:
        raise CheckpointError(f"{path}/{file} cannot be read: {error}") from None
    size = recorded.get("bytes")
    if len(data) != size or hashlib.sha256(data).hexdigest() != recorded.get("sha256"):
        raise CheckpointError(f"{path}/{file} is damaged: {len(data)} bytes where {size} were written")
    return data
