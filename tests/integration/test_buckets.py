"""An S3 server that works, falters or is gone: what is written and read there, and what is said."""

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from object_store import FaultyProxy, ObjectStore, environment

from posefleet.data.coco.source import find_source
from posefleet.data.errors import DataError
from posefleet.data.io.files import create, read_json
from posefleet.data.loading.shard_dataset import ShardDataset
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.shards.build import shard_coco
from posefleet.data.shards.layout import read_manifest
from posefleet.data.shards.verify import check_shards
from posefleet.data.transforms import EvalTransform, Resize
from posefleet.platform.checkpoints.format import CheckpointError, Meta, read_meta, read_state, read_weights
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.loading import build_experiment
from posefleet.platform.prediction.inputs import list_images
from posefleet.platform.training.launch import train

PART = 50 * 2**20
"""Bytes of a part of a multipart upload, s3fs's default."""


@pytest.fixture
def experiment(small_run: dict[str, Any]) -> Experiment:
    return build_experiment(small_run)


@pytest.fixture
def proxy(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """Before the server, and what ``s3://`` means in this test; few tries after short pauses."""
    proxy = FaultyProxy(object_store.address)
    with environment(proxy.address):
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
        monkeypatch.setattr("random.random", lambda: 0.02)  # botocore's pauses are that times 1, 2, 4, ... seconds
        yield proxy
    proxy.stop()


def save(root: str, experiment: Experiment, step: int, size: int = 3) -> str:
    meta = Meta(experiment=experiment, step=step, position=8 * step, metrics={}, provenance={})
    weights = {"weight": torch.arange(size, dtype=torch.float32) + step}
    return CheckpointStore(root).save(meta, weights, {"optimizer": {"lr": 0.1}})


def images(root: str) -> ShardDataset:
    return ShardDataset(root, COCO17, EvalTransform(Resize(short_side=64, long_side=64), COCO17), seed=None)


# ---------------------------------------------------------------------------------------------------- writing


def test_a_checkpoint_of_several_parts_comes_back(object_store: ObjectStore, experiment: Experiment) -> None:
    size = PART // 4 + 1_000_000
    path = save("s3://bucket/large/checkpoints", experiment, 1, size)
    fs = fsspec.filesystem("s3")
    etags = {name: fs.info(f"{path}/{name}")["ETag"].strip('"') for name in ("model.safetensors", "state.pt")}
    assert etags["model.safetensors"].endswith("-2"), "as S3 marks an object of two parts"
    assert "-" not in etags["state.pt"]
    assert torch.equal(read_weights(path)["weight"], torch.arange(size, dtype=torch.float32) + 1)
    assert CheckpointStore("s3://bucket/large/checkpoints").latest() == path, "sizes and SHA-256 agree"


def test_a_writer_that_fails_leaves_what_was_there(object_store: ObjectStore) -> None:
    for size in (10, PART + 10):  # of one request, and of a multipart upload
        with create("s3://bucket/whole/file") as file:
            file.write(b"before")
        with pytest.raises(RuntimeError, match="out of data"), create("s3://bucket/whole/file") as file:
            file.write(b"x" * size)
            raise RuntimeError("out of data")
        assert {path: data for path, data in object_store.objects().items() if "/whole/" in path} == {
            "bucket/whole/file": b"before"
        }
    uploads = fsspec.filesystem("s3").call_s3("list_multipart_uploads", Bucket="bucket")
    assert not uploads.get("Uploads"), "parts of unfinished uploads would be paid for"


def test_a_file_in_a_bucket_is_written_once(proxy: FaultyProxy) -> None:
    """Not under another name, to be copied."""
    with create("s3://bucket/once/file") as file:
        file.write(b"data")
    assert {method: path for method, path in proxy.seen if "once" in path} == {"PUT": "/bucket/once/file"}


# ---------------------------------------------------------------------------------------------------- faults


def test_what_a_server_refuses_twice_is_asked_for_again(
    proxy: FaultyProxy, object_store: ObjectStore, people_coco: Path, experiment: Experiment
) -> None:
    root = "s3://bucket/falters"
    proxy.fail(2)
    result = shard_coco(find_source(str(people_coco), "val2017"), f"{root}/val", COCO17, shard_mib=0.05, parallel=False)
    assert result.manifest.samples == 7 and proxy.refused > 4
    proxy.fail(2)
    assert len(images(f"{root}/val").samples(range(7))) == 7 and proxy.refused > 2
    assert check_shards(f"{root}/val") == []
    proxy.fail(2)
    path = save(f"{root}/checkpoints", experiment, 1)
    proxy.fail(2)
    assert read_state(path) == {"optimizer": {"lr": 0.1}} and read_meta(path).step == 1
    assert read_weights(path)["weight"].tolist() == [1, 2, 3] and proxy.refused > 2
    assert set(object_store.objects()) >= {
        f"bucket/falters/checkpoints/step-00000001/{f}" for f in ("meta.json", "state.pt")
    }


def test_a_server_that_refuses_for_good_costs_no_earlier_checkpoint(
    proxy: FaultyProxy, object_store: ObjectStore, experiment: Experiment
) -> None:
    root = "s3://bucket/refuses/checkpoints"
    first = save(root, experiment, 1)
    before = object_store.objects()
    proxy.fail(-1, "PUT", "POST")
    with pytest.raises(CheckpointError) as failed:
        save(root, experiment, 2)
    output = str(failed.value)
    assert f"cannot write checkpoint {root}/step-00000002: s3://bucket/refuses/checkpoints/step-00000002/" in output
    assert "says the test" in output and f"{first} is intact" in output and "start the same command again" in output
    assert object_store.objects() == before
    proxy.fail(-1)
    with pytest.raises(
        CheckpointError, match=r"s3://bucket/refuses/checkpoints/step-00000002: .*; earlier ones are as they were\."
    ):
        save(root, experiment, 2)
    proxy.fail(0)
    assert CheckpointStore(root).latest() == first
    second = save(root, experiment, 2)
    assert CheckpointStore(root).latest() == second


def test_what_cannot_be_read_is_named_with_the_cause(
    proxy: FaultyProxy, people_shards: Path, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posefleet.data.loading.shard_dataset.RETRY_PAUSES", (0.01,))
    monkeypatch.setattr("posefleet.platform.prediction.inputs.RETRY_PAUSES", (0.01,))
    fsspec.filesystem("s3").put(str(people_shards / "val2017"), "s3://bucket/unread/val", recursive=True)
    path = save("s3://bucket/unread/checkpoints", experiment, 1)
    dataset = images("s3://bucket/unread/val")
    proxy.fail(-1)
    why = ".*(says the test|Internal Server Error|Service Unavailable|reduce your request rate)"
    with pytest.raises(OSError, match=rf"^s3://bucket/unread/val/manifest\.json: {why}"):
        read_manifest("s3://bucket/unread/val")
    with pytest.raises((OSError, DataError), match=rf"bucket/unread/val/shard-000000{why}"):
        dataset.samples([0])
    with pytest.raises(CheckpointError, match=rf"s3://bucket/unread/checkpoints/step-00000001/meta\.json: {why}"):
        read_meta(path)
    with pytest.raises(OSError, match=r"^s3://bucket/unread/val.*: "):
        list_images("s3://bucket/unread/val")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, r"^s3://bucket/a\.json: Could not connect to the endpoint URL"),
        (
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_SHARED_CREDENTIALS_FILE": "/nowhere"},
            r"^s3://bucket/a\.json: .*credentials.*set AWS_ACCESS_KEY_ID",
        ),
    ],
)
def test_a_storage_that_cannot_be_used_at_all(changes: dict[str, str], message: str, object_store: ObjectStore) -> None:
    with environment(object_store.address):
        os.environ |= {"AWS_MAX_ATTEMPTS": "1", **changes}
        for name in [name for name, value in changes.items() if not value]:
            del os.environ[name]
        with pytest.raises(OSError, match=message):
            read_json("s3://bucket/a.json")


