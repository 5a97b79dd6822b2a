"""Search spaces: values that are drawn, and spaces that are refused."""

import random
from pathlib import Path
from typing import Any

import optuna
import pytest

from posefleet.platform.config.loading import build_experiment, with_settings
from posefleet.platform.tuning.space import Range, apply, contains, read_space, settings_of, suggest

BASE = build_experiment({"method": "smpr", "data": {"train": "/shards/train2017"}})
SPACES = sorted(Path(__file__).resolve().parents[3].joinpath("jobs/configs/spaces").glob("*.yaml"))


def space_file(folder: Path, text: str) -> Path:
    path = folder / "space.yaml"
    path.write_text(text)
    return path


def test_settings_by_dotted_name_give_a_changed_copy_of_nested_ones() -> None:
    values: dict[str, Any] = {"optim": {"lr": 0.1, "name": "sgd"}}
    assert with_settings(values, {"optim.lr": 0.2, "model.neck": "fpn"}) == {
        "optim": {"lr": 0.2, "name": "sgd"},
        "model": {"neck": "fpn"},
    }
    assert values == {"optim": {"lr": 0.1, "name": "sgd"}}
    with pytest.raises(ValueError, match=r"unknown key 'optim\.lr\.x': lr is a setting and no section"):
        with_settings(values, {"optim.lr.x": 1})


def test_every_kind_of_domain_is_drawn_within_its_ends(tmp_path: Path) -> None:
    path = space_file(
        tmp_path,
        """
        optim.lr: {low: 1.0e-4, high: 1.0e-2, log: true}
        model.head.tower_depth: {low: 1, high: 5, step: 2}
        model.decode.nms: [linear, hard]
        evaluate.scales: [[], [128], [128, 192]]
        """,
    )
    space = read_space(path, BASE)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [suggest(study.ask(), space) for _ in range(60)]
    assert all(1e-4 <= settings["optim.lr"] <= 1e-2 for settings in drawn)
    assert sum(settings["optim.lr"] < 1e-3 for settings in drawn) > 15  # half of the decades
    assert {settings["model.head.tower_depth"] for settings in drawn} == {1, 3, 5}
    assert {settings["model.decode.nms"] for settings in drawn} == {"linear", "hard"}
    experiments = [apply(BASE, settings) for settings in drawn]
    assert {experiment.evaluate.scales for experiment in experiments} == {(), (128,), (128, 192)}


def test_the_own_settings_are_found_and_lie_inside_the_space_or_not(tmp_path: Path) -> None:
    path = space_file(tmp_path, "optim.lr: {low: 1.0e-9, high: 1.0e-8}\nmodel.decode.nms: [linear, hard]")
    space = read_space(path, BASE)
    own = settings_of(BASE, list(space))
    assert own == {"optim.lr": BASE.optim.lr, "model.decode.nms": "linear"}
    assert {name: contains(space[name], own[name]) for name in space} == {"optim.lr": False, "model.decode.nms": True}


def test_a_value_between_two_steps_lies_outside() -> None:
    odd, tenths = Range(low=7, high=19, step=2), Range(low=0.1, high=0.7, step=0.1)
    assert [value for value in range(6, 21) if contains(odd, value)] == [7, 9, 11, 13, 15, 17, 19]
    assert contains(tenths, 0.3) and not contains(tenths, 0.35)


def test_values_outside_a_range_become_its_nearest_value() -> None:
    odd, tenths = Range(low=7, high=20, step=2), Range(low=0.1, high=0.7)
    assert [odd.nearest(value) for value in (3, 7.9, 8.1, 19.2, 40)] == [7, 7, 9, 19, 19]
    assert [tenths.nearest(value) for value in (0.0, 0.33, 1.0)] == [0.1, 0.33, 0.7]
    rng = random.Random(0)
    drawn = [Range(low=1e-4, high=1.0, log=True).random(rng) for _ in range(400)]
    assert min(drawn) >= 1e-4 and max(drawn) <= 1.0 and 150 < sum(value < 1e-2 for value in drawn) < 250
    assert {odd.random(rng) for _ in range(100)} == {7, 9, 11, 13, 15, 17, 19}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim.lrr: [1.0, 2.0]", r"unknown key 'optim\.lrr'; did you mean 'optim\.lr'\?"),
        ("model.adapt.kem_size: {low: 7, high: 19}", r"unknown key 'model\.adapt'"),
        ("model.decode.nms: [linear, harder]", r"model\.decode\.nms = harder"),
        ("model.score.exponent: {low: 0.5, high: 1.5}", r"exponent must be 0\.\.1, not 1\.5"),
        ("optim.lr: {low: 1e-4, high: 1e-2}", r"write 1\.0e-4"),
        ("optim.lr: {low: 0.1, high: 0.01}", r"low 0\.1 must be below high 0\.01"),
        ("optim.lr: {low: 0, high: 0.01, log: true}", "a log range starts above 0"),
        ("optim.lr: {low: 0.1, high: 0.2, log: 5}", "log must be true or false, not 5"),
        ("optim.lr: {min: 0, max: 0.01}", "must be a list of values or"),
        ("optim.lr: 0.1", "must be a list of values or"),
        ("optim.lr: []", "no values to choose from"),
        ("{}", "is empty; give dotted names"),
    ],
)
def test_an_invalid_space_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_space(space_file(tmp_path, text), BASE)


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_shipped_spaces_fit_their_method(path: Path) -> None:
    method = path.stem.partition("_")[0]
    assert read_space(path, build_experiment({"method": method, "data": {"train": "/shards/train2017"}}))
