"""Cameras and streams: frames as they come, breaks, ends by signals, and secrets in addresses."""

import json
import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from camera import PASSWORD, USER, Camera, RtspCamera, transport_stream
from processes import free_port
from small_settings import small_settings, untrained_checkpoint

from posefleet.data.errors import DataError
from posefleet.data.images import decode_image
from posefleet.jobs.predict import main
from posefleet.platform.prediction import live, stream
from posefleet.platform.prediction.stream import LiveStream, is_stream, stream_name, without_secrets


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    return untrained_checkpoint(small_settings(folder, folder), folder, sure=True)


@pytest.fixture
def person(people_coco: Path) -> Callable[[int], np.ndarray]:
    """Every frame is the same picture of people."""
    picture = decode_image(min((people_coco / "val2017").glob("*.jpg")).read_bytes())
    return lambda number: picture


def predict(model: str, source: str, output: Path, *more: str) -> int:
    return main(["--model", model, "--input", source, "--output", str(output), *more])


def ended_after(rows: int, monkeypatch: pytest.MonkeyPatch, end: Callable[[], object]) -> None:
    """Call ``end`` when so many frames were predicted, of all recordings together."""
    told, count = live.Recorder._tell, 0

    def counting(self: live.Recorder, row: Any) -> None:
        nonlocal count
        count += 1
        told(self, row)
        if count == rows:
            end()

    monkeypatch.setattr(live.Recorder, "_tell", counting)


def frames_of(output: Path) -> list[int]:
    frames: list[int] = pq.read_table(output / "images.parquet")["frame"].to_pylist()
    return frames


# ---------------------------------------------------------------------------------------------------- addresses


def test_what_is_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for source in ("rtsp://camera/1", "RTSPS://u:p@camera", "udp://@:1234", "/dev/video0", "0"):
        assert is_stream(source)
    for source in ("photos", "/dev/video0/a.jpg", "s3://bucket/a", "http://host/a.mp4"):
        assert not is_stream(source)
    assert is_stream("https://host/live.ts", live=True)
    (tmp_path / "0").mkdir()
    assert not is_stream("0"), "the folder is meant"
    with pytest.raises(ValueError, match="--live is for http"):
        is_stream("clip.mp4", live=True)


