"""Turns weights that the authors of a method published into a checkpoint, with its origin and a model card.

The authors' files are pickles: they are read without running code. ``models/<method>/released.py`` maps their weights.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posefleet.data.errors import DataError
from posefleet.data.io.files import create, read_json, write_file
from posefleet.models import ReleasedModule, available_methods, load_method, load_released
from posefleet.models.parts.layers.released import Released, differences
from posefleet.models.parts.layers.safe_load import read_tensors
from posefleet.platform.checkpoints.format import META, WEIGHTS, HashingStream, Meta, encode_content, write_weights
from posefleet.platform.checkpoints.load import build_model
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.loading import build_experiment, to_yaml, with_settings
from posefleet.platform.tracking.registry import CHECKPOINT, Release, signed
from posefleet.platform.tracking.runs import DataInput

Weights = Mapping[str, Tensor]

CARD = "model_card.md"
"""File beside an imported checkpoint that says where its weights come from."""

RELEASED = "released"
"""Name of the preset that imported weights have, and alias of their version in the registry."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """Weights of a file of the authors of a method, ready to be written as a checkpoint."""

    file: str
    """Name of the file, without its folder."""
    sha256: str
    method: str
    module: ReleasedModule
    released: Released

    def experiment(self, preset: Mapping[str, Any]) -> Experiment:
        """The settings of the weights.

        Args:
            preset: Content of ``jobs/configs/METHOD_released.yaml``, whose ``model`` the file's own settings replace.
        """
        experiment = build_experiment(with_settings(preset, self.released.settings), where=f"the preset of {self.file}")
        return dataclasses.replace(experiment, model=self.released.config)

    def meta(self, experiment: Experiment) -> Meta:
        """The content of the checkpoint's ``meta.json``."""
        provenance = {
            "imported": f"{self.method} {self.released.variant}",
            "file": self.file,
            "sha256": self.sha256,
            "source": self.module.SOURCE,
            "licence": self.module.LICENCE,
            "reported": self._reported(),
            "imported_by": signed(),
        }
        return Meta(experiment=experiment, step=0, position=0, metrics={}, provenance=provenance)

    def _reported(self) -> str:
        variant = self.released.variant
        return self.module.REPORTED.get(variant, f"the authors report no AP for {variant}")


