"""Numbers of people in films: crossings, hidden people, poses of nobody, and smoothed keypoints."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from small_settings import small_settings, untrained_checkpoint

from posefleet.data.structures import Poses
from posefleet.data.synthetic.films import FilmConfig, write_films
from posefleet.platform.inference.predictor import Predictor
from posefleet.platform.prediction import worker
from posefleet.platform.prediction.batch import BatchResult, predict_images
from posefleet.platform.prediction.inputs import list_images
from posefleet.platform.prediction.tracker import (
    MOST_TRACKS,
    UNTRACKED,
    OneEuro,
    PoseTracker,
    TrackOptions,
    box_iou,
)
from posefleet.platform.prediction.worker import PredictionOptions
from tests.bench import bench_tracking

SIGMAS = (0.08,) * 4
BODY = np.array([(0, 0), (12, 0), (0, 60), (12, 60)], float)
"""Keypoints of a standing person, pixels."""


def at(x: float, y: float) -> np.ndarray:
    """The body with its left foot at a place."""
    return BODY + np.array([x, y])


def frame(*people: tuple[float, float], score: float = 0.9) -> Poses:
    """People whose left feet are at the given places."""
    points = np.stack([at(*place) for place in people]) if people else np.zeros((0, 4, 2))
    scores = torch.full((len(people),), score)
    return Poses(torch.from_numpy(points).float(), scores[:, None].expand(-1, 4), scores)


def follow(frames: list[Poses], rate: float = 10.0, **options: Any) -> list[list[int]]:
    tracker = PoseTracker(SIGMAS, TrackOptions(**options))
    return [tracker(poses, index / rate).tolist() for index, poses in enumerate(frames)]


def test_people_who_cross_keep_their_numbers() -> None:
    places = [((10.0 * i, 50.0), (200 - 10.0 * i, 62.0)) for i in range(21)]
    assert follow([frame(*both) for both in places]) == [[0, 1]] * 21


def test_frames_without_times_are_tracked_all_the_same() -> None:
    tracker = PoseTracker(SIGMAS)
    found = [tracker(frame((2.0 * i, 50.0), (200 - 2.0 * i, 62.0)), 0.0).tolist() for i in range(8)]
    assert found == [[0, 1]] * 8


def test_the_order_of_the_poses_does_not_matter() -> None:
    places = [((10.0 * i, 50.0), (200 - 10.0 * i, 62.0)) for i in range(21)]
    frames = [frame(*(both[::-1] if i % 2 else both)) for i, both in enumerate(places)]
    assert follow(frames) == [[1, 0] if i % 2 else [0, 1] for i in range(21)]


def test_a_hidden_person_gets_its_number_back() -> None:
    """It walks on behind another one who stands, and comes out at the other side."""
    frames = [frame((60, 50), (8.0 * i, 50)) if not 5 <= i <= 9 else frame((60, 50)) for i in range(20)]
    numbers = follow(frames)
    assert [found[1:] for found in numbers] == [[1] if not 5 <= i <= 9 else [] for i in range(20)]
    assert all(found[0] == 0 for found in numbers)


def test_after_long_it_is_somebody_new() -> None:
    frames = [frame((0, 0))] * 3 + [frame()] * 12 + [frame((0, 0))] * 3
    assert follow(frames, keep_s=1.0)[-1] == [1] and follow(frames, keep_s=2.0)[-1] == [0]


def noisy_film(seed: int, people: int = 5) -> list[tuple[Poses, float]]:
    """People who cross, with noise, missed ones, poses of nobody and frames at uneven times."""
    rng = np.random.default_rng(seed)
    starts, speeds = rng.uniform(0, 400, (people, 2)), rng.uniform(-90, 90, (people, 2))
    frames, seconds = [], 0.0
    for _ in range(40):
        seconds += rng.uniform(0.02, 0.2)
        seen = starts[rng.random(people) > 0.2] + seconds * speeds[0]
        places = np.concatenate([seen, rng.uniform(0, 400, (rng.integers(3), 2))])
        points = BODY + places[:, None] + rng.normal(0, 1.5, (len(places), *BODY.shape))
        scores = torch.from_numpy(rng.uniform(0.05, 1, len(places))).float()
        frames.append((Poses(torch.from_numpy(points).float(), scores[:, None].expand(-1, 4), scores), seconds))
    return frames


@pytest.mark.parametrize("seed", range(4))
def test_a_state_that_goes_through_json_gives_the_same_numbers(seed: int) -> None:
    tracker, state, most = PoseTracker(SIGMAS), None, 0
    for poses, seconds in noisy_film(seed):
        other = PoseTracker(SIGMAS)
        other.restore(json.loads(json.dumps(state)))
        expected = tracker(poses, seconds)
        assert other(poses, seconds).tolist() == expected.tolist()
        state, most = other.state(), max(most, expected.max(initial=-1))
        assert state == tracker.state()
    assert most > 3


def test_a_hidden_person_gets_its_number_back_from_a_state() -> None:
    frames = [frame((60, 50), (8.0 * i, 50)) if not 5 <= i <= 9 else frame((60, 50)) for i in range(20)]
    state, numbers = None, []
    for index, poses in enumerate(frames):
        tracker = PoseTracker(SIGMAS)
        tracker.restore(state)
        numbers.append(tracker(poses, index / 10).tolist())
        state = json.loads(json.dumps(tracker.state()))
    assert numbers == follow(frames) and numbers[-1] == [0, 1]


def test_a_state_is_bounded_and_compact() -> None:
    tracker = PoseTracker(SIGMAS)
    places = np.random.default_rng(0).uniform(0, 5_000, (300, 2))
    tracker(frame(*places), 0.0)  # type: ignore[arg-type]
    tracker(frame((1e30, -1e30)), 0.1)
    assert len(tracker.state()["tracks"]) <= MOST_TRACKS  # type: ignore[index]
    tracker = PoseTracker(SIGMAS)
    tracker(frame((1.0, 2.0), (300.0, 7.04)), 0.0)
    state = tracker.state()
    assert state is not None and state["tracks"][1]["keypoints"] == [3000, 70, 3120, 70, 3000, 670, 3120, 670]
    assert len(json.dumps(state)) < 300


STATE: dict[str, Any] = {
    "seconds": 2.0,
    "next": 2,
    "tracks": [{"number": 1, "seen": 1.0, "poses": 2, "velocity": [0, 0], "keypoints": [0] * 8}],
}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("keypoints", [0] * 6, r"tracks\.0\.keypoints: 6 numbers, but a pose of this model has 8"),
        ("seen", 2.1, r"tracks\.0\.seen: 2\.1 must not be after 2\.0"),
        ("number", 2, r"tracks\.0\.number: 2 must be below next, 2"),
    ],
)
def test_states_that_contradict_themselves_are_refused(field: str, value: Any, message: str) -> None:
    PoseTracker(SIGMAS).restore(STATE)
    with pytest.raises(ValueError, match=message):
        PoseTracker(SIGMAS).restore({**STATE, "tracks": [STATE["tracks"][0] | {field: value}]})
    with pytest.raises(ValueError, match=r"tracks\.1\.number: 1 must be .* given once"):
        PoseTracker(SIGMAS).restore({**STATE, "tracks": 2 * STATE["tracks"]})


def test_a_pose_of_nobody_gets_no_number() -> None:
    frames = [frame((0, 0)), frame((0, 0), (300, 0)), frame((0, 0)), frame((0, 0), (500, 0)), frame((0, 0), (500, 0))]
    assert follow(frames) == [[0], [0, UNTRACKED], [0], [0, UNTRACKED], [0, 1]]


def test_low_scores_go_on_with_a_track_and_begin_none() -> None:
    frames = [frame((0, 0)), frame((2, 0), score=0.05), frame((4, 0), score=0.05), frame((400, 0), score=0.05)]
    assert follow(frames) == [[0], [0], [0], [UNTRACKED]]


def test_one_keypoint_is_enough() -> None:
    tracker = PoseTracker((0.05,))
    for index in range(6):
        points = torch.tensor([[[4.0 * index, 10.0]], [[100.0, 10.0]]])
        assert tracker(Poses(points, torch.ones(2, 1), torch.ones(2)), index / 10).tolist() == [0, 1]


def test_boxes_are_compared_by_their_intersection() -> None:
    found = box_iou(BODY[None], np.stack([BODY, at(6, 0), at(50, 0)]), np.zeros(1))
    np.testing.assert_allclose(found, [[1, 1 / 3, 0]])


@pytest.mark.parametrize(("name", "value"), [("start_score", 1.5), ("keep_s", -1.0), ("spread", 0.0)])
def test_wrong_options_are_errors(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        TrackOptions(**{name: value})


@pytest.mark.filterwarnings("ignore")
def test_it_mixes_fewer_people_up_than_boxes_do() -> None:
    config = FilmConfig(seconds=5, rate=5, people=(4, 6))
    films = [list(bench_tracking.film(config, seed, "")) for seed in range(3)]
    lines = [line.strip("| ").split(" | ") for line in bench_tracking.report(films, 0.5).splitlines()[2:]]
    idf1, switches = ({line[0]: float(line[column]) for line in lines} for column in (2, 3))
    assert idf1["tracker"] > max(idf1["boxes"], idf1["still"], idf1["ranks"] + 0.2)
    assert switches["tracker"] < min(switches["boxes"], switches["still"], switches["ranks"] / 5)


# ---------------------------------------------------------------------------------------------------- smoothing


def test_smoothing_takes_noise_away_and_hardly_lags() -> None:
    rng = np.random.default_rng(0)
    still = BODY + rng.normal(0, 1, (100, 4, 2))
    smooth, track = OneEuro(1.0), np.array([0])
    found = np.stack([smooth(keypoints[None], track, index / 25)[0] for index, keypoints in enumerate(still)])
    assert (found[50:] - BODY).std() < 0.5 * (still[50:] - BODY).std()
    smooth = OneEuro(1.0)
    fast = np.stack([at(4.0 * index, 0) for index in range(50)])  # 100 px a second
    found = np.stack([smooth(keypoints[None], track, index / 25)[0] for index, keypoints in enumerate(fast)])
    assert np.abs(found[-1] - fast[-1]).max() < 5


def test_smoothing_leaves_poses_without_a_number_alone() -> None:
    smooth = OneEuro(0.5)
    smooth(np.stack([BODY, BODY]), np.array([0, UNTRACKED]), 0.0)
    found = smooth(np.stack([BODY + 3, BODY + 3]), np.array([0, UNTRACKED]), 0.1)
    assert (found[1] == BODY + 3).all() and (found[0] < BODY + 3).all()


# ---------------------------------------------------------------------------------------------------- predict


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    return untrained_checkpoint(small_settings(folder, folder), folder, sure=True)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    write_films(folder, "films", 1, FilmConfig(width=96, height=64, seconds=1.4, rate=10))
    return folder / "films"


def predict(film: Path, output: Path, model: str, **options: Any) -> BatchResult:
    size = options.pop("batch_size", 4)
    images = list_images(str(film))
    return predict_images(
        images, str(output), model, parallel=False, batch_size=size, options=PredictionOptions(**options)
    )


def rows(output: Path) -> list[dict[str, Any]]:
    return pq.read_table(output / "poses.parquet").to_pylist()


def test_numbers_depend_on_neither_batches_nor_interruptions(
    film: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "FRAMES_KEPT", 4)
    predict(film, tmp_path / "whole", model, smooth=2.0, overlays=True)
    predict(film, tmp_path / "single", model, smooth=2.0, batch_size=1)
    whole, single = rows(tmp_path / "whole"), rows(tmp_path / "single")
    tracks = [row["track"] for row in whole]
    assert set(tracks) - {None} and tracks == [row["track"] for row in single]

    begun, calls = Predictor.predict_prepared, []

    def interrupted(self: Predictor, prepared: Any) -> Any:
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return begun(self, prepared)

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict_prepared", interrupted)
        with pytest.raises(KeyboardInterrupt):
            predict(film, tmp_path / "again", model, smooth=2.0)
    assert predict(film, tmp_path / "again", model, smooth=2.0).predicted == 14 - 8
    assert rows(tmp_path / "again") == whole


def test_tracking_and_smoothing_are_options(film: Path, model: str, tmp_path: Path) -> None:
    predict(film, tmp_path / "plain", model)
    predict(film, tmp_path / "off", model, track=False)
    predict(film, tmp_path / "smooth", model, smooth=0.5)
    plain, off, smooth = (rows(tmp_path / name) for name in ("plain", "off", "smooth"))
    assert {row["track"] for row in off} == {None}
    assert [row["nose_x"] for row in off] == [row["nose_x"] for row in plain]
    assert [row["track"] for row in smooth] == [row["track"] for row in plain]
    moved = [a["nose_x"] != b["nose_x"] for a, b in zip(plain, smooth, strict=True) if a["track"] is not None]
    assert any(moved)
    with pytest.raises(ValueError, match="holds predictions with track False, and now it is True"):
        predict(film, tmp_path / "off", model)
    with pytest.raises(ValueError, match=r"smooth 1\.0 .* needs track"):
        PredictionOptions(track=False, smooth=1.0)
