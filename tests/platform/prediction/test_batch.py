"""Batch prediction: every kind of input, damaged files, videos, and a second run after a kill."""

import json
import os
import shutil
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from small_settings import small_settings, untrained_checkpoint

from posefleet.data import video_file
from posefleet.data.coco.results import write_results
from posefleet.data.errors import DataError
from posefleet.data.images import decode_image, encode_image, encode_jpeg
from posefleet.data.io.cluster import TaskDied, in_tasks
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.structures import Poses
from posefleet.platform.inference.predictor import Predictor
from posefleet.platform.prediction import batch, worker
from posefleet.platform.prediction.batch import BatchResult, WorkerPool, predict_images
from posefleet.platform.prediction.inputs import InputImage, list_images, split_into_chunks
from posefleet.platform.prediction.tables import ImageResult, read_part, write_part, write_tables
from posefleet.platform.prediction.worker import PredictionOptions

TABLES = ("results.json", "poses.parquet", "images.parquet", "bad_images.json", "other_files.json")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    return untrained_checkpoint(small_settings(folder, folder), folder)


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("other")
    return untrained_checkpoint(small_settings(folder, folder), folder, seed=1)


@pytest.fixture
def photos(people_coco: Path, tmp_path: Path) -> Path:
    """Seven images of several sizes, one of them in a folder below."""
    folder = tmp_path / "photos"
    shutil.copytree(people_coco / "val2017", folder)
    (folder / "holiday").mkdir()
    last = max(folder.glob("*.jpg"))
    last.rename(folder / "holiday" / last.name)
    return folder


