"""What importing posefleet does and does not do, and what its distributions hold."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.py") if path.stem not in ("__init__", "demo"))
RARELY = (50_000, 20, 20)

MAINS = """
import gc, importlib, sys
for job in sys.argv[1:]:
    gc.set_threshold(700, 10, 10)
    main = importlib.import_module(f"posefleet.jobs.{job}").main
    assert gc.get_threshold() == (700, 10, 10), f"importing {job} changed the collector"
    sys.argv = [job, "--help"]
    sys.stdout.write(f"{job} begins\\n")
    try:
        main()
    except SystemExit:
        pass
    sys.stderr.write(f"{job} {gc.get_threshold()}\\n")
"""


def python(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True)


def test_importing_posefleet_leaves_the_garbage_collector_as_it_is() -> None:
    modules = (
        "posefleet, posefleet.data.loading.shard_dataset, posefleet.platform.training.ray_trainer, posefleet.serve.app"
    )
    told = python(
        "-c", f"import gc; before = gc.get_threshold(); import {modules}; print(before == gc.get_threshold())"
    )
    assert told.stdout == "True\n", told.stderr


def test_jobs_collect_garbage_rarely() -> None:
    told = python("-c", MAINS, *JOBS)
    assert told.returncode == 0, told.stderr
    assert [line for line in told.stderr.splitlines() if line.endswith(str(RARELY))] == [f"{j} {RARELY}" for j in JOBS]


def test_loaders_of_batches_collect_garbage_rarely() -> None:
    told = python(
        "-c", "import gc, posefleet.data.loading.shard_dataset as s; s._begin_worker(0); print(gc.get_threshold())"
    )
    assert told.stdout == f"{RARELY}\n", told.stderr


def test_a_copy_that_lost_its_links_says_what_to_do(tmp_path: Path) -> None:
    """Where git makes no symbolic links, it writes files that hold where each would lead."""
    package = tmp_path / "posefleet"
    package.mkdir()
    (package / "__init__.py").write_text((ROOT / "posefleet" / "__init__.py").read_text())
    for name in ("data", "models", "platform", "serve", "jobs"):
        (package / name).write_text(f"../{name}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.delenv("PYTHONPATH", raising=False)
        told = python("-c", "import posefleet.data.errors")
    assert told.returncode == 1
    assert f"ImportError: {package / 'data'} is not a folder" in told.stderr
    assert "Clone the repository with git on Linux or macOS" in told.stderr
