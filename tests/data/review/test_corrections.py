"""Images go to label tools and come back; what was not corrected stays as it was, byte for byte."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posefleet.data.coco.source import Source
from posefleet.data.coco.split import read_coco
from posefleet.data.errors import DataError
from posefleet.data.images import encode_jpeg
from posefleet.data.review.corrections import apply_corrections
from posefleet.data.review.suspects import Suspect
from posefleet.data.review.tasks import coco_tasks, label_studio_config, label_studio_tasks, read_corrected, to_json
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.shards.build import shard_coco

DOG = KeypointSchema(name="dog", keypoints=("nose", "left_paw", "right_paw"), sigmas=(0.05, 0.08, 0.08),
                     skeleton=(("nose", "left_paw"),), flip_pairs=(("left_paw", "right_paw"),))  # fmt: skip
SEGMENTATION = [[1.0, 1.0, 30.0, 1.0, 30.0, 30.0]]


def annotation(number: int, image_id: int, keypoints: list[float], **more: Any) -> dict[str, Any]:
    x, y = keypoints[0::3], keypoints[1::3]
    box = [min(x) - 5.5, min(y) - 5.5, max(x) - min(x) + 11, max(y) - min(y) + 11]
    own = {"id": number, "image_id": image_id, "category_id": 7, "iscrowd": 0, "bbox": box, "area": 321.25}
    return {**own, "keypoints": keypoints, "num_keypoints": 3, "segmentation": SEGMENTATION, "extra": "kept", **more}


@pytest.fixture
def content() -> dict[str, Any]:
    images = [{"id": 10 + i, "file_name": f"a b/{i}.jpg", "width": 200, "height": 100, "license": 3} for i in range(4)]
    crowd = annotation(5, 11, [120.0, 20, 2, 160, 60, 2, 180, 60, 2], iscrowd=1)
    return {
        "info": {"year": 2026},
        "images": images,
        "annotations": [
            annotation(1, 10, [20.125, 30, 2, 15, 80, 2, 40, 80, 1]),
            annotation(2, 11, [20.0, 30, 2, 15, 80, 2, 40, 80, 2]),
            annotation(3, 12, [20.0, 30, 2, 15, 80, 2, 40, 80, 2]),
            annotation(4, 12, [120.0, 30, 2, 115, 80, 2, 140, 80, 2]),
            crowd,
            annotation(6, 13, [50.0, 30, 2, 45, 80, 2, 70, 80, 2]),
        ],
        "categories": [{"id": 7, "name": "dog", "keypoints": list(DOG.keypoints), "skeleton": [[1, 2]]}],
    }


@pytest.fixture
def source(content: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    return path


def records(path: Path) -> list[dict[str, Any]]:
    return list(read_coco(str(path), DOG).records())


def exported(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What Label Studio exports of tasks whose predictions were accepted; it renumbers and knows no predictions."""
    return [
        {"id": 90 + n, "data": task["data"], "annotations": [{"id": n, "result": task["predictions"][0]["result"]}]}
        for n, task in enumerate(copy.deepcopy(tasks))
    ]


def after(source: Path, corrected: Any, tmp_path: Path) -> tuple[str, dict[int, dict[str, Any]]]:
    (tmp_path / "corrected.json").write_bytes(to_json(corrected))
    out = tmp_path / "new" / "annotations.json"
    changes = apply_corrections(str(source), read_corrected(str(tmp_path / "corrected.json"), DOG), str(out))
    new = json.loads(out.read_text())
    assert new["images"] == json.loads(source.read_text())["images"]
    assert new["categories"] == json.loads(source.read_text())["categories"]
    return str(changes), {each["id"]: each for each in new["annotations"]}


@pytest.mark.parametrize("tool", ["coco", "label studio"])
def test_images_that_a_tool_gives_back_as_they_were_change_nothing(
    tool: str, source: Path, content: dict[str, Any], tmp_path: Path
) -> None:
    if tool == "coco":
        back: Any = coco_tasks(records(source), {}, DOG, "dog")
        for each in back["annotations"]:  # as CVAT writes them: numbered anew, tight boxes, areas of boxes, rounded
            each["id"] += 100
            each["keypoints"] = [round(value, 2) for value in each["keypoints"]]
            each["area"] = each["bbox"][2] * each["bbox"][3]
        back["annotations"] = [each for each in back["annotations"] if not each["iscrowd"]]
    else:
        back = exported(label_studio_tasks(records(source), {}, DOG, "/data/local-files/?d="))
    text, new = after(source, back, tmp_path)
    assert text.startswith("4 images reviewed, 0 of them changed")
    assert new == {each["id"]: each for each in content["annotations"]}


def test_hidden_keypoints_stay_hidden_in_label_studio(source: Path, tmp_path: Path) -> None:
    tasks = label_studio_tasks(records(source), {}, DOG, "")
    (tmp_path / "x.json").write_bytes(to_json(exported(tasks)))
    labels = read_corrected(str(tmp_path / "x.json"), DOG)
    assert labels["a b/0.jpg"][0]["keypoints"] == pytest.approx([20.125, 30, 2, 15, 80, 2, 40, 80, 1])
    assert "hidden" in label_studio_config(DOG) and 'value="left_paw"' in label_studio_config(DOG)