def test_the_name_of_a_stream_has_no_secrets() -> None:
    assert stream_name("rtsp://me:secret@10.0.0.7:554/ch/1?token=x") == "rtsp://10.0.0.7:554/ch/1"
    assert (stream_name("/dev/video2"), stream_name("0")) == ("/dev/video2", "camera 0")
    said = "open rtsp://me:se%2Fcret@h/1?key=k1: se/cret refused, k1"
    assert without_secrets(said, "rtsp://me:se%2Fcret@h/1?key=k1") == "open rtsp://h/1: *** refused, k1"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/dev/video99", "/dev/video99: no such device; there is"),
        (f"rtsp://{USER}:{PASSWORD}@127.0.0.1:CLOSED/1", r"127.0.0.1:\d+/1: no stream that can be read .*refused"),
        ("rtsp://camera/1 --split a", "--split goes with a data set"),
        ("rtsp://camera/1 --seconds 0", "seconds 0.0 must be above 0"),
        ("photos --seconds 3", "--seconds 3.0 ends a camera or stream"),
    ],
)
def test_bad_input_is_a_sentence(
    source: str, message: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = source.replace("CLOSED", str(free_port()))
    source, *more = source.split()
    with pytest.raises(SystemExit) as ended:
        predict(model, source, tmp_path / "out", *more)
    printed = capsys.readouterr().err
    assert ended.value.code == 2 and re.search(message, printed) and len(printed.splitlines()) == 1
    assert PASSWORD not in printed


@pytest.mark.parametrize(
    ("kind", "said"),
    [(Camera, "HTTP error 401 Unauthorized"), (RtspCamera, "method DESCRIBE failed: 401 (Unauthorized)")],
)
def test_a_wrong_password_is_told_and_not_shown(
    kind: type[Camera] | type[RtspCamera], said: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--live"] if kind is Camera else []
    with kind() as camera, pytest.raises(SystemExit) as ended:
        predict(model, camera.address("wrong-horse"), tmp_path / "out", *more)
    printed = capsys.readouterr().err
    assert ended.value.code == 2 and "wrong-horse" not in printed
    assert printed == f"error: {camera.name}: user or password is wrong, or missing ({said})\n"


# ---------------------------------------------------------------------------------------------------- recording


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_recording_with_tables_and_films(
    number: signal.Signals,
    model: str,
    person: Callable[[int], np.ndarray],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live, "SEGMENT_S", 0.2)
    ended_after(25, monkeypatch, lambda: os.kill(os.getpid(), number))
    out, before = tmp_path / "out", signal.getsignal(number)
    with Camera(person) as camera:
        assert predict(model, camera.address(), out, "--live", "--overlays", "--smooth", "1") == 0
    assert signal.getsignal(number) == before
    images = pq.read_table(out / "images.parquet").to_pylist()
    assert len(images) == 25 and {row["path"] for row in images} == {camera.name}
    assert images[0]["frame"] == 0 and frames_of(out) == sorted(set(frames_of(out)))
    seconds = [row["seconds"] for row in images]
    assert seconds == sorted(seconds)
    tracks = pq.read_table(out / "poses.parquet")["track"].to_pylist()
    assert set(tracks) - {None} and max(track for track in tracks if track is not None) < 10, "the same people"
    films = sorted((out / "overlays").iterdir())
    assert [film.name for film in films] == [f"segment-{n:05d}.webm" for n in range(len(films))] and len(films) > 1
    assert all(cv2.VideoCapture(str(film)).read()[0] for film in films)
    assert json.loads((out / "summary.json").read_text())["plan"]["input"] == camera.name
    captured = capfd.readouterr()
    assert "25 frames of videos" in captured.out and "frames came, 25 were predicted" in captured.err
    content = [path.read_bytes() for path in out.rglob("*") if path.is_file()]
    assert not any(PASSWORD.encode() in data for data in content) and PASSWORD not in captured.out + captured.err


def test_a_recording_ends_after_its_seconds(model: str, tmp_path: Path) -> None:
    with Camera() as camera:
        assert predict(model, camera.address(), tmp_path / "out", "--live", "--seconds", "3") == 0
    images = pq.read_table(tmp_path / "out" / "images.parquet").to_pylist()
    assert images and images[-1]["seconds"] <= 3.5


def test_frames_that_come_during_a_prediction_are_dropped(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Camera() as camera:
        ended_after(1, monkeypatch, lambda: camera.wait_until_sent(50))
        ended_after(2, monkeypatch, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert predict(model, camera.address(), tmp_path / "out", "--live") == 0
    first, second = frames_of(tmp_path / "out")
    assert first == 0 and second > 10


def test_a_recording_that_was_interrupted_goes_on(
    model: str, person: Callable[[int], np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def die() -> None:
        raise KeyboardInterrupt  # as a second Ctrl-C

    out = tmp_path / "out"
    with Camera(person) as camera:
        ended_after(8, monkeypatch, die)
        with pytest.raises(KeyboardInterrupt):
            predict(model, camera.address(), out, "--live")
        assert not (out / "summary.json").exists()
        ended_after(8, monkeypatch, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert predict(model, camera.address(), out, "--live") == 0
        with pytest.raises(SystemExit):
            predict(model, camera.address(), out, "--live")
        assert "holds a stream that was ended; choose another output folder" in capsys.readouterr().err
    poses = pq.read_table(out / "poses.parquet").to_pylist()
    assert len(frames_of(out)) == 16 and frames_of(out) == sorted(set(frames_of(out)))
    eighth = frames_of(out)[7]
    before, after = (
        {row["track"] for row in poses if (row["frame"] <= eighth) == early} - {None} for early in (True, False)
    )
    assert before and after and not before & after, "nobody knows that they are the same"


def test_an_rtsp_camera_is_read_with_the_password_of_the_environment(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSEFLEET_STREAM_USER", USER)
    monkeypatch.setenv("POSEFLEET_STREAM_PASSWORD", PASSWORD)
    ended_after(10, monkeypatch, lambda: os.kill(os.getpid(), signal.SIGINT))
    with RtspCamera(transport_stream(tmp_path / "clip.ts")) as camera:
        assert predict(model, camera.name, tmp_path / "out") == 0
    assert len(frames_of(tmp_path / "out")) == 10


# ---------------------------------------------------------------------------------------------------- breaks


def test_a_broken_connection_is_opened_again_after_growing_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "FIRST_PAUSE", 0.01)
    said: list[str] = []
    seen: list[int] = []
    stop = threading.Event()
    with (
        Camera(lengths=(10, 0, 0)) as camera,
        LiveStream(camera.address(), most_pixels=10_000, stop=stop, say=said.append) as frames,
    ):
        for frame in frames.frames():
            seen.append(frame.index)
            if said and len(seen) > 15 and "back" in said[-1]:
                stop.set()
    assert seen == sorted(set(seen)) and seen[0] == 0
    assert [text.rpartition("again in ")[2] for text in said[:3]] == ["0.01 s", "0.02 s", "0.04 s"]
    assert said[0].startswith(f"{camera.name}: the stream broke") and "503" in said[1]
    assert said[3] == f"{camera.name}: the stream is back" and len(said) == 4
    assert frames.breaks == 3 and frames.received == seen[-1] + 1


def test_a_stream_that_falls_silent_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "FIRST_PAUSE", 0.01)
    said: list[str] = []
    stop = threading.Event()
    with (
        Camera(lengths=(-10,)) as camera,
        LiveStream(camera.address(), most_pixels=10_000, stop=stop, say=said.append) as frames,
    ):
        monkeypatch.setattr(stream, "TIMEOUT_S", 0.5)
        for _ in frames.frames():
            if len(said) >= 2:
                stop.set()
    assert "no frame for 0.5 s; trying again" in said[0] and "back" in said[1]


def test_frames_that_are_too_large_end_it() -> None:
    with (
        Camera() as camera,
        LiveStream(camera.address(), most_pixels=4095, stop=threading.Event()) as frames,
        pytest.raises(DataError, match="frames of 64 x 64 pixels, 4,095 are allowed"),
    ):
        next(frames.frames())


def test_a_film_runs_in_real_time() -> None:
    written: list[int] = []

    class Film:
        def write(self, image: np.ndarray) -> None:
            written.append(int(image[0, 0, 0]))

    film = live._RealTime(Film(), 10.0, 100.0)  # type: ignore[arg-type]
    for value, seconds in ((1, 100.0), (2, 100.1), (3, 100.11), (4, 100.5), (5, 100.6)):
        film.show(np.full((1, 1, 3), value), seconds)
    assert written == [1, 2, 3, 3, 3, 4, 5]
