"""Tests the transforms of images, people and poses."""

import cv2
import numpy as np
import pytest
import torch

from posefleet.data.schemas.shipped import COCO17
from posefleet.data.structures import PAD_COLOUR, People, Poses, Sample
from posefleet.data.transforms import (
    IDENTITY,
    Augment,
    EvalTransform,
    Resize,
    TrainTransform,
    chain,
    fitted_size,
    invert,
    mirror,
    move_people,
    move_points,
    move_poses,
    rotation,
    scaling,
    translation,
    warp,
)


def person(points: dict[str, tuple[float, float]], box: tuple[float, ...], area: float = 100.0) -> People:
    keypoints, visibility = torch.zeros(1, 17, 2), torch.zeros(1, 17, dtype=torch.uint8)
    for name, xy in points.items():
        index = COCO17.keypoints.index(name)
        keypoints[0, index], visibility[0, index] = torch.tensor(xy), 2
    return People(keypoints, visibility, torch.tensor([box]), torch.tensor([area]), torch.tensor([False]))


def sample(width: int, height: int, people: People) -> Sample:
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 255, (height, width, 3), dtype=np.uint8), (0, 0), 3)
    return Sample(image, people, 1, IDENTITY, (width, height))


@pytest.mark.parametrize(
    ("size", "expected"), [((640, 480), (1067, 800)), ((1400, 500), (1333, 476)), ((1, 1), (800, 800))]
)
def test_fitted_size_keeps_the_aspect_and_the_longer_limit(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert fitted_size(size, 800, 1333) == expected


def test_coordinates_scale_with_the_actual_ratios() -> None:
    matrix, size = Resize(short_side=800, long_side=1333).matrix((640, 480))
    assert size == (1067, 800)
    point = move_points(torch.tensor([[640.0, 480.0]]), matrix)
    torch.testing.assert_close(point, torch.tensor([[1067.0, 800.0]]))


@pytest.mark.parametrize(
    ("size", "expected"),
    [((640, 480), (704, 512)), ((480, 640), (512, 704)), ((427, 640), (512, 768)), ((600, 600), (512, 512))],
)
def test_a_centred_input_has_sides_of_whole_64_pixels(size: tuple[int, int], expected: tuple[int, int]) -> None:
    """As HigherHRNet's code: the middle, rounded up to a whole pixel, comes to the middle of the input."""
    matrix, found = Resize(short_side=512, long_side=4096, fit="centre").matrix(size)
    assert found == expected
    scale = 512 / min(size)
    np.testing.assert_allclose(matrix[:, :2], np.eye(2) * scale)
    middle = torch.tensor([int(size[0] / 2 + 0.5), int(size[1] / 2 + 0.5)]).double()
    torch.testing.assert_close(move_points(middle, matrix), torch.tensor(expected).double() / 2)


def test_a_centred_input_is_black_around_the_image_and_counts_pixels_from_their_middles() -> None:
    image = np.full((96, 110, 3), 200, np.uint8)
    image[40, 63] = 0
    resize = Resize(short_side=192, long_side=640, fit="centre")
    moved = EvalTransform(resize, COCO17)(Sample(image, People.empty(17), 1, IDENTITY, (110, 96)))
    assert moved.image.shape == (192, 256, 3)
    assert (moved.image[:, :17] == 0).all() and (moved.image[:, 238:] == 0).all() and (moved.image[:, 18:236] > 0).any()
    dark = 200.0 - moved.image[50:110, 100:190, 0].astype(float)
    ys, xs = np.mgrid[50:110, 100:190]
    centre = np.array([(dark * xs).sum(), (dark * ys).sum()]) / dark.sum()
    np.testing.assert_allclose(centre, [144, 80], atol=0.01)
    np.testing.assert_allclose(move_points(torch.tensor([63.0, 40.0]), moved.matrix), [144, 80])
    flipped = EvalTransform(resize, COCO17, flipped=True)(Sample(image, People.empty(17), 1, IDENTITY, (110, 96)))
    assert np.abs(flipped.image[:, ::-1].astype(int) - moved.image).max() <= 1


def test_a_centred_input_needs_whole_64_pixels() -> None:
    with pytest.raises(ValueError, match="short_side 500 must be a multiple of 64, because fit is 'centre'; take 512"):
        Resize(short_side=500, fit="centre")


def test_a_dot_stays_under_its_keypoint_through_every_transform() -> None:
    """Pixels and coordinates agree on the half-pixel convention: the dot's centre of mass is where the point went."""
    image = np.zeros((96, 128, 3), np.uint8)
    image[40:44, 60:64] = 255  # centre (62, 42) in continuous coordinates
    point = torch.tensor([[62.0, 42.0]])
    for matrix, size in [
        (scaling(2.0, 2.0), (256, 192)),
        (mirror(128), (128, 96)),
        (translation(-20, -10), (100, 80)),
        (chain(scaling(1.5, 1.5), rotation(30, (96, 72)), mirror(192)), (192, 144)),
    ]:
        warped = warp(image, matrix, size)[..., 0].astype(np.float64)
        warped[np.all(warp(image, matrix, size) == PAD_COLOUR, -1)] = 0
        warped[warped < 130] = 0
        ys, xs = np.mgrid[: size[1], : size[0]] + 0.5
        centre = torch.tensor([[(warped * xs).sum(), (warped * ys).sum()]] / warped.sum(), dtype=torch.float32)
        torch.testing.assert_close(centre, move_points(point, matrix), atol=0.2, rtol=0)


@pytest.mark.parametrize("flip", [IDENTITY, mirror(131.0)], ids=["upright", "mirrored"])
def test_a_resize_with_a_crop_samples_where_the_general_warp_does(flip: np.ndarray) -> None:
    image = sample(97, 61, person({}, (0, 0, 1, 1))).image
    matrix = chain(scaling(131 / 97, 83 / 61), flip, translation(-20, -9))
    quick = warp(image, matrix, (90, 70))
    sheared = np.add(matrix, [[0, 1e-9, 0], [0, 0, 0]])  # too little to see
    general = warp(image, sheared, (90, 70))
    assert quick.shape == (70, 90, 3)
    assert np.abs(quick.astype(int) - general).max() <= 3  # the general warp rounds positions to 1/32 pixel


def test_a_crop_that_leaves_the_image_is_padded() -> None:
    image = sample(40, 30, person({}, (0, 0, 1, 1))).image
    out = warp(image, translation(5, 0), (40, 30))
    assert (out[:, :4] == PAD_COLOUR).all()
    np.testing.assert_array_equal(out[:, 6:], image[:, 1:35])


def test_flipping_twice_is_the_identity() -> None:
    people = person({"nose": (10.0, 20.0), "left_eye": (12.0, 18.0), "right_eye": (8.0, 18.0)}, (5.0, 5.0, 30.0, 40.0))
    once = move_people(people, mirror(64), (64, 48), COCO17, flipped=True)
    twice = move_people(once, mirror(64), (64, 48), COCO17, flipped=True)
    torch.testing.assert_close(twice.keypoints, people.keypoints)
    torch.testing.assert_close(twice.boxes, people.boxes)
    left_eye = COCO17.keypoints.index("left_eye")
    torch.testing.assert_close(once.keypoints[0, left_eye], torch.tensor([56.0, 18.0]))  # was the right eye, at 8


def test_unlabelled_keypoints_stay_at_the_origin() -> None:
    people = person({"nose": (10.0, 20.0)}, (5.0, 5.0, 30.0, 40.0))
    moved = move_people(people, chain(mirror(64), translation(3, 3)), (80, 80), COCO17, flipped=True)
    assert moved.keypoints[0, 1:].abs().sum() == 0
    assert moved.visibility[0, 1:].sum() == 0


def test_area_scales_with_the_resize_and_not_with_the_crop() -> None:
    people = person({"nose": (10.0, 20.0)}, (5.0, 5.0, 30.0, 40.0), area=100.0)
    moved = move_people(people, chain(scaling(2, 3), translation(-5, -5)), (20, 60), COCO17)
    assert moved.areas.item() == pytest.approx(600.0)


def test_a_keypoint_outside_the_crop_is_no_longer_labelled() -> None:
    people = person({"nose": (10.0, 20.0), "left_hip": (50.0, 20.0)}, (5.0, 5.0, 60.0, 40.0))
    moved = move_people(people, IDENTITY, (32, 48), COCO17)
    assert moved.visibility[0].sum() == 2
    assert moved.boxes[0].tolist() == [5.0, 5.0, 32.0, 40.0]


def test_a_crop_keeps_the_centre_of_the_whole_person() -> None:
    people = person({"nose": (10.0, 20.0), "left_hip": (50.0, 40.0)}, (5.0, 5.0, 60.0, 44.0))
    assert people.centres.tolist() == [[30.0, 30.0]]
    moved = move_people(people, chain(scaling(2, 2), translation(-4, 0)), (32, 96), COCO17)
    assert moved.centres.tolist() == [[56.0, 60.0]]
    again = move_people(moved, translation(-10, 0), (20, 96), COCO17)
    assert again.centres.tolist() == [[46.0, 60.0]]
    assert person({}, (10.0, 20.0, 30.0, 60.0)).centres.tolist() == [[20.0, 40.0]]


def test_a_person_outside_the_crop_is_dropped_and_one_without_keypoints_stays_unlabelled() -> None:
    both = People.cat([person({"nose": (50.0, 20.0)}, (5.0, 5.0, 60.0, 40.0)), person({}, (70.0, 5.0, 90.0, 40.0))])
    moved = move_people(both, IDENTITY, (32, 48), COCO17)
    assert len(moved) == 1
    assert not moved.labelled.any()


def test_the_inverse_brings_poses_back_to_the_original_image() -> None:
    transform = TrainTransform(
        Resize(short_side=96, long_side=200), Augment(crop=64, flip=1.0, scale=(0.7, 1.4), rotate=30), COCO17
    )
    people = person({"nose": (60.0, 50.0)}, (20.0, 20.0, 90.0, 90.0))
    moved = transform(sample(120, 100, people), np.random.default_rng(3))
    kept = moved.people.keypoints[:, :1]
    poses = Poses(kept, torch.ones(1, 1), torch.ones(1))
    torch.testing.assert_close(
        move_poses(poses, invert(moved.matrix)).keypoints, people.keypoints[:, :1], atol=1e-3, rtol=0
    )


def test_the_crop_is_redrawn_until_it_keeps_a_keypoint_person() -> None:
    people = person({"nose": (390.0, 390.0)}, (380.0, 380.0, 400.0, 400.0))
    transform = TrainTransform(
        Resize(short_side=400, long_side=400), Augment(crop=300, flip=0.0, crop_attempts=200), COCO17
    )
    moved = [transform(sample(400, 400, people), np.random.default_rng(seed)) for seed in range(20)]
    assert all(m.people.labelled.any() for m in moved)
    assert all(m.image.shape == (300, 300, 3) for m in moved)


def test_the_same_seed_gives_the_same_sample() -> None:
    transform = TrainTransform(Resize(short_side=64, long_side=64), Augment(crop=48, scale=(0.8, 1.25)), COCO17)
    source = sample(100, 80, person({"nose": (50.0, 20.0)}, (5.0, 5.0, 60.0, 40.0)))
    first, again = (transform(source, np.random.default_rng(7)) for _ in range(2))
    other = transform(source, np.random.default_rng(8))
    assert np.array_equal(first.image, again.image)
    assert not (first.image.shape == other.image.shape and np.array_equal(first.image, other.image))


def test_evaluation_can_mirror() -> None:
    people = person({"left_eye": (10.0, 20.0)}, (5.0, 5.0, 30.0, 40.0))
    plain = EvalTransform(Resize(short_side=96, long_side=200), COCO17)(sample(120, 96, people))
    flipped = EvalTransform(Resize(short_side=96, long_side=200), COCO17, flipped=True)(sample(120, 96, people))
    assert np.array_equal(plain.image[:, ::-1], flipped.image)
    assert flipped.people.visibility[0, COCO17.keypoints.index("right_eye")] == 2


@pytest.mark.parametrize("wrong", [{"flip": 1.5}, {"scale": (2.0, 1.0)}, {"scale": (0.0, 1.0)}])
def test_impossible_augmentations_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Augment(**wrong)
