"""Tests the transforms of images, people and poses."""

import cv2
import numpy as np
import pycocotools.mask
import pytest
import torch

from posefleet.data.schemas.shipped import COCO17
from posefleet.data.structures import PAD_COLOUR, People, Poses, Sample
from posefleet.data.transforms import (
    GROUP,
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


PIXELS = Augment(
    crop=64,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=20.0,
    **dict.fromkeys(("grey", "blur", "noise", "jpeg", "erase"), 0.5),
)


def test_pixels_change_with_the_seed_and_leave_the_geometry_alone() -> None:
    people = person({"nose": (50.0, 20.0), "left_hip": (30.0, 60.0)}, (5.0, 5.0, 60.0, 70.0))
    source, resize = sample(100, 80, people), Resize(short_side=64, long_side=96)
    before = source.image.copy()
    changed, plain = (TrainTransform(resize, augment, COCO17) for augment in (PIXELS, Augment(crop=64)))
    for seed in range(8):
        one, again, without = (t(source, np.random.default_rng(seed)) for t in (changed, changed, plain))
        assert np.array_equal(one.image, again.image) and torch.equal(one.people.visibility, again.people.visibility)
        assert np.array_equal(one.matrix, without.matrix) and torch.equal(one.people.boxes, without.people.boxes)
        assert not np.array_equal(one.image, without.image)
    assert np.array_equal(source.image, before)


def test_each_change_of_pixels_is_off_unless_it_is_set() -> None:
    source = sample(100, 80, person({"nose": (50.0, 20.0)}, (5.0, 5.0, 60.0, 40.0)))
    resize = Resize(short_side=64, long_side=96)

    def image(**settings: float) -> np.ndarray:
        return TrainTransform(resize, Augment(crop=64, **settings), COCO17)(source, np.random.default_rng(1)).image

    plain = image()
    for name in ("brightness", "contrast", "saturation", "hue", "grey", "blur", "noise", "jpeg", "erase"):
        assert not np.array_equal(image(**{name: 30.0 if name == "hue" else 1.0}), plain), name
    assert np.array_equal(image(mosaic=0.0, blur=0.0), plain)


# ---------------------------------------------------------------------------------------------------- mosaic


def flat(colour: int, people: People, size: tuple[int, int] = (128, 96)) -> Sample:
    """An image of one colour, which is also its id, with a segmentation of its left half for who has no keypoints."""
    half = draw_outline(size)
    outlines = tuple(None if labelled else half for labelled in people.labelled.tolist())
    return Sample(np.full((size[1], size[0], 3), colour, np.uint8), people, colour, IDENTITY, size, outlines)


def draw_outline(size: tuple[int, int]) -> str:
    left = np.zeros((size[1], size[0]), np.uint8, order="F")
    left[:, : size[0] // 2] = 1
    return pycocotools.mask.encode(left)["counts"].decode()


def test_a_mosaic_has_people_masks_and_pixels_of_four_images_where_they_are() -> None:
    """Each image has one colour, so that the colour under a keypoint says whose it is."""
    points = {"nose": (30.0, 30.0), "left_eye": (60.0, 48.0), "right_hip": (100.0, 70.0)}
    someone, region = person(points, (20.0, 20.0, 110.0, 80.0)), person({}, (0.0, 0.0, 64.0, 96.0))
    samples = [flat(40 * n, People.cat([someone, region])) for n in range(1, 5)]
    augment = Augment(crop=96, flip=0.5, mosaic=1.0)
    transform = TrainTransform(Resize(short_side=96, long_side=128), augment, COCO17)
    seen = set()
    for seed in range(12):
        made = transform.compose(samples, np.random.default_rng(seed))
        assert made.image.shape == (96, 96, 3) and made.image_id == 40
        colours = made.image[..., 0]
        assert set(np.unique(colours)) == {40, 80, 120, 160}
        mask, people = made.people.mask, made.people
        assert mask is not None and mask.shape == (24, 24) and 0.1 < mask.float().mean() < 0.9
        for index in range(len(people)):
            x1, y1, x2, y2 = people.boxes[index].round().int().tolist()
            assert len(np.unique(colours[y1:y2, x1:x2])) == 1  # a box never crosses into another image
            own = colours[y1, x1]
            for x, y in people.keypoints[index][people.visibility[index] > 0].tolist():
                assert colours[min(int(y), 95), min(int(x), 95)] == own
            x, y = people.centres[index].tolist()
            if 0 <= x < 96 and 0 <= y < 96:
                assert colours[int(y), int(x)] == own
            if people.labelled[index]:
                seen.add(int(own))
        x, y = move_points(torch.tensor([[30.0, 30.0]]), made.matrix)[0].tolist()  # the matrix is the first image's
        if 0 <= x < 96 and 0 <= y < 96 and colours[int(y), int(x)] == 40:
            near = (people.keypoints - torch.tensor([x, y])).abs().sum(-1).min()
            assert near < 0.01
        again = transform.compose(samples, np.random.default_rng(seed))
        assert np.array_equal(again.image, made.image) and torch.equal(again.people.keypoints, people.keypoints)
    assert seen == {40, 80, 120, 160}


def test_images_of_a_mosaic_fill_it_and_keep_their_aspect() -> None:
    transform = TrainTransform(
        Resize(short_side=64, long_side=128), Augment(crop=64, mosaic=1.0, mosaic_scale=(0.1, 0.1)), COCO17
    )
    odd = [sample(*size, People.empty(17)) for size in ((300, 40), (40, 300), (64, 64), (20, 30))]
    for seed in range(6):
        made = transform.compose(odd, np.random.default_rng(seed))
        assert not (made.image == PAD_COLOUR).all(-1).any()
        assert made.matrix[0, 0] == pytest.approx(made.matrix[1, 1], rel=0.05) or made.matrix[0, 0] < 0


def test_partners_are_of_the_same_group_and_drawn_only_for_a_mosaic() -> None:
    resize = Resize(short_side=64, long_side=96)
    half = TrainTransform(resize, Augment(crop=64, mosaic=0.5), COCO17)
    found = {position: half.partners(position, np.random.default_rng(position)) for position in range(400)}
    assert 150 < sum(map(bool, found.values())) < 250
    for position, partners in found.items():
        assert len({position, *partners}) in (1, 4)
        assert {other // GROUP for other in partners} <= {position // GROUP}
    rng, untouched = np.random.default_rng(0), np.random.default_rng(0)
    assert TrainTransform(resize, Augment(), COCO17).partners(5, rng) == ()
    assert rng.random() == untouched.random()


@pytest.mark.parametrize(
    "wrong",
    [
        {"flip": 1.5},
        {"scale": (2.0, 1.0)},
        {"scale": (0.0, 1.0)},
        {"mosaic": -0.1},
        {"mosaic_scale": (0.0, 1.0)},
        {"brightness": 1.2},
        {"hue": 200.0},
        {"blur_sigma": (0.0, 1.0)},
        {"noise_deviation": (1.0, 300.0)},
        {"jpeg_quality": (0, 90)},
        {"jpeg_quality": (10, 101)},
        {"erase": 2.0},
        {"erase_area": (0.3, 0.1)},
    ],
)
def test_impossible_augmentations_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Augment(**wrong)
