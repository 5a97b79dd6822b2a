"""Imported weights of SMPR compute what the authors' code computed with them."""

import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from published import FOLDER, array, assert_golden, golden, golden_levels, golden_people, smpr_weights
from torch import Tensor

from posefleet.data.schemas.shipped import COCO17
from posefleet.data.structures import Frames
from posefleet.models.parts.layers.backbones import Backbone
from posefleet.models.parts.layers.released import differences
from posefleet.models.smpr.config import Config
from posefleet.models.smpr.model import Model
from posefleet.models.smpr.released import MARK, released_weights

STRIDES = (8, 16, 32, 64, 128)
HEIGHT, WIDTH = (int(n) for n in golden("smpr")["input_hw"])


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    released = released_weights(smpr_weights())
    model = Model(released.config, COCO17).eval()
    model.load_state_dict(dict(released.weights))
    yield model


@pytest.fixture(scope="module")
def maps(model: Model) -> dict[str, list[Tensor]]:
    """Outputs of the head for the golden input."""
    with torch.no_grad():
        return model.head(golden_levels("smpr"), heatmap=True)


def test_every_weight_has_the_recorded_name_and_shape() -> None:
    released = released_weights(smpr_weights())
    recorded: dict[str, list[int]] = {}
    for entry in json.loads((FOLDER / "keys_smpr.json").read_text()):
        names, shapes = entry["posefleet"], entry["posefleet_shape"]
        for name, shape in zip(names, shapes, strict=True) if isinstance(names, list) else [(names, shapes)]:
            if name is not None:
                recorded[name.partition("[")[0]] = shape  # head.init_scale[0]: an element of a vector
    assert {name: list(value.shape) for name, value in released.weights.items()} == recorded
    assert (released.variant, released.keypoints, released.config) == ("resnet50", 17, Config.released())
    assert MARK in smpr_weights()


@torch.no_grad()
def test_the_backbone_and_the_pyramid(model: Model) -> None:
    rng = np.random.RandomState(5)
    images = torch.from_numpy(rng.standard_normal((1, 3, 64, 96)).astype(np.float32))
    torch.testing.assert_close(images, array("smpr", "backbone_in"))
    for i, found in enumerate(model.backbone.body(images), start=3):
        assert_golden(found, "smpr", f"backbone_c{i}")
    shapes = [(1, 256, 1, 1), (1, 512, 8, 12), (1, 1024, 4, 6), (1, 2048, 2, 3)]
    _, *levels = [torch.from_numpy(rng.standard_normal(shape).astype(np.float32)) for shape in shapes]
    for i, found in enumerate(model.neck(levels), start=3):
        assert_golden(found, "smpr", f"neck_p{i}")


@torch.no_grad()
def test_the_maps_of_the_head(maps: dict[str, list[Tensor]]) -> None:
    for name in ("cls", "init", "refine", "psm"):
        for i, found in enumerate(maps[name]):
            assert_golden(found, "smpr", f"{name}{i}")
    assert_golden(maps["heatmap"][0], "smpr", "heatmap")


LOSSES = {
    "cls": "cls",
    "heatmap": "heatmap",
    "init": "kpt_init",
    "refine": "kpt_refine",
    "psm": "rescore",
}
"""Our name of a loss -> the authors'."""


@torch.no_grad()
def test_the_losses(model: Model, maps: dict[str, list[Tensor]]) -> None:
    found = model.losses(maps, [golden_people("smpr")])
    assert set(found) == set(LOSSES)
    for ours, theirs in LOSSES.items():
        expected = float(golden("smpr")[f"loss_{theirs}"])
        assert found[ours].item() == pytest.approx(expected, rel=1e-6, abs=5e-6), ours


@torch.no_grad()
def test_losses_differ_where_the_best_of_the_assigned_cells_are_kept(maps: dict[str, list[Tensor]]) -> None:
    config = Config.released()
    own = replace(config, assign=replace(config.assign, keep_best="assigned"))
    with torch.device("meta"):
        other = Model(own, COCO17)
    other.sigmas, other.minimum_counts = torch.tensor(COCO17.sigmas), torch.tensor([1.0, 1.0, 1e-6, 1e-6, 1.0, 0.0])
    found = other.losses(maps, [golden_people("smpr")])
    assert found["cls"].item() == pytest.approx(4.85, abs=0.01)
    assert found["refine"].item() == pytest.approx(3.49, abs=0.01)
    assert found["psm"].item() == pytest.approx(0.541, abs=0.001)


@torch.no_grad()
def test_all_poses_at_the_same_rank(model: Model, maps: dict[str, list[Tensor]]) -> None:
    frames = Frames.whole(1, (HEIGHT, WIDTH))
    (poses,) = model.suppress(model.decode(maps, (HEIGHT, WIDTH), frames), frames)
    expected, scores = array("smpr", "det_keypoints")[:, :34].unflatten(1, (17, 2)), array("smpr", "det_boxes_scores")
    assert len(poses) == len(expected) == 20
    torch.testing.assert_close(poses.scores, scores[:, 4], rtol=0, atol=1e-5)
    torch.testing.assert_close(poses.boxes, scores[:, :4], rtol=0, atol=0.01)
    assert float((poses.keypoints - expected).abs().max()) <= 0.01


def hrnet_weights(*, numbered: str = "fpn_convs.{}.conv") -> dict[str, Tensor]:
    """Empty weights by the authors' names: the head of the ResNet model, HRNet-W32, and HRFPN."""
    others = {n: w for n, w in smpr_weights().items() if n.startswith("bbox_head.")}
    import timm

    body = timm.create_model("hrnet_w32", features_only=True, out_indices=(1, 2, 3, 4), feature_location="")
    others |= {f"backbone.{name}": value for name, value in body.state_dict().items()}
    neck = {"reduction_conv.conv": torch.zeros(256, 480, 1, 1)}
    neck |= {numbered.format(i): torch.full((256, 256, 3, 3), float(i)) for i in range(5)}
    others |= {f"neck.{name}.weight": value for name, value in neck.items()}
    return others | {f"neck.{name}.bias": torch.zeros(256) for name in neck}


@pytest.mark.parametrize("numbered", ["fpn_convs.{}.conv", "fpn_conv.{}"])
def test_weights_of_hrnet_fit_its_model(numbered: str) -> None:
    released = released_weights(hrnet_weights(numbered=numbered))
    assert (released.variant, released.config.neck) == ("hrnet_w32", "hrfpn")
    with torch.device("meta"):
        model = Model(released.config, COCO17)
    assert differences(model.state_dict(), released.weights) == ""
    assert float(released.weights["neck.output.3.weight"][0, 0, 0, 0]) == 3
    assert isinstance(model.backbone, Backbone) and model.backbone.strides == [4, 8, 16, 32]


def test_what_does_not_fit_is_named() -> None:
    weights = smpr_weights()
    with pytest.raises(ValueError, match=r"1 not expected: bbox_head\.centerness\.weight"):
        released_weights({**weights, "bbox_head.centerness.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"1 missing: head\.refine_scale\.4"):
        released_weights({n: w for n, w in weights.items() if n != "bbox_head.scales_2.4.scale"})
    with pytest.raises(ValueError, match=r"layer2\.1\.conv2\.weight"):
        released_weights({n: w for n, w in weights.items() if n != "backbone.layer2.1.conv2.weight"})
    deeper = {f"backbone.layer3.{i}.conv3.weight": torch.zeros(1) for i in range(6, 23)}
    with pytest.raises(ValueError, match="the backbone is resnet101; SMPR's authors published resnet50, hrnet_w32"):
        released_weights({**weights, **deeper})
