"""Events on disk: order, crashes, and files that wait."""

from pathlib import Path

import pytest

from posefleet.platform.tracking.spool import Spool


def event(number: int) -> dict[str, object]:
    return {"kind": "tags", "values": {"number": number}}


def test_events_wait_in_order_until_they_are_marked(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, "sqlite:////x.db", "run")
    spool.append([event(0), event(1)])
    spool.append([event(2)])
    waiting = spool.pending()
    assert [item for item, _ in waiting] == [event(0), event(1), event(2)]
    spool.mark_sent(waiting[1][1], [event(0), event(1)])
    assert [item for item, _ in Spool(tmp_path).pending()] == [event(2)]


def test_a_line_that_a_crash_cut_short_costs_only_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool.create(tmp_path, "sqlite:////x.db", "run")
    spool.append([event(0), event(1)])
    whole = (tmp_path / "events.jsonl").read_bytes()
    (tmp_path / "events.jsonl").write_bytes(whole[:-5])
    assert [item for item, _ in spool.pending()] == [event(0)]  # perhaps still being written
    spool.append([event(2)])
    assert [item for item, _ in spool.pending()] == [event(0), event(2)]
    assert "cut short" in caplog.text


def test_a_kept_file_does_not_change_with_the_original_and_goes_when_it_is_sent(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path / "spool", "sqlite:////x.db", "run")
    original = tmp_path / "curve.png"
    original.write_bytes(b"first")
    kept = {"kind": "artifact", "file": spool.keep(original), "folder": ""}
    original.write_bytes(b"second")
    spool.append([kept])
    assert (spool.folder / kept["file"]).read_bytes() == b"first"
    spool.mark_sent(spool.pending()[-1][1], [kept])
    assert list((spool.folder / "artifacts").iterdir()) == []


def test_a_folder_is_kept_whole(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path / "spool", "sqlite:////x.db", "run")
    (tmp_path / "checkpoint" / "inner").mkdir(parents=True)
    (tmp_path / "checkpoint" / "inner" / "a.txt").write_text("a")
    kept = spool.keep(tmp_path / "checkpoint")
    spool.append([{"kind": "artifact", "file": kept, "folder": "best"}])
    assert (spool.folder / kept / "inner" / "a.txt").read_text() == "a"


def test_a_spool_belongs_to_one_run(tmp_path: Path) -> None:
    Spool.create(tmp_path, "sqlite:////x.db", "first")
    with pytest.raises(ValueError, match="run first, not of second"):
        Spool.create(tmp_path, "sqlite:////x.db", "second")


def test_another_folder_is_not_a_spool(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a spool"):
        Spool(tmp_path).header()
