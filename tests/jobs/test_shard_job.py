"""The command that shards."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from posefleet.data.shards.layout import read_manifest
from posefleet.jobs.shard_coco import main

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def coco(people_coco: Path, tmp_path: Path) -> Path:
    """A copy of the rendered people, to spoil."""
    return Path(shutil.copytree(people_coco, tmp_path / "coco"))


def shard(coco: Path, out: Path, *more: str) -> int:
    return main(["--source", str(coco), "--split", "val2017", "--out", str(out), "--in-process", *more])


def test_a_split_is_sharded_and_a_second_run_has_nothing_to_do(
    people_coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shard(people_coco, tmp_path) == 0
    first = capsys.readouterr()
    assert "7 samples" in first.out
    assert "wrote 1 shards" in first.out
    assert shard(people_coco, tmp_path) == 0
    second = capsys.readouterr()
    assert "nothing to do" in second.out
    found = f"annotations {people_coco}/annotations/person_keypoints_val2017.json, images in {people_coco}/val2017\n"
    assert first.err == second.err == found
    assert read_manifest(str(tmp_path / "val2017")).samples == 7


def test_the_split_may_be_left_out_where_there_is_one_and_a_name_is_asked_for_where_there_is_none(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--out", str(tmp_path / "out"), "--in-process"]
    assert main(["--source", str(coco), *arguments]) == 1
    assert "has the splits train2017, val2017; name one with --split" in capsys.readouterr().err
    (coco / "annotations" / "person_keypoints_train2017.json").unlink()
    assert main(["--source", str(coco), *arguments]) == 0
    assert (tmp_path / "out" / "val2017" / "manifest.json").exists()
    file = (coco / "annotations" / "person_keypoints_val2017.json").rename(coco / "val2017" / "labels.json")
    assert main(["--source", str(file), *arguments]) == 2
    assert "names no split; --split NAME names the folder of the shards" in capsys.readouterr().err
    assert main(["--source", str(file), "--split", "people", *arguments]) == 0
    assert read_manifest(str(tmp_path / "out" / "people")).samples == 7


def test_a_truncated_image_is_skipped_and_named(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = min((coco / "val2017").iterdir())
    image.write_bytes(image.read_bytes()[:500])
    assert shard(coco, tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "1 images skipped" in out
    assert f"corrupt_image: {image.name}" in out


def test_other_files_of_the_folder_are_counted_and_named(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(min((coco / "val2017").iterdir()), coco / "val2017" / "zebra.jpg")
    for number in range(7):
        (coco / "val2017" / f"note{number}.txt").write_text("")
    assert shard(coco, tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "1 other images of the folder, which are not read: zebra.jpg\n" in out
    assert "7 files of the folder that are no images, which are not read: note0.txt, note1.txt" in out
    assert "note4.txt and 2 more\n" in out


def test_errors_in_the_annotations_stop_it_unless_they_are_allowed(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = coco / "annotations" / "person_keypoints_val2017.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["image_id"] = 10**9
    file.write_text(json.dumps(content))
    assert shard(coco, tmp_path / "out") == 1
    assert "unknown_image (1); correct it, or leave out the records with errors" in capsys.readouterr().err
    assert shard(coco, tmp_path / "out", "--skip-doctor") == 1  # the doctor says more, but the reader checks the same
    number = content["annotations"][0]["id"]
    assert f"unknown_image (1): annotation {number}: image_id 1000000000" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert shard(coco, tmp_path / "out", "--allow-errors") == 0
    assert f"1 annotation left out, unknown_image: {number}" in capsys.readouterr().out
    assert read_manifest(str(tmp_path / "out" / "val2017")).left_out == {"annotations": {"unknown_image": [number]}}


def test_warnings_are_told_and_do_not_stop_it(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = coco / "annotations" / "person_keypoints_val2017.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["num_keypoints"] += 1
    file.write_text(json.dumps(content))
    assert shard(coco, tmp_path / "out") == 0
    assert "warning: wrong_num_keypoints (1); posefleet doctor says more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--source", "/nowhere"], 1, "error: /nowhere: no such file or folder\n"),
        (["--split", "test2017"], 1, "no annotation file of split 'test2017'"),
        (["--schema", "mpii"], 2, "error: unknown keypoint schema 'mpii'"),
        (["--shard-mib", "0"], 2, "error: shard_mib 0.0"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[str],
    status: int,
    message: str,
    people_coco: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert shard(people_coco, tmp_path / "out", *arguments) == status
    err = capsys.readouterr().err
    assert message in err
    assert len([line for line in err.splitlines() if not line.startswith("annotations ")]) == 1


def test_help_needs_neither_torch_nor_ray() -> None:
    script = "import sys; sys.argv = ['x', '--help']; import runpy\n"
    script += "try: runpy.run_path('jobs/shard_coco.py', run_name='__main__')\n"
    script += "except SystemExit as end: assert end.code == 0 and not {'torch', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=REPO, check=True, capture_output=True)


def test_the_script_runs_by_itself(people_coco: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(REPO / "jobs" / "shard_coco.py"), "--source", str(people_coco)]
    command += ["--split", "val2017", "--out", str(tmp_path), "--in-process"]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0 and run.stderr.startswith("annotations ") and run.stderr.count("\n") == 1
    assert (tmp_path / "val2017" / "manifest.json").exists()


def test_a_schema_that_the_file_does_not_have_is_shown_beside_its_own(
    people_coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shard(people_coco, tmp_path / "out", "--schema", "crowdpose14", "--skip-doctor") == 1
    err = capsys.readouterr().err
    assert "schema crowdpose14 and person_keypoints_" in err and "left_shoulder   !=  nose" in err


def test_a_share_is_held_out_by_file_name(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--source", str(coco), "--split", "train2017", "--out", str(tmp_path), "--in-process"]
    assert main([*arguments, "--held-out", "0.3"]) == 0
    written = capsys.readouterr().out
    parts = {name: read_manifest(str(tmp_path / name)) for name in ("train", "val")}
    assert f"{tmp_path}/train: " in written and f"{tmp_path}/val: " in written
    assert {name: manifest.split for name, manifest in parts.items()} == {"train": "train", "val": "val"}
    held, kept = (names_in(tmp_path / name) for name in ("val", "train"))
    everything = {path.name for path in (coco / "train2017").iterdir()}
    assert held and not held & kept and held | kept == everything

    file = coco / "annotations" / "person_keypoints_train2017.json"
    content = json.loads(file.read_text())
    gone = content["images"].pop()
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != gone["id"]]
    for image in content["images"]:
        image["file_name"] = f"./{image['file_name']}"  # another export of the same pictures, with one less
    file.write_text(json.dumps(content))
    assert main([*arguments, "--held-out", "0.3"]) == 0
    assert names_in(tmp_path / "val") == held - {gone["file_name"]}


def names_in(shards: Path) -> set[str]:
    """Names of the image files in the shards of a folder."""
    found = set()
    for shard in shards.glob("*.tar"):
        with tarfile.open(shard) as tar:
            for member in tar.getmembers():
                if member.name.endswith(".json"):
                    found.add(Path(json.load(tar.extractfile(member))["file_name"]).name)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("share", ["1", "-0.1", "nan"])
def test_a_share_that_is_none_is_refused(share: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--source", "a", "--split", "b", "--out", "c", f"--held-out={share}"])
    assert "--held-out must be from 0 to below 1" in capsys.readouterr().err


def test_a_share_that_holds_nothing_is_an_error(
    people_coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shard(people_coco, tmp_path, "--held-out", "1e-9") == 1
    assert "none of its images is in this part" in capsys.readouterr().err
