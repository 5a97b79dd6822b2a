"""Log lines for machines."""

import io
import json
import logging
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest

from posefleet.platform.runtime.logs import log_to_folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_says_when_which_run_which_rank_and_what(tmp_path: Path) -> None:
    log = logging.getLogger("posefleet.platform.anything")
    with log_to_folder(str(tmp_path / "smpr-a"), "rank3"):
        log.debug("step %d", 7)
        logging.getLogger("elsewhere").info("not for us")
        logging.getLogger("elsewhere").warning("disk is\nnearly full")
        try:
            raise ValueError("seven")
        except ValueError:
            log.exception("it failed")
    log.warning("after the end")
    first, second, third = lines(tmp_path / "smpr-a" / "logs" / "rank3.jsonl")
    assert (first["level"], first["run"], first["rank"], first["message"]) == ("DEBUG", "smpr-a", 3, "step 7")
    assert datetime.fromisoformat(first["time"]).utcoffset() == timedelta(0)
    assert (second["logger"], second["message"]) == ("elsewhere", "disk is\nnearly full")
    assert "error" not in second and third["error"].endswith("ValueError: seven")


def test_starts_of_a_run_append(tmp_path: Path) -> None:
    for start in ("first", "second"):
        with log_to_folder(str(tmp_path), "driver", run="a"):
            logging.getLogger("posefleet").info(start)
    found = lines(tmp_path / "logs" / "driver.jsonl")
    assert [(line["rank"], line["message"]) for line in found] == [("driver", "first"), ("driver", "second")]


def test_the_terminal_stays_as_it_was(tmp_path: Path) -> None:
    terminal = io.StringIO()
    handler = logging.StreamHandler(terminal)
    logging.getLogger().addHandler(handler)
    try:
        with log_to_folder(str(tmp_path), "rank0"):
            logging.getLogger("posefleet.platform").debug("for the file")
            logging.getLogger("posefleet.platform").info("for people")
    finally:
        logging.getLogger().removeHandler(handler)
    assert terminal.getvalue() == "for people\n"
    assert len(lines(tmp_path / "logs" / "rank0.jsonl")) == 2


def test_a_full_disk_costs_lines_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "rank0.jsonl").symlink_to("/dev/full")
    with log_to_folder(str(tmp_path), "rank0"):
        logging.getLogger("posefleet.platform.anything").debug("step 7")
        logging.getLogger("posefleet.platform.anything").debug("step 8")
    assert capsys.readouterr().err == ""


def test_a_run_in_a_bucket_gets_its_logs_at_the_end() -> None:
    with log_to_folder("memory://bucket/run", "rank1"):
        logging.getLogger("posefleet").warning("hello")
    with fsspec.open("memory://bucket/run/logs/rank1.jsonl") as stream:
        assert json.loads(stream.read().splitlines()[-1])["message"] == "hello"


def test_secrets_stay_out_of_tracebacks(tmp_path: Path) -> None:
    with log_to_folder(str(tmp_path), "rank0"):
        try:
            raise OSError("cannot reach postgresql://me:hunter2@db/x")
        except OSError:
            logging.getLogger("posefleet").exception("lost postgresql://me:hunter2@db/x")
    (line,) = lines(tmp_path / "logs" / "rank0.jsonl")
    assert "hunter2" not in str(line) and "me:***@db/x" in line["message"] and "me:***@db/x" in line["error"]


def test_secrets_stay_off_the_terminal(tmp_path: Path) -> None:
    terminal = io.StringIO()
    handler = logging.StreamHandler(terminal)
    logging.getLogger().addHandler(handler)
    try:
        with log_to_folder(str(tmp_path), "rank0"):
            logging.getLogger("other.library").warning(
                "%s fails", "postgresql://me:hunter2@db/x", exc_info=OSError("?sig=hunter2")
            )
    finally:
        logging.getLogger().removeHandler(handler)
    assert "postgresql://me:***@db/x fails" in terminal.getvalue() and "?sig=***" in terminal.getvalue()
    assert "hunter2" not in terminal.getvalue()
