"""Keypoint masking: what changes, what stays, and where patches come from."""

import pytest
import torch

from posefleet.models.detposenet.masking import MaskingConfig, _draw_patches, mask_keypoints

SIZE = 128
KEYPOINTS = torch.tensor([[[30.0, 30.0], [64.0, 64.0], [90.0, 40.0], [5.0, 120.0]]]).repeat(64, 1, 1)
LABELLED = torch.tensor([[True, True, True, False]]).repeat(64, 1)


def crops() -> torch.Tensor:
    """Every pixel different, so that a copy is seen."""
    return torch.arange(64 * 3 * SIZE * SIZE, dtype=torch.float64).view(64, 3, SIZE, SIZE)


def patches(kind: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return _draw_patches(KEYPOINTS, LABELLED, SIZE, MaskingConfig(kind=kind, probability=1.0))


def distances(centres: torch.Tensor) -> torch.Tensor:
    """(N, R) from each centre to the nearest labelled keypoint."""
    return (centres[:, :, None] - KEYPOINTS[:, None, :3]).norm(dim=-1).amin(-1)


@pytest.mark.parametrize("kind", ["background", "duplication", "both"])
def test_only_the_squares_at_the_destinations_change(kind: str) -> None:
    before, config = crops(), MaskingConfig(kind=kind, probability=1.0)
    keypoints, labelled = KEYPOINTS.clone(), LABELLED.clone()
    torch.manual_seed(0)
    after = mask_keypoints(before, keypoints, labelled, config)
    torch.manual_seed(0)
    _, destinations, sides, used = _draw_patches(keypoints, labelled, SIZE, config)
    pixel = torch.arange(SIZE)
    near = (pixel - destinations[..., None]).abs() <= (sides / 2)[..., None, None] + 1  # (N, R, 2, S)
    allowed = (near[:, :, 1, :, None] & near[:, :, 0, None, :] & used[..., None, None]).any(1)
    changed = (after != before).any(1)
    assert changed.flatten(1).any(1).all()
    assert not (changed & ~allowed).any()
    assert torch.equal(keypoints, KEYPOINTS) and torch.equal(labelled, LABELLED)


def test_a_patch_is_a_copy_of_the_square_round_its_source() -> None:
    torch.manual_seed(0)
    before, config = crops(), MaskingConfig(kind="background", probability=1.0, most=1, patch=(0.1, 0.1))
    after = mask_keypoints(before, KEYPOINTS, LABELLED, config)
    torch.manual_seed(0)
    sources, destinations, sides, used = _draw_patches(KEYPOINTS, LABELLED, SIZE, config)
    assert used.all() and (sides == 13).all()
    for index in range(64):
        (x, y), (to_x, to_y) = sources[index, 0].int().tolist(), destinations[index, 0].int().tolist()
        assert torch.equal(after[index, :, to_y, to_x], before[index, :, y, x])
        assert (after[index] != before[index]).any(0).sum() <= 13 * 13


def test_background_patches_keep_away_from_keypoints_and_cover_one() -> None:
    sources, destinations, sides, used = patches("background")
    assert used.any(1).all()
    assert (distances(sources) >= 1.5 * sides)[used].all()
    assert (distances(destinations) < 1.5)[used].all()


def test_decoys_are_copies_of_a_keypoint_that_stand_clear_of_all() -> None:
    sources, destinations, sides, used = patches("duplication")
    assert used.any(1).all()
    assert (distances(sources) < 1.5)[used].all()
    assert (distances(destinations) >= sides)[used].all()
    away = (sources - destinations).norm(dim=-1)
    assert ((away >= 1.5 * sides - 2) & (away <= 4 * sides + 2))[used].all()


def test_unlabelled_keypoints_are_never_masked() -> None:
    _, destinations, _, used = patches("background")
    assert ((destinations - KEYPOINTS[:, None, 3, :][..., :]).norm(dim=-1) > 10)[used].all()
    nobody = _draw_patches(KEYPOINTS, LABELLED & False, SIZE, MaskingConfig(kind="both", probability=1.0))
    assert not nobody[3].any()


def test_one_to_three_patches_of_the_right_size() -> None:
    *_, sides, used = patches("both")
    assert set(used.sum(1).tolist()) <= {1, 2, 3}
    assert len(used.sum(1).unique()) > 1
    assert sides.min() >= 0.08 * SIZE - 0.5 and sides.max() <= 0.16 * SIZE + 0.5


def test_the_same_seed_gives_the_same_patches_and_probability_0_changes_nothing() -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(mask_keypoints(crops(), KEYPOINTS, LABELLED, MaskingConfig(kind="both")))
    assert torch.equal(results[0], results[1])
    unchanged = (results[0] == crops()).flatten(1).all(1)
    assert 10 < unchanged.sum() < 54  # about half of the crops
    for config in (MaskingConfig(kind="both", probability=0.0), MaskingConfig()):
        assert torch.equal(mask_keypoints(crops(), KEYPOINTS, LABELLED, config), crops())


def test_settings_that_contradict_are_named() -> None:
    with pytest.raises(ValueError, match="patch"):
        MaskingConfig(patch=(0.2, 0.1))
    with pytest.raises(ValueError, match="probability"):
        MaskingConfig(probability=2.0)