def test_a_missing_bucket_is_no_file(object_store: ObjectStore) -> None:
    assert read_json("s3://no-such-bucket/a.json") is None
    with pytest.raises(DataError, match=r"s3://no-such-bucket/x: no manifest\.json"):
        read_manifest("s3://no-such-bucket/x")


# ---------------------------------------------------------------------------------------------------- training


@pytest.mark.slow
def test_a_training_whose_bucket_goes_away_ends_with_one_error_and_goes_on_later(
    proxy: FaultyProxy, object_store: ObjectStore, small_run: dict[str, Any], store: str, capfd: Any, one_thread: None
) -> None:
    small_run["run"] |= {"storage": "s3://bucket/runs", "tracking": store, "name": "gone"}
    small_run["optim"]["schedule"] = "constant"  # else the first epoch would depend on how many follow
    assert train(build_experiment(small_run)) == 0
    before = object_store.objects()
    capfd.readouterr()

    small_run["train"]["epochs"] = 2
    proxy.fail(-1, "PUT", "POST")
    assert train(build_experiment(small_run)) == 1
    output = capfd.readouterr().err
    assert output.count("error:") == 1 and "Traceback" not in output, output
    assert "error: cannot write checkpoint s3://bucket/runs/gone/checkpoints/step-00000012: s3://bucket/runs/" in output
    assert "says the test" in output and "step-00000006 is intact" in output
    after = object_store.objects()
    assert {path: data for path, data in after.items() if path in before} == before

    proxy.fail(0)
    assert train(build_experiment(small_run)) == 0
    straight = copy.deepcopy(small_run)
    straight["run"]["name"] = "straight"
    assert train(build_experiment(straight)) == 0
    one, other = (
        read_weights(str(CheckpointStore(f"s3://bucket/runs/{name}/checkpoints").latest()))
        for name in ("gone", "straight")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
