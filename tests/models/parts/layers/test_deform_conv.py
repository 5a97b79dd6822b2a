"""Deformable convolution: order and unit of offsets, and implementations that must agree."""

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F

from posefleet.models.parts.layers.deform_conv import (
    WIDE,
    DeformConv2d,
    deform_conv2d,
    deform_levels,
    read_keypoints,
    subtract_base_grid,
)

KERNELS = ("grid_sample", "gather", "torchvision")


def inputs(groups: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 8, 6, 7, generator=random)
    offset = 2 * torch.randn(2, groups * 18, 6, 7, generator=random)
    return x, offset, torch.randn(5, 8, 3, 3, generator=random)


@pytest.mark.parametrize("kernel", KERNELS)
def test_zero_offsets_are_a_plain_convolution(kernel: str) -> None:
    x, offset, weight = inputs(4)
    out = deform_conv2d(x, torch.zeros_like(offset), weight, kernel=kernel)
    torch.testing.assert_close(out, F.conv2d(x, weight, padding=1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("channel", "shift"), [(8, (1, 0)), (9, (0, 1))])
def test_channels_8_and_9_move_the_centre_tap_down_and_right(kernel: str, channel: int, shift: tuple[int, int]) -> None:
    x = torch.arange(42.0).view(1, 1, 6, 7)
    centre = torch.zeros(1, 1, 3, 3)
    centre[0, 0, 1, 1] = 1
    offset = torch.zeros(1, 18, 6, 7)
    offset[:, channel] = 1
    out = deform_conv2d(x, offset, centre, kernel=kernel)
    expected = F.pad(x, (0, shift[1], 0, shift[0]))[..., shift[0] :, shift[1] :]
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_all_implementations_give_the_same_values_and_gradients(groups: int) -> None:
    results = []
    for kernel in KERNELS:
        leaves = [t.requires_grad_() for t in inputs(groups)]
        out = deform_conv2d(*leaves, kernel=kernel)
        out.square().sum().backward()
        results.append([out, *(leaf.grad for leaf in leaves)])
    for ours, *others in zip(*results, strict=True):
        for theirs in others:
            torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_memory_layout_does_not_matter(kernel: str) -> None:
    x, offset, weight = inputs(2)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (x, offset, weight)]
    torch.testing.assert_close(deform_conv2d(*last, kernel=kernel), deform_conv2d(x, offset, weight, kernel=kernel))


@pytest.mark.parametrize("kernel", KERNELS)
def test_taps_outside_the_map_read_nothing_however_far(kernel: str) -> None:
    x, offset, weight = inputs(1)
    for far in (-0.5e9, 1e4, 3e38):
        assert deform_conv2d(x, torch.full_like(offset, far), weight, kernel=kernel).count_nonzero() == 0


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_gathering_survives_a_network_that_diverged(value: float) -> None:
    x, offset, weight = inputs(1)
    assert deform_conv2d(x, torch.full_like(offset, value), weight, kernel="gather").shape == (2, 5, 6, 7)


def test_a_prediction_from_wide_maps_gathers_what_training_samples() -> None:
    module = DeformConv2d(WIDE, WIDE)
    x, offset = torch.randn(1, WIDE, 6, 7), torch.randn(1, 18, 6, 7)
    trained = module(x, offset)
    with torch.no_grad(), patch("posefleet.models.parts.layers.deform_conv._sample_taps") as sampled:
        predicted = module(x, offset)
    assert not sampled.called
    torch.testing.assert_close(predicted, trained, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("together", [True, False])
def test_levels_that_are_gathered_together_do_not_read_from_each_other(
    together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = torch.Generator().manual_seed(0)
    sizes = [(6, 7), (3, 4), (1, 1)]
    pyramids = [[torch.randn(2, 8, *size, generator=random) for size in sizes] for _ in range(2)]
    offsets = [4 * torch.randn(2, 36, *size, generator=random) for size in sizes]
    weights = [torch.randn(5, 8, 3, 3, generator=random) for _ in range(2)]
    if not together:
        monkeypatch.setattr("posefleet.models.parts.layers.deform_conv._TOGETHER", 1)
    found = deform_levels(pyramids, offsets, weights)
    for levels, pyramid, weight in zip(found, pyramids, weights, strict=True):
        for level, x, offset in zip(levels, pyramid, offsets, strict=True):
            expected = deform_conv2d(x, offset, weight, kernel="torchvision")
            torch.testing.assert_close(level, expected, atol=1e-4, rtol=1e-4)


def test_positions_relative_to_the_centre_become_offsets() -> None:
    x, offset, weight = inputs(2)
    at_centre = subtract_base_grid(torch.zeros_like(offset))
    out = deform_conv2d(x, at_centre, weight, kernel="torchvision")
    torch.testing.assert_close(out, F.conv2d(x, weight.sum((2, 3), keepdim=True)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_taps_can_start_on_the_keypoints(kernel: str) -> None:
    """A map that says where it is, read by 18 taps of two groups: keypoints 0..16, and the 18th is keypoint 0 again."""
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(7.0), indexing="ij")
    keypoints = torch.rand(17, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([6.0, 5.0])
    pose = torch.stack([keypoints[:, 0, None, None] - x, keypoints[:, 1, None, None] - y], dim=1).view(1, 34, 6, 7)
    layer = torch.nn.Conv2d(34, 36, 1, bias=False)
    read_keypoints(layer, 17)
    reader = torch.zeros(36, 4, 3, 3)  # output 2i and 2i + 1: x and y under tap i
    for tap in range(18):
        for axis in range(2):
            reader[2 * tap + axis, 2 * (tap // 9) + axis].view(9)[tap % 9] = 1
    features = torch.stack([x, y, x, y])[None]
    seen = deform_conv2d(features, subtract_base_grid(layer(pose)), reader, kernel=kernel)
    expected = torch.cat([keypoints, keypoints[:1]]).view(1, 36, 1, 1).expand(1, 36, 6, 7)
    torch.testing.assert_close(seen, expected, atol=1e-4, rtol=0)


def test_channels_that_do_not_split_into_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="6 channels cannot be split into 4"):
        DeformConv2d(6, 6, offset_groups=4)


def test_module_runs_under_bfloat16_autocast() -> None:
    x, offset, _ = inputs(2)
    module = DeformConv2d(8, 5, offset_groups=2)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x, offset)
    torch.testing.assert_close(out.float(), module(x, offset), atol=0.05, rtol=0.05)
