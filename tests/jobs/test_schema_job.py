"""Tests the command posefleet schema."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from posefleet.data.images import decode_image, encode_jpeg
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.schemas.shipped import COCO17, read_schema, shipped_names
from posefleet.data.shards.layout import Manifest, write_manifest
from posefleet.jobs.schema import main

DOG = KeypointSchema.from_dict({"name": "dog", "keypoints": ["nose", "L_Ear", "R_Ear", "tail"]})


def dogs(folder: Path, name: str = "val.json", moved: float = 0.0) -> str:
    rng = np.random.default_rng(3)
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 100} for i in range(12)]
    annotations = [
        {
            "id": i, "image_id": i, "category_id": 4, "bbox": [10, 10, 60, 60], "area": 900.0,
            "keypoints": [v for x, y in rng.uniform(20, 60, (4, 2)) for v in (x + moved, y, 2)],
        }
        for i in range(12)
    ]  # fmt: skip
    category = {"id": 4, "name": "dog", "keypoints": list(DOG.keypoints), "skeleton": [[1, 2], [1, 3], [1, 4]]}
    file = folder / name
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": [category]}))
    return str(file)


def test_show_says_what_would_be_used_and_why_and_draws_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "dog.png"
    assert main(["show", dogs(tmp_path), "--out", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "schema dog: 4 keypoints, 3 edges, 1 mirror pairs" in out
    assert "names      given by category 'dog' of val.json" in out
    assert "flip_pairs inferred from left and right in the names" in out
    assert "  1  L_Ear  left   R_Ear  0.035  known name" in out and "  3  tail   -      -      0.067  default" in out
    assert "edges: nose - L_Ear, nose - R_Ear, nose - tail" in out
    drawn = decode_image(picture.read_bytes())
    assert drawn.shape[1] > drawn.shape[0] and len(np.unique(drawn.reshape(-1, 3), axis=0)) > 50


def test_show_finds_shipped_schemas_files_shards_and_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dog.yaml").write_text(yaml.safe_dump(DOG.as_dict()))
    write_manifest(str(tmp_path / "shards"), Manifest(1, "val", DOG, "0" * 64, (), {}, ()))
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    files = {"model.safetensors": {"bytes": 0, "sha256": ""}}
    content: dict[str, Any] = {"format": 1, "method": "smpr", "schema": "dog", "keypoints": DOG.as_dict(), "step": 1}
    content |= {"position": 0, "metrics": {}, "provenance": {}, "experiment": {}, "files": files}
    (checkpoint / "meta.json").write_text(json.dumps(content))
    for what in ("dog.yaml", "shards", "checkpoint"):
        assert main(["show", str(tmp_path / what)]) == 0
        assert capsys.readouterr().out.startswith("schema dog: 4 keypoints"), what
    assert main(["show", "coco17", "--out", str(tmp_path / "coco.jpg")]) == 0
    assert "nose" in capsys.readouterr().out and decode_image((tmp_path / "coco.jpg").read_bytes()).ndim == 3
    assert main(["show"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == shipped_names()


def test_show_draws_a_given_schema_over_the_image_with_the_most_keypoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, picture = dogs(tmp_path), tmp_path / "dog.png"
    own = {"name": "hound", "keypoints": list(DOG.keypoints), "skeleton": [["nose", "tail"]]}
    (tmp_path / "hound.yaml").write_text(yaml.safe_dump(own))
    (tmp_path / "0.jpg").write_bytes(encode_jpeg(np.zeros((100, 100, 3), np.uint8)))
    shown = ["show", file, "--out", str(picture), "--schema"]
    assert main([*shown, str(tmp_path / "hound.yaml")]) == 0
    printed = capsys.readouterr().out
    assert "schema hound: 4 keypoints, 1 edges" in printed
    assert f"drawn to {picture}: 0.jpg, which has the most labelled keypoints" in printed
    with pytest.raises(SystemExit):
        main([*shown, "coco17"])
    assert f"schema coco17 and {file} differ (17 against 4 keypoints)" in capsys.readouterr().err


def test_show_of_a_folder_without_annotations_says_what_it_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("yolo/data.yaml", "run/run.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("{}")
    for folder, complaint in (
        (tmp_path / "yolo", "if data.yaml is YOLO's, convert it: posefleet convert"),
        (tmp_path / "run", "no checkpoint in"),
    ):
        with pytest.raises(SystemExit):
            main(["show", str(folder)])
        assert complaint in capsys.readouterr().err


def test_the_union_of_several_is_shown_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "union.yaml"
    assert main(["show", "coco17", "crowdpose14", "--more", "mpii16", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("schema coco17+crowdpose14+mpii16: 23 keypoints")
    assert "sigmas     union of coco17, crowdpose14, mpii16; inferred or default for pelvis, thorax\n" in shown
    rows = dict(line.split(maxsplit=1) for line in shown.partition("labelled by\n")[2].splitlines()[:23])
    assert rows["left_hip"] == "all" and rows["nose"] == "coco17" and rows["head"] == "crowdpose14"
    assert len(read_schema(str(out))) == 23


def test_sigmas_are_written_as_a_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, out = dogs(tmp_path), dogs(tmp_path, "second.json", moved=1.5), tmp_path / "new.yaml"
    assert main(["sigmas", first, second, "--out", str(out)]) == 0
    assert "12 images in both files (by file name), 12 people in both" in capsys.readouterr().out
    schema = read_schema(str(out))
    assert schema.name == "dog_estimated" and schema.sigmas == pytest.approx([0.0601] * 4, abs=1e-4)
    assert schema.keypoints == DOG.keypoints and schema.skeleton and "12 people" in schema.sources["sigmas"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["show", "nothing"], "nothing: no such file, and no shipped schema of this name"),
        (["show", "coco17", "hand21"], "source coco17 shares no keypoint with the others"),
        (["show", "coco17", "aic14"], "disagree on the sigma of left_shoulder: coco17 has 0.079, aic14 has 0.0141771"),
        (["show", "coco17", "coco17"], "one of them is there twice"),
        (["show", "coco17", "--out", "x.gif"], "a picture is a .png or .jpg"),
        (["show", "coco17", "--schema", "hand21"], "--schema hand21 goes with an annotation file"),
        (["show", "coco17", "crowdpose14", "--schema", "hand21"], "--schema goes with one annotation file"),
        (["sigmas", "one.json"], "sigmas needs two annotation files"),
        (["draw", "coco17"], "ACTION draw"),
    ],
)
def test_what_cannot_be_shown_is_one_line(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert complaint in err and err.count("\n") == 1


def test_two_annotations_of_other_keypoints_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sigmas", dogs(tmp_path), dogs(tmp_path, "b.json"), "--schema", COCO17.name])
    assert "schema coco17 and val.json differ" in capsys.readouterr().err
