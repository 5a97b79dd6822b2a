"""From images to poses: flipped and scaled views, and scores from the ground truth."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_settings import small_settings, untrained_checkpoint
from torch import nn

from posefleet.data.coco.annotations import people_of
from posefleet.data.evaluation.evaluate import evaluate
from posefleet.data.evaluation.ground_truth import GroundTruth
from posefleet.data.images import decode_image, encode_image
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.structures import Batch, Detections, Frames, People, Poses, Sample, collate
from posefleet.data.synthetic.scenes import SceneConfig, render_scene
from posefleet.data.transforms import IDENTITY
from posefleet.models.parts.ops.decode import DecodeConfig, suppress
from posefleet.models.parts.ops.oks import score_by_ground_truth
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.loading import build_experiment
from posefleet.platform.inference.predictor import Predictor

SIGMAS = torch.tensor(COCO17.sigmas)
SIZE = 256


def experiment(**settings: Any) -> Experiment:
    data = {"train": "shards", "resize": {"short_side": SIZE, "long_side": SIZE}}
    return build_experiment({"method": "smpr", "schema": "coco17", "data": data, "evaluate": settings})


class Guesser(nn.Module):
    """A method that gives the same candidates for every image."""

    score_rule = "how bold the guess is"

    def __init__(self, guess: Poses) -> None:
        super().__init__()
        self.guess = guess
        self.parameter = nn.Parameter(torch.zeros(1))

    def predict(self, images: torch.Tensor) -> list[Poses]:
        return self.suppress(self.candidates(images))

    def candidates(self, images: torch.Tensor) -> list[Poses]:
        return [self.guess] * len(images)

    def suppress(self, poses: list[Poses]) -> list[Poses]:
        return suppress(poses, DecodeConfig())


def scene(seed: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    return render_scene(SceneConfig(people=(2, 4), crowd_rate=0.5, unlabelled_rate=0.3), seed)


def batch_of(picture: np.ndarray, people: People) -> Batch:
    return collate([Sample(picture, people, 1, IDENTITY, (SIZE, SIZE))])


def standing(x: float) -> torch.Tensor:
    """(K, 2) keypoints of somebody 60 by 170 px, mirror-symmetric about x."""
    height = torch.linspace(40, 210, 9)[torch.arange(1, 18) // 2]
    side = torch.tensor([0.0] + [30.0, -30.0] * 8)
    return torch.stack([x + side, height], dim=1)


def poses(*keypoints: torch.Tensor, scores: list[float]) -> Poses:
    values = torch.tensor(scores)
    return Poses(torch.stack(keypoints), values[:, None].repeat(1, 17), values)


def person(keypoints: torch.Tensor) -> People:
    box = torch.cat([keypoints.amin(0), keypoints.amax(0)])[None]
    visibility = torch.full((1, 17), 2, dtype=torch.uint8)
    return People(keypoints[None], visibility, box, torch.tensor([10_000.0]), torch.zeros(1, dtype=torch.bool))


BLANK = np.zeros((SIZE, SIZE, 3), np.uint8)
BOLD_AND_GOOD = poses(standing(120), standing(100), scores=[0.9, 0.3])
"""The bolder one is 20 px off the person at x = 100. IoU of the boxes: 40 / 80."""


def test_the_better_pose_wins_under_oracle_scores_only() -> None:
    views = [batch_of(BLANK, person(standing(100)))]
    (plain,) = Predictor(Guesser(BOLD_AND_GOOD), experiment()).predict(views)
    torch.testing.assert_close(plain.keypoints, torch.stack([standing(120), standing(100)]))
    torch.testing.assert_close(plain.scores, torch.tensor([0.9, 0.3 * 0.5]))
    (oracle,) = Predictor(Guesser(BOLD_AND_GOOD), experiment(oracle_scores=True)).predict(views)
    torch.testing.assert_close(oracle.keypoints, torch.stack([standing(100), standing(120)]))
    torch.testing.assert_close(oracle.scores, torch.tensor([1, 0.331114 * 0.5]), atol=1e-5, rtol=0)


def test_oracle_scores_know_mirrored_and_scaled_views() -> None:
    """The guess is the same in the mirrored image, so there it fits the person who stands at 256 - 100."""
    settings = experiment(oracle_scores=True, flip=True)
    (found,) = Predictor(Guesser(poses(standing(100), scores=[0.5])), settings).predict(
        [batch_of(BLANK, person(standing(156)))]
    )
    torch.testing.assert_close(found.keypoints, torch.stack([standing(156), standing(100)]))
    assert found.scores[0].item() == pytest.approx(1) and found.scores[1] < 0.01

    twice = person(2 * standing(100))
    twice.areas[:] = 40_000
    large = collate([Sample(np.zeros((512, 512, 3), np.uint8), twice, 1, 2 * IDENTITY, (SIZE, SIZE))])
    views = [batch_of(BLANK, person(standing(100))), large]
    settings = experiment(oracle_scores=True, scales=[SIZE, 2 * SIZE])
    (found,) = Predictor(Guesser(poses(2 * standing(110), scores=[0.5])), settings).predict(views)
    assert found.scores.tolist() == pytest.approx([0.646995], abs=1e-5)  # 20 px off at twice the size
    torch.testing.assert_close(found.keypoints[0], standing(110))


class Framed(Guesser):
    """A guesser that is told where images lie in their batch."""

    takes_frames = True

    def __init__(self) -> None:
        super().__init__(BOLD_AND_GOOD)
        self.seen: list[Frames] = []

    def predict(self, images: torch.Tensor, frames: Frames | None = None) -> list[Poses]:
        return super().suppress(self.candidates(images, frames))

    def candidates(self, images: torch.Tensor, frames: Frames | None = None) -> list[Poses]:
        assert frames is not None
        self.seen.append(frames)
        return super().candidates(images)


def test_models_are_told_where_images_lie_in_their_batch() -> None:
    """300 x 451 px at 256 px: 170.29 px wide before rounding, and the batch is padded to 192."""
    picture = np.zeros((451, 300, 3), np.uint8)
    for flip in (False, True):
        model = Framed()
        Predictor(model, experiment(flip=flip)).predict_images([picture])
        assert len(model.seen) == 1 + flip
        assert model.seen[0].boxes.tolist() == [[0, 0, 170, 256]]
        torch.testing.assert_close(model.seen[0].ratios, torch.tensor([[170 / 300, 256 / 451]]))
        torch.testing.assert_close(model.seen[0].nominal, torch.tensor([256 / 451]))
    assert model.seen[1].boxes.tolist() == [[22, 0, 192, 256]] and model.seen[1].mirrored


def test_a_prediction_says_what_the_scores_of_keypoints_are() -> None:
    prediction = Predictor(Guesser(BOLD_AND_GOOD), experiment())(BLANK)
    assert prediction.as_dict()["keypoint_scores"] == "pose score, repeated"


def test_the_score_rule_says_whose_scores_they_are() -> None:
    assert Predictor(Guesser(BOLD_AND_GOOD), experiment()).score_rule == "how bold the guess is"
    rule = Predictor(Guesser(BOLD_AND_GOOD), experiment(oracle_scores=True)).score_rule
    assert rule == "ORACLE: true OKS before NMS instead of: how bold the guess is"


@pytest.mark.parametrize("seed", range(4))
def test_random_guesses_score_no_less_when_the_truth_ranks_them(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    records, plain, oracle = [], {}, {}
    for index in range(6):
        _, annotations = scene(100 * seed + index)
        people = people_of(annotations, COCO17)
        count = 10 * len(people)
        noise = torch.randn(count, 17, 2, generator=random) * 12 * torch.rand(count, 1, 1, generator=random)
        scores = torch.rand(count, generator=random).sort(descending=True).values
        guesses = Poses(people.keypoints.repeat(10, 1, 1) + noise, scores[:, None].repeat(1, 17), scores)
        records.append((index, (SIZE, SIZE), annotations))
        (plain[index],) = suppress([guesses], DecodeConfig())
        (oracle[index],) = suppress([score_by_ground_truth(guesses, people, SIGMAS)], DecodeConfig())
    truth = GroundTruth.from_records(records)
    without, with_truth = (evaluate(truth, found, COCO17).ap for found in (plain, oracle))
    assert 0 < without < with_truth


def test_images_without_annotations_have_no_oracle() -> None:
    with pytest.raises(ValueError, match="oracle_scores needs annotated people"):
        Predictor(Guesser(BOLD_AND_GOOD), experiment(oracle_scores=True))([BLANK])


def test_oracle_boxes_are_given_the_people_and_are_for_top_down_methods_alone() -> None:
    class Refiner(Guesser):
        def predict_in(self, images: torch.Tensor, people: list[People], oracle: str, found: None) -> list[Poses]:
            assert oracle == "annotated" and found is None
            return [Poses(p.keypoints, torch.ones(len(p), 17), torch.ones(len(p))) for p in people]

    settings = experiment(oracle_boxes="annotated")
    predictor = Predictor(Refiner(BOLD_AND_GOOD), settings)
    (found,) = predictor.predict([batch_of(BLANK, person(standing(156)))])
    torch.testing.assert_close(found.keypoints, standing(156)[None])
    assert predictor.score_rule.startswith("ORACLE: boxes corrected by the ground truth (annotated) after: how bold")
    with pytest.raises(ValueError, match="oracle_boxes needs annotated people"):
        predictor([BLANK])
    with pytest.raises(ValueError, match="oracle_boxes annotated is for top-down methods"):
        Predictor(Guesser(BOLD_AND_GOOD), settings)
    with pytest.raises(ValueError, match=r"not together with evaluate\.flip"):
        Predictor(Refiner(BOLD_AND_GOOD), experiment(oracle_boxes="annotated", flip=True))


def test_given_detections_are_moved_into_the_input_and_back(tmp_path: Path) -> None:
    class Refiner(Guesser):
        refined: list[Detections]

        def predict_in(self, images: Any, people: Any, oracle: str, found: list[Detections]) -> list[Poses]:
            assert oracle == "none"
            self.refined = found
            return [self.guess] * len(found)

    file = tmp_path / "detections.json"
    file.write_text(json.dumps([{"image_id": 1, "category_id": 1, "bbox": [10, 20, 30, 40], "score": 0.5}]))
    model = Refiner(BOLD_AND_GOOD)
    model.refined = []
    predictor = Predictor(model, experiment(detections=str(file)))
    twice = [Sample(np.zeros((512, 512, 3), np.uint8), People.empty(17), i, 2 * IDENTITY, (SIZE, SIZE)) for i in (1, 2)]
    predictor.predict([collate(twice)])
    assert [found.boxes.tolist() for found in model.refined] == [[[20, 40, 80, 120]], []]
    assert [found.boxes.tolist() for found in predictor.refined] == [[[10, 20, 40, 60]], []]
    assert predictor.score_rule == "how bold the guess is, detections from a file"
    with pytest.raises(ValueError, match=r"evaluate\.detections needs images of a data set"):
        predictor([BLANK])
    with pytest.raises(ValueError, match=r"evaluate\.detections is for top-down methods"):
        Predictor(Guesser(BOLD_AND_GOOD), experiment(detections=str(file)))


@pytest.mark.parametrize("settings", [{"flip": True}, {"scales": [64, 96]}, {"oracle_scores": True}], ids=str)
def test_a_method_without_candidates_only_predicts_plainly(settings: dict[str, Any]) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parameter = nn.Parameter(torch.zeros(1))

        def predict(self, images: torch.Tensor) -> list[Poses]:
            return [poses(standing(100), scores=[0.5])] * len(images)

    assert len(Predictor(Plain(), experiment())([BLANK])) == 1
    with pytest.raises(ValueError, match="'smpr' has no multi-scale or flip prediction and no oracle scores"):
        Predictor(Plain(), experiment(**settings))


# ---------------------------------------------------------------------------------------------------- three lines


@pytest.fixture
def trained(people_shards: Path, tmp_path: Path) -> str:
    return untrained_checkpoint(small_settings(people_shards, tmp_path), tmp_path)


def test_pictures_may_be_paths_bytes_or_pixels(trained: str, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    data, path = encode_image(image, ".png"), tmp_path / "people.png"
    path.write_bytes(data)
    predictor = Predictor.from_checkpoint(trained, device="cpu")
    alone = predictor(path)
    assert np.array_equal(alone.image, image)
    for prediction in predictor([str(path), data, image]):
        assert torch.allclose(prediction.poses.keypoints, alone.poses.keypoints, atol=1e-3)
    assert len(alone.poses), "nothing to compare"
    alone.plot(tmp_path / "poses.jpg", score_threshold=0)
    assert decode_image((tmp_path / "poses.jpg").read_bytes()).shape == image.shape


def test_json_has_the_schemas_names_and_loses_nothing_that_counts(trained: str) -> None:
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    prediction = Predictor.from_checkpoint(trained, device="cpu")(image)
    output = json.loads(json.dumps(prediction.as_dict()))
    assert (output["width"], output["height"]) == (120, 90)
    for index, pose in enumerate(output["poses"]):
        assert [keypoint["name"] for keypoint in pose["keypoints"]] == list(COCO17.keypoints)
        places = [[keypoint["x"], keypoint["y"]] for keypoint in pose["keypoints"]]
        assert np.abs(np.array(places) - prediction.poses.keypoints[index].numpy()).max() <= 1e-5
        assert pose["box"] == pytest.approx(prediction.poses.boxes[index].tolist(), abs=1e-5)


def test_an_address_that_names_no_registered_model_says_what_to_write() -> None:
    with pytest.raises(ValueError, match="models:/NAME@ALIAS"):
        Predictor.from_registry("smpr@champion")


def test_a_plot_needs_an_ending_that_names_a_format(trained: str, tmp_path: Path) -> None:
    prediction = Predictor.from_checkpoint(trained, device="cpu")(BLANK)
    with pytest.raises(ValueError, match=r"ending '\.poses'"):
        prediction.plot(tmp_path / "a.poses")


def test_poses_do_not_depend_on_the_other_images_of_a_batch(trained: str) -> None:
    """Padding changes what convolutions see at the border, so images of other shapes must not cause any."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (*size, 3), np.uint8) for size in ((90, 120), (120, 40), (120, 90), (60, 120))]
    predictor = Predictor.from_checkpoint(trained, device="cpu")
    together = predictor.predict_images([*images, *images])
    for image, found in zip([*images, *images], together, strict=True):
        (alone,) = predictor.predict_images([image])
        assert len(found) == len(alone) > 0
        assert torch.allclose(found.keypoints, alone.keypoints, atol=1e-4)
        assert torch.allclose(found.scores, alone.scores, atol=1e-5)


@pytest.mark.parametrize(("seed", "sure"), [(0, False), (1, False), (0, True), (1, True)])
def test_poses_of_small_runs_are_too_far_apart_for_rounding(seed: int, sure: bool, tmp_path: Path) -> None:
    """Other tests compare what such a network finds alone, in batches, behind a server and after a restart."""
    settings = small_settings(tmp_path, tmp_path)
    checkpoint = untrained_checkpoint(settings, tmp_path / "run", seed=seed, sure=sure)
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
    sizes = ((96, 128), (128, 96))
    pictures = [render_scene(SceneConfig(width=(w, w), height=(h, h)), seed)[0] for seed in range(3) for h, w in sizes]
    expected = [predictor.predict_images([picture])[0] for picture in pictures]
    random = torch.Generator().manual_seed(0)
    for weights in predictor.model.state_dict().values():
        if weights.is_floating_point():
            weights.mul_(1 + 1e-5 * torch.randn(weights.shape, generator=random))  # rounding does a hundredth of that
    for picture, before in zip(pictures, expected, strict=True):
        (found,) = predictor.predict_images([picture])
        assert len(found) == len(before) > 0
        assert (found.keypoints - before.keypoints).abs().max() < 0.5, "another pose"
