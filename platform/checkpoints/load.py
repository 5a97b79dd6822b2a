"""Builds the model of a checkpoint and loads its weights."""

import dataclasses
from typing import Any

from torch import nn

from posefleet.data.schemas.names import difference
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.models import load_method
from posefleet.platform.checkpoints.format import CheckpointError, read_content, read_meta, read_weights, schema_in
from posefleet.platform.config.experiment import Experiment


def load_weights(model: nn.Module, path: str, *, method: str, schema: KeypointSchema) -> None:
    """Load the weights of the checkpoint ``path`` into ``model``.

    Args:
        method: Name of the method that the checkpoint must have.
        schema: Keypoints that the checkpoint must have, by name and order.

    Raises:
        CheckpointError: The checkpoint has another method or other keypoints, or its weights do not fit. The message
            shows both lists of keypoints, or names the first weight that is missing or has another shape.
    """
    content = read_content(path)
    if content["method"] != method:
        raise CheckpointError(f"{path} is of method {content['method']!r}, this experiment's is {method!r}")
    own_schema = schema_in(content)
    titles = f"checkpoint of schema {own_schema.name}", f"schema {schema.name} of the experiment"
    if text := difference(own_schema.keypoints, schema.keypoints, *titles):
        raise CheckpointError(f"{path}: {text}")
    own = model.state_dict()
    # Frozen BatchNorm counts no batches; a checkpoint of a version in which this one was not frozen has the counter.
    weights = {n: w for n, w in read_weights(path).items() if n in own or not n.endswith(".num_batches_tracked")}
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
    """Build the model of a checkpoint on the CPU, in eval mode, and return it with its experiment.

    Args:
        path: Checkpoint folder, a local path or a URI. It holds everything that is needed.
        experiment: Settings to use instead of the checkpoint's own, such as another decoding; the method and the
            keypoint schema must be the same.

    Raises:
        CheckpointError: ``path`` is not a complete checkpoint, or the settings do not fit its weights.
    """
    experiment = experiment or read_meta(path).experiment
    model = build_model(experiment, pretrained=False)
    load_weights(model, path, method=experiment.method, schema=experiment.keypoints)
    return model.eval(), experiment


def build_model(experiment: Experiment, *, pretrained: bool = True) -> nn.Module:
    """Build a new model of the experiment's method.

    Args:
        experiment: Its ``method``, ``model`` and ``schema`` define the model.
        pretrained: False skips the published weights; use it when a checkpoint replaces them anyway.
    """
    config = experiment.model if pretrained else untrained(experiment.model)
    model: nn.Module = load_method(experiment.method).Model(config, experiment.keypoints)
    return model


def untrained(config: Any) -> Any:
    """The same settings with every nested ``pretrained`` and ``weights`` off, so that no part reads any weights."""
    nested = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    changes = {name: untrained(value) for name, value in nested.items() if dataclasses.is_dataclass(value)}
    if "pretrained" in nested:
        changes |= {"pretrained": False, "weights": ""}
    return dataclasses.replace(config, **changes)
