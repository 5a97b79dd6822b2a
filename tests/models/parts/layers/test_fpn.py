"""Pyramids: parameter counts of the published networks and sizes of the levels."""

import pytest
import torch

from posefleet.models.parts.layers.fpn import FPN, PAFPN


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
