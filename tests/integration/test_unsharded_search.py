"""Search, gate and export straight from COCO's own files: ``tune``, ``promote`` and ``export`` with FOLDER@SPLIT."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from posefleet.data.shards import unsharded
from posefleet.data.shards.layout import read_manifest
from posefleet.jobs import cli
from posefleet.platform.checkpoints.format import read_meta
from posefleet.platform.checkpoints.resolve import find_checkpoint
from posefleet.platform.tracking.registry import CHAMPION, find_alias

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def posefleet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """The command, in a folder of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    unsharded._open.cache_clear()

    def run(*arguments: str) -> int:
        try:
            return cli.main(list(arguments))
        except SystemExit as end:
            return int(end.code or 0)

    return run


@pytest.mark.timeout(900)
def test_a_search_its_decoding_its_promotion_and_its_export(
    posefleet: Callable[..., int], tracked_run: dict[str, Any], people_coco: Path, tmp_path: Path, local_ray: None
) -> None:
    data = {"data.train": f"{people_coco}@train2017", "data.eval": f"{people_coco}@val2017"}
    settings = {**tracked_run, "schema": "auto", "run": {"storage": tracked_run["run"]["storage"]}}
    settings["data"] |= {name.removeprefix("data."): place for name, place in data.items()}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "trained.yaml").write_text("model.loss.cls: {low: 0.5, high: 2.0}\n")
    (tmp_path / "decoded.yaml").write_text("model.decode.max_poses: [5, 10]\n")
    method = ("--method", "smpr", "--config", "small.yaml")
    assert posefleet("tune", *method, "--space", "trained.yaml", "--samples", "1", "--out", "search") == 0
    trials = json.loads((tmp_path / "search" / "trials.json").read_text())
    assert len(trials) == 1 and "AP" in trials[0]["scores"]
    assert yaml.safe_load((tmp_path / "search" / "best.yaml").read_text())["data"]["train"] == data["data.train"]

    trained = read_meta(find_checkpoint(trials[0]["run"])).experiment
    assert trained.data.eval == data["data.eval"] and trained.keypoints == read_manifest(data["data.eval"]).schema
    decoding = ("--decode-only", "--checkpoint", trials[0]["run"], "--space", "decoded.yaml", "--samples", "2")
    assert posefleet("tune", *decoding, "--data.eval", data["data.eval"], "--out", "decoding") == 0

    gate = ("--gate.latency_people", "1", "--gate.served_images", "1", "--model.decode.score_floor", "0.0")
    promote = ("promote", "--search", "search", "--model", "people", "--to", "champion", *gate)
    assert posefleet(*promote, "--data.eval", data["data.eval"]) == 0
    store = f"sqlite:///{settings['run']['storage']}/mlflow.db"
    version = find_alias(store, "people", CHAMPION)
    assert version and version.number == "1"

    exported = ("--checkpoint", trials[0]["run"], "--model.decode.score_floor", "0.0")
    assert posefleet("export", *exported, "--out", "people.onnx", "--data.eval", data["data.eval"]) == 0
    assert (tmp_path / "people.onnx").exists()
