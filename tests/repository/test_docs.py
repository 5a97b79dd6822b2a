"""What the documentation shows works as it stands there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("data", "models", "platform", "serve", "jobs")


def shown_files(document: str) -> dict[str, str]:
    """Path -> content, for every code block under a line that is nothing but a path in backquotes."""
    return dict(re.findall(r"^`([\w/.]+)`\n\n```\w+\n(.*?)^```$", document, re.DOTALL | re.MULTILINE))


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project and, in it, the files of docs/add-a-method.md."""
    copy = tmp_path_factory.mktemp("project")
    for folder in (*PACKAGES, "posefleet", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "bench")
        shutil.copytree(ROOT / folder, copy / folder, symlinks=True, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", copy)
    files = shown_files((ROOT / "docs" / "add-a-method.md").read_text())
    assert set(files) == {"models/toy.py", "jobs/train_toy.py", "jobs/configs/toy.yaml"}
    for path, content in files.items():
        assert not (copy / path).exists(), "a new method touches no file that is there"
        (copy / path).write_text(content)
    return copy


def run(project: Path, *command: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(project)}
    done = subprocess.run(
        [sys.executable, *command], cwd=project, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_the_method_of_the_documentation_fulfils_the_contract(extended: Path) -> None:
    files = ("tests/models/test_contract.py", "tests/repository/test_layout.py")
    output = run(
        extended, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "toy and not ranks and not exported", *files
    )
    assert re.search(r"[1-9]\d passed", output) and "failed" not in output


def test_the_method_of_the_documentation_has_60_lines(extended: Path) -> None:
    lines = (extended / "models" / "toy.py").read_text().split('"""', 2)[2].splitlines()
    code = [line for line in lines if line.strip() and not line.startswith(("from ", "import "))]
    assert len(code) <= 60


@pytest.mark.slow
def test_the_method_of_the_documentation_trains(extended: Path, people_shards: Path, tmp_path: Path) -> None:
    output = run(
        extended,
        *("jobs/train_toy.py", "--config", "jobs/configs/toy.yaml"),
        *(
            "--data.train",
            f"{people_shards}/train2017",
            "--data.eval",
            f"{people_shards}/val2017",
            "--data.loaders",
            "0",
        ),
        *("--data.resize.short_side", "64", "--data.resize.long_side", "64", "--data.augment.crop", "64"),
        *("--train.epochs", "1", "--scaling.num_workers", "0", "--run.storage", str(tmp_path), "--run.name", "toy"),
    )
    assert re.search(r"AP \d\.\d{3}", output)
    assert (tmp_path / "toy" / "checkpoints").is_dir()
