"""Quarantine: a death is a process that started a chunk and never came to ``finish``."""

from pathlib import Path

import pytest

from posefleet.platform.prediction.quarantine import Quarantine


def die_at(path: Path, name: str) -> None:
    Quarantine(str(path)).reading(name).__enter__()


def test_a_finished_chunk_has_no_file(tmp_path: Path) -> None:
    path = tmp_path / "begun"
    quarantine = Quarantine(str(path))
    assert path.exists() and not quarantine.careful
    quarantine.finish()
    assert not path.exists()


def test_an_image_is_refused_after_two_deaths_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "begun"
    for careful in (False, False, True):  # two died on the whole chunk: it is not known on which image
        assert Quarantine(str(path)).careful is careful
    assert not Quarantine(str(path)).refuses("a.jpg")
    die_at(path, "a.jpg")
    assert not Quarantine(str(path)).refuses("a.jpg")
    die_at(path, "b.jpg")
    die_at(path, "a.jpg")
    after = Quarantine(str(path))
    assert after.refuses("a.jpg") and not after.refuses("b.jpg")


def test_an_exception_is_no_death(tmp_path: Path) -> None:
    path = tmp_path / "begun"
    for _ in range(3):
        with pytest.raises(OSError, match="slow"), Quarantine(str(path)).reading("a.jpg"):
            raise OSError("slow storage")
    assert not Quarantine(str(path)).refuses("a.jpg")
