"""Every file of docs/parts.md: the tracker, the stream of tars and the loop, each used alone."""

import importlib
import io
import json
import os
import re
import runpy
import shutil
import signal
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from mlflow import MlflowClient
from processes import Forked

from posefleet.data.errors import DataError
from posefleet.data.images import encode_jpeg
from posefleet.data.loading.plain_tars import PlainTars

ROOT = Path(__file__).resolve().parents[2]


def shown_files() -> dict[str, str]:
    """Path -> content, for every code block of the page under a line that is nothing but a path."""
    page = (ROOT / "docs" / "parts.md").read_text()
    return dict(re.findall(r"^`([\w/.]+)`\n\n```\w+\n(.*?)^```$", page, re.DOTALL | re.MULTILINE))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with the files of the page; its modules can be imported."""
    before = set(sys.modules)
    for path, content in shown_files().items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("POSEFLEET_METHODS", "")  # and put back what it was
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def imported(name: str) -> ModuleType:
    return importlib.import_module(name)


# ---------------------------------------------------------------------------------------------------- tracking


def dying_script(path: str, at_step: int) -> int:
    """Run a script that is killed as it logs step ``at_step``; -1: never."""
    from posefleet.platform.tracking.tracker import Tracker

    log_metrics = Tracker.log_metrics

    def dying(self: Tracker, metrics: Any, step: int) -> None:
        if step == at_step:
            os.kill(os.getpid(), signal.SIGKILL)
        log_metrics(self, metrics, step)

    Tracker.log_metrics = dying  # type: ignore[method-assign]
    os.chdir(Path(path).parent)
    runpy.run_path(path)
    return 0


def steps_of(database: Path) -> tuple[Any, list[int]]:
    """The only run of a store, and the steps of its metric ``loss`` in the order of its chart."""
    uri = f"sqlite:///{database}"
    client = MlflowClient(uri, uri)
    (run,) = client.search_runs([client.get_experiment_by_name("posefleet").experiment_id])
    return run, [point.step for point in client.get_metric_history(run.info.run_id, "loss")]


def test_a_plain_loop_that_is_killed_twice_is_one_run(place: Path, new_database: Path) -> None:
    (place / "runs").mkdir()
    shutil.copy(new_database, place / "runs")
    for at_step, status in ((25, -signal.SIGKILL), (47, -signal.SIGKILL), (-1, 0)):
        given = (str(place / "plain_loop.py"), at_step)
        process = Forked(dying_script, given, environment=os.environ, errors=place / "errors")
        assert process.wait(120) == status, (place / "errors").read_text()
    run, steps = steps_of(place / "runs" / "mlflow.db")
    assert sorted(steps) == list(range(60)), "each step once"
    assert run.info.status == "FINISHED" and run.data.params == {"lr": "0.1"}
    assert (
        place / "runs" / "artifacts" / run.info.run_id / "artifacts" / "checkpoint" / "step.json"
    ).read_text() == "60"
    assert not (place / "runs" / "first" / "lock.json").exists()


def test_a_run_that_is_open_elsewhere_is_refused(place: Path, new_database: Path, monkeypatch: Any) -> None:
    from posefleet import tracking
    from posefleet.platform.runtime import lock
    from posefleet.platform.runtime.processes import ProcessId

    (place / "runs").mkdir()
    shutil.copy(new_database, place / "runs")
    with tracking.open_run("runs", "first", system_every=0):
        other = ProcessId(ProcessId.current().machine, 1, "then")
        monkeypatch.setattr(ProcessId, "current", lambda: other)  # as another process sees it
        monkeypatch.setattr(ProcessId, "is_gone", lambda self: False)
        with pytest.raises(lock.InUseError, match=r"run first in .* is in use by process \d+"):
            tracking.open_run("runs", "first", patience=0)
    (place / "runs" / "ours").mkdir()
    (place / "runs" / "ours" / "run.json").write_text(json.dumps({"run_id": "r", "tracking_uri": "", "method": "smpr"}))
    with pytest.raises(ValueError, match="is a training of method 'smpr'; choose another name"):
        tracking.open_run("runs", "ours")
    assert not (place / "runs" / "ours" / "lock.json").exists()


@pytest.mark.ray
@pytest.mark.slow  # a minute; the same loop in plain processes is killed twice above
def test_a_loop_of_ray_train_whose_worker_dies_is_one_run(place: Path, new_database: Path, local_ray: None) -> None:
    (place / "storage").mkdir()
    shutil.copy(new_database, place / "storage")
    module = imported("ray_loop")
    died = place / "died"

    def dying_loop(config: dict[str, Any], loop: Any = module.loop) -> None:
        import ray.train

        report = ray.train.report

        def dying_report(metrics: dict[str, Any]) -> None:
            if metrics["step"] == 3 and not died.exists() and ray.train.get_context().get_world_rank() == 0:
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            report(metrics)

        ray.train.report = dying_report
        loop(config)

    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(module)
    module.loop = dying_loop
    module.train(str(place / "storage"), workers=1, steps=8)
    assert died.exists()
    run, steps = steps_of(place / "storage" / "mlflow.db")
    assert sorted(steps) == list(range(8)) and run.info.status == "FINISHED"


# ---------------------------------------------------------------------------------------------------- tars


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


@pytest.fixture
def tars(place: Path) -> Path:
    """48 samples in three tars, with folders, long names and files that belong to none."""
    import numpy as np

    (place / "tars").mkdir()
    for shard in range(3):
        with tarfile.open(place / "tars" / f"{shard}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            add(tar, "README", b"of the tar")
            for number in range(16 * shard, 16 * shard + 16):
                key = f"{'long' * 40 if number % 7 == 0 else 'a.b'}/{number:03d}"
                add(tar, f"{key}.jpg", encode_jpeg(np.full((8, 8, 3), number, np.uint8)))
                add(tar, f"{key}.json", json.dumps({"label": number}).encode())
                if number % 5 == 0:
                    add(tar, f"{key}.seg.txt", b"x" * number)
    return place / "tars"


def labels(ranks: int, position: int, steps: int, workers: int = 0, batch_size: int = 4) -> list[tuple[int, int]]:
    """(label, random number) of what all ranks see in some steps, step by step."""
    stream = imported("tar_stream").stream
    loaders = [iter(stream(rank, ranks, position, workers, batch_size)) for rank in range(ranks)]
    batches = [next(loader) for _ in range(steps) for loader in loaders]
    for key, image, label, _ in (sample for batch in batches for sample in batch):
        assert int(key[-3:]) == label and abs(int(image.mean()) - label) <= 2
    return [(label, int(drawn)) for batch in batches for *_, label, drawn in batch]


def test_a_stream_goes_on_in_the_middle_with_another_number_of_ranks(tars: Path) -> None:
    whole = labels(ranks=1, position=0, steps=12)
    assert sorted(label for label, _ in whole) == list(range(48)) and [label for label, _ in whole] != list(range(48))
    first, rest = labels(ranks=2, position=0, steps=3), labels(ranks=3, position=24, steps=2)
    assert first + rest == whole, "each sample once, in the same order, with the same random numbers"
    assert labels(ranks=1, position=18, steps=3, batch_size=10) == whole[18:]  # of another size
    assert labels(ranks=1, position=0, steps=3, workers=2) == whole[:12]
    assert labels(ranks=1, position=48, steps=12) != whole, "the second epoch has another order"


def test_tars_may_be_remote(tars: Path) -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    for tar in sorted(tars.iterdir()):
        fs.pipe_file(f"/plain-tars/{tar.name}", tar.read_bytes())
    local, remote = PlainTars(f"{tars}/*.tar", seed=3), PlainTars("memory://plain-tars/*.tar", seed=3)
    assert len(remote) == 48 and remote.__getitems__([7, 50]) == local.__getitems__([7, 50])
    assert set(local[7]) >= {"__key__", "jpg", "json"}


def test_tars_are_indexed_once_and_again_when_one_changes(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from posefleet.data.loading import plain_tars

    labels(ranks=1, position=0, steps=1)
    with monkeypatch.context() as patch:
        patch.setattr(plain_tars, "_sample_bounds", lambda *_: pytest.fail("the index is there"))
        labels(ranks=1, position=0, steps=1)
    with tarfile.open(tars / "2.tar", "a") as tar:
        add(tar, "new/048.jpg", b"no picture")
    assert len(PlainTars(str(tars), index="tars-index.json")) == 49
    sample = PlainTars([str(tars / "2.tar")], seed=None)[0]
    assert set(sample) == {"__key__", "jpg", "json"} and sample["__key__"] == "a.b/032"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("1.tar", b"text" * 1000, r"1\.tar: .*make the tar again"),
        ("1.tar.gz", b"", "a compressed tar cannot be read from its middle"),
        ("*.tar", b"", "no tar there; give a folder"),
    ],
)
def test_what_is_no_plain_tar_is_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    if "*" not in name:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        PlainTars(f"{tmp_path}/{name}")


def test_a_tar_that_was_cut_is_named(tars: Path) -> None:
    data = PlainTars(str(tars), seed=None)
    with (tars / "0.tar").open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(DataError, match=r"0\.tar: the sample at byte \d+: the tar ends before it does"):
        data[5]


# ---------------------------------------------------------------------------------------------------- a method


def test_a_network_of_ones_own_is_trained_and_its_checkpoint_loads_only_if_it_is_trusted(
    place: Path, people_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posefleet.platform.checkpoints.format import CheckpointError, read_content
    from posefleet.platform.checkpoints.load import load_model
    from posefleet.platform.checkpoints.store import CheckpointStore
    from posefleet.platform.config.loading import experiment_type

    metrics, model = imported("train_mine").train(str(people_shards / "val2017"), str(place / "run"))
    assert 0 <= metrics["AP"] <= 1 and type(model).__module__ == "my_package.my_module"
    checkpoint = CheckpointStore(f"{place}/run/checkpoints").latest()
    assert checkpoint and read_content(checkpoint)["method"] == "my_package.my_module"

    # What somebody is who gets this checkpoint, and has a module of this name.
    monkeypatch.setenv("POSEFLEET_METHODS", "")
    experiment_type.cache_clear()
    del sys.modules["my_package.my_module"]
    with pytest.raises(CheckpointError, match=r"POSEFLEET_METHODS=my_package.my_module, or posefleet.models.trust"):
        load_model(checkpoint)
    assert "my_package.my_module" not in sys.modules, "its code has run"
    monkeypatch.setenv("POSEFLEET_METHODS", "other, my_package.my_module")
    load_model(checkpoint)
    assert "my_package.my_module" in sys.modules


def test_a_command_trains_the_module_that_it_names(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from posefleet.jobs.train import main

    with pytest.raises(SystemExit) as ended:
        main(["my_package.my_module", "--help-all"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and "--model.channels" in shown and "Guess one person in every image" in shown
    for name, message in (("my_package.nothing", "on PYTHONPATH?"), ("json.tool", "defines no Config and no Model")):
        with pytest.raises(SystemExit) as ended:
            main([name])
        assert ended.value.code == 2 and message in capsys.readouterr().err
