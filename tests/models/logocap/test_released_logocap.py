"""Imported weights of LOGO-CAP compute what the authors' code computed with them."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from published import FOLDER, array, assert_golden, logocap_weights
from torch import Tensor

from posefleet.data.schemas.shipped import COCO17
from posefleet.models.logocap import model as network
from posefleet.models.logocap.centres import rough_poses
from posefleet.models.logocap.expansion_maps import candidate_axes, candidate_mesh
from posefleet.models.logocap.model import Config, Maps, Model
from posefleet.models.logocap.released import MARK, released_weights
from posefleet.platform.config.loading import build_experiment, read_yaml

CONFIGS = Path(__file__).resolve().parents[3] / "jobs" / "configs"
SIZE = (128, 160)


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    released = released_weights(logocap_weights())
    model = Model(released.config, COCO17).eval()
    model.load_state_dict(dict(released.weights))
    yield model


@pytest.fixture(scope="module")
def maps(model: Model) -> Maps:
    with torch.no_grad():
        return model.forward_features(images())


def images() -> Tensor:
    return array("logocap", "image").permute(2, 0, 1)[None]


def with_decoding(model: Model, **changes: object) -> Model:
    """The same network that decodes otherwise; it shares its modules."""
    other = Model.__new__(Model)
    other.__dict__ = dict(model.__dict__)
    other.config = replace(model.config, decode=replace(model.config.decode, **changes))
    return other


@pytest.mark.parametrize("backbone", ["hrnet_w32", "hrnet_w48"])
def test_every_weight_has_the_recorded_name_and_values(backbone: str) -> None:
    weights = logocap_weights(backbone)
    released = released_weights(weights)
    recorded = json.loads((FOLDER / "keys_logocap.json").read_text())["models"][backbone.replace("_", "-")]
    assert {entry["posefleet"] for entry in recorded} == set(released.weights) and len(released.weights) == 1871
    for entry in recorded:
        found = released.weights[entry["posefleet"]]
        if "rows" in entry:
            found = found[slice(*entry["rows"])]
        assert torch.equal(found.reshape(entry["shape"]), weights[entry["key"]]), entry["key"]
    assert (released.variant, released.keypoints) == (backbone, 17)
    assert released.config.backbone.pretrained is False and MARK in weights
    side = released.settings.get("data.resize.short_side", 512)
    assert side == {"hrnet_w32": 512, "hrnet_w48": 640}[backbone]


def test_weights_that_do_not_fit_are_named() -> None:
    weights = logocap_weights()

    def refused(message: str, without: str = "", **changes: Tensor) -> None:
        with pytest.raises(ValueError, match=message):
            released_weights({name: value for name, value in (weights | changes).items() if name != without})

    refused("1 missing: transition_reg.0.weight", without="transition_reg.0.weight")
    refused(r"1 missing: heat\.2\.bias", without="final_layer_cls.bias")
    refused("1 missing: stage3.0.branches.0.0.bn1.bias", without="backbone.stage3.0.branches.0.0.bn1.bias")
    refused("1 not expected: rescore.weight", **{"rescore.weight": torch.zeros(1)})
    refused("1 not expected: joints_mlp.4.weight", **{"joints_mlp.4.weight": torch.zeros(1)})
    refused("28 channels; 17 keypoints have 34", **{"final_layer_reg.weight": torch.zeros(28, 256, 1, 1)})
    refused("1 of another shape: message_passing.0.weight", **{"joints_mlp.0.weight": torch.zeros(512, 1088, 1, 1)})
    refused("the backbone is hrnet_w18", **{"backbone.stage2.0.branches.0.0.conv1.weight": torch.zeros(18, 18, 3, 3)})
    with pytest.raises(ValueError, match="no ResNet and no HRNet"):
        released_weights({"bbox_head.conv_cls.weight": torch.zeros(1, 1, 3, 3)})


@pytest.mark.parametrize("preset", ["released", "paper"])
def test_presets_are_those_of_the_shipped_configs(preset: str) -> None:
    experiment = build_experiment(read_yaml(CONFIGS / f"logocap_{preset}.yaml"))
    assert experiment.model == getattr(Config, preset)()
    default = build_experiment(read_yaml(CONFIGS / "logocap.yaml")).model
    assert default == replace(Config(), decode=replace(Config().decode, flip_average=True))


@torch.no_grad()
def test_the_backbone_and_the_maps(model: Model, maps: Maps) -> None:
    levels = model.backbone(images())
    up = [
        torch.nn.functional.interpolate(level, size=levels[0].shape[-2:], mode="bilinear", align_corners=False)
        for level in levels
    ]
    features = torch.cat(up, dim=1)[0]
    assert_golden(features[::16, ::4, ::4], "logocap", "features_sub")
    assert_golden(features.double().sum((1, 2)), "logocap", "features_sum_by_channel")
    assert_golden(maps["heat"][0][0], "logocap", "heat")
    assert_golden(maps["offset"][0][0], "logocap", "offset")
    assert_golden(maps["embedding"][0][0, ::8], "logocap", "embedding_sub")


@torch.no_grad()
def test_centres_candidates_and_attraction_maps(model: Model, maps: Maps) -> None:
    centres = model._centres(maps["heat"][0])
    expected = array("logocap", "centres_xy_score")
    assert torch.equal(centres.points[0], expected[:, :2])
    torch.testing.assert_close(centres.scores[0], expected[:, 2], rtol=1e-4, atol=1e-6)
    rough = rough_poses(model._offsets_at(maps, centres.cells), centres, 4)
    torch.testing.assert_close(rough[0], array("logocap", "rough"), rtol=0, atol=0.01)
    axes = candidate_axes(rough, model.sigmas, 11)
    mesh = candidate_mesh(axes)[0, :3].permute(0, 2, 3, 1, 4)
    torch.testing.assert_close(mesh, array("logocap", "kem_first3"), rtol=0, atol=0.01)
    kams = model._attraction(maps, axes)[0, :6]
    torch.testing.assert_close(kams, array("logocap", "kam_first6"), rtol=0, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("flip", [False, True])
def test_all_poses(model: Model, flip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the two best cells of a window are equal but for rounding, either may be the keypoint: a few of 510 are."""
    windows: list[Tensor] = []
    best = network.top_two
    monkeypatch.setattr(network, "top_two", lambda values, weight: (windows.append(values), best(values, weight))[1])
    decoder = with_decoding(model, flip_average=flip)
    (found,) = decoder.candidates(images())
    poses, scores = (array("logocap", f"flip_{name}" if flip else name) for name in ("poses", "scores"))
    assert len(found) == len(poses) == 30
    first, second = torch.cat(windows, dim=1)[0].flatten(-2).topk(2).values.unbind(-1)
    tied = first - second < 3e-5 * first
    off = (found.keypoints - poses[..., :2]).abs().amax(-1)
    assert float(off[~tied].max()) <= 0.01
    assert tied.sum() <= 16 and (off[tied] <= 1).all() and (off > 0.01).sum() <= 2
    torch.testing.assert_close(found.keypoint_scores, poses[..., 2].clamp(0, 1), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.scores, scores, rtol=1e-3, atol=1e-5)
    if not flip:
        (kept,) = decoder.suppress([found])
        expected = found[array("logocap", "nms_kept").sort().values]
        expected = expected[expected.scores.argsort(descending=True, stable=True)]
        torch.testing.assert_close(kept.keypoints, expected.keypoints)
        torch.testing.assert_close(kept.scores, expected.scores)
