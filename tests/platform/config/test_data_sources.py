"""Lists of data sources in settings: their forms, names and weights."""

from pathlib import Path

import pytest

from posefleet.platform.config.cli import parse_experiment
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.loading import build_experiment, to_dict
from posefleet.platform.config.sources import DataSource


def experiment(train: object, **data: object) -> Experiment:
    return build_experiment({"method": "smpr", "schema": "coco17", "data": {"train": train, **data}})


def test_a_path_stays_a_path() -> None:
    assert experiment("/a/b").data.train == "/a/b"
    assert experiment(["/a/b"]).data.train == "/a/b" == experiment([{"path": "/a/b"}]).data.train
    assert experiment("/a/b").data.train_sources == ()


def test_sources_are_texts_or_sections_and_survive_a_round_trip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dog.yaml").write_text("{name: dog, keypoints: [snout, tail], sigmas: [0.03, 0.1]}")
    section = {"path": "s3://b/dogs", "weight": 0.5, "rename": {"snout": "nose"}, "schema": "dog.yaml"}
    found = experiment(["/a/coco/train,weight=3", section, "c/train,weight=1,name=crowd"], eval=["/a/v", "/b/v"])
    assert [(s.name, s.path, s.weight) for s in found.data.train_sources] == [
        ("train", "/a/coco/train", 3.0),
        ("dogs", "s3://b/dogs", 0.5),
        ("crowd", f"{tmp_path}/c/train", 1.0),
    ]
    assert found.data.train_sources[1].rename == {"snout": "nose"}
    assert [source.name for source in found.data.eval] == ["a-v", "b-v"]  # type: ignore[union-attr]
    stored = found.data.train_sources[1].schema  # the file is not read again
    assert isinstance(stored, dict) and stored["sigmas"] == [0.03, 0.1]
    again = build_experiment(to_dict(found))
    assert again == found and again.data.train_sources == found.data.train_sources


def test_one_path_with_options_is_a_list_of_one() -> None:
    (source,) = experiment("/a/b,name=x").data.train_sources
    assert source == DataSource(path="/a/b", name="x")


def test_the_command_line_takes_several_paths(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--schema", "coco17", "--data.train", "/a/x,weight=2", "/b/y,weight=1", "--data.eval", "/a/v"]
    found = parse_experiment("smpr", given).data
    assert [(source.path, source.weight) for source in found.train_sources] == [("/a/x", 2.0), ("/b/y", 1.0)]
    assert found.eval == "/a/v" == found.one_eval
    with pytest.raises(SystemExit):
        parse_experiment("smpr", ["--data.train", "/a", "/b,weight=0"])
    assert "weight 0 of source /b must be above 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (["/a,weight=1", "/b"], r"give every source a weight, or none of them \(a 1.0, b none\)"),
        ([{"path": "/a", "weight": -2}], "weight -2 of source /a must be above 0"),
        ([{"path": "/a", "weight": float("nan")}, "/b"], "weight nan of source /a must be above 0"),
        ([{"path": "/a", "weigth": 1}], "unknown key 'data.train.0.weigth'; did you mean 'weight'"),
        ([{"path": "/a", "weight": "much"}, "/b"], r"data.train.0.weight: Input should be a valid number"),
        ([{"weight": 1}], "data.train.0.path: Field required"),
        ([{"path": ""}, "/b"], "a data source needs a path"),
        (["/a,name=x", "/b,name=x"], "two sources have the name x"),
        (["/a,name=x y", "/b"], "name 'x y' of a data source may have letters"),
        (["/a,weight=x", "/b"], "weight 'x' is no number"),
        (["/a,weight=1,weight=2", "/b"], "weight is given twice"),
        ([], "data.train is an empty list"),
        (5, "data.train: Input should be a valid"),
    ],
)
def test_bad_sources_are_refused(train: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        experiment(train)


def test_what_scores_one_set_says_so() -> None:
    with pytest.raises(ValueError, match=r"data.eval names 2 sources, but this scores one"):
        _ = experiment("/a", eval=["/b", "/c"]).data.one_eval
