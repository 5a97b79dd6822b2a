"""Builds the model of a checkpoint and loads its weights."""

import dataclasses
from typing import Any

from torch import nn

from posefleet.models import load_method
from posefleet.platform.checkpoints.format import CheckpointError, read_content, read_meta, read_weights
from posefleet.platform.config.experiment import Experiment


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
    model: nn.Module = load_method(experiment.method).Model(config, experiment.keypoints)
    return model


def _untrained(config: Any) -> Any:
    """The same settings, but no part of the model, however deep, downloads or reads weights."""
    nested = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    changes = {name: _untrained(value) for name, value in nested.items() if dataclasses.is_dataclass(value)}
    if "pretrained" in nested:
        changes |= {"pretrained": False, "weights": ""}
    return dataclasses.replace(config, **changes)