def read_released(path: str, method: str) -> Imported:
    """Read an authors' file and map its weights.

    Args:
        path: A file of ``torch.save``: a state dict, or a dictionary that has one under ``state_dict``.
        method: Name of the method.

    Raises:
        ValueError: The file is of another method, damaged, or holds more than tensors and plain values; or weights are
            missing, left over, not finite, or of another shape. The message names the file and each such weight.
        OSError: The file cannot be read.
    """
    module = load_released(method)
    if module is None:
        known = ", ".join(name for name in available_methods() if load_released(name))
        raise ValueError(f"no published weights of {method!r} can be imported; there are those of {known}")
    name = Path(path).name
    with Path(path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        stored = _state_dict(read_tensors(file, path), path)
    _refuse_other_method(stored, path, method, module)
    try:
        released = module.released_weights(stored)
    except (ValueError, RuntimeError) as error:  # RuntimeError: an operation on a weight of another shape
        raise ValueError(f"{path} is no file of {method} that its authors published: {error}") from None
    return Imported(file=name, sha256=digest, method=method, module=module, released=released)


def checked_weights(imported: Imported, experiment: Experiment) -> dict[str, Tensor]:
    """The weights of an authors' file as they are stored, if the settings of ``experiment`` fit them.

    Raises:
        ValueError: A setting contradicts the weights, or a weight is missing, left over, not finite or of another
            shape. The message names both sides.
    """
    released, file = imported.released, imported.file
    if len(experiment.keypoints) != released.keypoints:
        raise ValueError(
            f"{file} predicts {released.keypoints} keypoints, but schema {experiment.keypoints.name} has "
            f"{len(experiment.keypoints)}"
        )
    decoding = getattr(load_method(imported.method).Model, "decoding", ())
    for name, (given, own) in _changed(experiment.model, released.config).items():
        if not any(name == free or name.startswith(f"{free}.") for free in decoding):
            raise ValueError(
                f"model.{name} is {given!r}, but the weights of {file} have {own!r} in the preset {RELEASED!r}; "
                f"an import changes only what decodes: {', '.join(decoding)}"
            )
    with torch.device("meta"):  # names and shapes alone
        expected = build_model(experiment, pretrained=False).state_dict()
    if wrong := differences(expected, released.weights):
        raise ValueError(f"{file} does not fit {imported.method} with {released.variant}: {wrong}")
    infinite = [name for name, value in released.weights.items() if not torch.isfinite(value).all()]
    if infinite:
        raise ValueError(f"{file} is refused: it has values that are not finite, in {', '.join(infinite)}")
    return {name: value.to(expected[name].dtype) for name, value in released.weights.items()}


def write_imported(folder: str, meta: Meta, weights: Weights, card: str) -> None:
    """Write a checkpoint with its model card to ``folder``, a path or URI; ``meta.json``, which makes it one, is last.

    Raises:
        ValueError: The folder holds another checkpoint.
        OSError: The folder cannot be written.
    """
    _refuse_other_checkpoint(folder, meta)
    with create(f"{folder}/{WEIGHTS}") as file:
        stream = HashingStream(file)
        write_weights(weights, stream)
    write_file(f"{folder}/{CARD}", card.encode())
    write_file(f"{folder}/{META}", encode_content(meta, {WEIGHTS: stream.record}))


def imported_release(meta: Meta, weights: Weights, card: str, folder: Path) -> Release:
    """The version of a registered model for imported weights; its files are written to the empty ``folder``."""
    experiment, origin = meta.experiment, meta.provenance
    write_imported(str(folder / CHECKPOINT), meta, weights, card)
    (folder / CARD).write_text(card)
    (folder / "experiment.yaml").write_text(to_yaml(experiment))
    tags = {"method": experiment.method, "schema": experiment.keypoints.name, "gate": "not measured", **origin}
    return Release(
        folder=folder,
        method=experiment.method,
        schema=experiment.keypoints,
        experiment=experiment.run.experiment,
        training_run="",
        step=meta.step,
        settings={},
        metrics={},
        split=DataInput(name=origin["file"], use="weights", fingerprint=origin["sha256"], source=origin["source"]),
        tags=tags,
        description=card,
    )


def model_card(meta: Meta, *, address: str) -> str:
    """The model card, Markdown.

    Args:
        meta: The content of the checkpoint's ``meta.json``.
        address: Where the checkpoint is: its folder or its address in the registry, for the commands in the card.
    """
    experiment, origin = meta.experiment, meta.provenance
    resize = experiment.data.resize
    return f"""# {origin["imported"]}, weights of the authors

| | |
| --- | --- |
| method | {experiment.method}, preset `{RELEASED}` |
| keypoints | {len(experiment.keypoints)}, schema `{experiment.keypoints.name}` |
| input | short side {resize.short_side} px, long side at most {resize.long_side} px |
| file | `{origin["file"]}`, SHA-256 `{origin["sha256"]}` |
| source | {origin["source"]} |
| licence | {origin["licence"]} |
| reported by the authors | {origin["reported"]} |

The weights are the authors'; nothing was trained here, and this AP was not measured here. This measures it:

    posefleet evaluate --checkpoint {address} --source /data/coco --split val2017

They were trained on people in photographs of COCO's train2017. Whoever uses them keeps to their licence and to the
terms of that data set.
"""


def _state_dict(stored: Mapping[str, Any], path: str) -> dict[str, Tensor]:
    """The weights in an authors' file, without the prefix that ``DataParallel`` adds."""
    inner = stored.get("state_dict", stored)
    if not isinstance(inner, Mapping) or not inner:
        raise ValueError(f"{path} holds no weights, but {', '.join(map(str, stored)) or 'nothing'}")
    others = [f"{name} ({type(value).__name__})" for name, value in inner.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(
            f"{path} holds no state dict, but {', '.join(others[:5])}; expected names of weights and tensors, or these "
            "under state_dict"
        )
    return {str(name).removeprefix("module."): value for name, value in inner.items()}


def _refuse_other_method(stored: Mapping[str, Tensor], path: str, method: str, module: ReleasedModule) -> None:
    """Raise ``ValueError`` unless the file has the weight that marks ``method``."""
    if module.MARK in stored:
        return
    for other in available_methods():
        candidate = load_released(other)
        if candidate is not None and candidate.MARK in stored:
            raise ValueError(f"{path} holds weights of {other}, not of {method}; give --method {other}")
    raise ValueError(
        f"{path} holds no weights of {method}: it has no {module.MARK}; its first weight is {next(iter(stored))}"
    )


def _refuse_other_checkpoint(folder: str, meta: Meta) -> None:
    """Raise ``ValueError`` if the folder has a checkpoint that was not imported from the same file."""
    try:
        content = read_json(f"{folder}/{META}")
    except DataError:
        content = {}
    if content is None:
        return
    origin = content.get("provenance", {}) if isinstance(content, dict) else {}
    if origin.get("sha256") != meta.provenance["sha256"]:
        raise ValueError(f"{folder} already holds another checkpoint; give another folder, or delete it")


def _changed(given: Any, own: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Settings of two dataclasses that differ: dotted name -> (given, own)."""
    changed: dict[str, tuple[Any, Any]] = {}
    for field in dataclasses.fields(own):
        one, other, name = getattr(given, field.name), getattr(own, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(other) and type(one) is type(other):
            changed |= _changed(one, other, f"{name}.")
        elif one != other:
            changed[name] = one, other
    return changed
