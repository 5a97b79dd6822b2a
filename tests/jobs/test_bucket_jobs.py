"""The jobs with everything in a bucket: from COCO files to a served champion."""

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
import yaml
from mlflow import MlflowClient
from mlflow_server import Server
from object_store import SECRET, ObjectStore

from posefleet.jobs import evaluate, predict, shard_coco
from posefleet.platform.checkpoints.format import read_meta
from posefleet.platform.checkpoints.resolve import find_checkpoint
from posefleet.platform.config.loading import build_experiment
from posefleet.platform.training.launch import train

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bucket(object_store: ObjectStore, people_coco: Path) -> str:
    """A folder of the bucket that holds pictures in the four ways in which they may come."""
    fs, folder = fsspec.filesystem("s3"), "s3://bucket/all"
    fs.put(str(people_coco / "val2017"), f"{folder}/photos", recursive=True)
    fs.put(str(people_coco), f"{folder}/coco", recursive=True)
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as written:
        for path in sorted((people_coco / "val2017").iterdir()):
            written.add(path, path.name)
    fs.pipe_file(f"{folder}/tars/val-0000.tar", tar.getvalue())
    for split in ("train2017", "val2017"):
        arguments = ["--source", f"{folder}/coco", "--split", split, "--out", f"{folder}/shards"]
        assert shard_coco.main([*arguments, "--shard-mib", "0.05", "--in-process"]) == 0
    return folder


def in_the_bucket(small_run: dict[str, Any], bucket: str, tracking: str, name: str) -> dict[str, Any]:
    small_run["data"] |= {"train": f"{bucket}/shards/train2017", "eval": f"{bucket}/shards/val2017"}
    small_run["run"] |= {"storage": f"{bucket}/runs", "tracking": tracking, "name": name}
    return small_run


