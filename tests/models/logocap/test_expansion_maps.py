"""Expansion maps: meshes, similarities, sampling, convolution and the two best cells, by hand and by brute force."""

import math

import pytest
import torch
import torch.nn.functional as F

from posefleet.data.schemas.shipped import COCO17
from posefleet.models.logocap.expansion_maps import (
    axis_similarity,
    candidate_axes,
    candidate_mesh,
    convolve_windows,
    mesh_span,
    outer,
    sample_candidates,
    sample_windows,
    top_two,
    window_axes,
)

K = len(COCO17)
SIGMAS = torch.tensor(COCO17.sigmas)
ORIGIN = torch.zeros(1, K, 2)
RANGES = {
    "nose": 5.2, "left_eye": 5, "left_ear": 7, "left_shoulder": 15.8, "left_elbow": 14.4, "left_wrist": 12.4,
    "left_hip": 21.4, "left_knee": 17.4, "left_ankle": 17.8,
}  # fmt: skip


def test_a_mesh_stretches_with_the_deviation_of_its_keypoint() -> None:
    mesh = candidate_mesh(candidate_axes(ORIGIN, SIGMAS, 11))[0]  # (K, 11, 11, 2)
    for name, reach in RANGES.items():
        k = COCO17.keypoints.index(name)
        assert mesh[k, 0, 10].tolist() == pytest.approx([reach, -reach], abs=1e-4)  # x along columns, y along rows
        assert mesh[k, 10, 0].tolist() == pytest.approx([-reach, reach], abs=1e-4)
    assert (mesh[:, 5, 5] == 0).all()
    assert (mesh[..., 0].diff(dim=1) == 0).all() and (mesh[..., 0].diff(dim=2) > 0).all()
    half = candidate_mesh(candidate_axes(ORIGIN, SIGMAS, 11, step=0.5))[0]
    torch.testing.assert_close(half, mesh / 2)


def test_similarity_along_axes_multiplies_to_that_of_candidates() -> None:
    keypoints = torch.randn(2, K, 2, generator=torch.Generator().manual_seed(0)) * 8
    areas = torch.tensor([900.0, 10_000.0])
    axes = candidate_axes(torch.zeros(2, K, 2), SIGMAS, 7)
    distance2 = (candidate_mesh(axes) - keypoints[:, :, None, None]).square().sum(-1)
    expected = torch.exp(-distance2 / (2 * areas[:, None, None, None] * (2 * SIGMAS).square()[:, None, None]))
    torch.testing.assert_close(outer(axis_similarity(axes, keypoints, areas, SIGMAS)), expected)


def test_a_hip_one_step_off_has_its_best_candidate_beside_the_centre() -> None:
    hip = COCO17.keypoints.index("left_hip")
    poses = ORIGIN.clone()
    poses[0, hip, 0] += 4.28
    axes = candidate_axes(poses, SIGMAS, 11)
    terms = outer(axis_similarity(axes, ORIGIN, torch.tensor([10_000.0]), SIGMAS))[0, hip]
    assert divmod(int(terms.argmax()), 11) == (5, 4)
    assert terms.max().item() == pytest.approx(1, abs=1e-6)
    assert (terms.max() - terms[5, 5]).item() == pytest.approx(1 - math.exp(-(4.28**2) / (2 * 10_000 * 0.214**2)))
    assert (terms.max() - terms[5, 5]).item() == pytest.approx(0.019801, abs=1e-6)


# ------------------------------------------------------------------------------------------------ sampling


def test_candidates_on_a_ramp_read_their_position_and_clamp_outside() -> None:
    height, width = 6, 9
    ramp = torch.arange(width).float().expand(1, 1, height, width)
    poses = torch.tensor([[[[13.0, 9.0]], [[-40.0, 5.0]], [[100.0, 5.0]]]])  # one keypoint, three instances
    axes = candidate_axes(poses, torch.ones(1), 3)
    values = sample_candidates(ramp, axes, 4, 3)
    assert values.shape == (3, 1, 3, 3)
    torch.testing.assert_close(values[0, 0], torch.tensor([3.0, 3.25, 3.5]).expand(3, 3))
    assert (values[1] == 0).all() and (values[2] == width - 1).all()


