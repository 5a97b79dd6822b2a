"""Tests people, poses, schemas and batches."""

import numpy as np
import pytest
import torch

from posefleet.data.keypoints import COCO17, CROWDPOSE14, KeypointSchema, load_schema
from posefleet.data.structures import PAD_COLOUR, People, Poses, Sample, collate


def people(count: int) -> People:
    return People(
        torch.rand(count, 17, 2),
        torch.full((count, 17), 2, dtype=torch.uint8),
        torch.rand(count, 4),
        torch.rand(count),
        torch.zeros(count, dtype=torch.bool),
    )


def test_the_flip_index_of_coco_is_the_published_permutation() -> None:
    assert COCO17.flip_index == [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]
    assert CROWDPOSE14.flip_index == [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 12, 13]


def test_the_skeleton_of_coco_is_the_published_one() -> None:
    published = "16,14 14,12 17,15 15,13 12,13 6,12 7,13 6,7 6,8 7,9 8,10 9,11 2,3 1,2 1,3 2,4 3,5 4,6 5,7"
    assert COCO17.edges == [tuple(int(i) - 1 for i in edge.split(",")) for edge in published.split()]


def test_a_schema_with_too_few_sigmas_is_refused() -> None:
    with pytest.raises(ValueError, match="1 sigmas for 2 keypoints"):
        KeypointSchema(name="two", keypoints=("a", "b"), sigmas=(0.1,), skeleton=())


def test_an_unknown_schema_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="coco17, crowdpose14"):
        load_schema("coco18")


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


def test_the_box_of_a_pose_is_tight() -> None:
    poses = Poses(torch.tensor([[[1.0, 5.0], [3.0, 2.0]]]), torch.ones(1, 2), torch.ones(1))
    assert poses.boxes.tolist() == [[1.0, 2.0, 3.0, 5.0]]
