"""What importing posefleet does and does not do, and what its distributions hold."""

import email
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import posefleet

ROOT = Path(__file__).resolve().parents[2]
NOT_JOBS = ("__init__", "__main__", "cli", "demo")
"""The command line hands on to the others. The demo imports nothing heavy itself: it starts other processes."""
JOBS = sorted(
    path.stem
    for path in (ROOT / "jobs").glob("*.py")
    if path.stem not in NOT_JOBS and not path.stem.startswith("train_")  # these run jobs/train.py
)
PACKAGES = ("data", "models", "platform", "serve", "jobs")
RARELY = (50_000, 20, 20)

MAINS = """
import gc, importlib, sys
for job in sys.argv[1:]:
    gc.set_threshold(700, 10, 10)
    main = importlib.import_module(f"posefleet.jobs.{job}").main
    assert gc.get_threshold() == (700, 10, 10), f"importing {job} changed the collector"
    sys.argv = [job, *(["smpr"] if job == "train" else []), "--help"]
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
    output = python(
        "-c", f"import gc; before = gc.get_threshold(); import {modules}; print(before == gc.get_threshold())"
    )
    assert output.stdout == "True\n", output.stderr


def test_jobs_collect_garbage_rarely() -> None:
    output = python("-c", MAINS, *JOBS)
    assert output.returncode == 0, output.stderr
    assert [line for line in output.stderr.splitlines() if line.endswith(str(RARELY))] == [
        f"{j} {RARELY}" for j in JOBS
    ]


def test_loaders_of_batches_collect_garbage_rarely() -> None:
    output = python(
        "-c", "import gc, posefleet.data.loading.loader as s; s._begin_worker(0); print(gc.get_threshold())"
    )
    assert output.stdout == f"{RARELY}\n", output.stderr


def test_a_copy_that_lost_its_links_says_what_to_do(tmp_path: Path) -> None:
    """Where git makes no symbolic links, it writes files that hold where each would lead."""
    package = tmp_path / "posefleet"
    package.mkdir()
    (package / "__init__.py").write_text((ROOT / "posefleet" / "__init__.py").read_text())
    for name in PACKAGES:
        (package / name).write_text(f"../{name}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.delenv("PYTHONPATH", raising=False)
        output = python("-c", "import posefleet.data.errors")
    assert output.returncode == 1
    assert f"ImportError: {package / 'data'} is not a folder" in output.stderr
    assert "Clone the repository with git on Linux or macOS" in output.stderr


def tracked(*folders: str) -> set[str]:
    """Files of ``folders`` that git knows or would take, as paths from the root."""
    command = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z", "--", *folders]
    listed = subprocess.run(command, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}


def packaged() -> set[str]:
    """What a wheel has to hold."""
    own = {name for name in tracked("posefleet") if not (ROOT / name).is_symlink()}
    return own | {f"posefleet/{name}" for name in tracked(*PACKAGES)}


LISTED = """
import json, sys
from setuptools import Distribution
distribution = Distribution({"script_name": "setup.py"})
distribution.parse_config_files()
command = distribution.get_command_obj("build_py")
command.ensure_finalized()
files = [path for _, _, path in command.find_all_modules()]
files += [f"{source}/{name}" for _, source, _, names in command._get_data_files() for name in names]
json.dump(files, sys.stdout)
"""


def test_the_wheel_takes_every_file_of_the_five_folders() -> None:
    """As setuptools lists them, without a build."""
    output = subprocess.run([sys.executable, "-W", "ignore", "-c", LISTED], cwd=ROOT, capture_output=True, text=True)
    assert output.returncode == 0, output.stderr
    assert {name for name in json.loads(output.stdout) if "__pycache__" not in name} == packaged()


BUILD = """
import sys
from setuptools import build_meta
getattr(build_meta, sys.argv[1])(sys.argv[2])
"""


def build(kind: str, source: Path, out: Path) -> Path:
    """The ``wheel`` or ``sdist`` of a source folder."""
    out.mkdir()
    output = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BUILD, f"build_{kind}", str(out)],
        cwd=source,
        capture_output=True,
        text=True,
    )
    assert output.returncode == 0, output.stdout + output.stderr
    (built,) = out.iterdir()
    return built


def copy_of_the_checkout(copy: Path) -> Path:
    """``copy`` with every file of this checkout, links as links; a build leaves its files there."""
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name, follow_symlinks=False)
    return copy


def contents(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}


@pytest.mark.slow
def test_wheels_from_the_checkout_and_from_the_sdist_hold_the_same(tmp_path: Path) -> None:
    copy = copy_of_the_checkout(tmp_path / "copy")
    sdist = build("sdist", copy, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    for name in ("LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "constraints.txt", "docs/security.md"):
        assert (unpacked / name).is_file()
    wheel = build("wheel", copy, tmp_path / "wheel")
    again = build("wheel", unpacked, tmp_path / "again")
    assert contents(wheel) == contents(again)
    about = f"posefleet-{posefleet.__version__}.dist-info"
    extra = {f"{about}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "top_level.txt", "licenses/LICENSE")}
    assert contents(wheel) - packaged() <= extra | {f"{about}/entry_points.txt"}
    assert packaged() <= contents(wheel)
    metadata = email.message_from_bytes(zipfile.ZipFile(wheel).read(f"{about}/METADATA"))
    assert (metadata["Version"], metadata["License-Expression"]) == (posefleet.__version__, "Apache-2.0")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_the_demo_runs_from_the_wheel_in_an_empty_folder(tmp_path: Path) -> None:
    wheel = build("wheel", copy_of_the_checkout(tmp_path / "copy"), tmp_path / "wheel")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
    output = subprocess.run(
        [sys.executable, "-m", "posefleet.jobs.demo", "--size", "mini"],
        cwd=empty,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert output.returncode == 0, output.stdout[-3000:] + output.stderr[-3000:]
    assert "held-out images" in output.stdout
    assert str(tmp_path / "installed" / "posefleet" / "jobs" / "configs" / "smpr_demo.yaml") in output.stdout
    assert [path.name for path in empty.iterdir()] == ["runs"]


def test_make_install_says_what_it_does_and_shows_errors_of_pip_alone(tmp_path: Path) -> None:
    pip = 'echo "$*" >> "$(dirname "$0")/calls"; echo "ERROR: no torch" >&2; exit ${STATUS:-0}'
    python = tmp_path / "python"
    python.write_text(
        f"#!/bin/sh\nmkdir -p $3/bin; printf '#!/bin/sh\\n%s\\n' '{pip}' > $3/bin/pip; chmod +x $3/bin/pip\n"
    )
    python.chmod(0o755)
    command = ["make", "install", f"VENV={tmp_path}/venv", f"PYTHON={python}"]
    failed = subprocess.run(command, cwd=ROOT, env=os.environ | {"STATUS": "1"}, capture_output=True, text=True)
    assert failed.returncode and "ERROR: no torch" in failed.stderr and not (tmp_path / "venv" / "ready").exists()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "venv" / "ready").exists()
    assert "about 7 GB and 4 minutes" in done.stdout and "source" in done.stdout
    calls = (tmp_path / "venv" / "bin" / "calls").read_text().splitlines()
    assert len(calls) == 3 and all(call.startswith("install --quiet --quiet ") for call in calls)


def test_ray_is_capped_at_the_release_that_was_tried() -> None:
    from posefleet.platform.training.ray_trainer import RAY_TRIED

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (required,) = [Requirement(line) for line in project["dependencies"] if Requirement(line).name == "ray"]
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned and pinned[1].startswith(f"{RAY_TRIED}.")
    release, minor = RAY_TRIED.split(".")
    assert required.specifier.contains(pinned[1])
    assert not required.specifier.contains(f"{release}.{int(minor) + 1}.0")


def test_the_citation_and_the_changelog_are_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == posefleet.__version__
    assert len(citation["references"]) == 5
    assert f"## [{posefleet.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