def test_corrections_change_what_they_correct_and_keep_the_rest(source: Path, tmp_path: Path) -> None:
    back = coco_tasks(records(source)[:3], {}, DOG, "dog")
    by_id = {each["id"]: each for each in back["annotations"]}
    by_id[1]["keypoints"][3:9] = [40, 80, 1, 15, 80, 2]  # sides exchanged
    by_id[2]["keypoints"][0:2] = [20, 5]  # moved out of the old box
    del by_id[4]  # nobody is there
    back["annotations"] = list(by_id.values())
    back["annotations"].append(
        {**by_id[3], "id": 77, "keypoints": [60, 30, 2, 0, 0, 0, 70, 80, 2], "bbox": [55, 25, 20, 60]}
    )
    for image in back["images"]:
        image["file_name"] = image["file_name"].replace("a b/", "C:\\data\\")
    text, new = after(source, back, tmp_path)
    assert "3 images reviewed, 3 of them changed: 2 annotations corrected, 1 added, 1 removed" in text
    assert sorted(new) == [1, 2, 3, 5, 6, 7]
    assert new[1]["keypoints"] == [20.125, 30, 2, 40, 80, 1, 15, 80, 2]
    assert new[1]["area"] == pytest.approx(321.25) and new[1]["segmentation"] == SEGMENTATION
    _, top, _, height = new[2]["bbox"]
    assert top == 5 and top + height == pytest.approx(85.5)
    assert new[2]["area"] == pytest.approx(321.25 * height / 61)
    assert new[7] == {
        "id": 7, "image_id": 12, "category_id": 7, "iscrowd": 0, "bbox": [55, 25, 20, 60],
        "keypoints": [60, 30, 2, 0, 0, 0, 70, 80, 2], "num_keypoints": 2,
    }  # fmt: skip
    assert new[5]["iscrowd"] == 1


def test_a_crowd_becomes_the_person_who_is_drawn_over_it(source: Path, tmp_path: Path) -> None:
    back = coco_tasks(records(source)[1:2], {}, DOG, "dog")
    crowd = next(each for each in back["annotations"] if each["iscrowd"])
    crowd |= {"iscrowd": 0, "id": 1000}
    _, new = after(source, back, tmp_path)
    assert sorted(new) == [1, 2, 3, 4, 6, 7] and new[7]["iscrowd"] == 0


def test_only_shards_with_a_changed_image_are_written_again(
    source: Path, content: dict[str, Any], tmp_path: Path
) -> None:
    for image in content["images"]:
        path = tmp_path / "images" / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_jpeg(np.random.default_rng(image["id"]).integers(0, 255, (100, 200, 3), np.uint8), 90))
    size = sum(path.stat().st_size for path in (tmp_path / "images" / "a b").iterdir())

    def shard(file: Path) -> int:
        split = Source(str(file), str(tmp_path / "images"), "train")
        out = str(tmp_path / "shards")
        return shard_coco(split, out, DOG, shard_mib=size / 4 / 2**20, parallel=False).shards_written

    assert shard(source) >= 3 and shard(source) == 0
    back = coco_tasks(records(source), {}, DOG, "dog")
    back["annotations"][0]["keypoints"][0] += 3
    after(source, back, tmp_path)
    assert shard(tmp_path / "new" / "annotations.json") == 1


def test_tasks_say_what_is_doubtful(source: Path) -> None:
    doubt = Suspect("swapped", 3.0, 10, 1, (), 0, "the pose fits better")
    missed = Suspect("missed", 2.0, 10, None, (), 1, "a pose is nobody's")
    first = records(source)[0]
    coco = coco_tasks([first], {10: [doubt, missed]}, DOG, "dog")
    assert coco["annotations"][0]["attributes"]["doubt"] == "annotation 1: swapped, the pose fits better"
    (task,) = label_studio_tasks([first], {10: [doubt, missed]}, DOG, "/data/local-files/?d=")
    assert task["data"]["image"] == "/data/local-files/?d=a%20b/0.jpg"
    assert task["data"]["doubts"].endswith("nobody's: missed, a pose is nobody's")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[0]["data"].update(file_name="other.jpg"), "'other.jpg' fits no image"),
        (lambda t: t[0].pop("annotations"), "task 0: no usable 'annotations'; expected Label Studio's JSON export"),
        (lambda t: result(t)[1]["value"].update(keypointlabels=["tail"]), "'tail' is not one of nose, left_paw"),
        (lambda t: result(t)[1]["value"].update(keypointlabels=["left_paw"]), "one instance has left_paw twice"),
        (lambda t: (result(t)[1].pop("parentID"), result(t)[1]["value"].update(x=99.0)), "is in 0 rectangles"),
        (lambda t: t.append(t[0]), "a b/0.jpg is in two tasks"),
    ],
)  # fmt: skip
def test_what_cannot_be_understood_is_refused(change: Any, message: str, source: Path, tmp_path: Path) -> None:
    tasks = exported(label_studio_tasks(records(source), {}, DOG, ""))
    change(tasks)
    with pytest.raises(DataError, match=message):
        after(source, tasks, tmp_path)
    assert not (tmp_path / "new" / "annotations.json").exists()


def test_other_keypoints_missing_files_and_the_file_itself_are_refused(source: Path, tmp_path: Path) -> None:
    back = coco_tasks(records(source), {}, DOG, "dog")
    back["categories"][0]["keypoints"] = ["nose", "right_paw", "left_paw"]
    (tmp_path / "x.json").write_bytes(to_json(back))
    with pytest.raises(
        DataError, match="its keypoints are nose, right_paw, left_paw; expected nose, left_paw, right_paw"
    ):
        read_corrected(str(tmp_path / "x.json"), DOG)
    with pytest.raises(DataError, match="no such file"):
        read_corrected(str(tmp_path / "none.json"), DOG)
    with pytest.raises(DataError, match="is the annotation file itself"):
        apply_corrections(str(source), {}, str(source))


def result(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tasks[0]["annotations"][0]["result"]
    return found
