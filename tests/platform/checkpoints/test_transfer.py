"""Tests what a model takes over from one of another keypoint schema, for every method."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest
import small_models
import torch
from torch import Tensor, nn

from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.schemas.shipped import load_schema
from posefleet.models import available_methods, load_method
from posefleet.platform.checkpoints.format import CheckpointError, Meta
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.checkpoints.transfer import Transfer, copy_weights, start_from
from posefleet.platform.config.loading import build_experiment

COCO17 = load_schema("coco17")
SHARED = COCO17.keypoints[5:15]  # shoulders to knees


def part_of_coco(names: tuple[str, ...]) -> KeypointSchema:
    sigmas = dict(zip(COCO17.keypoints, COCO17.sigmas, strict=True))
    edges = tuple(edge for edge in COCO17.skeleton if set(edge) <= set(names))
    return KeypointSchema(
        name="twelve", keypoints=names, sigmas=tuple(sigmas.get(name, 0.05) for name in names), skeleton=edges
    )


TWELVE = part_of_coco((*reversed(SHARED), "tail", "paw"))
"""Ten keypoints of COCO in another order, and two others."""
SUBSET = part_of_coco(tuple(reversed(COCO17.keypoints[3:15])))
"""Twelve keypoints of COCO."""


def build(method: str, schema: KeypointSchema, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    config = small_models.small(method)
    if method == "inspose":  # the same nine taps in every schema
        head = dataclasses.replace(config.head, align_keypoints=SHARED[:9])  # type: ignore[attr-defined]
        config = dataclasses.replace(config, head=head)  # type: ignore[type-var]
    model: nn.Module = load_method(method).Model(config, schema)
    if seed:  # weights that no layer starts with, so that a copied one is not equal by chance
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.05)
    return model.eval()


def moved(
    method: str, source: KeypointSchema, target: KeypointSchema, names: Mapping[str, str] | None = None
) -> tuple[nn.Module, nn.Module, Transfer]:
    old, new = build(method, source, 1), build(method, target, 0)
    origins = {name: name for name in target.keypoints if name in source.keypoints} | dict(names or {})
    transfer = copy_weights(new, target, old.state_dict(), old, source, origins)
    return old, new, transfer


def outputs(model: nn.Module, schema: KeypointSchema, method: str) -> dict[tuple[str, ...], Tensor]:
    """What the network computes for each keypoint (or limb), by label."""
    images, names = small_models.images(1, 64, 64), schema.keypoints
    found: dict[tuple[str, ...], Tensor] = {}

    def add(what: str, values: Tensor, of: tuple[str, ...] = names) -> None:
        for name, value in zip(of, values.unflatten(1, (len(of), -1)).unbind(1), strict=True):
            found[what, name] = value

    with torch.no_grad():
        if method in ("smpr", "pfs"):
            maps = model.forward_features(images, heatmap=True)
            for what in ("init", "refine", "heatmap"):
                add(what, maps[what][0])
            found["cls",] = maps["cls"][0]
        elif method == "inspose":
            maps = model.head(model.neck(model.backbone(images)), auxiliary=True)
            for what in ("direct", "disk", "heatmap"):
                add(what, maps[what][0])
            found["cls",], found["controls",] = maps["cls"][0], maps["controls"][0]
            theta = model.head.controller(maps["controls"][0])
            last = sum(model.config.head.kpnet.sizes(len(schema))[-2:])
            found["first layers",] = theta[:, :-last]
            add("weights", theta[:, -last : -len(schema)])
            add("bias", theta[:, -len(schema) :])
        elif method == "logocap":
            maps = model.forward_features(images)
            add("heat", maps["heat"][0][:, :-1])
            found["centre",] = maps["heat"][0][:, -1]
            add("offset", maps["offset"][0])
            axes = torch.stack([torch.linspace(18, 22, 5), torch.linspace(12, 16, 5)], -1)
            add("attraction", model._attraction(maps, axes.expand(1, 1, len(schema), 5, 2))[0])
        else:
            maps = model.forward_features(images)
            add("heat", maps["heat"][0])
            limbs = tuple(f"{names[a]} {names[b]}" for a, b in model.edges)
            add("paf", maps["paf"][0], limbs)
            stacks, regressed = model.refiner(model.normalise(small_models.images(2, 32, 32)))
            for kind, scales in (("first stack", stacks[0]), ("regressed", regressed)):
                for scale, values in enumerate(scales):
                    add(f"{kind} {scale}", values)
    return found


READ_POSES = {"smpr": {"refine", "cls"}, "pfs": {"refine", "cls"}, "logocap": {"attraction"}}
READ_POSES |= {"detposenet": {"regressed 0", "regressed 1"}}
"""Outputs that a layer computes from all keypoints of the source together, so that they need all of them."""


@pytest.mark.parametrize("method", available_methods())
@pytest.mark.parametrize(("source", "target"), [(COCO17, TWELVE), (SUBSET, COCO17)], ids=["17 to 12", "12 to 17"])
def test_shared_keypoints_keep_their_outputs(method: str, source: KeypointSchema, target: KeypointSchema) -> None:
    old, new, transfer = moved(method, source, target)
    before, after = outputs(old, source, method), outputs(new, target, method)
    all_there = set(source.keypoints) <= set(target.keypoints)
    compared = set()
    for label in before.keys() & after.keys():
        if all_there or label[0] not in READ_POSES.get(method, ()):
            torch.testing.assert_close(after[label], before[label], rtol=1e-4, atol=1e-5, msg=str(label))
            compared.add(label)
    assert len(compared) >= 2 * 10
    assert {label[1] for label in compared if len(label) > 1} >= set(SHARED)
    assert transfer.partial and not set(transfer.partial) & set(transfer.copied)
    assert {*transfer.partial, *transfer.copied} == {name for name, _ in new.named_parameters()}
    weights = old.state_dict()
    whole = set(transfer.copied) - {f"{row}.{kind}" for row, _ in transfer.rows for kind in ("weight", "bias")}
    assert whole and all(torch.equal(new.get_parameter(name), weights[name]) for name in whole)


@pytest.mark.parametrize("method", available_methods())
def test_every_channel_of_a_layout_has_its_own_label(method: str) -> None:
    for schema in (COCO17, TWELVE):
        model = build(method, schema, 0)
        for layer, channels in model.keypoint_channels(schema).items():
            weight = model.get_parameter(f"{layer}.weight")
            for axis, labels in enumerate(channels):
                assert labels is None or len(labels) == len(set(labels)) == weight.shape[axis], (layer, axis)


def test_keypoints_of_other_names_are_mapped_and_the_rest_is_fresh() -> None:
    old, new, transfer = moved("smpr", COCO17, TWELVE, {"tail": "nose"})
    fresh = build("smpr", TWELVE, 0)
    tail, paw = TWELVE.keypoints.index("tail"), TWELVE.keypoints.index("paw")
    assert torch.equal(new.head.init.weight[2 * tail : 2 * tail + 2], old.head.init.weight[:2])
    assert torch.equal(new.head.init.weight[2 * paw :], fresh.head.init.weight[2 * paw :])
    assert not new.head.offset.weight[:, 2 * paw :].any()  # what the checkpoint never read disturbs nothing
    rows = dict(transfer.rows)
    assert rows["head.init"] == "22 of 24 rows copied, the rest is fresh"
    assert rows["head.offset"] == "22 of 24 inputs copied, the rest is zero"
    assert rows["backbone"].startswith("copied (") and "head.heatmap.1" in transfer.table()


def test_schemas_without_a_common_keypoint_share_all_that_does_not_depend_on_them() -> None:
    other = KeypointSchema(name="other", keypoints=("a", "b"), sigmas=(0.05, 0.05), skeleton=(("a", "b"),))
    for method in ("smpr", "logocap", "detposenet"):
        _, new, transfer = moved(method, COCO17, other)
        fresh = build(method, other, 0)
        for layer in new.keypoint_channels(other):
            if layer != "refiner.msr.body.0.0" and layer != "heat.2":
                assert torch.equal(new.get_parameter(f"{layer}.weight"), fresh.get_parameter(f"{layer}.weight")), layer
                assert dict(transfer.rows)[layer] == "fresh"
        assert transfer.copied


# ---------------------------------------------------------------------------------------------------- checkpoints


def saved(settings: dict, folder: Path, schema: str, **model: object) -> str:
    experiment = build_experiment({**settings, "schema": schema, "model": {**settings["model"], **model}})
    network = load_method("smpr").Model(experiment.model, experiment.keypoints)
    meta = Meta(experiment=experiment, step=1, position=4, metrics={}, provenance={})
    return CheckpointStore(str(folder)).save(meta, network.state_dict(), {"optimizer": {}})


def start(settings: dict, path: str, schema: str, init_map: str = "") -> tuple[nn.Module, Transfer]:
    run = {**settings["run"], "init_from": path, "init_map": init_map}
    experiment = build_experiment({**settings, "schema": schema, "run": run})
    model = load_method("smpr").Model(experiment.model, experiment.keypoints)
    return model, start_from(model, path, experiment)


def test_a_checkpoint_of_another_schema_starts_a_model(small_run: dict, tmp_path: Path) -> None:
    path = saved(small_run, tmp_path, "coco17")
    _, transfer = start(small_run, path, "crowdpose14", "nose=head")
    assert dict(transfer.rows)["head.init"] == "26 of 28 rows copied, the rest is fresh"
    same, transfer = start(small_run, path, "coco17")
    assert not transfer.rows and not transfer.partial
    assert set(transfer.copied) == {name for name, _ in same.named_parameters()}


@pytest.mark.parametrize(
    ("init_map", "message"),
    [
        ("nose=snout", r"'snout' is no keypoint of the model \(schema crowdpose14\).* It has: left_shoulder, .*neck"),
        ("snout=head", r"'snout' is no keypoint of the checkpoint \(schema coco17\)"),
        ("noze=head", "did you mean 'nose'"),
    ],
)
def test_a_map_of_unknown_keypoints_is_refused(small_run: dict, tmp_path: Path, init_map: str, message: str) -> None:
    path = saved(small_run, tmp_path, "coco17")
    with pytest.raises(CheckpointError, match=message):
        start(small_run, path, "crowdpose14", init_map)


def test_other_shapes_are_errors_that_name_both(small_run: dict, tmp_path: Path) -> None:
    head = {**small_run["model"]["head"], "channels": 32}
    path = saved(small_run, tmp_path / "wide", "coco17", head=head)
    with pytest.raises(CheckpointError, match=r"is \(32, .*schema coco17, 17.*and \(16, .*schema crowdpose14, 14"):
        start(small_run, path, "crowdpose14")
    path = saved(small_run, tmp_path / "plain", "coco17", head={**small_run["model"]["head"], "psm": False})
    with pytest.raises(CheckpointError, match=r"step-00000001 has no 'head.psm.weight'"):
        start(small_run, path, "crowdpose14")