@pytest.mark.parametrize(("size", "step", "cells"), [(11, 1.0, (40, 30)), (7, 0.5, (40, 30)), (11, 1.0, (9, 11))])
def test_gathered_cells_give_the_candidates_of_training(size: int, step: float, cells: tuple[int, int]) -> None:
    """Meshes of all widths, inside, across the border, and wider than the map."""
    random = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, *cells, generator=random)
    poses = torch.rand(2, 6, K, 2, generator=random) * torch.tensor([4.0 * cells[1], 4.0 * cells[0]]) * 1.4 - 20
    axes = candidate_axes(poses, SIGMAS, size, step)
    span = mesh_span(COCO17.sigmas, size, step, 4)
    gathered = sample_candidates(features, axes, 4, span)
    trained = sample_candidates(features.requires_grad_(), axes, 4, span)
    assert trained.requires_grad and gathered.shape == (12, K * 5, size, size)
    torch.testing.assert_close(gathered, trained.detach(), atol=1e-5, rtol=1e-4)


def test_candidates_come_keypoint_after_keypoint() -> None:
    features = torch.tensor([10.0, 20.0]).view(1, 2, 1, 1) + torch.arange(8).float().view(1, 1, 1, 8).expand(1, 2, 8, 8)
    poses = torch.tensor([[[[4.0, 0.0], [8.0, 0.0], [12.0, 0.0]]]])
    values = sample_candidates(features, candidate_axes(poses, torch.ones(3), 1), 4, 2)
    torch.testing.assert_close(values.flatten(), torch.tensor([11.0, 21, 12, 22, 13, 23]))


def upsampled_windows(maps: torch.Tensor, poses: torch.Tensor, window: int, shift: float, sigma: float) -> torch.Tensor:
    """Windows by upsampling and grid_sample."""
    up = F.interpolate(maps, scale_factor=4.0, mode="bilinear", align_corners=False)
    axes = window_axes(poses + shift, window)  # (B, T, K, W, 2)
    batch, instances, keypoints = poses.shape[:3]
    size = torch.tensor([up.shape[-1] - 1, up.shape[-2] - 1])
    grid = candidate_mesh(axes / size * 2 - 1).transpose(1, 2).reshape(batch * keypoints, instances * window, window, 2)
    values = F.grid_sample(up.flatten(0, 1)[:, None], grid, padding_mode="border", align_corners=True)
    values = values.view(batch, keypoints, instances, window, window).transpose(1, 2)
    d = torch.arange(window) - window // 2
    return values * torch.exp(-(d[:, None].square() + d.square()) / (2 * sigma**2))


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_windows_equal_sampling_of_the_upsampled_map(shift: float) -> None:
    random = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 8, 12, generator=random)
    poses = torch.rand(2, 4, 3, 2, generator=random) * torch.tensor([60.0, 44.0]) - 6  # some near and past the border
    found = sample_windows(maps, poses, 13, 4, shift=shift, sigma=2.0)
    torch.testing.assert_close(found, upsampled_windows(maps, poses, 13, shift, 2.0), atol=1e-5, rtol=1e-4)


