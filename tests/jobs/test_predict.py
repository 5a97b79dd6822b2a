"""The command that predicts."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from small_settings import small_settings, untrained_checkpoint

from posefleet.jobs.predict import main
from posefleet.platform.inference.predictor import Predictor

REPO = Path(__file__).resolve().parents[2]
TABLES = ("results.json", "poses.parquet", "images.parquet", "bad_images.json")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    untrained_checkpoint(small_settings(folder, folder), folder)
    return str(folder)


def predict(model: str, source: Path | str, output: Path, *more: str) -> int:
    return main(["--model", model, "--input", str(source), "--output", str(output), "--in-process", *more])


def test_a_folder_is_predicted_and_a_second_run_has_nothing_to_do(
    people_coco: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(model, people_coco / "val2017", tmp_path / "out") == 0
    first = capsys.readouterr().out
    assert "poses in 7 images, 0 of them with nobody" in first and "predicted 7 in" in first
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["model"]["model"] == model and summary["model"]["method"] == "smpr"
    assert summary["model"]["keypoint_scores"] == "pose score, repeated"
    assert summary["counts"]["images"] == summary["last_run"]["predicted"] == 7
    assert predict(model, people_coco / "val2017", tmp_path / "out") == 0
    assert "nothing was left to predict" in capsys.readouterr().out


def test_the_note_of_the_run_is_printed_and_kept(
    people_coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = small_settings(tmp_path, tmp_path)
    settings["run"]["note"] = "It was not trained."
    untrained_checkpoint(settings, tmp_path / "run")
    for _ in range(2):  # the second run predicts nothing
        assert predict(str(tmp_path / "run"), people_coco / "val2017", tmp_path / "out") == 0
        assert "\n  note of the model: It was not trained.\n" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["model"]["note"] == "It was not trained."
    image = next((people_coco / "val2017").glob("*.jpg"))
    assert Predictor.from_checkpoint(str(tmp_path / "run"))(image).as_dict()["note"] == "It was not trained."


def test_bad_images_are_told_of_and_only_bad_ones_are_status_1(
    people_coco: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "text.jpg").write_text("no picture")
    assert predict(model, tmp_path / "in", tmp_path / "nothing") == 1
    assert "none of the 1 files could be read; see" in capsys.readouterr().err
    shutil.copy(next((people_coco / "val2017").glob("*.jpg")), tmp_path / "in")
    assert predict(model, tmp_path / "in", tmp_path / "out") == 0
    assert f"1 could not be read: {tmp_path}/out/bad_images.json says why" in capsys.readouterr().out


def test_names_that_are_not_utf8_are_predicted_and_spelled_with_escapes(
    people_coco: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    some = next((people_coco / "val2017").glob("*.jpg"))
    shutil.copy(some, os.path.join(os.fsencode(folder), b"Stra\xdfe.jpg"))
    shutil.copy(some, folder / "Straße.jpg")
    Path(os.fsdecode(os.path.join(os.fsencode(folder), b"bad\xdf.jpg"))).write_text("no picture")
    Path(os.fsdecode(os.path.join(os.fsencode(folder), b"note\xdf.txt"))).write_text("no picture")
    writer = cv2.VideoWriter(str(tmp_path / "clip.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 5.0, (64, 64))
    for _ in range(3):
        writer.write(np.zeros((64, 64, 3), np.uint8))
    writer.release()
    shutil.move(tmp_path / "clip.mp4", os.path.join(os.fsencode(folder), b"clip\xdf.mp4"))
    assert predict(model, folder, tmp_path / "out", "--overlays") == 0
    capsys.readouterr()
    paths = pq.read_table(tmp_path / "out" / "images.parquet")["path"].to_pylist()
    assert sorted(paths) == sorted(["Stra\\xdfe.jpg", "Straße.jpg", *["clip\\xdf.mp4"] * 3])
    (bad,) = json.loads((tmp_path / "out" / "bad_images.json").read_text())
    assert bad["path"] == "bad\\xdf.jpg" and "bad\\xdf.jpg" in bad["reason"]
    (other,) = json.loads((tmp_path / "out" / "other_files.json").read_text())
    assert other["path"] == "note\\xdf.txt"
    drawn = sorted(os.listdir(os.fsencode(tmp_path / "out" / "overlays")))
    assert drawn == sorted([b"Stra\xdfe.jpg", "Straße.jpg".encode(), b"clip\xdf.mp4.webm"])
    assert predict(model, folder, tmp_path / "out", "--overlays") == 0  # the same input, to the last byte


def test_files_that_are_no_pictures_are_counted_and_named(
    people_coco: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    image = Image.open(next((people_coco / "val2017").glob("*.jpg")))
    for name in ("page.tif", "photo.avif", "scan.jp2", "plain.png"):
        image.save(folder / name)
    for name in ("notes.txt", "raw.CR2", ".hidden.jpg", "shards.tar", "no_ending"):
        (folder / name).write_text("no picture")
    assert predict(model, folder, tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "poses in 4 images" in printed
    assert f"5 other files are neither images nor videos: {tmp_path}/out/other_files.json names them" in printed
    other = json.loads((tmp_path / "out" / "other_files.json").read_text())
    reasons = {entry["path"]: entry["reason"] for entry in other}
    assert reasons == {
        ".hidden.jpg": "its name begins with a dot",
        "no_ending": "no image and no video, by its name, which has no ending",
        "notes.txt": "no image and no video, by its name, which ends in .txt",
        "raw.CR2": "no image and no video, by its name, which ends in .cr2",
        "shards.tar": "images in a tar are read if the tar is named: --input 'FOLDER/*.tar'",
    }
    assert predict(model, folder, tmp_path / "out") == 0
    assert "5 other files" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "more", "message"),
    [
        ("empty", (), "no image and no video among 0 files; searched for names that end in .jpg"),
        ("nowhere", (), "no such file or folder"),
        ("val2017", ("--model", "nowhere"), "no checkpoint in"),
        ("val2017", ("--max-people", "0"), "max_people 0 must be at least 1"),
        ("val2017", ("--batch-size", "0"), "batch_size 0 must be at least 1"),
        ("val2017", ("--workers", "0"), "workers 0 must be at least 1"),
        ("val2017", ("--images", "x"), "an image folder goes with an annotation file or a split"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_2(
    source: str,
    more: tuple[str, ...],
    message: str,
    people_coco: Path,
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    folder = people_coco if source == "val2017" else tmp_path
    with pytest.raises(SystemExit) as end:
        predict(model, folder / source, tmp_path / "out", *more)
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_help_needs_neither_torch_nor_ray_and_names_the_options() -> None:
    script = "import sys; sys.argv = ['x', '--help']; import runpy\n"
    script += "try: runpy.run_path('jobs/predict.py', run_name='__main__')\n"
    script += "except SystemExit as end: assert end.code == 0 and not {'torch', 'ray'} & set(sys.modules)"
    output = subprocess.run([sys.executable, "-c", script], cwd=REPO, check=True, capture_output=True, text=True).stdout
    for option in ("--model", "--input", "--output", "--split", "--score-threshold", "--max-people", "--overlays"):
        assert option in output
    for option in ("--batch-size", "--workers", "--gpus-per-worker", "--most-pixels", "--tracking"):
        assert option in output


def test_a_killed_run_is_finished_by_the_same_command(
    people_coco: Path, model: str, tmp_path: Path, one_thread: None
) -> None:
    (tmp_path / "in").mkdir()
    for copy in range(12):
        for image in (people_coco / "val2017").glob("*.jpg"):
            shutil.copy(image, tmp_path / "in" / f"{copy:02d}-{image.name}")
    predict(model, tmp_path / "in", tmp_path / "undisturbed")
    out = tmp_path / "out"
    command = [sys.executable, str(REPO / "jobs" / "predict.py"), "--model", model, "--in-process"]
    command += ["--input", str(tmp_path / "in"), "--output", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as job:
        while not (out / "parts" / "part-00001.parquet").exists() and job.poll() is None:
            time.sleep(0.002)
        job.send_signal(signal.SIGKILL)
    assert job.returncode == -signal.SIGKILL and not (out / "summary.json").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in (out / "parts").glob("part-*.parquet")}
    assert len(kept) >= 2
    assert predict(model, tmp_path / "in", out) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["last_run"]["predicted"] <= 84 - 16 * len(kept)
    assert {name: (out / name).read_bytes() for name in TABLES} == {
        name: (tmp_path / "undisturbed" / name).read_bytes() for name in TABLES
    }
    assert pq.read_table(out / "images.parquet").num_rows == 84
