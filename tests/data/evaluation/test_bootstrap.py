"""Bootstrap over images: AP equals COCO's, and intervals hold the true difference as often as they claim."""

import numpy as np
import pytest
import torch

from posefleet.data.coco.annotations import people_of
from posefleet.data.evaluation.bootstrap import Interval, Matches, average_precision, difference, differences
from posefleet.data.evaluation.evaluate import Evaluation, evaluate
from posefleet.data.evaluation.ground_truth import GroundTruth
from posefleet.data.evaluation.precision_recall import MatchFlags
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.structures import Poses
from posefleet.data.synthetic.scenes import SceneConfig, render_scene

IMAGES = 40
SCENES = [render_scene(SceneConfig(width=(96, 96), height=(96, 96), people=(0, 4)), seed)[1] for seed in range(IMAGES)]


def ground_truth(images: list[int]) -> GroundTruth:
    """Images by number, each under an id of its own however often it is listed."""
    return GroundTruth.from_records((index, (96, 96), SCENES[image]) for index, image in enumerate(images))


def poses(image: int, jitter: float, seed: int = 0) -> Poses:
    """The people of an image, moved, some of them twice, with scores that say little about quality."""
    random = np.random.default_rng((seed, image))
    keypoints = people_of(SCENES[image], COCO17).keypoints.numpy()
    keypoints = np.concatenate([keypoints, keypoints[:1]])
    keypoints = keypoints + random.normal(0, jitter, keypoints.shape)
    scores = torch.tensor(np.sort(random.random(len(keypoints)).astype(np.float32))[::-1].copy())
    return Poses(torch.tensor(keypoints.astype(np.float32)), scores[:, None].expand(-1, 17), scores)


def result(images: list[int], jitter: float, seed: int = 0) -> Evaluation:
    found = {index: poses(image, jitter, seed) for index, image in enumerate(images)}
    return evaluate(ground_truth(images), found, COCO17)


def matches(jitter: float, seed: int = 0) -> Matches:
    found = result(list(range(IMAGES)), jitter, seed).matches
    assert found is not None
    return found


def test_with_every_image_once_it_is_cocos_ap() -> None:
    evaluation = result(list(range(IMAGES)), 1.5)
    assert evaluation.matches is not None
    (ap,) = average_precision(evaluation.matches, np.ones((1, IMAGES), int))
    assert 0.2 < ap < 0.9 and ap == pytest.approx(evaluation.ap, abs=1e-12)


def test_an_image_drawn_twice_counts_as_two_images() -> None:
    drawn = np.random.default_rng(1).integers(0, IMAGES, IMAGES).tolist()
    weights = np.bincount(drawn, minlength=IMAGES)[None]
    (ap,) = average_precision(matches(1.5), weights)
    assert ap == pytest.approx(result(drawn, 1.5).ap, abs=1e-12)


def test_a_clear_difference_is_certain_and_one_of_chance_is_not() -> None:
    clear = difference(matches(1.0), matches(3.0))
    assert clear.certain and clear.low < clear.value < clear.high and clear.value > 0.1
    chance = difference(matches(1.5, seed=0), matches(1.5, seed=1))
    assert not chance.certain and chance.low < chance.value < chance.high
    same = difference(matches(1.5), matches(1.5))
    assert (same.value, same.low, same.high) == (0, 0, 0) and not same.certain


def test_the_interval_holds_the_true_difference_about_as_often_as_it_claims() -> None:
    """The true difference of two predictors of the same quality is 0."""
    held = [difference(matches(2.0, seed), matches(2.0, seed + 100), draws=200).certain for seed in range(40)]
    assert sum(held) <= 6  # 2 expected; more than 6 happen once in 300 times


def test_parts_of_draws_are_the_draws_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = difference(matches(1.0), matches(2.0), draws=50)
    monkeypatch.setattr("posefleet.data.evaluation.bootstrap._CELLS", 1)
    assert difference(matches(1.0), matches(2.0), draws=50) == whole


def test_other_images_or_people_are_refused() -> None:
    fewer = result(list(range(IMAGES - 1)), 1.5).matches
    assert fewer is not None
    with pytest.raises(ValueError, match="not scored on the same images and people"):
        difference(matches(1.5), fewer)


def test_differences_of_several_equal_those_of_each_pair() -> None:
    fewer = result(list(range(IMAGES - 1)), 1.5).matches
    assert fewer is not None
    three = {"a": matches(1.0), "b": matches(2.0), "c": matches(3.0)}
    found = differences({**three, "fewer images": fewer}, draws=50)
    assert found.keys() == {(one, other) for one in three for other in three if one != other}
    for (one, other), interval in found.items():
        alone = difference(three[one], three[other], draws=50)
        assert (interval.value, interval.low, interval.high) == pytest.approx((alone.value, alone.low, alone.high))


def test_ap_is_nan_with_nobody_to_find_and_0_with_nobody_found() -> None:
    none = np.zeros((1, 10, 0), bool)
    flags = MatchFlags.pack(none, none, np.array([1]))
    nobody = Matches(np.arange(3), np.array([0, 1, 0]), np.zeros(0, int), flags)
    weights = np.array([[1, 1, 1], [1, 0, 2]])
    np.testing.assert_array_equal(average_precision(nobody, weights), [0.0, np.nan])


def test_an_interval_is_printed_with_signs() -> None:
    assert str(Interval(-0.0123, -0.03, 0.004)) == "-0.012 (-0.030..+0.004)"