def released_sampling(maps: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Values (C, ...) of maps (C, h, w) as the released code reads them, from its four neighbours and their weights."""
    value = torch.zeros(len(maps), *x.shape)
    corners = []
    for position, cells in ((x, maps.shape[2]), (y, maps.shape[1])):
        low = position.floor().clamp(0, cells - 1)
        high = (low + 1).clamp(max=cells - 1)
        corners.append([(low.long(), (high - position).clamp(0, 1)), (high.long(), (position - low).clamp(0, 1))])
    for column, across in corners[0]:
        for row, down in corners[1]:
            value += maps[:, row, column] * across * down
    return value


def test_values_fade_at_the_right_and_lower_border_as_in_the_released_code() -> None:
    random = torch.Generator().manual_seed(0)
    maps = torch.rand(1, 2, 8, 12, generator=random)
    poses = torch.rand(1, 6, 2, 2, generator=random) * torch.tensor([60.0, 44.0]) - 6
    axes = candidate_axes(poses, torch.tensor([0.1, 0.2]), 5, step=1.5)
    mesh = candidate_mesh(axes)[0]  # (6, 2, 5, 5, 2)
    expected = released_sampling(maps[0], mesh[..., 0] / 4, mesh[..., 1] / 4)  # (2, 6, 2, 5, 5)
    span = mesh_span((0.1, 0.2), 5, 1.5, 4)
    for trained in (False, True):
        found = sample_candidates(maps.requires_grad_(trained), axes, 4, span, fade=True).detach()
        found = found.reshape(6, 2, 2, 5, 5)
        torch.testing.assert_close(found, expected.permute(1, 2, 0, 3, 4), atol=1e-5, rtol=1e-4)
    maps = maps.detach()
    assert not torch.allclose(found, sample_candidates(maps, axes, 4, span).reshape(6, 2, 2, 5, 5), atol=1e-2)

    up = F.interpolate(maps, scale_factor=4.0, mode="bilinear", align_corners=False)[0]
    window = candidate_mesh(window_axes(poses, 13))[0]  # (6, 2, 13, 13, 2)
    both = torch.stack([released_sampling(up, w[..., 0], w[..., 1])[k] for k, w in enumerate(window.unbind(1))], dim=1)
    distance = (torch.arange(13) - 6).square()
    expected = both * torch.exp(-(distance[:, None] + distance) / 8)
    found = sample_windows(maps, poses, 13, 4, shift=0.0, sigma=2.0, fade=True)
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-4)


def test_the_gaussian_of_a_window_ends_at_three_deviations() -> None:
    ones = torch.ones(1, 1, 40, 40)
    window = sample_windows(ones, torch.full((1, 1, 1, 2), 80.0), 97, 4, shift=0, sigma=16.0)[0, 0, 0]
    assert window[48, 48].item() == pytest.approx(1)
    assert window[0, 96].item() == pytest.approx(1.2341e-4, rel=1e-4)


# ------------------------------------------------------------------------------------------------ convolution


def test_a_kernel_that_is_one_spot_moves_the_window() -> None:
    windows = torch.rand(2, 1, 31, 31, generator=torch.Generator().manual_seed(0))
    kernel = torch.zeros(2, 1, 11, 11)
    kernel[..., 5, 5] = 121
    torch.testing.assert_close(convolve_windows(windows, kernel), windows, atol=1e-5, rtol=1e-4)
    spot = torch.zeros(1, 31, 31)
    spot[0, 10, 12] = 1
    kernel = torch.zeros(1, 11, 11)
    kernel[0, 7, 8] = 121
    moved = convolve_windows(spot, kernel)[0]
    assert divmod(int(moved.argmax()), 31) == (12, 15)  # two rows down, three columns right
    assert moved.max().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("window", "size"), [(97, 11), (25, 7), (29, 19), (13, 5)])
def test_fourier_transforms_convolve_like_a_grouped_convolution(window: int, size: int) -> None:
    random = torch.Generator().manual_seed(0)
    windows = torch.rand(2, 3, window, window, generator=random, requires_grad=True)
    kernels = torch.rand(2, 3, size, size, generator=random, requires_grad=True)
    flipped = (kernels.flip(-1, -2) / size**2).flatten(0, 1)[:, None]
    expected = F.conv2d(windows.flatten(0, 1)[None], flipped, padding=size // 2, groups=6)[0].view_as(windows)
    found = convolve_windows(windows, kernels)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    ours = torch.autograd.grad(found.square().sum(), (windows, kernels))
    theirs = torch.autograd.grad(expected.square().sum(), (windows, kernels))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_two_best_cells_are_mixed() -> None:
    window = torch.zeros(1, 11, 11)
    window[0, 5, 5], window[0, 5, 9] = 0.8, 0.4
    position, value = top_two(window, 0.75)
    assert value.item() == pytest.approx(0.7)
    assert position[0].tolist() == pytest.approx([1.0, 0.0])
    window[0, 5, 9] = 0.8
    position, value = top_two(window, 0.75)
    assert value.item() == pytest.approx(0.8)
    assert position[0, 0].item() in (pytest.approx(1.0), pytest.approx(3.0))
    assert top_two(window, 1.0)[0][0, 0].item() in (0.0, 4.0)
