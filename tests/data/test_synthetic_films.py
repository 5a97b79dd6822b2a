"""Rendered films: the same for the same seed, with a number for everyone."""

import json
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest

from posefleet.data.synthetic.__main__ import main
from posefleet.data.synthetic.films import FilmConfig, render_film

SMALL = FilmConfig(width=96, height=64, seconds=2, rate=8, people=(3, 3))


def test_a_film_is_the_same_for_the_same_seed() -> None:
    first, again, other = (list(render_film(SMALL, seed)) for seed in (1, 1, 2))
    assert len(first) == 16
    assert all((a.image == b.image).all() and a.annotations == b.annotations for a, b in zip(first, again, strict=True))
    assert any((a.image != b.image).any() for a, b in zip(first, other, strict=True))


def test_people_keep_their_numbers_and_walk() -> None:
    middles = defaultdict(list)
    for frame in render_film(SMALL, 3):
        for annotation in frame.annotations:
            left, _, width, _ = annotation["bbox"]
            middles[annotation["track_id"]].append(left + width / 2)
    assert set(middles) == {1, 2, 3}
    for places in middles.values():
        assert np.abs(np.diff(places)).max() < 0.2 * SMALL.width, "somebody jumps"
        assert np.ptp(places) > 0.05 * SMALL.width, "somebody stands still"


def test_the_command_writes_videos_and_tracks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--film", "--out", str(tmp_path), "--split", "films", "--count", "2", "--size", "96", "64"]
    main([*arguments, "--seconds", "1", "--rate", "5", "--people", "2", "2"])
    path = Path(capsys.readouterr().out.strip())
    document = json.loads(path.read_text())
    assert path == tmp_path / "annotations" / "tracks_films.json"
    assert [(i["video"], i["frame"]) for i in document["images"]] == [
        (f"{film:06d}.webm", frame) for film in (1, 2) for frame in range(5)
    ]
    assert sorted(file.name for file in (tmp_path / "films").iterdir()) == ["000001.webm", "000002.webm"]
    assert {annotation["track_id"] for annotation in document["annotations"]} == {1, 2}
    film = cv2.VideoCapture(str(tmp_path / "films" / "000002.webm"))
    assert (film.get(cv2.CAP_PROP_FRAME_COUNT), film.get(cv2.CAP_PROP_FPS)) == (5, 5)
    with pytest.raises(SystemExit):
        main([*arguments, "--easy"])
    assert "leave out" in capsys.readouterr().err
