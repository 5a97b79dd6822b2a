"""The demo: the whole pipeline in miniature, what becomes of its model, and what it prints."""

import dataclasses
import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from small_settings import small_release, untrained_checkpoint

from posefleet.jobs import demo
from posefleet.jobs.serve import CONFIG
from posefleet.platform.checkpoints.format import read_meta
from posefleet.platform.checkpoints.resolve import find_checkpoint
from posefleet.platform.config.loading import read_yaml
from posefleet.platform.tracking.registry import CHAMPION, find_alias, find_model, promote

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = f"models:/{demo.MODEL}@{CHAMPION}"


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_the_demo_in_miniature(tmp_path: Path, store: str) -> None:
    command = [sys.executable, "jobs/demo.py", "--size", "mini", "--out", str(tmp_path / "demo"), "--tracking", store]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = tmp_path / "demo" / "runs" / "demo" / "report"
    assert {path.name for path in report.iterdir()} == {
        *("curves", "evaluation", "experiment.yaml", "summary.json", "targets"),
    }
    assert len(list((report / "evaluation").iterdir())) == 2, "AP is a curve"
    assert (tmp_path / "demo" / "results_refined.json").exists()
    reported = sorted((report.parent / "ray").glob("checkpoint_*/"))  # the last one is ray.train.Result.checkpoint
    assert find_checkpoint(str(reported[-1])) in {str(path) for path in (report.parent / "checkpoints").iterdir()}

    assert "held-out images" in done.stdout and "serve    # the page at http://127.0.0.1:8000" in done.stdout
    assert f"predict --model {ADDRESS} --input {tmp_path}/demo/coco/val2017" in done.stdout
    for noise in ("pid=", "INFO cli.py", "Ignoring upload", "PreemptionWatcher"):
        assert noise not in done.stdout + done.stderr
    champion = find_alias(store, demo.MODEL, CHAMPION)
    assert champion and champion.tags["note"] == demo.NOTE
    assert read_meta(find_model(ADDRESS, store)).experiment.run.note == demo.NOTE


@pytest.mark.parametrize("failures", [2, 4])
def test_a_head_that_a_busy_machine_does_not_start_in_time_is_started_again(
    failures: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = itertools.count(1)

    @contextmanager
    def start(environment: dict[str, str]) -> Iterator[str]:
        if next(calls) <= failures:
            raise demo._TooBusy(1, "ray start --head")
        yield "http://head"

    def steps(out: Path, size: demo.Size, cluster: demo._Cluster, uri: str) -> Any:
        assert cluster.address == "http://head"
        raise ValueError("the head runs")

    monkeypatch.setattr(demo, "_started_head", start)
    monkeypatch.setattr(demo, "_steps", steps)
    status = demo.main(["--size", "mini", "--out", str(tmp_path / "demo"), "--tracking", f"sqlite:///{tmp_path}/m.db"])
    found = capsys.readouterr()
    assert found.out.count("once more") == min(failures, demo.STARTS - 1)
    if failures < demo.STARTS:
        assert status == 2 and "the head runs" in found.err
    else:
        assert status == 1 and "this step failed with status 1: ray start --head" in found.err


def test_the_model_gets_the_name_that_the_shipped_config_serves() -> None:
    (application,) = read_yaml(CONFIG)["applications"]
    assert application["args"]["models"][0]["source"] == ADDRESS


def test_the_champion_of_somebody_else_stays_and_that_of_a_demo_goes(
    small_run: dict[str, Any], store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = tmp_path / "demo" / "shards"
    shards.mkdir(parents=True)
    (shards / "val2017").symlink_to(Path(small_run["data"]["eval"]))
    settings = {**small_run, "run": {**small_run["run"], "note": demo.NOTE}}
    checkpoint = untrained_checkpoint(settings, tmp_path / "demo" / "runs" / "demo")
    earlier = small_release(settings, checkpoint, tmp_path / "earlier")
    promote(store, demo.MODEL, dataclasses.replace(earlier, tags={"note": demo.NOTE}), CHAMPION)
    assert demo._promote(tmp_path / "demo", store) == ADDRESS
    champion = find_alias(store, demo.MODEL, CHAMPION)
    assert champion and champion.number == "2" and champion.tags["note"] == demo.NOTE
    promote(store, demo.MODEL, small_release(small_run, checkpoint, tmp_path / "release"), CHAMPION)
    capsys.readouterr()
    assert demo._promote(tmp_path / "demo", store) == str(tmp_path / "demo" / "runs" / "demo")
    assert f"{ADDRESS} is version 3, which is not a demo's: it stays the champion" in capsys.readouterr().out
    champion = find_alias(store, demo.MODEL, CHAMPION)
    assert champion and champion.number == "3"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("\x1b[36m(RayTrainWorker pid=15753, ip=192.0.2.2)\x1b[0m  50%  epoch 0.50/1\n", " 50%  epoch 0.50/1\n"),
        ("\x1b[36m(RayTrainWorker pid=15753)\x1b[0m nose    0.0000\n", "nose    0.0000\n"),
        ("AP 0.580\n", "AP 0.580\n"),
        ("(see docs/faults.md) 3 workers died\n", "(see docs/faults.md) 3 workers died\n"),
        ("2026-11-29 11:32:26,211\tINFO packaging.py:385 -- Ignoring upload to cluster for these files: []\n", None),
        ("(RayTrainWorker pid=1) Setting up process group for: env:// [rank=0, world_size=2]\n", None),
        ("2026-11-29 11:32:36,306\tSUCC cli.py:66 -- \x1b[32m---------\x1b[39m\n", None),
        (
            "\x1b[36m(TrainController pid=15484)\x1b[0m [2026-11-29 11:35:58,729 E 15484 15588] core_worker.cc:2465: "
            "Actor with class name: 'PreemptionWatcher' and ID: '7a' has constructor arguments in the object store\n",
            None,
        ),
        (
            "2026-11-29 11:32:36,306\tERROR cli.py:66 -- the job failed\n",
            "2026-11-29 11:32:36,306\tERROR cli.py:66 -- the job failed\n",
        ),
    ],
)
def test_lines_about_ray_itself_are_left_out(line: str, shown: str | None) -> None:
    assert demo.readable(line) == shown


def test_a_step_says_what_it_does_and_that_it_still_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "QUIET_S", 0.2)
    printed = ""
    with demo._step("waiting", "a second"):
        for _ in itertools.repeat(None, 100):
            time.sleep(0.1)
            printed += capsys.readouterr().out
            if "still at it" in printed:
                break
    assert printed.startswith("\n== waiting (a second)\n   still at it after ")