def test_from_coco_to_poses_without_a_file_on_this_machine(
    bucket: str,
    object_store: ObjectStore,
    small_run: dict[str, Any],
    store: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    again = ["--source", f"{bucket}/coco", "--split", "val2017", "--out", f"{bucket}/shards", "--shard-mib", "0.05"]
    assert shard_coco.main([*again, "--in-process"]) == 0
    assert "nothing to do: every shard was there and whole" in capsys.readouterr().out

    settings = in_the_bucket(small_run, bucket, store, "short")
    assert train(build_experiment(settings)) == 0
    settings["train"]["epochs"] = 2
    assert train(build_experiment(settings)) == 0
    checkpoint = find_checkpoint(f"{bucket}/runs/short")
    assert checkpoint.startswith(f"{bucket}/runs/short/checkpoints/step-")
    assert {read_meta(f"{bucket}/runs/short/checkpoints/step-{step:08d}").step for step in (6, 12)} == {6, 12}
    kept = {path.removeprefix("bucket/all/runs/short/") for path in object_store.objects() if "/runs/short/" in path}
    assert {"run.json", "report/experiment.yaml", "report/curves/loss.png"} <= kept
    assert len([path for path in kept if path.endswith("/overlays.jpg")]) == 2, "of two evaluations"
    assert not [path for path in kept if path.endswith(".unfinished")]

    out = f"{bucket}/results.json"
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--checkpoint", f"{bucket}/runs/short", "--out", out])
    assert evaluate.main() == 0
    fs = fsspec.filesystem("s3")
    assert json.loads(fs.cat_file(f"{bucket}/results.metrics.json"))["AP"] == pytest.approx(
        read_meta(checkpoint).metrics["AP"], abs=1e-9
    )
    assert isinstance(json.loads(fs.cat_file(out)), list)

    capsys.readouterr()
    poses = ["--model", f"{bucket}/runs/short", "--input", f"{bucket}/photos", "--output", f"{bucket}/poses/short"]
    assert predict.main([*poses, "--in-process", "--overlays"]) == 0
    assert "predicted 7 in" in capsys.readouterr().out
    before = object_store.objects()
    assert predict.main([*poses, "--in-process", "--overlays"]) == 0
    assert "nothing was left to predict" in capsys.readouterr().out and object_store.objects() == before
    made = {path.removeprefix("bucket/all/poses/short/") for path in before if "/poses/short/" in path}
    assert {path for path in made if "/" not in path} == {
        "poses.parquet", "images.parquet", "results.json", "bad_images.json", "other_files.json", "summary.json",
    }  # fmt: skip
    assert len([path for path in made if path.startswith("overlays/")]) == 7


@pytest.mark.parametrize(
    ("source", "ids"),
    [
        (("{}/tars/*.tar",), [1, 2, 3, 4, 5, 6, 7]),
        (("{}/coco", "--split", "val2017"), None),
        (("{}/shards/val2017",), None),
    ],
)
def test_every_kind_of_input_may_lie_in_a_bucket(
    source: tuple[str, ...],
    ids: list[int] | None,
    bucket: str,
    small_run: dict[str, Any],
    people_coco: Path,
    tmp_path: Path,
) -> None:
    from small_settings import untrained_checkpoint

    annotations = json.loads((people_coco / "annotations" / "person_keypoints_val2017.json").read_text())
    untrained_checkpoint(small_run, tmp_path / "run")
    arguments = ["--model", str(tmp_path / "run"), "--output", f"{bucket}/poses/{len(source)}-{ids is None}"]
    assert predict.main([*arguments, "--in-process", "--input", *(part.format(bucket) for part in source)]) == 0
    with fsspec.open(f"{arguments[3]}/images.parquet", "rb") as file:
        found = sorted(row["image_id"] for row in pq.read_table(file).to_pylist())
    assert found == (ids or sorted(image["id"] for image in annotations["images"]))


@pytest.fixture
def server(object_store: ObjectStore, store: str, tmp_path: Path) -> Iterator[Server]:
    """An MLflow server that keeps artifacts in the bucket."""
    pytest.importorskip("boto3")
    server = Server(tmp_path, store, artifacts="s3://bucket/mlflow")
    server.start()
    yield server
    server.stop()


def job(name: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *map(str, arguments)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.slow
def test_no_secret_of_a_job_is_left_anywhere(
    bucket: str, object_store: ObjectStore, server: Server, small_run: dict[str, Any], tmp_path: Path
) -> None:
    secrets = {
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_SESSION_TOKEN": "session-t0ken-of-the-test",
        "POSEFLEET_TOKEN": "serving-t0ken-of-the-test",
        "MLFLOW_TRACKING_URI": server.uri.replace("//", "//mlflow:passw0rd-of-the-test@"),
    }
    settings = in_the_bucket(small_run, bucket, "", "secret")
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(settings))
    done = job("train_smpr", "--config", config, **secrets, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "mlflow:***@127.0.0.1" in done.stderr

    client = MlflowClient(server.uri)
    (run,) = client.search_runs([client.get_experiment_by_name("posefleet").experiment_id])
    assert run.data.params["run.storage"] == f"{bucket}/runs" and run.data.tags["folder"] == f"{bucket}/runs/secret"
    objects = object_store.objects()
    assert any(path.startswith("bucket/mlflow/") and path.endswith("model.safetensors") for path in objects)
    local = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert any(path.endswith("mlflow.db") for path in local) and any(path.endswith("events.jsonl") for path in local)
    everywhere = {"output": (done.stdout + done.stderr).encode(), **objects, **local}
    for secret in (SECRET, "t0ken-of-the-test", "passw0rd-of-the-test"):
        assert [where for where, data in everywhere.items() if secret.encode() in data] == []


@pytest.mark.slow
@pytest.mark.ray
def test_the_whole_way_over_a_cluster_to_a_served_champion(
    bucket: str,
    object_store: ObjectStore,
    server: Server,
    small_run: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    people_coco: Path,
) -> None:
    """Under Ray: shards, two workers, a resumed run, ONNX, tables of poses, the registry, HTTP."""
    import ray

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    for split in ("train2017", "val2017"):
        done = job("shard_coco", "--source", f"{bucket}/coco", "--split", split, "--out", f"{bucket}/over")
        assert done.returncode == 0, done.stderr

    settings = in_the_bucket(small_run, bucket, "", "over")
    settings["data"] |= {"train": f"{bucket}/over/train2017", "eval": f"{bucket}/over/val2017", "batch_size": 2}
    settings["scaling"] = {"num_workers": 2, "cpus_per_worker": 1}
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(settings))
    for epochs in (1, 2):
        done = job("train_smpr", "--config", config, "--train.epochs", epochs)
        assert done.returncode == 0, done.stderr
    assert read_meta(f"{bucket}/runs/over/checkpoints/step-00000012").position == 48

    done = job("export", "--checkpoint", f"{bucket}/runs/over", "--out", f"{bucket}/smpr.onnx",
               "--model.decode.score_floor", "0", "--check.images", 2)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    done = job(
        "predict", "--model", f"{bucket}/runs/over", "--input", f"{bucket}/photos", "--output", f"{bucket}/poses/over"
    )
    assert done.returncode == 0 and "in 7 images" in done.stdout, done.stderr
    done = job("promote", "--run", f"{bucket}/runs/over", "--to", "champion", "--model", "pose",
               "--gate.latency_people", 1, "--gate.served_images", 1, "--model.decode.score_floor", "0")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path for path in object_store.objects() if path.startswith("bucket/mlflow/") and "MLmodel" in path]

    sys.path.append(str(ROOT / "tests" / "serve"))
    from server import running_server

    model = {
        "name": "pose",
        "source": "models:/pose@champion",
        "warm_up": [[96, 128]],
        "deployment": {"num_replicas": 1},
    }
    straight = {**model, "name": "straight", "source": f"{bucket}/runs/over"}
    photograph = min((people_coco / "val2017").iterdir()).read_bytes()
    try:
        with running_server({"models": [model, straight]}) as running:
            for name, version in (("pose", "1"), ("straight", None)):
                answer = running.post(f"/v1/models/{name}/poses", photograph, Content_Type="image/jpeg")
                assert answer.status == 200 and answer.json["model"]["version"] == version, answer.json
    finally:
        ray.shutdown()
