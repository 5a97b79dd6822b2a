"""The data.yaml of YOLO's format."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from posefleet.data.errors import DataError
from posefleet.data.images import encode_jpeg
from posefleet.data.yolo.data_file import find_data_file, images_of, label_path, read_data_file
from posefleet.data.yolo.problems import Problems

JPEG = encode_jpeg(np.zeros((8, 16, 3), np.uint8))


def written(folder: Path, **values: Any) -> Path:
    content = {"train": "images/train", "names": ["dog"], "kpt_shape": [3, 3], **values}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.yaml").write_text(
        yaml.safe_dump({key: value for key, value in content.items() if value is not None})
    )
    return folder / "data.yaml"


def images(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(JPEG)


def listed(folder: Path, file: Path, split: str = "train") -> tuple[list[str], Problems]:
    problems = Problems()
    found = images_of(read_data_file(file), split, problems)
    return [str(path.relative_to(folder)) for path in found], problems


def test_a_split_is_a_folder_a_list_or_several(tmp_path: Path) -> None:
    images(tmp_path, "images/train/b.jpg", "images/train/sub/a.PNG", "images/more/c.jpg", "images/val/d.jpg")
    (tmp_path / "val.txt").write_text(f"./images/val/d.jpg\n\nimages/train/b.jpg\n{tmp_path}/images/more/c.jpg\n")
    file = written(tmp_path, train=["images/train", "images/more"], val="val.txt", test=None)
    assert listed(tmp_path, file)[0] == ["images/more/c.jpg", "images/train/b.jpg", "images/train/sub/a.PNG"]
    assert listed(tmp_path, file, "val")[0] == ["images/more/c.jpg", "images/train/b.jpg", "images/val/d.jpg"]
    assert list(read_data_file(file).splits) == ["train", "val"]


def test_what_is_no_image_or_not_there_is_named(tmp_path: Path) -> None:
    images(tmp_path, "images/train/b.jpg", "labels/train/b.txt", "labels/train/x.txt")
    (tmp_path / "images/train/notes.md").write_text("")
    (tmp_path / "list.txt").write_text("images/train/b.jpg\nimages/train/gone.jpg\n")
    found, problems = listed(tmp_path, written(tmp_path, train=["images/train", "list.txt"]))
    assert found == ["images/train/b.jpg"]
    assert problems.counts == {"files that are no images": 1, "labels without an image": 1, "missing images": 1}
    assert problems.harmless == 1
    assert f"{tmp_path}/list.txt:2: no image images/train/gone.jpg" in problems.lines


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("/d/images/train/a.jpg", "/d/labels/train/a.txt"),
        ("/images/d/images/a.b.jpg", "/images/d/labels/a.b.txt"),
        ("/d/train/images/a.jpg", "/d/train/labels/a.txt"),
        ("/d/pictures/a.jpg", "/d/pictures/a.txt"),
        ("/d/my-images/images.jpg", "/d/my-images/images.txt"),
    ],
)
def test_the_label_of_an_image(image: str, label: str) -> None:
    assert label_path(Path(image)) == Path(label)


def test_the_root_is_where_the_paths_lead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images(tmp_path, "set/images/train/a.jpg", "here/images/train/a.jpg", "here/set/images/train/a.jpg")
    monkeypatch.chdir(tmp_path)
    assert read_data_file(written(tmp_path / "set")).root == tmp_path / "set"
    assert read_data_file(written(tmp_path / "x", path=str(tmp_path / "set"))).root == tmp_path / "set"
    assert read_data_file(written(tmp_path / "set", path="/content/gone")).root == tmp_path / "set"
    assert read_data_file(written(tmp_path / "x", path="set")).root == tmp_path / "set"
    with pytest.raises(DataError, match=r"path set could be .*/here/set or .*/set; write the whole path"):
        read_data_file(written(tmp_path / "here", path="set"))


def test_a_relative_root_is_the_one_that_has_the_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CVAT writes ``path: .``, which is also the current folder."""
    images(tmp_path, "set/images/train/a.jpg")
    (tmp_path / "set" / "train.txt").write_text("images/train/a.jpg\n")
    monkeypatch.chdir(tmp_path)
    found, problems = listed(tmp_path, written(tmp_path / "set", path="./", train="train.txt"))
    assert found == ["set/images/train/a.jpg"] and not problems
    (tmp_path / "train.txt").write_text("images/train/a.jpg\n")
    with pytest.raises(DataError, match=r"path \./ could be .*/set or .*; write the whole path"):
        read_data_file(written(tmp_path / "set", path="./", train="train.txt"))


