"""Tests the changes of pixels: what they compute, that they leave their input alone, and what becomes of keypoints."""

import cv2
import numpy as np
import pytest
import torch

from posefleet.data.pixels import LUMA, add_noise, blur, change_colours, compress, erase, make_grey
from posefleet.data.structures import PAD_COLOUR, People


@pytest.fixture
def image() -> np.ndarray:
    rng = np.random.default_rng(0)
    return cv2.GaussianBlur(rng.integers(60, 190, (48, 64, 3), dtype=np.uint8), (0, 0), 2)


def grey_of(image: np.ndarray) -> np.ndarray:
    return image.astype(float) @ LUMA


def test_colours_that_do_not_change_stay_as_they_are(image: np.ndarray) -> None:
    assert np.abs(change_colours(image).astype(int) - image).max() <= 1


def test_brightness_multiplies_and_contrast_spreads_around_the_mean_grey(image: np.ndarray) -> None:
    np.testing.assert_allclose(change_colours(image, brightness=1.25), image * 1.25, atol=0.6)
    spread = change_colours(image, contrast=1.5)
    np.testing.assert_allclose(grey_of(spread).mean(), grey_of(image).mean(), atol=0.6)
    np.testing.assert_allclose(grey_of(spread).std(), 1.5 * grey_of(image).std(), rtol=0.02)
    assert np.ptp(change_colours(image, contrast=0.0).reshape(-1, 3), axis=0).max() == 0


def test_no_saturation_is_grey_and_hues_keep_their_grey_value(image: np.ndarray) -> None:
    np.testing.assert_allclose(change_colours(image, saturation=0.0), make_grey(image), atol=1)
    turned = change_colours(image, hue=30.0)
    np.testing.assert_allclose(grey_of(turned), grey_of(image), atol=1.0)
    assert np.abs(turned.astype(int) - image).max() > 5
    np.testing.assert_allclose(change_colours(turned, hue=-30.0), image, atol=2)
    red = np.full((2, 2, 3), (180, 60, 60), np.uint8)
    hues = [cv2.cvtColor(change_colours(red, hue=turn), cv2.COLOR_RGB2HSV)[0, 0, 0] for turn in (0.0, -120.0)]
    assert hues[0] == 0 and 50 < hues[1] < 70  # a third of the circle on is green: OpenCV's 60


def test_noise_is_a_function_of_its_seed_and_has_its_deviation(image: np.ndarray) -> None:
    noisy = add_noise(image, 10.0, seed=3)
    assert np.array_equal(noisy, add_noise(image, 10.0, seed=3))
    assert not np.array_equal(noisy, add_noise(image, 10.0, seed=4))
    assert (noisy.astype(float) - image).std() == pytest.approx(10.0, rel=0.05)


def test_blur_and_compression_lose_detail(image: np.ndarray) -> None:
    def detail(image: np.ndarray) -> float:
        return float(np.abs(np.diff(image.astype(float), axis=1)).mean())

    assert detail(blur(image, 3.0)) < 0.5 * detail(image)
    worse, better = (np.abs(compress(image, quality).astype(float) - image).mean() for quality in (5, 95))
    assert better < 3 < worse


def test_nothing_changes_its_input(image: np.ndarray) -> None:
    before = image.copy()
    for changed in (
        change_colours(image, hue=20.0, contrast=0.5),
        make_grey(image),
        blur(image, 2.0),
        add_noise(image, 9.0, 0),
        compress(image, 10),
        erase(image, People.empty(1), (4, 4, 20, 20))[0],
    ):
        assert changed.shape == image.shape and changed.dtype == np.uint8
        assert not np.array_equal(changed, image)
        assert np.array_equal(image, before)


def test_erased_keypoints_become_hidden_and_wholly_erased_people_lose_theirs(image: np.ndarray) -> None:
    keypoints = torch.tensor([[[10.0, 10.0], [40.0, 10.0], [0.0, 0.0]], [[12.0, 12.0], [14.0, 9.0], [11.0, 9.0]]])
    visibility = torch.tensor([[2, 2, 0], [2, 1, 2]], dtype=torch.uint8)
    boxes = torch.tensor([[8.0, 8.0, 42.0, 12.0], [10.0, 8.0, 16.0, 14.0]])
    people = People(keypoints, visibility, boxes, torch.tensor([90.0, 20.0]), torch.tensor([False, False]))
    erased, left = erase(image, people, (5, 5, 20, 20))
    assert (erased[5:20, 5:20] == PAD_COLOUR).all() and np.array_equal(erased[20:], image[20:])
    assert left.visibility.tolist() == [[1, 2, 0], [0, 0, 0]]
    assert torch.equal(left.keypoints[0], keypoints[0]) and not left.keypoints[1].any()
    assert torch.equal(left.boxes, boxes) and torch.equal(left.centres, people.centres)
    assert left.labelled.tolist() == [True, False]
