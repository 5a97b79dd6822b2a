"""The command that writes rendered people."""

import json
from pathlib import Path

import pytest

from posefleet.data.synthetic.__main__ import main


def test_the_command_line_writes_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--out", str(tmp_path), "--split", "val2017", "--count", "2", "--size", "96", "--workers", "1"])
    path = Path(capsys.readouterr().out.strip())
    assert path == tmp_path / "annotations/person_keypoints_val2017.json"
    assert [image["width"] for image in json.loads(path.read_text())["images"]] == [96, 96]


def test_the_command_line_explains_a_wrong_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--count", "0"])
    assert "count 0" in capsys.readouterr().err
