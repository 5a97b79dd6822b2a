"""Builds the model of a checkpoint and loads its weights."""

import dataclasses
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from posefleet.data.schemas.names import difference
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.models import load_method
from posefleet.platform.checkpoints.format import (
    CheckpointError,
    read_content,
    read_meta,
    read_weights,
    schema_in,
)
from posefleet.platform.config.experiment import Experiment

_SLACK, _MORE_TENSORS, _MORE_VALUES = 2, 1_000, 20_000_000
"""A model that is being built may have this many times the tensors and values of its weights, plus so many more: parts
such as a backbone's classifier are built and dropped, and buffers may not be stored."""


class _TooLarge(Exception):
    pass


def load_weights(model: nn.Module, path: str, *, method: str, schema: KeypointSchema) -> None:
    """Load the weights of the checkpoint ``path`` into ``model``.

    Args:
        method: Name of the method that the checkpoint must have.
        schema: Keypoints that the checkpoint must have, by name and order.

    Raises:
        CheckpointError: The checkpoint has another method or other keypoints, or its weights do not fit. The message
            shows both lists of keypoints, or names the first weight that is missing or has another shape.
    """
    _check_kind(path, method, schema)
    _fill(model, read_weights(path), path)


def _check_kind(path: str, method: str, schema: KeypointSchema) -> None:
    content = read_content(path)
    if content["method"] != method:
        raise CheckpointError(f"{path} is of method {content['method']!r}, this experiment's is {method!r}")
    try:
        own_schema = schema_in(content)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    titles = f"checkpoint of schema {own_schema.name}", f"schema {schema.name} of the experiment"
    if text := difference(own_schema.keypoints, schema.keypoints, *titles):
        raise CheckpointError(f"{path}: {text}")


def _fill(model: nn.Module, stored: Mapping[str, Tensor], path: str) -> None:
    own = model.state_dict()
    # Frozen BatchNorm counts no batches; a checkpoint of a version in which this one was not frozen has the counter.
    weights = {n: w for n, w in stored.items() if n in own or not n.endswith(".num_batches_tracked")}
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
    _check_kind(path, experiment.method, experiment.keypoints)
    weights = read_weights(path)
    model = build_within(experiment, path, tensors=len(weights), values=sum(w.numel() for w in weights.values()))
    _fill(model, weights, path)
    return model.eval(), experiment


def build_within(experiment: Experiment, path: str, *, tensors: int, values: int) -> nn.Module:
    """Build a model that may be about as large as the weights it will get, and not more.

    Args:
        experiment: Settings that come from ``path``.
        path: Name of the file in errors.
        tensors: Number of weights.
        values: Number of values in all weights together.

    Raises:
        CheckpointError: The model becomes larger than its weights, or cannot be built.
    """
    most, most_values = _SLACK * tensors + _MORE_TENSORS, _SLACK * values + _MORE_VALUES
    here, built, built_values = threading.get_ident(), 0, 0

    # Two million channels would fill the memory before names and shapes could be compared. PyTorch calls this for each
    # parameter before it is initialised, that is, before its memory is written.
    def refuse_more(_: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal built, built_values
        if tensor is None or threading.get_ident() != here:
            return
        built, built_values = built + 1, built_values + tensor.numel()
        if built > most or built_values > most_values:
            text = f"more than {most:,} tensors" if built > most else f"{name!r} of shape {tuple(tensor.shape)}"
            raise _TooLarge(f"its settings ask for {text}, and it holds {tensors:,} tensors of {values:,} values")

    with ExitStack() as stack:
        for register in (register_module_parameter_registration_hook, register_module_buffer_registration_hook):
            stack.callback(register(refuse_more).remove)
        try:
            return build_model(experiment, pretrained=False)
        except _TooLarge as error:
            raise CheckpointError(f"{path} does not fit the configured model: {error}") from None
        except (
            ArithmeticError,
            AssertionError,
            LookupError,
            MemoryError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise CheckpointError(f"{path}: no model can be built with its settings: {reason}") from None


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
