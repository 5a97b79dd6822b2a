"""Imported weights of InsPose compute what the authors' code computed with them."""

import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from published import FOLDER, array, assert_golden, golden, golden_levels, golden_people, inspose_weights
from torch import Tensor

from posefleet.data.schemas.shipped import COCO17
from posefleet.models.inspose.keypoint_maps import keypoint_cells, tag_losses
from posefleet.models.inspose.model import Config, Model
from posefleet.models.inspose.released import MARK, released_weights
from posefleet.models.inspose.sparse import conv_at
from posefleet.models.parts.ops.cells import map_sizes, pyramid_cells

STRIDES = (8, 16, 32, 64, 128)


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    released = released_weights(inspose_weights())
    model = Model(released.config, COCO17).eval()
    model.load_state_dict(dict(released.weights))
    yield model


@pytest.fixture(scope="module")
def maps(model: Model) -> dict[str, list[Tensor]]:
    """Outputs of the head for the golden input."""
    with torch.no_grad():
        return model.head(golden_levels("inspose"), auxiliary=True)


def test_every_weight_has_the_recorded_name_and_shape() -> None:
    released = released_weights(inspose_weights())
    recorded: dict[str, list[int]] = {}
    for entry in json.loads((FOLDER / "keys_inspose.json").read_text()):
        names, shapes = entry["posefleet"], entry["posefleet_shape"]
        recorded |= dict(zip(names, shapes, strict=True)) if isinstance(names, list) else {names: shapes}
    recorded.pop(None, None)  # type: ignore[call-overload]
    assert {name: list(value.shape) for name, value in released.weights.items()} == recorded
    assert (released.variant, released.keypoints) == ("resnet50", 17)
    assert released.config.backbone.pretrained is False and released.config.head == Config.released().head
    assert MARK in inspose_weights()


@torch.no_grad()
def test_the_backbone_and_the_pyramid(model: Model) -> None:
    rng = np.random.RandomState(5)
    images = torch.from_numpy(rng.standard_normal((1, 3, 64, 96)).astype(np.float32))
    torch.testing.assert_close(images, array("inspose", "backbone_in"))
    for i, found in enumerate(model.backbone.body(images), start=3):
        assert_golden(found, "inspose", f"backbone_c{i}")
    shapes = [(1, 256, 1, 1), (1, 512, 8, 12), (1, 1024, 4, 6), (1, 2048, 2, 3)]
    _, *levels = [torch.from_numpy(rng.standard_normal(shape).astype(np.float32)) for shape in shapes]
    for i, found in enumerate(model.neck(levels), start=3):
        assert_golden(found, "inspose", f"neck_p{i}")


@torch.no_grad()
def test_the_maps_of_the_head(model: Model, maps: dict[str, list[Tensor]]) -> None:
    for i in range(5):
        assert_golden(maps["cls"][i], "inspose", f"cls{i}")
        assert_golden(maps["direct"][i], "inspose", f"direct{i}")
    for name in ("features", "heatmap", "tags", "disk"):
        assert_golden(maps[name][0], "inspose", name)
    cells = pyramid_cells(map_sizes(maps["cls"]), STRIDES, torch.device("cpu"))
    index = torch.arange(len(cells.points))
    theta = conv_at(model.head.controller, maps["controls"], torch.zeros_like(index), index, cells)
    levels = [
        part.T.reshape(1, -1, *size)
        for part, size in zip(theta.split([h * w for h, w in cells.sizes]), cells.sizes, strict=True)
    ]
    assert_golden(levels[0][..., :4, :4], "inspose", "controller0_first4x4")
    for i in (2, 3, 4):
        assert_golden(levels[i], "inspose", f"controller{i}")


@torch.no_grad()
def test_the_losses(model: Model, maps: dict[str, list[Tensor]]) -> None:
    height, width = (int(n) for n in golden("inspose")["input_hw"])
    found = model._losses(maps, model._assign((height, width), [golden_people("inspose")]))
    names = {
        "cls": "cls",
        "kpf": "keypoint",
        "direct": "keypoint_reg",
        "heatmap": "heatmap",
        "disk": "heatmap_offset",
    }
    assert set(found) == {*names, "pull", "push"}
    for ours, theirs in names.items():
        expected = float(golden("inspose")[f"loss_{theirs}"])
        assert found[ours].item() == pytest.approx(expected, rel=1e-6, abs=5e-6), ours


@torch.no_grad()
def test_the_losses_of_tags_differ_by_one_cell_alone(model: Model, maps: dict[str, list[Tensor]]) -> None:
    """The released code reads the tag one cell above and to the left of the keypoint; ours at its own cell."""
    (tags,), padded = maps["tags"], model._assign((192, 128), [golden_people("inspose")]).people
    cells = keypoint_cells(padded.keypoints, (tags.shape[-2], tags.shape[-1]), 4)
    expected = [float(golden("inspose")[f"loss_ae_{name}"]) for name in ("pull", "push")]
    own = [loss.item() for loss in tag_losses(tags, cells, padded.labelled)]
    theirs = [loss.item() for loss in tag_losses(tags.roll((1, 1), (2, 3)), cells, padded.labelled)]
    assert theirs == pytest.approx(expected, abs=5e-6) and own != pytest.approx(expected, abs=1e-3)


@torch.no_grad()
def test_all_poses(model: Model, maps: dict[str, list[Tensor]]) -> None:
    height, width = (int(n) for n in golden("inspose")["input_hw"])
    (poses,) = model.decode(maps, (height, width))
    expected, scores = array("inspose", "det_keypoints")[..., :2], array("inspose", "det_boxes_scores")[:, 4]
    assert len(poses) == len(expected) == 100
    torch.testing.assert_close(poses.scores, scores, rtol=0, atol=1e-5)
    inside = torch.stack([expected[..., 0].clamp(0, width), expected[..., 1].clamp(0, height)], dim=-1)
    assert float((poses.keypoints - inside).abs().max()) <= 0.01
