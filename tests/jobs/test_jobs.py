import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from small_settings import small_settings

ROOT = Path(__file__).resolve().parents[2]
JOBS = sorted(path.name for path in (ROOT / "jobs").glob("*.py") if path.stem != "__init__")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def cpu_seconds(*arguments: object) -> float:
    """What a command takes of the processor: unlike time on the clock, the same beside other work."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(*arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("job", JOBS)
def test_help_comes_soon_and_says_something(job: str) -> None:
    """In 1.5 times what importing torch takes (2 s where nothing else runs), for machines are not equally fast."""
    told = run(f"jobs/{job}", "--help")
    assert told.returncode == 0
    assert len(told.stdout.splitlines()) > 5
    assert any(cpu_seconds(f"jobs/{job}", "--help") < 1.5 * cpu_seconds("-c", "import torch") for _ in range(3))


@pytest.fixture(scope="module")
def trained(people_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run."""
    folder = tmp_path_factory.mktemp("trained")
    config = folder / "small.yaml"
    config.write_text(yaml.safe_dump(small_settings(people_shards, folder / "runs")))
    told = run("jobs/train_smpr.py", "--config", config)
    assert told.returncode == 0, told.stderr
    assert str(folder / "runs" / "small" / "report") in told.stderr
    return folder / "runs" / "small"


def test_a_checkpoint_is_scored_on_shards_and_on_files_alike(trained: Path, people_coco: Path, tmp_path: Path) -> None:
    shards, files = tmp_path / "shards.json", tmp_path / "files.json"
    told = run("jobs/evaluate.py", "--checkpoint", trained, "--out", shards)
    assert told.returncode == 0, told.stderr
    assert "AP50" in told.stdout and "score:" in told.stdout
    told = run(
        "jobs/evaluate.py", "--checkpoint", trained, "--source", people_coco, "--split", "val2017", "--out", files
    )
    assert told.returncode == 0, told.stderr
    assert shards.with_suffix(".metrics.json").read_text() == files.with_suffix(".metrics.json").read_text()
    assert json.loads(shards.read_text()) == json.loads(files.read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--checkpoint is missing"),
        (("--checkpoint", "/nowhere"), "no checkpoint in /nowhere"),
        (("--checkpoint",), "--checkpoint needs a value"),
    ],
)
def test_evaluation_says_what_is_wrong_with_its_arguments(arguments: tuple[str, ...], message: str) -> None:
    told = run("jobs/evaluate.py", *arguments)
    assert told.returncode == 2
    assert message in told.stderr
    assert "Traceback" not in told.stderr


def test_finished_runs_are_compared(trained: Path, tmp_path: Path) -> None:
    told = run("jobs/compare.py", "--runs", trained, "--out", tmp_path / "out")
    assert told.returncode == 0, told.stderr
    assert "| small |" in told.stdout and "ms, 30 people" in told.stdout
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["small"]["parameters"] > 11e6
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ablate", "nothing"), "no ablation of 'nothing'; configs/ladders/ has"),
        (("--methods", "nothing"), "unknown method 'nothing'; models/ has"),
        (("--runs", "/nowhere"), "no checkpoint in /nowhere"),
    ],
)
def test_comparison_says_what_is_wrong_with_its_arguments(arguments: tuple[str, ...], message: str) -> None:
    told = run("jobs/compare.py", *arguments)
    assert told.returncode == 2
    assert message in told.stderr
    assert "Traceback" not in told.stderr


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_the_demo_in_miniature(tmp_path: Path) -> None:
    told = run("jobs/demo.py", "--size", "mini", "--out", tmp_path / "demo")
    assert told.returncode == 0, told.stdout[-3000:] + told.stderr[-3000:]
    assert "held-out images" in told.stdout
    report = tmp_path / "demo" / "runs" / "demo" / "report"
    assert {path.name for path in report.iterdir()} == {"curves", "evaluation", "experiment.yaml", "targets"}
    assert (tmp_path / "demo" / "results_refined.json").exists()
