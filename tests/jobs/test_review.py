"""``posefleet review`` from a data set to a page, tasks and a corrected annotation file."""

import json
from pathlib import Path

import pytest
import yaml
from small_settings import small_settings

from posefleet.data.coco.split import part_of
from posefleet.jobs import review
from posefleet.platform.config.loading import build_experiment
from posefleet.platform.review.folds import fold_experiments


@pytest.fixture(scope="module")
def reviewed(people_coco: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A review by two trainings of seconds."""
    folder = tmp_path_factory.mktemp("review")
    settings = small_settings(folder, folder)
    del settings["schema"], settings["data"]["train"], settings["data"]["eval"], settings["run"]
    settings["model"]["decode"] = {"score_floor": 0.0, "max_poses": 5}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    arguments = ["--config", str(folder / "config.yaml"), "--parts", "2", "--scaling.num_workers", "0"]
    common = ["--source", str(people_coco), "--split", "train2017", "--show", "5"]
    assert review.main([*common, *arguments, "--out", str(folder / "out")]) == 0
    return folder / "out"


def test_every_image_is_predicted_by_a_run_that_did_not_train_on_it(reviewed: Path, people_coco: Path) -> None:
    content = json.loads((people_coco / "annotations" / "person_keypoints_train2017.json").read_text())
    of_part = {
        number: {i["id"] for i in content["images"] if part_of(i["file_name"], 2) == number} for number in (0, 1)
    }
    assert min(map(len, of_part.values())) > 0
    for number, images in of_part.items():
        run = reviewed / "runs" / f"without-part{number}"
        (meta,) = run.glob("checkpoints/step-*/meta.json")
        data = json.loads(meta.read_text())["experiment"]["data"]
        assert data["train"].endswith(f"part{1 - number}") and data["eval"].endswith(f"part{number}")
        manifest = json.loads((reviewed / "parts" / f"part{number}" / "manifest.json").read_text())
        assert manifest["counts"]["images"] == len(images)


def test_page_list_and_tasks_show_the_same_suspects(reviewed: Path) -> None:
    suspects = json.loads((reviewed / "suspects.json").read_text())
    page = (reviewed / "review.html").read_text()
    assert page.count("<article") == min(5, len(suspects)) and page.count("data:image/jpeg") == 2 * page.count(
        "<article"
    )
    assert "http" not in page and [s["doubt"] for s in suspects] == sorted((s["doubt"] for s in suspects), reverse=True)
    cvat = json.loads((reviewed / "cvat" / "annotations" / "person_keypoints_default.json").read_text())
    studio = json.loads((reviewed / "label-studio" / "tasks.json").read_text())
    ids = list(dict.fromkeys(suspect["image_id"] for suspect in suspects[:5]))
    assert [image["id"] for image in cvat["images"]] == ids and len(studio) == len(ids)
    names = (reviewed / "cvat" / "images.txt").read_text().split()
    assert names == [image["file_name"] for image in cvat["images"]]


def test_corrected_tasks_come_back(
    reviewed: Path, people_coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = reviewed / "cvat" / "annotations" / "person_keypoints_default.json"
    content = json.loads(path.read_text())
    person = next(a for a in content["annotations"] if a["num_keypoints"] > 3 and not a["iscrowd"])
    person["keypoints"][0:3] = [3.0, 4.0, 2]
    (tmp_path / "corrected.json").write_text(json.dumps(content))
    common = ["--source", str(people_coco), "--split", "train2017", "--corrected", str(tmp_path / "corrected.json")]
    assert review.main([*common, "--out", str(tmp_path / "new.json")]) == 0
    assert "1 of them changed: 1 annotations corrected, 0 added, 0 removed" in capsys.readouterr().out
    new = {a["id"]: a for a in json.loads((tmp_path / "new.json").read_text())["annotations"]}
    assert new[person["id"]]["keypoints"][:3] == [3.0, 4.0, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--config, --models, --corrected"),
        (("--config", "x.yaml", "--parts", "1"), "--parts 1 must be at least 2"),
        (("--models", "/nowhere"), "no checkpoint in /nowhere"),
        (("--models", "/nowhere", "--train.epochs", "3"), "--train.epochs belongs to the trainings of --config"),
        (("--corrected", "/nowhere.json"), "/nowhere.json: no such file"),
    ],
)
def test_what_is_wrong_with_the_arguments_is_said(
    arguments: tuple[str, ...], message: str, people_coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    common = ["--source", str(people_coco), "--split", "train2017", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stopped:
        review.main([*common, *arguments])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_each_of_three_parts_is_left_out_once(tmp_path: Path) -> None:
    values = small_settings(tmp_path, tmp_path)
    parts = [f"{tmp_path}/part{number}" for number in range(3)]
    found = fold_experiments(build_experiment(values), parts, str(tmp_path / "runs"))
    for number, (name, experiment) in enumerate(found.items()):
        assert name == experiment.run.name == f"without-part{number}" and experiment.data.eval == parts[number]
        assert {source.path for source in experiment.data.train_sources} == set(parts) - {parts[number]}
