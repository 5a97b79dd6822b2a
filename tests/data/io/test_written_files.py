"""Files that appear whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from posefleet.data.io.files import create
from posefleet.data.synthetic import dataset
from posefleet.data.synthetic.__main__ import main

FULL = errno.ENOSPC, os.strerror(errno.ENOSPC)


def test_an_error_of_a_full_disk_names_the_file_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    with pytest.raises(OSError, match=r"No space left on device: '.*/a/b\.json'") as found, create(str(path)) as file:
        file.write(b"1")
        raise OSError(*FULL)
    assert found.value.filename == str(path) and list(path.parent.iterdir()) == []
    with pytest.raises(OSError) as other, create(str(path)):
        raise OSError(errno.EACCES, "denied", "another file")
    assert other.value.filename == "another file"


def test_rendering_onto_a_full_disk_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: str, data: bytes) -> None:
        raise OSError(*FULL, path)

    monkeypatch.setattr(dataset, "write_file", full)
    with pytest.raises(SystemExit) as ended:
        main(["--out", str(tmp_path), "--split", "a", "--count", "1", "--workers", "1"])
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}/a/") and line.endswith("no space left on device")
