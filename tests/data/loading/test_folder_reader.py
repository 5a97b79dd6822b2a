"""COCO's own files in place of shards: FOLDER@SPLIT has the samples, order and bits of its shards."""

import json
import os
import shutil
from dataclasses import fields, is_dataclass
from pathlib import Path

import fsspec
import pytest
import torch

from posefleet.data.coco.source import find_source, parse_place
from posefleet.data.errors import DataError
from posefleet.data.loading.loader import evaluation_batches, training_batches
from posefleet.data.loading.shard_dataset import ShardDataset
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.shards import unsharded
from posefleet.data.shards.build import shard_coco
from posefleet.data.shards.layout import read_manifest
from posefleet.data.shards.verify import check_shards
from posefleet.data.structures import Batch
from posefleet.data.transforms import Augment, Resize, TrainTransform

TRANSFORM = TrainTransform(Resize(short_side=64, long_side=64), Augment(crop=64, mosaic=0.5), COCO17)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small shards, and a cache of this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(unsharded, "SHARD_MIB", 0.02)
    unsharded._open.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def coco(people_coco: Path, tmp_path: Path) -> Path:
    """Rendered people, with a truncated image, a missing one and one of another size."""
    root = Path(shutil.copytree(people_coco, tmp_path / "coco"))
    first, second, third, fourth, *_ = sorted((root / "train2017").iterdir())
    first.write_bytes(first.read_bytes()[:500])
    second.unlink()
    shutil.copy(min((root / "val2017").iterdir()), third)
    fourth.chmod(0o644)
    return root


@pytest.fixture
def shards(coco: Path, tmp_path: Path) -> Path:
    source = find_source(str(coco), "train2017")
    shard_coco(source, str(tmp_path / "shards"), COCO17, shard_mib=0.02, parallel=False)
    return tmp_path / "shards"


def same(first: Batch, second: Batch) -> bool:
    """Whether all tensors of two batches are equal, bit for bit."""

    def tensors(thing: object) -> list[torch.Tensor]:
        if isinstance(thing, torch.Tensor):
            return [thing]
        parts = [getattr(thing, field.name) for field in fields(thing)] if is_dataclass(thing) else []
        return [tensor for part in parts for tensor in tensors(part)]

    a, b = tensors(first), tensors(second)
    return len(a) == len(b) > 5 and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("labelled_only", [True, False])
def test_batches_are_those_of_the_shards_bit_for_bit(labelled_only: bool, coco: Path, shards: Path) -> None:
    sets = [
        ShardDataset(root, COCO17, TRANSFORM, seed=3, window=8, labelled_only=labelled_only)
        for root in (str(shards), f"{coco}@train2017")
    ]
    assert len(read_manifest(str(shards)).shards) > 2
    assert len(sets[0]) == len(sets[1])
    both = zip(*(training_batches(dataset, batch_size=4) for dataset in sets), strict=True)
    assert all(same(first, second) for first, second in (next(both) for _ in range(15)))  # into the third epoch


@pytest.mark.parametrize(("workers", "world_size"), [(0, 2), (2, 3)])
def test_a_run_resumes_at_any_position_with_any_number_of_ranks(
    workers: int, world_size: int, coco: Path, shards: Path
) -> None:
    for rank in range(world_size):
        sets = [ShardDataset(root, COCO17, TRANSFORM, seed=3, window=8) for root in (str(shards), f"{coco}@train2017")]
        options = {"batch_size": 2, "rank": rank, "world_size": world_size, "position": 12}
        with training_batches(sets[0], **options) as a, training_batches(sets[1], **options, workers=workers) as b:
            assert all(same(next(a), next(b)) for _ in range(4))