def test_roboflows_paths_are_those_beside_the_file(tmp_path: Path) -> None:
    images(tmp_path, "set/train/images/a.jpg")
    assert listed(tmp_path, written(tmp_path / "set", train="../train/images"))[0] == ["set/train/images/a.jpg"]
    images(tmp_path, "train/images/a.jpg")
    with pytest.raises(DataError, match=r"train \.\./train/images could be .* or .*; write the whole path"):
        read_data_file(written(tmp_path / "set", train="../train/images"))


def test_keypoints_have_names_by_class_for_all_or_numbers(tmp_path: Path) -> None:
    images(tmp_path, "images/train/a.jpg")
    numbered = ("keypoint_0", "keypoint_1", "keypoint_2")
    assert read_data_file(written(tmp_path)).keypoint_names == (numbered,)
    named = read_data_file(written(tmp_path, names={1: "b", 0: "a"}, kpt_names={0: list("xyz"), 1: list("uvw")}, nc=2))
    assert named.classes == ("a", "b") and named.keypoint_names == (tuple("xyz"), tuple("uvw"))
    assert read_data_file(written(tmp_path, kpt_names=list("xyz"))).keypoint_names == (tuple("xyz"),)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kpt_shape": None}, r"kpt_shape is None, expected \[keypoints, 2 or 3\]"),
        ({"kpt_shape": [3, 4]}, r"kpt_shape is \[3, 4\]"),
        ({"kpt_shape": [True, 3]}, r"kpt_shape is \[True, 3\]"),
        ({"names": {1: "dog"}}, r"names has the numbers \[1\], expected 0 to 0"),
        ({"names": None}, "names is None, expected the names of the classes"),
        ({"nc": 2}, "nc is 2, but names has 1 classes"),
        ({"flip_idx": [0, 1]}, r"flip_idx is \[0, 1\], expected for each of 3 keypoints"),
        ({"flip_idx": [1, 2, 0]}, "flip_idx is"),
        ({"kpt_names": {0: ["a"]}}, r"kpt_names has \['a'\], expected 3 names"),
        ({"train": None}, "no split; expected train, val or test"),
        ({"train": "images/gone"}, r"train: no folder and no list images/gone; looked for .*/images/gone"),
    ],
)
def test_a_wrong_file_says_what_was_expected(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    images(tmp_path, "images/train/a.jpg")
    with pytest.raises(DataError, match=message):
        read_data_file(written(tmp_path, **values))


def test_the_file_of_a_folder_is_the_one_with_keypoints(tmp_path: Path) -> None:
    assert find_data_file(str(tmp_path)) is None
    (tmp_path / "other.yaml").write_text("names: [dog]")
    file = written(tmp_path)
    assert find_data_file(str(tmp_path)) == find_data_file(str(file)) == file
    (tmp_path / "dogs.yml").write_text("kpt_shape: [3, 3]")
    with pytest.raises(DataError, match=r"could be any of .*data\.yaml, .*dogs\.yml; name the file itself"):
        find_data_file(str(tmp_path))
    with pytest.raises(DataError, match="not YAML"):
        (tmp_path / "bad.yaml").write_text("a: [")
        read_data_file(tmp_path / "bad.yaml")
    with pytest.raises(DataError, match="no such file"):
        read_data_file(tmp_path / "gone.yaml")
