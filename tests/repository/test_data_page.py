"""Every command of docs/data.md works on a data set as it was exported."""

import re
import shlex
from pathlib import Path

import pytest
from layouts import LAYOUTS, YOLO, write

from posefleet.jobs.cli import main

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text()
COMMANDS = re.findall(r"^    (posefleet (?!train).*(?:\n    posefleet .*)*)$", PAGE, re.MULTILINE)
"""Commands in consecutive lines run after each other. What train does is in tests/integration/test_unsharded.py."""
FOLDERS = {
    "coco": "COCO",
    "cvat": "CVAT",
    "roboflow": "Roboflow",
    "label-studio": "Label Studio",
    "label-studio-json": "Label Studio, json with local files",
    "fiftyone": "FiftyOne",
    "labelme": "labelme2coco",
    "via": "VIA",
}


def test_the_page_has_a_section_with_a_command_for_every_layout() -> None:
    sections = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
    assert all(re.search(r"^    posefleet ", section, re.MULTILINE) for section in sections)
    assert {folder for folder in FOLDERS if f"/data/{folder}" not in PAGE} == set()


@pytest.mark.parametrize("commands", COMMANDS)
def test_a_command_of_the_page_works(commands: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, layout in FOLDERS.items():
        write(tmp_path / folder, LAYOUTS[layout][0])
    write(tmp_path / "yolo", YOLO)
    for command in commands.replace("/data/", f"{tmp_path}/").splitlines():
        _, *words = shlex.split(command)
        status = main(words)
        printed = capsys.readouterr()
        assert status == 0, printed.out + printed.err
        assert "annotations " in printed.err or "data.yaml: root " in printed.err