def test_the_manifest_records_and_evaluation_are_those_of_the_shards(coco: Path, shards: Path) -> None:
    place = f"{coco}@train2017"
    theirs, ours = read_manifest(str(shards)), read_manifest(place)
    assert (ours.fingerprint, ours.split, ours.schema) == (theirs.fingerprint, theirs.split, theirs.schema)
    assert ours.skipped == theirs.skipped
    assert {image["reason"] for image in ours.skipped} == {"corrupt_image", "missing_image", "size_mismatch"}
    assert ours.counts == theirs.counts
    assert [(s.name, s.samples, s.labelled) for s in ours.shards] == [
        (s.name, s.samples, s.labelled) for s in theirs.shards
    ]
    sets = [ShardDataset(root, COCO17, lambda sample, _: sample, seed=None) for root in (str(shards), place)]
    assert list(sets[0].records(1, 3)) == list(sets[1].records(1, 3))
    for first, second in zip(*(evaluation_batches(dataset, batch_size=1) for dataset in sets), strict=True):
        assert same(first, second)
    assert check_shards(place) == []


def test_images_are_decoded_once_until_one_changes(coco: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = f"{coco}@train2017"
    decoded = []
    monkeypatch.setattr(
        unsharded, "read_image", lambda fs, source, record: (decoded.append(record["file_name"]), (b"", None))[1]
    )
    count = len(read_manifest(place).skipped) + read_manifest(place).samples
    assert len(decoded) == count
    unsharded._open.cache_clear()  # another process
    read_manifest(place)
    assert len(decoded) == count and len(list(cache.rglob("*.json"))) == 1
    os.utime(max((coco / "train2017").iterdir()), (1, 1))
    unsharded._open.cache_clear()
    read_manifest(place)
    assert len(decoded) == 2 * count


def test_a_cache_that_cannot_be_written_costs_time_and_no_more(coco: Path, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    assert read_manifest(f"{coco}@train2017").samples > 10


def test_an_image_that_changes_during_training_is_named(coco: Path) -> None:
    dataset = ShardDataset(f"{coco}@train2017", COCO17, TRANSFORM, seed=None)
    path = coco / "train2017" / next(dataset.records())["file_name"]
    path.unlink()
    with pytest.raises(DataError, match=rf"{path.name}: cannot read it: No such file.*did the file change"):
        dataset.samples([0])


def test_a_remote_data_set_is_read_too(coco: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.put(str(coco), "/direct", recursive=True)
    try:
        here = ShardDataset(f"{coco}@train2017", COCO17, TRANSFORM, seed=3)
        there = ShardDataset("memory://direct@train2017", COCO17, TRANSFORM, seed=3)
        assert same(here.batch([0, 5, 7, 5]), there.batch([0, 5, 7, 5]))
        fs.rm(f"/direct/train2017/{next(there.records())['file_name']}")
        with pytest.raises(DataError, match="cannot read it: FileNotFoundError"):
            there.samples(range(len(there)))
    finally:
        fs.rm("/direct", recursive=True)


def test_a_place_is_a_folder_and_a_split(tmp_path: Path) -> None:
    (tmp_path / "shards@v2").mkdir()
    assert parse_place(str(tmp_path / "shards@v2")) is None
    assert parse_place(f"{tmp_path}@train2017/") == (str(tmp_path), "train2017")
    assert parse_place(f"{tmp_path}/result.json@train") == (f"{tmp_path}/result.json", "train")
    for path in ("/data/me@home/shards", "@train", "/data/x@", "/data/shards", "s3://me@host/bucket"):
        assert parse_place(path) is None


def test_a_layout_without_splits_is_named_by_its_file(coco: Path) -> None:
    file = (coco / "annotations" / "person_keypoints_val2017.json").rename(coco / "val2017" / "labels.json")
    assert read_manifest(f"{file}@people").split == "people"
    with pytest.raises(DataError, match="no annotation file of split 'people'"):
        read_manifest(f"{coco}@people")
    content = json.loads(file.read_text())
    content["annotations"][0]["image_id"] = 10**9
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="unknown_image"):
        read_manifest(f"{file}@people")
