"""The jobs as their users start them: what they print, and the status they end with."""

import contextlib
import functools
import io
import json
import resource
import runpy
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from small_settings import small_settings

ROOT = Path(__file__).resolve().parents[2]
JOBS = sorted(path.name for path in (ROOT / "jobs").glob("*.py") if path.stem != "__init__")


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str
    cpu_seconds: float = 0.0
    """What it took of the processor: unlike time on the clock, the same beside other work."""


def in_a_process(*arguments: object) -> Done:
    command = [sys.executable, *(str(argument) for argument in arguments)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Done(done.returncode, done.stdout, done.stderr, seconds)


def run(script: str, *arguments: object) -> Done:
    """The script with its arguments, here: a process of its own would import everything again, which takes seconds.

    Raises:
        Exception: What would be a traceback there.
    """
    out, err, argv, status = io.StringIO(), io.StringIO(), sys.argv, 0
    sys.argv = [script, *map(str, arguments)]
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            contextlib.chdir(ROOT),
            warnings.catch_warnings(action="ignore"),
        ):
            runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert isinstance(end.code, int), end.code
        status = end.code
    finally:
        sys.argv = argv
    return Done(status, out.getvalue(), err.getvalue())


@functools.cache
def _seconds_of_torch() -> float:
    return in_a_process("-c", "import torch").cpu_seconds


@pytest.mark.parametrize("job", JOBS)
def test_help_comes_soon_and_says_something(job: str) -> None:
    """In 1.5 times what importing torch takes (2 s where nothing else runs), for machines are not equally fast."""
    done = in_a_process(f"jobs/{job}", "--help")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) > 5
    if done.cpu_seconds >= 1.5 * _seconds_of_torch():  # beside other work both take longer: side by side, then
        assert any(
            in_a_process(f"jobs/{job}", "--help").cpu_seconds < 1.5 * in_a_process("-c", "import torch").cpu_seconds
            for _ in range(2)
        )


@pytest.fixture(scope="module")
def trained(people_shards: Path, new_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "runs").mkdir()
    shutil.copy(new_database, folder / "runs")
    config = folder / "small.yaml"
    config.write_text(yaml.safe_dump(small_settings(people_shards, folder / "runs")))
    done = run("jobs/train_smpr.py", "--config", config)
    assert done.returncode == 0, done.stderr
    assert str(folder / "runs" / "small" / "report") in done.stderr
    return folder / "runs" / "small"


def test_a_checkpoint_is_scored_on_shards_and_on_files_alike(trained: Path, people_coco: Path, tmp_path: Path) -> None:
    shards, files = tmp_path / "shards.json", tmp_path / "files.json"
    done = run("jobs/evaluate.py", "--checkpoint", trained, "--out", shards)
    assert done.returncode == 0, done.stderr
    assert "AP50" in done.stdout and "score:" in done.stdout
    done = run(
        "jobs/evaluate.py", "--checkpoint", trained, "--source", people_coco, "--split", "val2017", "--out", files
    )
    assert done.returncode == 0, done.stderr
    one, other = (json.loads(path.with_suffix(".metrics.json").read_text()) for path in (shards, files))
    assert one.pop("notes") == [] and "categories: person" in other.pop("notes")[0]
    assert str(one) == str(other)  # as text, NaN equals NaN
    assert json.loads(shards.read_text()) == json.loads(files.read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--checkpoint is missing"),
        (("--checkpoint", "/nowhere"), "no checkpoint in /nowhere"),
        (("--checkpoint",), "--checkpoint: expected one argument"),
    ],
)
def test_evaluation_says_what_is_wrong_with_its_arguments(arguments: tuple[str, ...], message: str) -> None:
    done = run("jobs/evaluate.py", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_decoding_is_searched_and_the_best_settings_score_the_same_in_an_evaluation(
    trained: Path, tmp_path: Path
) -> None:
    space, out = tmp_path / "space.yaml", tmp_path / "tune"
    space.write_text("model.decode.nms: [linear, hard]\nmodel.decode.score_floor: {low: 0.0, high: 0.02}\n")
    search = ("jobs/tune.py", "--decode-only", "--checkpoint", trained, "--space", space, "--out", out)
    done = run(*search, "--samples", 4)
    assert done.returncode == 0, done.stderr
    assert "4 trials, 0 failed" in done.stdout and str(out / "best.yaml") in done.stdout
    assert "Best against the checkpoint's own settings: AP +0." in done.stdout
    done = run(*search, "--samples", 6)
    trials = json.loads((out / "trials.json").read_text())
    assert done.returncode == 0 and [trial["trial"] for trial in trials] == list(range(6))

    best = max(trials, key=lambda trial: trial["scores"]["AP"])
    options = [str(part) for name, value in best["settings"].items() for part in (f"--{name}", value)]
    done = run("jobs/evaluate.py", "--checkpoint", trained, "--out", tmp_path / "results.json", *options)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "results.metrics.json").read_text())
    assert best["scores"]["AP"] == pytest.approx(metrics["AP"], abs=1e-9)

    done = run("jobs/compare.py", "--search", out)
    assert done.returncode == 2 and "is a search of decoding" in done.stderr


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("optim.lr: {low: 0.1, high: 0.2}", "optim.lr needs training; --decode-only varies"),
        ("model.decode.nmss: [hard]", "unknown key 'model.decode.nmss'; did you mean 'model.decode.nms'?"),
        ("", "must hold named sections"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(trained: Path, tmp_path: Path, space: str, message: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(space)
    done = run("jobs/tune.py", "--decode-only", "--checkpoint", trained, "--space", path, "--out", tmp_path / "tune")
    assert done.returncode == 2 and message in done.stderr
    assert not (tmp_path / "tune").exists()


def test_finished_runs_are_compared(trained: Path, tmp_path: Path) -> None:
    done = run("jobs/compare.py", "--runs", trained, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "| small |" in done.stdout and "ms, 30 people" in done.stdout
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["small"]["parameters"] == 416_721
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 1000
    assert str(tmp_path / "out" / "comparison.html") in done.stdout
    assert "Poses of small in image" in (tmp_path / "out" / "comparison.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ablate", "nothing"), "no ablation of 'nothing'; configs/ladders/ has"),
        (("--methods", "nothing"), "unknown method 'nothing'; models/ has"),
        (("--runs", "/nowhere"), "no checkpoint in /nowhere"),
    ],
)
def test_comparison_says_what_is_wrong_with_its_arguments(arguments: tuple[str, ...], message: str) -> None:
    done = run("jobs/compare.py", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
