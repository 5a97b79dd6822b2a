"""Tests the masks of ignored regions: run lengths, and their way through every transform."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from posefleet.data.errors import DataError
from posefleet.data.masks import draw_mask, run_lengths
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.structures import MASK_STRIDE, People, Sample
from posefleet.data.transforms import (
    IDENTITY,
    Augment,
    EvalTransform,
    Resize,
    TrainTransform,
    chain,
    mirror,
    rotation,
    scaling,
    translation,
    warp,
)

WIDTH, HEIGHT = 120, 90


def encoded(mask: np.ndarray) -> str:
    """COCO's compressed run lengths of an (H, W) mask."""
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


def dense(counts: str, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool, the inverse of ``encoded``."""
    (lengths,) = run_lengths([counts], size)
    return (np.repeat(np.arange(len(lengths)) % 2, lengths) > 0).reshape(size).T


def blob(seed: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """(H, W) bool: a region with a hole and a smooth outline."""
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.normal(size=(height, width)), (0, 0), 12)
    return noise > np.median(noise)


def people(*visible: int, crowd: tuple[int, ...] = ()) -> People:
    """Standing in the middle of an image; person i has ``visible[i]`` labelled keypoints."""
    count = len(visible)
    visibility = torch.stack([torch.where(torch.arange(17) < n, 2, 0) for n in visible]).to(torch.uint8)
    keypoints = torch.full((count, 17, 2), 45.0) * (visibility > 0)[..., None]
    boxes = torch.tensor([[5.0, 5.0, 110.0, 80.0]]).repeat(count, 1)
    return People(
        keypoints, visibility, boxes, torch.full((count,), 900.0), torch.tensor([i in crowd for i in range(count)])
    )


def sample(group: People, outlines: tuple[str | None, ...], width: int = WIDTH, height: int = HEIGHT) -> Sample:
    return Sample(np.zeros((height, width, 3), np.uint8), group, 1, IDENTITY, (width, height), outlines)


# ---------------------------------------------------------------------------------------------------- run lengths


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.sampled_from([0.0, 0.001, 0.2, 0.5, 0.999, 1.0]), width=st.integers(1, 70))
def test_run_lengths_are_those_of_cocos_own_code(seed: int, share: float, width: int) -> None:
    height = 1 + seed % 53
    mask = np.random.default_rng(seed).random((height, width)) < share
    counts = encoded(mask)
    (lengths,) = run_lengths([counts], (width, height))
    assert lengths.sum() == mask.size
    np.testing.assert_array_equal(dense(counts, (width, height)), mask)


def test_long_runs_are_read() -> None:
    mask = np.zeros((4000, 5000), bool)
    mask[:, 2500:4000] = True
    (lengths,) = run_lengths([encoded(mask)], (5000, 4000))
    assert lengths.tolist() == [10_000_000, 6_000_000, 4_000_000]


def test_several_segmentations_are_read_at_once() -> None:
    masks = [np.random.default_rng(seed).random((17, 23)) < 0.4 for seed in range(5)]
    found = run_lengths([encoded(mask) for mask in masks], (23, 17))
    assert [lengths.tolist() for lengths in found] == [
        run_lengths([encoded(mask)], (23, 17))[0].tolist() for mask in masks
    ]
    assert run_lengths([], (23, 17)) == []
    for damaged in ("", "P", "0"):
        with pytest.raises(DataError, match="run lengths"):
            run_lengths([encoded(masks[0]), damaged, encoded(masks[1])], (23, 17))


@pytest.mark.parametrize(
    ("counts", "why"),
    [
        ("", "not a string of COCO's code"),
        ("~", "not a string of COCO's code"),
        ("0 0", "not a string of COCO's code"),
        ("P", "not a string of COCO's code"),  # ends in the middle of a number
        ("o" * 20 + "0", "21 digits"),
        ("é", "characters"),
        ("O", "cover -1 pixels"),
        ("<", "cover 12 pixels, the image has 3 x 5"),
        ("?1O1", "cover 17 pixels"),
        ("1O?", "cover"),
    ],
)
def test_damaged_run_lengths_are_refused(counts: str, why: str) -> None:
    with pytest.raises(DataError, match=why):
        run_lengths([counts], (3, 5))


def test_no_text_makes_run_lengths_crash() -> None:
    rng = np.random.default_rng(0)
    for _ in range(3000):
        counts = "".join(map(chr, rng.integers(40, 125, rng.integers(0, 30))))
        try:
            (lengths,) = run_lengths([counts], (WIDTH, HEIGHT))
        except DataError:
            continue
        assert lengths.min() >= 0 and lengths.sum() == WIDTH * HEIGHT


# ---------------------------------------------------------------------------------------------------- transforms

MOVES = {
    "identity": (IDENTITY, (WIDTH, HEIGHT)),
    "resize": (scaling(2.5, 2.25), (300, 202)),
    "shrink": (scaling(0.8, 0.8), (96, 72)),
    "crop": (translation(-31, -17), (64, 64)),
    "beyond": (translation(22, 14), (160, 128)),
    "flip": (chain(scaling(2, 2), mirror(240)), (240, 180)),
    "turn": (chain(scaling(2, 2), rotation(27, (120, 90))), (240, 180)),
    "all": (chain(scaling(3, 3), rotation(-20, (180, 135)), mirror(360), translation(-70, -40)), (220, 200)),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_the_mask_of_a_transform_is_the_transform_of_the_mask(move: tuple[np.ndarray, tuple[int, int]]) -> None:
    """A cell is True where the transformed picture of the region is white. They may differ on its outline only."""
    matrix, size = move
    for seed in range(3):
        region = blob(seed)
        picture = np.repeat(np.where(region, 255, 0).astype(np.uint8)[..., None], 3, 2)
        white = warp(picture, matrix, size)[..., 0]
        inside = warp(np.full_like(picture, 255), matrix, size)[..., 0] == 255  # beyond the image nothing is known
        cells = draw_mask([encoded(region)], (WIDTH, HEIGHT), matrix, size)
        assert cells.shape == (-(-size[1] // MASK_STRIDE), -(-size[0] // MASK_STRIDE)) and cells.dtype == bool
        # Cell j is at pixel 4 j, on the border of pixels 4 j - 1 and 4 j.
        around = np.pad(np.where(inside, white, 0).astype(float), ((1, 0), (1, 0)))
        corners = (around[:-1, :-1] + around[:-1, 1:] + around[1:, :-1] + around[1:, 1:]) / 4
        expected = corners[::MASK_STRIDE, ::MASK_STRIDE] > 127
        clear = (cv2.boxFilter(white, -1, (5, 5)) % 255 == 0) & (
            cv2.erode(inside.astype(np.uint8), np.ones((5, 5))) > 0
        )
        clear = clear[::MASK_STRIDE, ::MASK_STRIDE]
        # The picture ends at the first row and column of cells; the region goes on.
        clear, cells, expected = clear[1:, 1:], cells[1:, 1:], expected[1:, 1:]
        assert clear.mean() > 0.4
        np.testing.assert_array_equal(cells[clear], expected[clear])
        # Of a few hundred cells, some of those on the outline may differ: the picture is rounded to whole pixels first.
        assert (cells != expected).sum() <= 0.01 * cells.size + 4
        assert abs(int(cells.sum()) - int(expected.sum())) <= 0.01 * cells.size + 2


def test_overlapping_segmentations_are_united() -> None:
    left, right = np.zeros((2, HEIGHT, WIDTH), bool)
    left[20:60, 10:70], right[40:80, 50:110] = True, True
    cells = draw_mask([encoded(left), encoded(right)], (WIDTH, HEIGHT), IDENTITY, (WIDTH, HEIGHT))
    both = draw_mask([encoded(left | right)], (WIDTH, HEIGHT), IDENTITY, (WIDTH, HEIGHT))
    np.testing.assert_array_equal(cells, both)
    assert cells[6, 3] and cells[12, 15] and cells[19, 27] and not cells[6, 27] and not cells[19, 3]


def test_nothing_and_nobody_are_an_empty_mask() -> None:
    nothing = encoded(np.zeros((HEIGHT, WIDTH)))
    for outlines in ([], [nothing]):
        assert not draw_mask(outlines, (WIDTH, HEIGHT), IDENTITY, (64, 32)).any()
    everything = encoded(np.ones((HEIGHT, WIDTH)))
    assert draw_mask([everything], (WIDTH, HEIGHT), translation(2, 2), (64, 64))[1:, 1:].all()
    assert not draw_mask([everything], (WIDTH, HEIGHT), translation(500, 0), (64, 64)).any()


@pytest.mark.parametrize("seed", range(4))
def test_training_samples_carry_the_mask_where_the_picture_went(seed: int) -> None:
    """The one path of augmentation, with everything on: the mask follows the pixels of the region."""
    region = blob(seed)
    source = sample(people(5, 0), (None, encoded(region)))
    source.image[region] = 255
    augment = Augment(crop=160, flip=0.5, scale=(0.7, 1.4), rotate=30)
    moved = TrainTransform(Resize(short_side=180, long_side=400), augment, COCO17)(source, np.random.default_rng(seed))
    assert moved.people.mask is not None and moved.people.outlined.tolist() == [False, True]
    seen = moved.image[::MASK_STRIDE, ::MASK_STRIDE, 0]
    mask = moved.people.mask.numpy()
    assert (mask == (seen > 130)).mean() > 0.97 and 0.1 < mask.mean() < 0.9


def test_only_crowds_and_people_without_keypoints_are_drawn() -> None:
    whole, part = encoded(np.ones((HEIGHT, WIDTH))), encoded(blob(1))
    transform = TrainTransform(Resize(short_side=90, long_side=120), Augment(crop=0, flip=0.0), COCO17)
    moved = transform(sample(people(3, 0, 2, crowd=(2,)), (whole, None, part)), np.random.default_rng(0)).people
    assert moved.outlined.tolist() == [False, False, True] and moved.mask is not None
    np.testing.assert_array_equal(moved.mask, draw_mask([part], (WIDTH, HEIGHT), IDENTITY, (WIDTH, HEIGHT)))
    for outlines in ((), (whole, None, None)):
        moved = transform(sample(people(3, 0, 2, crowd=(2,)), outlines), np.random.default_rng(0)).people
        assert moved.mask is None and not moved.outlined.any()


def test_people_who_leave_the_crop_take_their_flag_along() -> None:
    group = people(4, 0, 0)
    group.boxes[1] = torch.tensor([2.0, 2.0, 8.0, 8.0])
    everything = encoded(np.ones((HEIGHT, WIDTH)))
    transform = TrainTransform(Resize(short_side=90, long_side=120), Augment(crop=40, flip=0.0), COCO17)
    found = [
        transform(sample(group, (None, everything, None)), np.random.default_rng(seed)).people.outlined.tolist()
        for seed in range(20)
    ]
    assert all(flags in ([False, False], [False, True, False]) for flags in found)
    assert [False, False] in found


def test_random_numbers_do_not_depend_on_masks() -> None:
    transform = TrainTransform(
        Resize(short_side=90, long_side=120), Augment(crop=64, scale=(0.8, 1.3), rotate=20), COCO17
    )
    plain, masked = (
        transform(sample(people(4, 0), outlines), np.random.default_rng(5))
        for outlines in ((), (None, encoded(blob(0))))
    )
    np.testing.assert_array_equal(plain.matrix, masked.matrix)
    assert torch.equal(plain.people.keypoints, masked.people.keypoints)


def test_evaluation_has_no_masks() -> None:
    transform = EvalTransform(Resize(short_side=90, long_side=120), COCO17)
    found = transform(sample(people(4, 0), (None, encoded(blob(0))))).people
    assert found.mask is None and not found.outlined.any()


def test_a_person_who_lost_all_keypoints_to_the_crop_is_not_outlined() -> None:
    """Shards hold segmentations of unlabelled people only, so the box stands in for such a person."""
    group = people(1)
    group.boxes[0] = torch.tensor([40.0, 40.0, 118.0, 85.0])
    transform = TrainTransform(
        Resize(short_side=90, long_side=120), Augment(crop=32, flip=0.0, crop_attempts=1), COCO17
    )
    for seed in range(30):
        moved = transform(sample(group, ()), np.random.default_rng(seed)).people
        if len(moved) and not moved.labelled.any():
            assert moved.mask is None and not moved.outlined.any()
            return
    raise AssertionError("no crop cut the keypoints off")


def test_real_segmentations_cover_what_cocos_own_code_says(coco_mini: Path) -> None:
    from posefleet.data.coco.source import find_source
    from posefleet.data.coco.split import read_coco

    split = read_coco(find_source(str(coco_mini), "train2017").annotation_file, COCO17)
    seen = 0
    for record in split.records():
        size = record["width"], record["height"]
        rles = [person["segmentation"] for person in record["people"] if "segmentation" in person]
        if not rles:
            continue
        seen += len(rles)
        whole = dense(coco_mask.merge(rles)["counts"].decode(), size)
        to_centres = chain(translation(-0.5, -0.5), scaling(MASK_STRIDE, MASK_STRIDE))  # one cell in each pixel
        enlarged = MASK_STRIDE * size[0], MASK_STRIDE * size[1]
        cells = draw_mask([rle["counts"] for rle in rles], size, to_centres, enlarged)
        np.testing.assert_array_equal(cells, whole)
    assert seen == 86  # 172 annotations, 86 of them people with keypoints
