"""Hourglasses, the coarse net and the refinement networks: sizes, counts and which loss reaches which layer."""

import pytest
import torch
from torch import nn

from posefleet.models.detposenet.coarse_net import CoarseConfig, CoarseNet
from posefleet.models.detposenet.hourglass import Hourglass, Stem, Trunk
from posefleet.models.detposenet.refinement import HourglassRefiner, PrsConfig, build_refiner, final_maps
from posefleet.models.parts.layers.backbones import BackboneConfig


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_of_the_coarse_net() -> None:
    net = CoarseNet(CoarseConfig(), 17, 19)
    counts = {name: parameters(child) for name, child in net.named_children()}
    assert counts == {"stem": 351_168, "hourglass": 2_782_208, "trunk": 280_064, "heat": 665_873, "paf": 676_646}
    assert sum(counts.values()) == 4_755_959


@pytest.mark.parametrize(("stacks", "count"), [(1, 3_430_916), (2, 6_581_064), (4, 12_881_360), (8, 25_481_952)])
def test_parameter_counts_of_the_refinement(stacks: int, count: int) -> None:
    with torch.device("meta"):
        net = HourglassRefiner(PrsConfig(stacks=stacks), 17)
    assert net.msr is not None
    assert parameters(net.msr) == 1_871_940
    assert parameters(net) - parameters(net.msr) == count


def test_a_crop_of_256_pixels_has_maps_of_four_scales_for_every_stack_and_for_the_regression() -> None:
    net = HourglassRefiner(PrsConfig(width=16, norm="group", stacks=2), 17)
    stacks, regressed = net(torch.zeros(1, 3, 256, 256))
    assert len(stacks) == 2
    for scales in (*stacks, regressed):
        assert [tuple(m.shape) for m in scales] == [(1, 17, side, side) for side in (64, 32, 16, 8)]
    assert final_maps(stacks, regressed) is regressed[0]
    assert final_maps(stacks, []) is stacks[1][0]


def test_an_image_of_512_pixels_has_coarse_maps_of_128_cells_and_features_down_to_stride_64() -> None:
    net = CoarseNet(CoarseConfig(width=16, norm="group"), 17, 19)
    maps = net(torch.zeros(1, 3, 512, 512))
    assert maps.heat.shape == (1, 17, 128, 128)
    assert maps.paf.shape == (1, 38, 128, 128)
    assert net.strides == [4, 8, 16, 32, 64]
    for features in (maps.downs, maps.ups):
        assert [f.shape[-1] for f in features] == [512 // stride for stride in net.strides]


def test_sizes_need_not_be_divisible() -> None:
    downs, ups = Hourglass(16, 3, "group")(torch.rand(1, 16, 7, 9))
    assert [tuple(u.shape[-2:]) for u in ups] == [(7, 9), (4, 5), (2, 3), (1, 2)]
    assert [d.shape for d in downs] == [u.shape for u in ups]


def test_an_hourglass_of_identities_adds_what_comes_up_to_what_was_kept() -> None:
    """A constant doubles with every level: skip and the upsampled rest are both the constant times a power of two."""
    net = Hourglass(16, 2, "group")
    for residual in (*net.skip, *net.down, *net.up, net.bottom):
        nn.init.zeros_(residual.body[-1].weight)  # the bottleneck adds nothing
    _, ups = net(torch.full((1, 16, 8, 8), 3.0))
    assert [u.unique().tolist() for u in ups] == [[9.0], [6.0], [3.0]]


def has_gradient(module: nn.Module) -> bool:
    return all(p.grad is not None and bool((p.grad != 0).any()) for p in module.parameters() if p.ndim == 4)


def backward(select: str) -> HourglassRefiner:
    """Gradients of one part of the output of a refiner with a single stack."""
    torch.manual_seed(0)
    net = HourglassRefiner(PrsConfig(width=16, depth=3, size=64, stacks=1, norm="group"), 17)
    (scales,), regressed = net(torch.rand(2, 3, 64, 64))
    chosen = {"mss": scales, "coarse": scales[1:], "msr": regressed}[select]
    sum((m - 1).square().mean() for m in chosen).backward()
    return net


def test_multi_scale_supervision_reaches_the_stem_and_every_step_up() -> None:
    net = backward("mss")
    assert has_gradient(net.stem) and has_gradient(net.hourglasses[0]) and has_gradient(net.maps)


def test_coarse_scales_alone_still_teach_the_way_down() -> None:
    net = backward("coarse")
    assert has_gradient(net.stem)
    assert has_gradient(net.hourglasses[0].down) and has_gradient(net.hourglasses[0].bottom)
    assert net.trunks[0][1][0].weight.grad is None  # the finest maps' features


def test_the_regression_teaches_the_heads_that_it_reads() -> None:
    net = backward("msr")
    assert has_gradient(net.maps) and has_gradient(net.msr) and has_gradient(net.stem)


@pytest.mark.parametrize("msr", [True, False])
def test_nothing_is_built_that_nothing_teaches(msr: bool) -> None:
    net = HourglassRefiner(PrsConfig(width=16, depth=2, size=32, norm="group", mss=False, msr=msr), 17)
    stacks, regressed = net(torch.rand(1, 3, 32, 32))
    assert [len(scales) for scales in stacks] == [1, 2 if msr else 1]
    assert len(regressed) == (2 if msr else 0)


def test_hrnet_refines_with_one_map_for_each_keypoint_and_every_parameter_learns() -> None:
    backbone = BackboneConfig(name="hrnet_w48", pretrained=False, frozen_stages=0, norm="trained")
    net = build_refiner(PrsConfig(network="hrnet_w48", size=64, backbone=backbone), 17)
    stacks, regressed = net(torch.rand(2, 3, 64, 64))
    assert [[tuple(m.shape) for m in scales] for scales in stacks] == [[(2, 17, 16, 16)]]
    assert regressed == []
    stacks[0][0].square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None] == []


def test_batch_norm_and_group_norm_are_both_there() -> None:
    for norm, kind in (("batch", nn.BatchNorm2d), ("group", nn.GroupNorm)):
        net = nn.Sequential(Stem(16, norm), Trunk(16, norm))
        norms = [m for m in net.modules() if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm))]
        assert norms and all(isinstance(m, kind) for m in norms)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 100}, "size 100 must be a multiple"),
        ({"stacks": 9}, "stacks 9"),
        ({"padding": 3.0}, "padding"),
        ({"network": "hrnet_w48", "backbone": BackboneConfig()}, "hrnet_w48, but backbone.name is 'resnet50'"),
    ],
)
def test_settings_that_contradict_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrsConfig(**settings)
