"""Tests people, poses and batches."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from posefleet.data.structures import MASK_STRIDE, PAD_COLOUR, People, Poses, Sample, collate, mask_shape


def people(count: int) -> People:
    return People(
        torch.rand(count, 17, 2),
        torch.full((count, 17), 2, dtype=torch.uint8),
        torch.rand(count, 4),
        torch.rand(count),
        torch.zeros(count, dtype=torch.bool),
    )


def test_rows_of_different_number_are_refused() -> None:
    with pytest.raises(ValueError, match="tensors must have equal lengths"):
        Poses(torch.zeros(2, 17, 2), torch.zeros(2, 17), torch.zeros(3))


def test_crowds_and_people_without_keypoints_are_not_labelled() -> None:
    group = people(3)
    group.visibility[1] = 0
    group.crowd[2] = True
    assert group.labelled.tolist() == [True, False, False]


def test_collate_pads_at_the_right_and_bottom_to_multiples_of_32() -> None:
    samples = [
        Sample(np.full((h, w, 3), 7, np.uint8), people(n), n, np.eye(2, 3), (w, h))
        for h, w, n in ((40, 64, 2), (50, 33, 0), (8, 8, 3))
    ]
    batch = collate(samples)
    assert batch.images.shape == (3, 3, 64, 64)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert (batch.images[1, :, :50, :33] == 7).all()
    assert batch.images[1, :, 50:, :].unique(dim=1).shape[1] == 1
    assert batch.images[1, :, 0, 40].tolist() == list(PAD_COLOUR)
    assert [len(p) for p in batch.people] == [2, 0, 3]
    torch.testing.assert_close(batch.people[2].keypoints, samples[2].people.keypoints)
    assert batch.original_sizes.tolist() == [[64, 40], [33, 50], [8, 8]]


def masked(count: int, mask: torch.Tensor | None) -> People:
    return replace(people(count), outlined=torch.arange(count) == 0, mask=mask)


def test_nobody_is_outlined_by_default() -> None:
    assert people(3).mask is None and people(3).outlined.tolist() == [False] * 3
    with pytest.raises(ValueError, match="tensors must have equal lengths"):
        replace(people(3), outlined=torch.zeros(2, dtype=torch.bool))


def test_rows_keep_the_mask_of_their_image_and_groups_have_none() -> None:
    group = masked(3, torch.ones(4, 5, dtype=torch.bool))
    for some in (group[1:], group[[0, 2]], group[torch.tensor([True, False, True])], group.to("cpu")):
        assert some.mask is not None and some.mask.shape == (4, 5)
    assert group[[2, 0]].outlined.tolist() == [False, True]
    both = People.cat([group, people(2)])
    assert both.mask is None and both.outlined.tolist() == [True, False, False, False, False]


def test_collate_pads_masks_beside_images() -> None:
    first = torch.zeros(10, 16, dtype=torch.bool)
    first[9, 15] = True
    group = masked(2, first), people(1), masked(3, torch.ones(2, 2, dtype=torch.bool))
    sizes = ((40, 64), (50, 33), (8, 8))
    samples = [
        Sample(np.zeros((h, w, 3), np.uint8), p, 1, np.eye(2, 3), (w, h))
        for p, (h, w) in zip(group, sizes, strict=True)
    ]
    batch = collate(samples)
    assert batch.masks is not None and batch.masks.shape == (3, 64 // MASK_STRIDE, 64 // MASK_STRIDE)
    assert batch.masks.sum((1, 2)).tolist() == [1, 0, 4] and batch.masks[0, 9, 15]
    for found, mask, whole in zip(batch.people, batch.masks, group, strict=True):
        assert torch.equal(found.mask, mask) and torch.equal(found.outlined, whole.outlined)
    assert collate(samples[1:2]).masks is None
    assert [p.mask for p in collate(samples[1:2]).people] == [None]


def test_a_part_of_a_batch_has_its_part_of_the_masks() -> None:
    masks = [torch.rand(mask_shape(h, w)) < 0.5 for h, w in ((64, 96), (30, 40))]
    samples = [
        Sample(np.zeros((4 * mask.shape[0], 4 * mask.shape[1], 3), np.uint8), masked(1, mask), i, np.eye(2, 3), (9, 9))
        for i, mask in enumerate(masks)
    ]
    part = collate(samples).part([1, 0], (32, 64))
    assert part.masks is not None and part.masks.shape == (2, 8, 16)
    assert torch.equal(part.masks[0, :8, :10], masks[1]) and torch.equal(part.masks[1], masks[0][:8, :16])
    moved = part.to("cpu")
    assert torch.equal(moved.masks, part.masks) and torch.equal(moved.packed_people.boxes, part.packed_people.boxes)


def test_the_box_of_a_pose_is_tight() -> None:
    poses = Poses(torch.tensor([[[1.0, 5.0], [3.0, 2.0]]]), torch.ones(1, 2), torch.ones(1))
    assert poses.boxes.tolist() == [[1.0, 2.0, 3.0, 5.0]]
