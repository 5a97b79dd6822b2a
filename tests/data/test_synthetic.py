"""Rendered people: exact annotations, reproducible files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from posefleet.data.images import decode_image
from posefleet.data.keypoints import COCO17
from posefleet.data.synthetic.__main__ import main
from posefleet.data.synthetic.bodies import Figure, make_figure, random_look
from posefleet.data.synthetic.canvas import Canvas, fixed_point
from posefleet.data.synthetic.dataset import write_dataset
from posefleet.data.synthetic.figures import PARTS_PER_PERSON, Painted, Part, paint_figure
from posefleet.data.synthetic.postures import Build, stand_at_ease
from posefleet.data.synthetic.scenes import CROWDED_SCENES, SceneConfig, annotate_person, render_scene

SMALL = SceneConfig(width=(96, 128), height=(96, 128), crowd_rate=0.3, unlabelled_rate=0.2)
NAMES = {name: i for i, name in enumerate(COCO17.keypoints)}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic")
    write_dataset(out, "train2017", 40, SMALL, seed=3)
    return out


@pytest.fixture(scope="module")
def document(dataset: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((dataset / "annotations/person_keypoints_train2017.json").read_text())
    return loaded


def standing(yaw: float = 0.0) -> Figure:
    """A person of 200 pixels in short hair, the hips at (150, 130)."""
    look = replace(random_look(np.random.default_rng(0)), haircut="short", legwear="trousers")
    return replace(make_figure(stand_at_ease(), Build(), look, 200.0, yaw), origin=(150.0, 130.0))


def empty_canvas(width: int = 300, height: int = 260) -> Canvas:
    return Canvas.over(np.zeros((height, width, 3), np.uint8))


def visibility_of(canvas: Canvas, painted: Painted, person: int = 1) -> dict[str, int]:
    annotation = annotate_person(canvas.owner, person, painted, labelled=True)
    assert annotation is not None
    return dict(zip(COCO17.keypoints, annotation["keypoints"][2::3], strict=True))


# ---------------------------------------------------------------------------------------------------- people


def test_a_person_who_faces_the_viewer_has_the_left_side_at_the_right() -> None:
    x = paint_figure(empty_canvas(), standing(yaw=0), person=1).keypoints[:, 0]
    for left, right in COCO17.flip_pairs:
        assert x[NAMES[left]] > x[NAMES[right]], left


def test_a_person_seen_from_behind_has_the_left_side_at_the_left() -> None:
    x = paint_figure(empty_canvas(), standing(yaw=180), person=1).keypoints[:, 0]
    for left, right in COCO17.flip_pairs:
        assert x[NAMES[left]] < x[NAMES[right]], left


def test_everything_of_a_lone_person_seen_from_the_front_is_visible() -> None:
    canvas = empty_canvas()
    assert set(visibility_of(canvas, paint_figure(canvas, standing(), person=1)).values()) == {2}


def test_a_face_seen_from_behind_is_not_labelled_but_the_ears_are() -> None:
    canvas = empty_canvas()
    seen = visibility_of(canvas, paint_figure(canvas, standing(yaw=180), person=1))
    assert [seen[name] for name in ("nose", "left_eye", "right_eye")] == [0, 0, 0]
    assert [seen[name] for name in ("left_ear", "right_ear", "left_shoulder")] == [2, 2, 2]


def test_the_far_side_of_a_person_in_profile_is_hidden() -> None:
    canvas = empty_canvas()
    seen = visibility_of(canvas, paint_figure(canvas, standing(yaw=90), person=1))  # looks right: shows the right side
    assert [seen[name] for name in ("nose", "right_eye", "right_ear", "right_shoulder", "right_elbow")] == [2] * 5
    assert seen["left_ear"] == 0
    assert [seen[name] for name in ("left_shoulder", "left_hip", "left_elbow", "left_wrist")] == [1] * 4


def test_what_another_person_covers_is_hidden() -> None:
    canvas = empty_canvas()
    behind = paint_figure(canvas, standing(), person=1)
    paint_figure(canvas, replace(standing(), origin=(175.0, 130.0)), person=2)
    seen = visibility_of(canvas, behind)
    assert seen["left_hip"] == 1 and seen["left_shoulder"] == 1
    assert seen["right_shoulder"] == 2 and seen["right_wrist"] == 2


def test_what_a_thing_covers_is_hidden_and_does_not_count_as_area() -> None:
    canvas = empty_canvas()
    painted = paint_figure(canvas, standing(), person=1)
    whole = int((canvas.owner > 0).sum())
    canvas.fill(fixed_point(np.array([[0.0, 180], [300, 180], [300, 260], [0, 260]])), (9, 9, 9))  # below the knees
    annotation = annotate_person(canvas.owner, 1, painted, labelled=True)
    assert annotation is not None
    assert visibility_of(canvas, painted)["left_ankle"] == 1
    assert annotation["area"] == (canvas.owner > 0).sum() < whole
    assert annotation["num_keypoints"] == 17


def test_what_is_outside_the_picture_is_not_labelled() -> None:
    canvas = empty_canvas()
    painted = paint_figure(canvas, replace(standing(), origin=(150.0, 240.0)), person=1)  # knees would be at 289
    annotation = annotate_person(canvas.owner, 1, painted, labelled=True)
    assert annotation is not None
    for name in ("left_knee", "right_knee", "left_ankle", "right_ankle"):
        assert annotation["keypoints"][3 * NAMES[name] :][:3] == [0, 0, 0]
    assert annotation["num_keypoints"] == 13


def test_keypoints_lie_in_the_middle_of_what_they_name() -> None:
    canvas = empty_canvas()
    painted = paint_figure(canvas, standing(), person=1)
    _, columns = np.nonzero(canvas.owner == PARTS_PER_PERSON + Part.NECK)
    shoulders = painted.keypoints[[NAMES["left_shoulder"], NAMES["right_shoulder"]], 0]
    assert columns.mean() + 0.5 == pytest.approx(150.0, abs=0.3)  # pixel i is centred at i + 0.5
    assert shoulders.mean() == pytest.approx(150.0)


def test_a_rectangle_has_the_box_area_and_outline_of_its_pixels() -> None:
    owner = np.zeros((100, 100), np.uint16)
    owner[20:60, 10:40] = PARTS_PER_PERSON + Part.TRUNK
    painted = Painted(np.full((17, 2), 25.0), np.full(17, 2, np.uint8))
    annotation = annotate_person(owner, 1, painted, labelled=True)
    assert annotation is not None
    assert annotation["bbox"] == [10, 20, 30, 40] and annotation["area"] == 1200
    corners = {tuple(corner) for corner in np.reshape(annotation["segmentation"][0], (-1, 2)).tolist()}
    assert corners == {(10, 20), (40, 20), (40, 60), (10, 60)}


def test_a_person_of_whom_hardly_a_pixel_shows_is_not_annotated() -> None:
    painted = Painted(np.full((17, 2), 25.0), np.full(17, 2, np.uint8))
    owner = np.zeros((100, 100), np.uint16)
    owner[0, :5] = PARTS_PER_PERSON + Part.TRUNK
    assert annotate_person(owner, 1, painted, labelled=True) is None


# ---------------------------------------------------------------------------------------------------- scenes


def test_a_scene_is_the_same_for_the_same_seed_only() -> None:
    image, annotations = render_scene(SMALL, 5)
    again, annotations_again = render_scene(SMALL, 5)
    other, _ = render_scene(SMALL, 6)
    assert np.array_equal(image, again) and annotations == annotations_again
    assert image.shape != other.shape or not np.array_equal(image, other)


def test_a_scene_without_people_has_no_annotations() -> None:
    image, annotations = render_scene(SceneConfig(people=(0, 0), crowd_rate=0), 1)
    assert image.shape == (256, 256, 3) and image.dtype == np.uint8 and annotations == []


@pytest.mark.parametrize("rate", [0.0, 0.4, 1.0])
def test_crowds_appear_at_their_rate(rate: float) -> None:
    config = SceneConfig(
        width=(96, 96), height=(96, 96), people=(1, 1), scale=(0.3, 0.4), things=(0, 0), crowd_rate=rate
    )
    scenes = [render_scene(config, seed)[1] for seed in range(100)]
    crowds = sum(any(annotation["iscrowd"] for annotation in annotations) for annotations in scenes)
    assert crowds / 100 == pytest.approx(rate, abs=0.15 if 0 < rate < 1 else 0.02)


@pytest.mark.parametrize("rate", [0.0, 0.4, 1.0])
def test_people_are_left_unlabelled_at_the_rate(rate: float) -> None:
    alone = SceneConfig(width=(96, 96), height=(96, 96), people=(1, 1), occluder_rate=0, crowd_rate=0)
    config = replace(alone, scale=(0.7, 0.8), unlabelled_rate=rate)
    people = [annotation for seed in range(100) for annotation in render_scene(config, seed)[1]]
    assert len(people) == 100
    bare = sum(person["num_keypoints"] == 0 for person in people)
    assert bare / 100 == pytest.approx(rate, abs=0.15 if 0 < rate < 1 else 0.02)


@pytest.mark.parametrize(
    "wrong", [{"people": (3, 1)}, {"scale": (0.0, 1.0)}, {"crowd_rate": 1.5}, {"width": (8, 64)}, {"jpeg_quality": 101}]
)
def test_a_wrong_setting_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SceneConfig(**wrong)


# ---------------------------------------------------------------------------------------------------- files


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


def test_a_picture_does_not_depend_on_how_many_there_are_but_on_the_split(dataset: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path, "train2017", 2, SMALL, seed=3)
    write_dataset(tmp_path, "val2017", 2, SMALL, seed=3)
    second = (dataset / "train2017/000000000002.jpg").read_bytes()
    assert (tmp_path / "train2017/000000000002.jpg").read_bytes() == second
    assert (tmp_path / "val2017/000000000002.jpg").read_bytes() != second


def test_a_smaller_data_set_leaves_no_pictures_of_the_larger_one_before_it(tmp_path: Path) -> None:
    write_dataset(tmp_path, "train2017", 3, SMALL)
    write_dataset(tmp_path, "val2017", 3, SMALL)
    for own in ("notes.txt", "17.jpg"):
        (tmp_path / "train2017" / own).touch()
    write_dataset(tmp_path, "train2017", 1, SMALL)
    names = {path.name for path in (tmp_path / "train2017").iterdir()}
    assert names == {"000000000001.jpg", "notes.txt", "17.jpg"}
    assert len(list((tmp_path / "val2017").iterdir())) == 3


def test_the_command_line_writes_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--out", str(tmp_path), "--split", "val2017", "--count", "2", "--size", "96", "--workers", "1"])
    path = Path(capsys.readouterr().out.strip())
    assert path == tmp_path / "annotations/person_keypoints_val2017.json"
    assert [image["width"] for image in json.loads(path.read_text())["images"]] == [96, 96]


def test_people_of_crowded_scenes_overlap_and_many_are_labelled() -> None:
    overlapping, labelled, people = 0, 0, 0
    for seed in range(20):
        _, annotations = render_scene(CROWDED_SCENES, seed)
        boxes = np.array([a["bbox"] for a in annotations])
        low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
        sides = np.minimum(high[:, None], high[None]) - np.maximum(low[:, None], low[None])
        inside, area = sides.clip(0).prod(2), boxes[:, 2:].prod(1)
        iou = inside / (area[:, None] + area[None] - inside) - np.eye(len(boxes))
        overlapping += int((iou.max(1) > 0.5).sum())
        labelled += sum(a["num_keypoints"] > 0 for a in annotations)
        people += len(annotations)
    assert people >= 4 * 20
    assert overlapping > 0.5 * people and labelled > 0.75 * people


def test_the_command_line_explains_a_wrong_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--count", "0"])
    assert "count 0" in capsys.readouterr().err