def noise(seed: int, size: tuple[int, int] = (80, 64)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def predict(source: Path | str, output: Path | str, model: str, *, split: str = "", **others: Any) -> BatchResult:
    images = list_images(str(source), split=split, ignore=str(output))
    return predict_images(images, str(output), model, **{"parallel": False, **others})


def rows(output: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(output / f"{name}.parquet").to_pylist()


def content(output: Path) -> dict[str, bytes]:
    return {name: (output / name).read_bytes() for name in TABLES}


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header gives a size and which has no pixels."""
    chunks = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def write_clip(path: Path, frames: int, rate: float = 12.5) -> Path:
    """A grey square that gets lighter."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), rate, (64, 64))
    for number in range(frames):
        writer.write(np.full((64, 64, 3), 20 * (number % 12), np.uint8))
    writer.release()
    return path


# ---------------------------------------------------------------------------------------------------- listing


def test_a_folder_is_listed_with_all_folders_in_it_and_numbered_by_name(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/z.png", "notes.txt", "a/.hidden.jpg", "clip.mov", "out/overlays/b.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    listed = list_images(str(tmp_path), ignore=str(tmp_path / "out"))
    assert listed.folder == f"file://{tmp_path}"
    assert listed.listed == (InputImage("a/z.png", 1, 5), InputImage("b.JPG", 2, 5), InputImage("clip.mov", 3, 5))


def test_the_fingerprint_depends_on_names_and_sizes(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"12345")
    before = list_images(str(tmp_path)).fingerprint
    assert list_images(str(tmp_path)).fingerprint == before
    (tmp_path / "a.jpg").write_bytes(b"123456")
    assert list_images(str(tmp_path)).fingerprint != before


def test_names_of_a_pattern_and_of_a_file_are_relative_to_the_folder_above(tmp_path: Path) -> None:
    for name in ("x/1.jpg", "y/2.jpg", "y/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    assert [p.name for p in list_images(f"{tmp_path}/*/*.jpg").listed] == ["x/1.jpg", "y/2.jpg"]
    assert [p.name for p in list_images(f"{tmp_path}/y/2.png").listed] == ["2.png"]


def test_a_coco_file_needs_no_annotations(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    records = [{"id": number, "file_name": f"{number}.jpg", "width": 8, "height": 8} for number in (7, 3)]
    (tmp_path / "image_info.json").write_text(json.dumps({"images": records}))
    listed = list_images(str(tmp_path / "image_info.json"))
    assert listed.listed == (InputImage("3.jpg", 3), InputImage("7.jpg", 7))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "no image and no video among 1 files; searched for names that end in .jpg"),
        ("nowhere", "no such file or folder"),
        ("*.jpg", "no image and no video among 0 files"),
    ],
)
def test_nothing_to_predict_is_an_error(source: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=message):
        list_images(f"{tmp_path}/{source}")


def test_a_chunk_is_some_images_or_one_video() -> None:
    names = ["1.jpg", "2.jpg", "3.jpg", "4.mp4", "5.mp4", "6.jpg"]
    cut = split_into_chunks([InputImage(name, number) for number, name in enumerate(names)], 2)
    assert [[image.name for image in chunk] for chunk in cut] == [
        ["1.jpg", "2.jpg"],
        ["3.jpg"],
        ["4.mp4"],
        ["5.mp4"],
        ["6.jpg"],
    ]


# ---------------------------------------------------------------------------------------------------- tables


def some_poses(count: int, seed: int = 0) -> Poses:
    random = torch.Generator().manual_seed(seed)
    scores = torch.rand(count, generator=random).sort(descending=True).values
    return Poses(100 * torch.rand(count, 17, 2, generator=random), torch.rand(count, 17, generator=random), scores)


def test_a_part_reads_as_it_was_written(tmp_path: Path) -> None:
    wrote = [
        ImageResult(1, "a.jpg", None, None, (8, 9), some_poses(2)),
        ImageResult(2, "b.jpg", reason="b.jpg: damaged"),
        ImageResult(3, "c.mp4", 0, 0.0, (8, 9), some_poses(0)),
        ImageResult(3, "c.mp4", 1, 0.5, (8, 9), some_poses(3)),
    ]
    write_part(str(tmp_path / "part"), wrote, COCO17)
    read = read_part(str(tmp_path / "part"), COCO17)
    for before, after in zip(wrote, read, strict=True):
        assert (before.image_id, before.path, before.frame, before.seconds, before.size, before.reason) == (
            after.image_id, after.path, after.frame, after.seconds, after.size, after.reason,
        )  # fmt: skip
        assert (before.poses is None) == (after.poses is None)
        if before.poses is not None and after.poses is not None:
            assert torch.equal(before.poses.keypoints, after.poses.keypoints)
            assert torch.equal(before.poses.keypoint_scores, after.poses.keypoint_scores)
            assert torch.equal(before.poses.scores, after.poses.scores)


def test_tables_have_a_row_for_each_pose_and_each_image(tmp_path: Path) -> None:
    poses = some_poses(2)
    parts = [str(tmp_path / "part-0"), str(tmp_path / "part-1")]
    write_part(parts[0], [ImageResult(1, "a.jpg", None, None, (8, 9), some_poses(0))], COCO17)
    write_part(
        parts[1],
        [ImageResult(2, "b.jpg", None, None, (80, 90), poses), ImageResult(3, "c.jpg", reason="c.jpg: odd")],
        COCO17,
    )
    counts = write_tables(str(tmp_path), parts, COCO17)
    assert (counts.images, counts.frames, counts.poses, counts.with_nobody, counts.bad) == (2, 0, 2, 1, 1)
    assert [(row["path"], row["width"], row["poses"]) for row in rows(tmp_path, "images")] == [
        ("a.jpg", 8, 0),
        ("b.jpg", 80, 2),
    ]
    first, second = rows(tmp_path, "poses")
    assert (first["image_id"], first["path"], first["frame"], first["person"], second["person"]) == (
        2, "b.jpg", None, 0, 1,
    )  # fmt: skip
    assert [second[name] for name in ("x1", "y1", "x2", "y2")] == poses.boxes[1].tolist()
    nose = [second["nose_x"], second["nose_y"], second["nose_score"]]
    assert nose == [*poses.keypoints[1, 0].tolist(), poses.keypoint_scores[1, 0].item()]
    assert json.loads((tmp_path / "bad_images.json").read_text()) == [{"path": "c.jpg", "reason": "c.jpg: odd"}]
    write_results(str(tmp_path / "expected.json"), {1: some_poses(0), 2: poses})
    assert (tmp_path / "results.json").read_bytes() == (tmp_path / "expected.json").read_bytes()


# ---------------------------------------------------------------------------------------------------- predicting


def test_an_image_of_a_batch_has_the_poses_that_it_has_alone(photos: Path, model: str, tmp_path: Path) -> None:
    """Also beside images of other sizes, which would pad it."""
    predict(photos, tmp_path / "out", model, batch_size=3)
    predictor = Predictor.from_checkpoint(model)
    found = rows(tmp_path / "out", "poses")
    names = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.jpg"))
    assert [row["path"] for row in rows(tmp_path / "out", "images")] == names
    for number, name in enumerate(names, 1):
        expected = predictor(str(photos / name)).poses
        mine = [row for row in found if row["path"] == name]
        assert [row["image_id"] for row in mine] == [number] * len(expected) and len(expected) > 0
        for row, keypoints, score in zip(mine, expected.keypoints, expected.scores.tolist(), strict=True):
            points = torch.tensor([[row[f"{name}_x"], row[f"{name}_y"]] for name in COCO17.keypoints])
            torch.testing.assert_close(points, keypoints, atol=1e-4, rtol=0)
            assert row["score"] == pytest.approx(score, abs=1e-5)


def test_bad_files_are_listed_and_the_others_predicted(photos: Path, model: str, tmp_path: Path) -> None:
    good = next(photos.glob("*.jpg")).read_bytes()
    (photos / "text.jpg").write_text("no image")
    (photos / "cut.jpg").write_bytes(good[: len(good) // 2])
    (photos / "empty.png").write_bytes(b"")
    (photos / "bomb.png").write_bytes(png_header(50_000, 50_000))
    result = predict(photos, tmp_path / "out", model)
    assert (result.counts.images, result.counts.bad) == (7, 4)
    bad = {entry["path"]: entry["reason"] for entry in json.loads((tmp_path / "out" / "bad_images.json").read_text())}
    assert sorted(bad) == ["bomb.png", "cut.jpg", "empty.png", "text.jpg"]
    assert "ends too early" in bad["cut.jpg"] and "no bytes" in bad["empty.png"] and "none of JPEG" in bad["text.jpg"]
    assert "pixels" in bad["bomb.png"]
    assert len(rows(tmp_path / "out", "images")) == 7


def test_files_of_a_coco_json_are_found_by_id_and_never_outside(people_coco: Path, model: str, tmp_path: Path) -> None:
    file = people_coco / "annotations" / "person_keypoints_val2017.json"
    images = json.loads(file.read_text())["images"]
    images[0]["file_name"], images[1]["file_name"] = "../secret.jpg", "gone.jpg"
    (tmp_path / "few.json").write_text(json.dumps({"images": images}))
    listed = list_images(str(tmp_path / "few.json"), images=str(people_coco / "val2017"))
    predict_images(listed, str(tmp_path / "out"), model, parallel=False)
    assert {row["image_id"] for row in rows(tmp_path / "out", "images")} == {image["id"] for image in images[2:]}
    reasons = [entry["reason"] for entry in json.loads((tmp_path / "out" / "bad_images.json").read_text())]
    assert "'../secret.jpg' is no file of the folder" in reasons[0] and reasons[1] == "gone.jpg: no such file"


def test_shards_and_the_coco_layout_give_the_same_results(
    people_coco: Path, people_shards: Path, model: str, tmp_path: Path
) -> None:
    predict(people_coco, tmp_path / "layout", model, split="val2017")
    predict(people_shards / "val2017", tmp_path / "shards", model)
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("layout", "shards")]
    by_image = [sorted(result, key=lambda pose: (pose["image_id"], -pose["score"])) for result in results]
    assert len(by_image[0]) == len(by_image[1]) > 0
    for one, other in zip(*by_image, strict=True):
        assert one["image_id"] == other["image_id"]
        assert one["keypoints"] == pytest.approx(other["keypoints"], abs=2e-3)


def test_options_choose_what_is_kept(photos: Path, model: str, tmp_path: Path) -> None:
    predict(photos, tmp_path / "all", model)
    scores = sorted(row["score"] for row in rows(tmp_path / "all", "poses"))
    threshold = scores[len(scores) // 2]
    predict(photos, tmp_path / "some", model, options=PredictionOptions(score_threshold=threshold, max_people=1))
    some = rows(tmp_path / "some", "poses")
    assert 0 < len(some) < len(scores)
    assert all(row["score"] >= threshold and row["person"] == 0 for row in some)
    images = rows(tmp_path / "some", "images")
    assert len(images) == 7 and {row["poses"] for row in images} <= {0, 1}


def test_overlays_have_the_size_and_name_of_their_image(model: str, tmp_path: Path) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "a" / "one.png").write_bytes(encode_image(np.zeros((64, 80, 3), np.uint8), ".png"))
    predict(tmp_path / "in", tmp_path / "out", model, options=PredictionOptions(overlays=True, score_threshold=0.0))
    drawn = decode_image((tmp_path / "out" / "overlays" / "a" / "one.png.jpg").read_bytes())
    assert drawn.shape == (64, 80, 3) and drawn.max() > 100


def test_an_input_and_an_output_may_be_remote(photos: Path, model: str, tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.put(str(photos), "/photos", recursive=True)
    write_clip(tmp_path / "clip.mp4", 3)
    fs.put_file(str(tmp_path / "clip.mp4"), "/photos/clip.mp4")
    result = predict("memory://photos", "memory://poses", model)
    assert (result.counts.images, result.counts.frames) == (7, 3)
    names = {file.removeprefix("/poses/") for file in fs.find("/poses")}
    assert names == {*TABLES, "summary.json"}
    fs.rm("/photos", recursive=True)
    fs.rm("/poses", recursive=True)


# ---------------------------------------------------------------------------------------------------- videos


def test_a_video_has_a_row_for_each_frame_with_its_time(model: str, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", 10)
    result = predict(
        tmp_path / "clip.mp4", tmp_path / "out", model, options=PredictionOptions(overlays=True), batch_size=4
    )
    assert (result.counts.images, result.counts.frames, result.counts.bad) == (0, 10, 0)
    frames = rows(tmp_path / "out", "images")
    assert [row["frame"] for row in frames] == list(range(10))
    assert [row["seconds"] for row in frames] == pytest.approx([number / 12.5 for number in range(10)])
    assert {(row["path"], row["width"], row["height"]) for row in frames} == {("clip.mp4", 64, 64)}
    assert {row["frame"] for row in rows(tmp_path / "out", "poses")} <= set(range(10))
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == []
    drawn = cv2.VideoCapture(str(tmp_path / "out" / "overlays" / "clip.mp4.webm"))
    assert (drawn.get(cv2.CAP_PROP_FRAME_COUNT), drawn.get(cv2.CAP_PROP_FPS)) == (10, 12.5)
    assert int(drawn.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little") == b"VP80"


def test_without_an_encoder_that_browsers_know_videos_are_drawn_all_the_same(
    model: str, tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(video_file, "CODECS", {".none": "????", ".mp4": "mp4v"})
    write_clip(tmp_path / "clip.mp4", 3)
    predict(tmp_path / "clip.mp4", tmp_path / "out", model, options=PredictionOptions(overlays=True))
    assert cv2.VideoCapture(str(tmp_path / "out" / "overlays" / "clip.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 3
    assert "browsers do not play" in caplog.text


def test_damaged_videos_are_listed_and_their_readable_frames_kept(model: str, tmp_path: Path) -> None:
    data = write_clip(tmp_path / "whole.mp4", 10).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.avi").write_text("no video")
    result = predict(tmp_path, tmp_path / "out", model)
    assert (result.counts.frames, result.counts.bad) == (10, 2)
    bad = json.loads((tmp_path / "out" / "bad_images.json").read_text())
    assert [entry["path"] for entry in bad] == ["cut.mp4", "text.avi"]
    assert "not a video" in bad[0]["reason"]


def test_a_video_goes_on_after_the_last_frames_that_were_written(model: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(worker, "FRAMES_KEPT", 4)
    write_clip(tmp_path / "clip.mp4", 8)
    predict(tmp_path / "clip.mp4", tmp_path / "whole", model)
    with monkeypatch.context() as broken:
        broken.setattr(Predictor, "predict_prepared", fails_after(1, Predictor.predict_prepared))
        with pytest.raises(KeyboardInterrupt):
            predict(tmp_path / "clip.mp4", tmp_path / "out", model, batch_size=4)
    result = predict(tmp_path / "clip.mp4", tmp_path / "out", model, batch_size=4)
    assert result.predicted == 4
    assert content(tmp_path / "out")["images.parquet"] == content(tmp_path / "whole")["images.parquet"]
    assert rows(tmp_path / "out", "poses") == rows(tmp_path / "whole", "poses")


# ---------------------------------------------------------------------------------------------------- going on


def fails_after(calls: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, interrupted after so many calls."""
    left = [calls]

    def failing(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return function(*arguments)

    return failing


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Forty images: three chunks."""
    (tmp_path / "many").mkdir()
    for number in range(40):
        size = (80, 64) if number % 3 else (64, 96)
        (tmp_path / "many" / f"{number:02d}.jpg").write_bytes(encode_jpeg(noise(number, size)))
    return tmp_path / "many"


def test_a_second_run_after_a_kill_gives_the_files_of_an_undisturbed_one(
    many: Path, model: str, tmp_path: Path, monkeypatch: Any
) -> None:
    predict(many, tmp_path / "undisturbed", model)
    with monkeypatch.context() as broken:
        broken.setattr(Predictor, "predict_prepared", fails_after(3, Predictor.predict_prepared))
        with pytest.raises(KeyboardInterrupt):
            predict(many, tmp_path / "out", model)
    assert not (tmp_path / "out" / "summary.json").exists()
    (tmp_path / "out" / "results.json.0.unfinished").write_text("of a killed run")
    result = predict(many, tmp_path / "out", model)
    assert result.predicted == 24 and result.counts.images == 40
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*TABLES, "summary.json"])
    again = predict(many, tmp_path / "out", model)
    assert again.predicted == 0 and again.counts == result.counts


def test_another_model_input_or_option_is_refused(
    photos: Path, model: str, other_model: str, tmp_path: Path, monkeypatch: Any
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as broken:
        broken.setattr(Predictor, "predict_prepared", fails_after(0, Predictor.predict_prepared))
        with pytest.raises(KeyboardInterrupt):
            predict(photos, out, model)
    for _ in ("unfinished", "finished"):
        with pytest.raises(ValueError, match=r"with model 'smpr at step 6, weights \w+.*and now it is 'smpr at step 6"):
            predict(photos, out, other_model)
        with pytest.raises(ValueError, match=r"with score_threshold None, and now it is 0\.5"):
            predict(photos, out, model, options=PredictionOptions(score_threshold=0.5))
        (photos / "new.jpg").write_bytes(encode_jpeg(noise(1)))
        with pytest.raises(ValueError, match=r"with input '.*7 files.*and now it is '.*8 files"):
            predict(photos, out, model)
        (photos / "new.jpg").unlink()
        predict(photos, out, model, batch_size=2)


def test_a_damaged_part_is_named(many: Path, model: str, tmp_path: Path, monkeypatch: Any) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(Predictor, "predict_prepared", fails_after(3, Predictor.predict_prepared))
        with pytest.raises(KeyboardInterrupt):
            predict(many, tmp_path / "out", model)
    (tmp_path / "out" / "parts" / "part-00000.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"part-00000\.parquet: damaged.*delete it and run the same command again"):
        predict(many, tmp_path / "out", model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score_threshold": 2.0}, r"score_threshold 2\.0 must be between 0 and 1"),
        ({"max_people": 0}, "max_people 0 must be at least 1"),
        ({"most_pixels": -1}, "most_pixels -1 must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PredictionOptions(**settings)


def test_a_pool_fits_the_cluster() -> None:
    assert WorkerPool().fitted({"CPU": 8}, chunks=100) == WorkerPool(workers=8, cpus=1, gpus=0)
    assert WorkerPool().fitted({"CPU": 8, "GPU": 2}, chunks=100) == WorkerPool(workers=2, cpus=1, gpus=1)
    assert WorkerPool(gpus=0.5, cpus=4).fitted({"CPU": 8, "GPU": 2}, chunks=100) == WorkerPool(
        workers=2, cpus=4, gpus=0.5
    )
    assert WorkerPool(workers=50, gpus=1).fitted({}, chunks=3) == WorkerPool(workers=3, cpus=1, gpus=1)
    assert WorkerPool().fitted({}, chunks=3) == WorkerPool(workers=1, cpus=1, gpus=0)
    with pytest.raises(ValueError, match="workers 0"):
        WorkerPool(workers=0)
    with pytest.raises(ValueError, match="readers 0"):
        WorkerPool(readers=0)
    assert WorkerPool(readers=9).fitted({}, chunks=3).readers == 9
    assert WorkerPool(reader_cpus=3).fitted({"CPU": 8}, chunks=100).workers == 2
    with pytest.raises(ValueError, match="reader_cpus -1"):
        WorkerPool(reader_cpus=-1)


@pytest.mark.parametrize("readers", [1, 7])
def test_the_number_of_threads_that_read_is_a_setting(
    many: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readers: int
) -> None:
    """The first that read wait for each other; more than ``readers`` never read at once."""
    read, lock, everybody = worker.read_input, threading.Lock(), threading.Event()
    now, most = 0, 0

    def together(*arguments: Any) -> bytes:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
            if now == readers:
                everybody.set()
        everybody.wait(20)
        try:
            return read(*arguments)
        finally:
            with lock:
                now -= 1

    monkeypatch.setattr(worker, "read_input", together)
    predict(many, tmp_path / "out", model, pool=WorkerPool(readers=readers))
    assert most == readers


@pytest.mark.ray
def test_ray_gives_the_same_tables(many: Path, model: str, tmp_path: Path, local_ray: None, one_thread: None) -> None:
    write_clip(many / "clip.mp4", 3)
    (many / "text.jpg").write_text("no image")
    predict(many, tmp_path / "here", model)
    result = predict(many, tmp_path / "ray", model, parallel=True)
    assert (result.predicted, result.counts.bad) == (43, 1)
    assert rows(tmp_path / "ray", "images") == rows(tmp_path / "here", "images")
    assert content(tmp_path / "ray") == content(tmp_path / "here")


@pytest.mark.ray
def test_tasks_on_other_nodes_read_for_the_workers(
    many: Path, model: str, tmp_path: Path, local_ray: None, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (many / "text.jpg").write_text("no image")
    drawn = PredictionOptions(overlays=True)
    predict(many, tmp_path / "here", model, options=drawn)
    pool = WorkerPool(workers=1, readers=3, reader_cpus=0.5)
    predict(many, tmp_path / "there", model, options=drawn, parallel=True, pool=pool)
    assert content(tmp_path / "there") == content(tmp_path / "here")
    overlays = [sorted((tmp_path / name / "overlays").iterdir()) for name in ("here", "there")]
    assert [file.read_bytes() for file in overlays[0]] == [file.read_bytes() for file in overlays[1]]
    with pytest.raises(ValueError, match="needs Ray"):
        predict(many, tmp_path / "alone", model, pool=pool)


@pytest.mark.ray
def test_an_image_that_kills_the_task_that_reads_it_is_listed(local_ray: None) -> None:
    def read(name: str) -> str:
        if name == "deadly":
            os._exit(9)
        if name == "damaged":
            raise DataError("damaged: no image")
        return name.upper()

    call = in_tasks(read, cpus=0.5)
    assert call("a") == "A"
    with pytest.raises(DataError, match="damaged: no image"):
        call("damaged")
    with pytest.raises(TaskDied):
        call("deadly")


@pytest.mark.slow
@pytest.mark.ray
def test_an_image_that_kills_its_reader_is_listed(
    many: Path, model: str, tmp_path: Path, local_ray: None, monkeypatch: Any
) -> None:
    """Workers die on it, one after the other; the other images of its chunk are predicted."""

    class Mortal:  # here, so that it travels with its code
        def __init__(self, work: Any) -> None:
            self._worker = worker.RowWorker(work)
            load = self._worker._load

            def die(image: Any) -> Any:
                if image.name == "07.jpg":
                    os._exit(9)
                return load(image)

            self._worker._load = die

        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            return self._worker(row)

    monkeypatch.setattr(batch, "RowWorker", Mortal)
    (many / "07.jpg").write_bytes(b"deadly")
    result = predict(many, tmp_path / "out", model, parallel=True, pool=WorkerPool(workers=1))
    assert (result.counts.images, result.counts.bad) == (39, 1)
    (bad,) = json.loads((tmp_path / "out" / "bad_images.json").read_text())
    assert bad["path"] == "07.jpg" and "not read again: 2 processes died" in bad["reason"]
