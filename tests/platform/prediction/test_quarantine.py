"""Notes of chunks that were begun; a death is a process that never came to ``done``."""

from pathlib import Path

import pytest

from posefleet.platform.prediction.quarantine import Quarantine


def die_at(path: Path, name: str) -> None:
    Quarantine(str(path)).reading(name).__enter__()


def test_a_chunk_that_goes_well_leaves_no_note(tmp_path: Path) -> None:
    note = tmp_path / "note"
    suspects = Quarantine(str(note))
    assert note.exists() and not suspects.careful
    suspects.done()
    assert not note.exists()


def test_a_picture_is_avoided_after_two_deaths_of_its_own(tmp_path: Path) -> None:
    note = tmp_path / "note"
    for careful in (False, False, True):  # two died over the whole chunk: nobody knows of which picture
        assert Quarantine(str(note)).careful is careful
    assert not Quarantine(str(note)).avoid("a.jpg")
    die_at(note, "a.jpg")
    assert not Quarantine(str(note)).avoid("a.jpg")
    die_at(note, "b.jpg")
    die_at(note, "a.jpg")
    after = Quarantine(str(note))
    assert after.avoid("a.jpg") and not after.avoid("b.jpg")


def test_an_exception_is_no_death(tmp_path: Path) -> None:
    note = tmp_path / "note"
    for _ in range(3):
        with pytest.raises(OSError, match="slow"), Quarantine(str(note)).reading("a.jpg"):
            raise OSError("slow storage")
    assert not Quarantine(str(note)).avoid("a.jpg")
