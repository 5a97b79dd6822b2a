"""Pyramids: parameter counts of the published networks and sizes of the levels."""

import pytest
import torch
import torch.nn.functional as F

from posefleet.models.parts.layers.fpn import FPN, HRFPN, PAFPN


@pytest.mark.parametrize(
    ("neck", "channels", "parameters"),
    [
        (FPN, (512, 1024, 2048), 3_868_672),
        (PAFPN, (512, 1024, 2048), 6_228_992),
        (FPN, (64, 128, 256), 3_065_856),
        (PAFPN, (64, 128, 256), 5_426_176),
    ],
)
def test_parameter_counts(neck: type[FPN], channels: tuple[int, ...], parameters: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in neck(channels).parameters()) == parameters


@pytest.mark.parametrize("neck", [FPN, PAFPN])
def test_levels_of_an_800_by_1088_image(neck: type[FPN]) -> None:
    maps = [torch.zeros(1, 4, 800 // s, 1088 // s) for s in (8, 16, 32)]
    levels = neck((4, 4, 4), channels=4)(maps)
    sizes = [tuple(level.shape[-2:]) for level in levels]
    assert sizes == [(100, 136), (50, 68), (25, 34), (13, 17), (7, 9)]
    assert sum(h * w for h, w in sizes) == 18_134


def test_p7_reads_the_rectified_p6() -> None:
    neck = FPN((2, 2, 2), channels=2)
    for layer in neck.coarser:
        torch.nn.init.constant_(layer.weight, 0.1)
        torch.nn.init.constant_(layer.bias, 0.0)
    torch.nn.init.constant_(neck.coarser[0].bias, -1e6)
    levels = neck([torch.rand(1, 2, 32 // s, 32 // s) for s in (1, 2, 4)])
    assert (levels[3] < 0).all()
    assert (levels[4] == 0).all()


def test_bottom_up_path_reads_the_sum_before_its_output_convolution() -> None:
    neck = PAFPN((1, 1, 1), channels=1)
    for layer in neck.modules():
        if isinstance(layer, torch.nn.Conv2d):  # every 3x3 passes its centre on, the bottom-up outputs give zero
            torch.nn.init.zeros_(layer.weight)
            layer.weight.data[..., layer.kernel_size[0] // 2, layer.kernel_size[0] // 2] = 1
    torch.nn.init.zeros_(neck.up_output[0].weight)
    n3, n4, n5 = neck([torch.ones(1, 1, 8, 8), torch.ones(1, 1, 4, 4), torch.ones(1, 1, 2, 2)])[:3]
    assert n3[0, 0, 0, 0] == 3  # C3 + C4 + C5
    assert n4[0, 0, 0, 0] == 0
    assert n5[0, 0, 0, 0] == 1 + (2 + 3)  # P5 plus the sum of level 4, not its zero output


def test_every_convolution_can_be_followed_by_a_relu() -> None:
    """By hand: convolutions that pass on the centre of their kernel."""
    for neck in (FPN((1, 1, 1), 1, "relu"), PAFPN((1, 1, 1), 1, "relu")):
        for layer in neck.modules():
            if isinstance(layer, torch.nn.Conv2d):
                torch.nn.init.zeros_(layer.weight)
                layer.weight.data[..., layer.kernel_size[0] // 2, layer.kernel_size[0] // 2] = 1
        maps = [torch.full((1, 1, side, side), value) for side, value in ((4, -5.0), (2, 2.0), (1, -3.0))]
        p3, p4, p5, p6, p7 = (level[0, 0, 0, 0].item() for level in neck(maps))
        # Laterals 0, 2, 0: without the ReLU they would add up to -6, -1, -3.
        assert (p3, p4, p5) == ((2, 2, 0) if type(neck) is FPN else (2, 4, 4))
        assert (p6, p7) == (p5, p5)
        neck.coarser[1].bias.data.fill_(-100)
        assert (neck(maps)[4] == 0).all()


def test_levels_of_hrfpn_are_averages_of_the_fused_branches() -> None:
    torch.manual_seed(0)
    neck = HRFPN((2, 3, 4, 5), channels=6)
    branches = [torch.randn(2, c, 800 // s, 1088 // s) for c, s in zip((2, 3, 4, 5), (4, 8, 16, 32), strict=True)]
    whole = [branches[0], *(F.interpolate(b, branches[0].shape[-2:], mode="bilinear") for b in branches[1:])]
    fused = neck.reduce.conv(torch.cat(whole, dim=1))
    levels = neck(branches)
    # Whole windows: 200 rows of stride 4 hold 12 windows of 16, where FPN has ceil(800 / 128) = 7 rows.
    assert [tuple(level.shape[-2:]) for level in levels] == [(100, 136), (50, 68), (25, 34), (13, 17), (6, 9)]
    for i, (level, output) in enumerate(zip(levels, neck.output, strict=True)):
        averages = F.avg_pool2d(fused, 2**i, 2**i)
        expected = F.conv2d(averages, output.weight, output.bias, stride=2, padding=1)
        torch.testing.assert_close(level, expected, atol=1e-4, rtol=1e-4)


def test_hrfpn_takes_the_smallest_images() -> None:
    neck = HRFPN((1, 1, 1, 1), channels=1)
    levels = neck([torch.ones(1, 1, 32 // s, 64 // s) for s in (4, 8, 16, 32)])
    assert [tuple(level.shape[-2:]) for level in levels] == [(4, 8), (2, 4), (1, 2), (1, 1), (1, 1)]


@torch.no_grad()
def test_rectified_hrfpn_has_no_negative_values() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(1, 4, 64 // s, 64 // s) for s in (4, 8, 16, 32)]
    assert min(float(level.min()) for level in HRFPN((4,) * 4, channels=4)(maps)) < 0
    assert min(float(level.min()) for level in HRFPN((4,) * 4, 4, "relu")(maps)) == 0


def test_parameters_of_hrfpn_on_hrnet_w32() -> None:
    with torch.device("meta"):
        neck = HRFPN((32, 64, 128, 256))
    assert sum(p.numel() for p in neck.parameters()) == (480 + 1) * 256 + 5 * (9 * 256 + 1) * 256
