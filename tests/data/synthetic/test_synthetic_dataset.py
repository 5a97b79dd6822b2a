"""Data sets of rendered people: COCO's layout, the same bytes every time."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from posefleet.data.images import decode_image
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.synthetic.dataset import write_dataset
from posefleet.data.synthetic.scenes import SceneConfig

SMALL = SceneConfig(width=(96, 128), height=(96, 128), crowd_rate=0.3, unlabelled_rate=0.2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic")
    write_dataset(out, "train2017", 40, SMALL, seed=3)
    return out


@pytest.fixture(scope="module")
def document(dataset: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((dataset / "annotations/person_keypoints_train2017.json").read_text())
    return loaded


def test_every_image_is_listed_with_its_size(dataset: Path, document: dict[str, Any]) -> None:
    assert [image["id"] for image in document["images"]] == list(range(1, 41))
    assert len(list((dataset / "train2017").iterdir())) == 40
    for image in document["images"]:
        pixels = decode_image((dataset / "train2017" / image["file_name"]).read_bytes())
        assert pixels.shape == (image["height"], image["width"], 3)


def test_annotations_are_what_coco_says_they_are(document: dict[str, Any]) -> None:
    images = {image["id"]: image for image in document["images"]}
    kinds = set()
    assert [annotation["id"] for annotation in document["annotations"]] == [
        i + 1 for i in range(len(document["annotations"]))
    ]
    for annotation in document["annotations"]:
        image = images[annotation["image_id"]]
        x, y, v = np.reshape(annotation["keypoints"], (17, 3)).T
        assert annotation["num_keypoints"] == (v > 0).sum()
        assert set(v.tolist()) <= {0, 1, 2}
        assert not x[v == 0].any() and not y[v == 0].any()
        assert (x[v > 0] >= 0).all() and (x[v > 0] <= image["width"]).all()
        assert (y[v > 0] >= 0).all() and (y[v > 0] <= image["height"]).all()
        left, top, width, height = annotation["bbox"]
        assert left >= 0 and top >= 0 and width > 0 and height > 0
        assert left + width <= image["width"] and top + height <= image["height"]
        assert 0 < annotation["area"] <= width * height
        kinds.add((annotation["iscrowd"], annotation["num_keypoints"] > 0))
    assert kinds == {(0, True), (0, False), (1, False)}
    assert {int(v) for a in document["annotations"] for v in a["keypoints"][2::3]} == {0, 1, 2}


def test_the_category_counts_keypoints_from_one(document: dict[str, Any]) -> None:
    (person,) = document["categories"]
    assert person["id"] == 1 and person["keypoints"] == list(COCO17.keypoints)
    assert person["skeleton"][0] == [16, 14]  # left ankle, left knee


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools under numpy 2
def test_pycocotools_reads_it_and_masks_have_the_annotated_area(
    dataset: Path, document: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    coco = COCO(str(dataset / "annotations/person_keypoints_train2017.json"))
    for annotation in coco.loadAnns(coco.getAnnIds()):
        painted, area = int(coco.annToMask(annotation).sum()), annotation["area"]
        if annotation["iscrowd"]:
            assert painted == area
        else:  # outlines are smoothed by half a pixel and close the holes between arms and trunk
            assert painted == pytest.approx(area, rel=0.2, abs=30)


def test_the_number_of_workers_does_not_change_a_byte(dataset: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path, "train2017", 40, SMALL, seed=3, workers=2)
    files = [path.relative_to(dataset) for path in sorted(dataset.rglob("*")) if path.is_file()]
    assert files == [path.relative_to(tmp_path) for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    assert all((dataset / name).read_bytes() == (tmp_path / name).read_bytes() for name in files)


def test_an_image_does_not_depend_on_how_many_there_are_but_on_the_split(dataset: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path, "train2017", 2, SMALL, seed=3)
    write_dataset(tmp_path, "val2017", 2, SMALL, seed=3)
    second = (dataset / "train2017/000000000002.jpg").read_bytes()
    assert (tmp_path / "train2017/000000000002.jpg").read_bytes() == second
    assert (tmp_path / "val2017/000000000002.jpg").read_bytes() != second


def test_a_smaller_data_set_leaves_no_images_of_the_larger_one_before_it(tmp_path: Path) -> None:
    write_dataset(tmp_path, "train2017", 3, SMALL)
    write_dataset(tmp_path, "val2017", 3, SMALL)
    for own in ("notes.txt", "17.jpg"):
        (tmp_path / "train2017" / own).touch()
    write_dataset(tmp_path, "train2017", 1, SMALL)
    names = {path.name for path in (tmp_path / "train2017").iterdir()}
    assert names == {"000000000001.jpg", "notes.txt", "17.jpg"}
    assert len(list((tmp_path / "val2017").iterdir())) == 3
