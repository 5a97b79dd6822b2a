"""Names of published weights: rules that rename them, and what is said of those that have no place."""

import pytest
import timm
import torch

from posefleet.models.parts.layers.backbones import Backbone, BackboneConfig, backbone_weights
from posefleet.models.parts.layers.released import (
    backbone_name,
    differences,
    rename_weights,
    split_weights,
    weight_of,
)

ONE = torch.ones(1)


def test_the_first_rule_that_matches_a_whole_name_renames_it() -> None:
    rules = [(r"neck\.(\d)\.(.*)", r"pyramid.\1.\2"), (r"neck\.(.*)", r"other.\1")]
    assert set(rename_weights({"neck.0.bias": ONE, "neck.x": ONE}, rules)) == {"pyramid.0.bias", "other.x"}
    with pytest.raises(ValueError, match=r"^2 not expected: head, my\.neck\.0$"):
        rename_weights({"head": ONE, "neck.1.bias": ONE, "my.neck.0": ONE}, rules)
    with pytest.raises(ValueError, match=r"^1 given twice: neck.b$"):
        rename_weights({"neck.a": ONE, "neck.b": ONE}, [(r"neck\..", "one")])


def test_a_prefix_splits_weights() -> None:
    inside, others = split_weights({"backbone.a": ONE, "neck.backbone.b": ONE}, "backbone.")
    assert (list(inside), list(others)) == (["a"], ["neck.backbone.b"])
    assert weight_of(inside, "a") is ONE
    with pytest.raises(ValueError, match="1 missing: b"):
        weight_of(inside, "b")


def test_every_difference_is_named() -> None:
    assert differences({"a": ONE, "b": ONE}, {"b": ONE, "a": ONE}) == ""
    found = differences({"a": ONE, "b": ONE, "c": ONE}, {"b": torch.ones(2), "c": ONE, "d": ONE})
    assert found == "1 missing: a; 1 not expected: d; 1 of another shape: b is (2,), expected (1,)"
    many = {str(i): ONE for i in range(30)}
    assert differences({}, many).endswith("19 and 10 more") and differences({}, many).startswith(
        "30 not expected: 0, 1,"
    )


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "hrnet_w18", "hrnet_w32"])
def test_the_name_of_a_backbone_is_found_by_its_weights(name: str) -> None:
    with torch.device("meta"):
        weights = timm.create_model(name, features_only=True).state_dict()
    assert backbone_name(weights) == name


def test_another_network_is_no_backbone() -> None:
    with pytest.raises(ValueError, match=r"no ResNet and no HRNet: its stages have \[0, 0, 0, 0\] blocks"):
        backbone_name({"conv.weight": ONE})


def test_weights_of_a_backbone_compute_the_same_folded_and_unfolded() -> None:
    torch.manual_seed(0)
    config = BackboneConfig(name="test_resnet", pretrained=False, norm="trained")
    plain = timm.create_model("test_resnet", features_only=True, out_indices=(2, 3, 4)).eval()
    for buffer in plain.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    backbone = Backbone(config).eval()
    backbone.load_state_dict(backbone_weights(config, plain.state_dict()))
    images = torch.rand(1, 3, 64, 64) * 255
    with torch.no_grad():
        expected = plain((images - backbone.mean) / backbone.std)
        for found, wanted in zip(backbone(images), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    first, *others = plain.state_dict()
    with pytest.raises(ValueError, match=f"these are not the weights of test_resnet: 1 missing: {first}"):
        backbone_weights(config, {name: plain.state_dict()[name] for name in others})
