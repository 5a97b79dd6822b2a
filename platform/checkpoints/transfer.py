"""Starts a model with the weights of a checkpoint, also one of another keypoint schema, and says what was done.

What does not depend on the schema is copied whole. Of the layers that do, the channels of keypoints that both schemas
have are copied (``models.TransferableModel``), and the others keep their initial values. Only in a layer that reads
channels of keypoints, those that the checkpoint lacks start at zero, so that they do not disturb what was learned.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from posefleet.data.schemas.names import Parts, parts_of, same_names
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.models import TransferableModel
from posefleet.models.parts.layers.keypoint_channels import Channel, KeypointChannels, Layout
from posefleet.option_names import nearest
from posefleet.platform.checkpoints.format import CheckpointError, read_content, read_meta, read_weights, schema_in
from posefleet.platform.checkpoints.load import build_within, load_weights
from posefleet.platform.config.experiment import Experiment, keypoint_pairs


@dataclass(frozen=True, slots=True)
class Transfer:
    """What became of the weights of a new model."""

    copied: tuple[str, ...]
    """Names of the parameters that come from the checkpoint as a whole."""
    partial: tuple[str, ...] = ()
    """Names of the parameters that have initial values in at least one channel."""
    rows: tuple[tuple[str, str], ...] = ()
    """Group of tensors, and what was done with it; empty if the schemas are the same."""

    def table(self) -> str:
        """The rows as lines of text."""
        width = max((len(group) for group, _ in self.rows), default=0)
        return "\n".join(f"  {group:{width}}  {done}" for group, done in self.rows)


def start_from(model: nn.Module, path: str, experiment: Experiment) -> Transfer:
    """Load the weights of the checkpoint ``path`` into the new ``model`` of ``experiment``.

    A checkpoint of the same schema must fit exactly, see :func:`load_weights`.

    Raises:
        CheckpointError: ``path`` is no intact checkpoint, has another method, or does not fit. The message names what
            differs in both.
    """
    method, own = read_content(path)["method"], experiment.keypoints
    if method != experiment.method:
        raise CheckpointError(f"{path} is of method {method!r}, this experiment's is {experiment.method!r}")
    if same_keypoints(path, experiment):
        load_weights(model, path, method=method, schema=own)
        return Transfer(tuple(name for name, _ in model.named_parameters()))
    stored = read_meta(path).experiment
    weights = read_weights(path)
    with torch.device("meta"):  # names and shapes alone
        source = build_within(stored, path, tensors=len(weights), values=sum(w.numel() for w in weights.values()))
    origins = _origins(stored.keypoints, own, keypoint_pairs(experiment.run.init_map), path)
    return copy_weights(model, own, weights, source, stored.keypoints, origins, where=path)


def same_keypoints(path: str, experiment: Experiment) -> bool:
    """Whether the checkpoint ``path`` has the keypoints and the skeleton of the experiment, and none is to be renamed.

    Raises:
        CheckpointError: ``path`` is not a checkpoint, or its schema cannot be used.
    """
    try:
        stored = schema_in(read_content(path))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    own = experiment.keypoints
    return (
        same_names(stored.keypoints, own.keypoints)
        and stored.edges == own.edges
        and not experiment.run.init_map.strip()
    )


def _origins(source: KeypointSchema, target: KeypointSchema, renamed: Mapping[str, str], path: str) -> dict[str, str]:
    """Keypoint of the model -> keypoint of the checkpoint whose weights it gets."""
    for whose, names, schema in (("of the model", renamed, target), ("of the checkpoint", renamed.values(), source)):
        for name in names:
            if name not in schema.keypoints:
                near = nearest(name, schema.keypoints)
                raise CheckpointError(
                    f"run.init_map: {name!r} is no keypoint {whose} (schema {schema.name})"
                    + (f"; did you mean {near!r}?" if near else ".")
                    + f" It has: {', '.join(schema.keypoints)}. Write CHECKPOINT=MODEL, such as nose=snout; "
                    f"the checkpoint is {path}"
                )
    spelled: dict[Parts, list[str]] = {}
    for name in source.keypoints:
        spelled.setdefault(parts_of(name), []).append(name)
    found = {name: name for name in target.keypoints if name in source.keypoints}
    for name in target.keypoints:
        same = spelled.get(parts_of(name), [])
        if name not in found and len(same) == 1 and parts_of(name)[1]:  # left_eye is eyeLeft
            found[name] = same[0]
    return found | dict(renamed)


def copy_weights(
    model: nn.Module,
    schema: KeypointSchema,
    weights: Mapping[str, Tensor],
    source: nn.Module,
    source_schema: KeypointSchema,
    origins: Mapping[str, str],
    *,
    where: str = "the checkpoint",
) -> Transfer:
    """Copy ``weights`` of a model of another schema into ``model``.

    Args:
        model: Changed in place.
        schema: The schema of ``model``.
        weights: State dict of ``source``.
        source: A model of the same method with ``source_schema``; only its structure is used.
        source_schema: The schema of ``weights``.
        origins: Keypoint of ``schema`` -> keypoint of ``source_schema`` whose weights it gets.
        where: Name of the checkpoint in errors.

    Raises:
        CheckpointError: A weight is missing or left over, or has another shape for another reason than the schema.
    """
    own = model.state_dict()
    weights = {n: w for n, w in weights.items() if n in own or not n.endswith(".num_batches_tracked")}
    for name in [*own, *weights]:
        if name not in weights or name not in own:
            owner = where if name not in weights else "the model"
            raise CheckpointError(f"{where} does not fit the configured model: {owner} has no {name!r}")
    layouts = _layout(source, source_schema), _layout(model, schema)
    parameters = {name for name, _ in model.named_parameters()}
    copied: list[str] = []
    partial: list[str] = []
    rows: list[tuple[str, str]] = []
    whole: dict[str, int] = {}
    filled: dict[str, Tensor] = {}
    for name, target in own.items():
        layer = name.rpartition(".")[0]
        old, new = weights[name], target.clone()
        labels = list(zip(*(layout.get(layer, KeypointChannels()) for layout in layouts), strict=True))[: new.ndim]
        if not _fits(old, new, labels):
            raise CheckpointError(_shapes(where, name, old, source_schema, new, schema, stated=bool(layouts[1])))
        places = [_pairs(theirs, ours, origins) if theirs and ours else None for theirs, ours in labels]
        complete = _fill(new, old, *places, *[None] * (2 - len(places)))
        filled[name] = new
        if name in parameters:
            (copied if complete else partial).append(name)
        if not any(ours for _, ours in labels):
            whole[_group(name)] = whole.get(_group(name), 0) + 1
        elif name.endswith("weight"):
            rows.append((layer, _done(places, new)))
    model.load_state_dict(filled)
    groups = [(group, f"copied ({count} tensor{'s' * (count > 1)})") for group, count in whole.items()]
    return Transfer(tuple(copied), tuple(partial), (*groups, *rows))


def _fits(
    old: Tensor, new: Tensor, labels: Sequence[tuple[Sequence[Channel] | None, Sequence[Channel] | None]]
) -> bool:
    """Whether two tensors differ in nothing but the keypoints of their channels."""
    if old.ndim != new.ndim:
        return False
    for axis in range(new.ndim):
        theirs, ours = labels[axis] if axis < len(labels) else (None, None)
        if theirs and ours:
            kinds = [{(label.what, len(label.keypoints)) for label in each} for each in (theirs, ours)]
            if kinds[0] != kinds[1] or (len(theirs), len(ours)) != (old.shape[axis], new.shape[axis]):
                return False
        elif old.shape[axis] != new.shape[axis]:
            return False
    return True


def _layout(model: nn.Module, schema: KeypointSchema) -> Layout:
    if not hasattr(model, "keypoint_channels"):
        return {}
    transferable: TransferableModel = model  # type: ignore[assignment]  # a Module that has the method
    return transferable.keypoint_channels(schema)


def _pairs(theirs: Sequence[Channel], ours: Sequence[Channel], origins: Mapping[str, str]) -> list[tuple[int, int]]:
    """(index of the model, index of the checkpoint) of the channels that mean the same."""
    places = {label: index for index, label in enumerate(theirs)}
    pairs = []
    for index, label in enumerate(ours):
        if all(name in origins for name in label.keypoints):
            origin = Channel(label.what, tuple(origins[name] for name in label.keypoints))
            if origin in places:
                pairs.append((index, places[origin]))
    return pairs


def _fill(
    new: Tensor, old: Tensor, outputs: list[tuple[int, int]] | None, inputs: list[tuple[int, int]] | None
) -> bool:
    """Copy the paired channels of ``old`` into ``new``, in place; whether all of ``new`` is from ``old``."""
    if inputs == []:
        return False  # nothing that the layer reads is known: it starts anew
    values = old.to(new.device, new.dtype)
    if inputs is not None:
        to, from_ = zip(*inputs, strict=True)
        read = values.new_zeros(len(old), *new.shape[1:])
        read[:, list(to)] = values[:, list(from_)]
        values = read
    if outputs is None:
        new.copy_(values)
    elif outputs:
        to, from_ = zip(*outputs, strict=True)
        new[list(to)] = values[list(from_)]
    return all(pairs is None or len(pairs) == new.shape[axis] for axis, pairs in enumerate((outputs, inputs)))


def _done(places: Sequence[list[tuple[int, int]] | None], new: Tensor) -> str:
    """What was done with a layer whose channels depend on the schema."""
    parts = []
    for axis, what in enumerate(("rows", "inputs")):
        pairs = places[axis]
        if pairs is not None:
            count = len(pairs)
            rest = "" if count == new.shape[axis] else ", the rest is fresh" if axis == 0 else ", the rest is zero"
            parts.append(f"{count} of {new.shape[axis]} {what} copied{rest}" if count else "fresh")
    return "; ".join(parts)


def _group(name: str) -> str:
    """The part of the model that a row of the table is about."""
    return name.partition(".")[0]


def _shapes(
    where: str, name: str, old: Tensor, old_schema: KeypointSchema, new: Tensor, schema: KeypointSchema, *, stated: bool
) -> str:
    remedy = "give the model the settings of the checkpoint (model.* of its experiment)"
    if not stated:
        remedy = "the method does not state which channels belong to which keypoints (keypoint_channels)"
    return (
        f"{where} does not fit the configured model: {name!r} is {tuple(old.shape)} in the checkpoint (schema "
        f"{old_schema.name}, {len(old_schema)} keypoints) and {tuple(new.shape)} in the model (schema {schema.name}, "
        f"{len(schema)} keypoints); {remedy}"
    )
