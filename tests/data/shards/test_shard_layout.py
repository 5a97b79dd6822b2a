"""Tests the layout of a shard folder."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import webdataset

from posefleet.data.coco.records import Record, decode_record, encode_record, make_record
from posefleet.data.errors import DataError
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.schemas.shipped import COCO17, CROWDPOSE14
from posefleet.data.shards.layout import (
    Manifest,
    ShardInfo,
    read_manifest,
    read_members,
    read_notes,
    remove_leftovers,
    write_manifest,
    write_shard,
)
from posefleet.data.shards.verify import check_shard

NAME = "shard-000000"


@pytest.fixture
def samples(tiny_coco: Any) -> list[tuple[str, bytes, Record]]:
    """Six samples; the last one has nobody."""
    people = {person["image_id"]: [person] for person in tiny_coco.people[:-1]}
    return [
        (
            f"{image['id']:012d}",
            (tiny_coco.folder / image["file_name"]).read_bytes(),
            make_record(image, people.get(image["id"], [])),
        )
        for image in tiny_coco.images
    ]


@pytest.fixture(params=["folder", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A shard folder on disk, and one in fsspec's memory."""
    yield str(tmp_path / "shards") if request.param == "folder" else "memory://shards"
    if request.param == "memory":
        fsspec.filesystem("memory").rm("/shards", recursive=True)


def test_the_index_says_where_every_member_lies(root: str, samples: list) -> None:
    info = write_shard(root, NAME, samples)
    with fsspec.open(f"{root}/{NAME}.tar") as file:
        tar = file.read()
    members = read_members(root, NAME)
    assert members.shape == (6, 5)
    assert members[:, 4].tolist() == [1, 1, 1, 1, 1, 0]
    assert (info.samples, info.labelled, info.bytes) == (6, 5, len(tar))
    for (_, image, record), (start, size, record_start, record_size, _) in zip(samples, members.tolist(), strict=True):
        assert tar[start : start + size] == image
        assert json.loads(tar[record_start : record_start + record_size]) == record


def test_a_written_shard_is_verified_and_a_damaged_one_is_not(root: str, samples: list) -> None:
    info = write_shard(root, NAME, samples)
    assert check_shard(root, NAME) == info
    fs, path = fsspec.core.url_to_fs(f"{root}/{NAME}.tar")
    tar = fs.cat_file(path)
    fs.pipe_file(path, tar[:-1])
    assert check_shard(root, NAME) is None
    fs.pipe_file(path, tar[:700] + bytes([tar[700] ^ 1]) + tar[701:])
    assert check_shard(root, NAME) is None
    fs.rm_file(path)
    assert check_shard(root, NAME) is None


def test_plain_webdataset_reads_a_shard(tmp_path: Path, samples: list) -> None:
    write_shard(str(tmp_path), NAME, samples)
    read = list(webdataset.WebDataset(str(tmp_path / f"{NAME}.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in read] == [key for key, _, _ in samples]
    assert [sample["jpg"] for sample in read] == [image for _, image, _ in samples]
    assert json.loads(read[0]["json"])["people"][0]["num_keypoints"] == 17


def test_equal_samples_are_equal_bytes(tmp_path: Path, samples: list) -> None:
    first, second = (write_shard(str(tmp_path / name), NAME, samples) for name in "ab")
    assert first == second
    with tarfile.open(tmp_path / "a" / f"{NAME}.tar") as tar:
        assert {(member.mtime, member.uid, member.uname) for member in tar} == {(0, 0, "")}


def test_a_record_keeps_coco_names_and_comes_back_as_people(tiny_coco: Any) -> None:
    tiny_coco.people[0].pop("area")
    data = encode_record(make_record(tiny_coco.images[0], tiny_coco.people[:1]))
    person = json.loads(data)["people"][0]
    assert list(person) == ["id", "keypoints", "bbox", "area", "iscrowd", "num_keypoints"]
    image_id, size, people, outlines = decode_record(data, COCO17)
    assert (image_id, size, outlines) == (1, (64, 48), ())
    assert people.keypoints[0, 0].tolist() == [31, 7]
    assert people.areas.item() == pytest.approx(0.53 * 28 * 40)


def test_a_record_of_another_schema_is_refused(tiny_coco: Any) -> None:
    data = encode_record(make_record(tiny_coco.images[0], tiny_coco.people[:1]))
    with pytest.raises(DataError, match="not 14 keypoints"):
        decode_record(data, CROWDPOSE14)
    with pytest.raises(DataError, match="not a record"):
        decode_record(b'{"people": []}', COCO17)


def test_a_writer_that_fails_leaves_nothing_behind(tmp_path: Path, samples: list) -> None:
    def failing() -> Iterator[tuple[str, bytes, Record]]:
        yield samples[0]
        raise OSError("the disk of the images is gone")

    with pytest.raises(OSError, match="gone"):
        write_shard(str(tmp_path / "shards"), NAME, failing())
    assert list((tmp_path / "shards").iterdir()) == []


def test_a_manifest_comes_back_as_it_was(root: str) -> None:
    shard = ShardInfo(name=NAME, samples=3, labelled=2, bytes=10240, sha256="00")
    skipped = ({"image_id": 9, "file_name": "9.jpg", "reason": "missing_image"},)
    manifest = Manifest(1, "val2017", COCO17, "f0", (shard,), {"images": 3}, skipped)
    write_manifest(root, manifest)
    assert read_manifest(root) == manifest
    assert (manifest.samples, manifest.labelled) == (3, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(version=2), "version 2, this code reads 1"),
        (lambda m: m.pop("schema"), "damaged"),
        (lambda m: m["shards"][0].update(name="../../etc/passwd"), "is not the name of a shard"),
        (lambda m: m["shards"][0].update(samples=-1), "impossible counts"),
    ],
)
def test_a_manifest_that_cannot_be_right_is_refused(change: Callable, message: str, tmp_path: Path) -> None:
    shard = ShardInfo(name=NAME, samples=3, labelled=2, bytes=10240, sha256="00")
    write_manifest(str(tmp_path), Manifest(1, "val2017", COCO17, "f0", (shard,), {}, ()))
    content = json.loads((tmp_path / "manifest.json").read_text())
    change(content)
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        read_manifest(str(tmp_path))


def test_a_folder_without_a_manifest_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run posefleet shard again"):
        read_manifest(str(tmp_path))


@pytest.mark.parametrize(
    "row", [[-512, 10, 0, 0, 0], [0, -1, 0, 0, 0], [0, 10**12, 0, 0, 0], [0, 2**62, 2**62, 2**62, 1], [10**30] * 5, [1]]
)
def test_an_index_that_names_bytes_outside_the_tar_is_refused(row: list[int], tmp_path: Path, samples: list) -> None:
    write_shard(str(tmp_path), NAME, samples)
    index = json.loads((tmp_path / f"{NAME}.json").read_text())
    index["members"][2] = row
    (tmp_path / f"{NAME}.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="damaged index"):
        read_members(str(tmp_path), NAME)
    assert check_shard(str(tmp_path), NAME) is None


def test_notes_are_kept_with_the_shard(root: str, samples: list) -> None:
    write_shard(root, NAME, samples, {"plan": "p1"})
    assert read_notes(root, NAME) == {"plan": "p1"}
    assert read_notes(root, "shard-000001") == {}


def test_unfinished_files_go_and_other_files_stay(root: str, samples: list) -> None:
    for name in (NAME, "shard-000001"):
        write_shard(root, name, samples)
    fs, path = fsspec.core.url_to_fs(root)
    for name in (f"{NAME}.tar.12ab.unfinished", "manifest.json.12ab.unfinished", "manifest.json", "notes.txt"):
        fs.pipe_file(f"{path}/{name}", b"x")
    remove_leftovers(root, keep=[NAME])
    left = sorted(file.rsplit("/", 1)[-1] for file in fs.ls(path, detail=False))
    assert left == ["manifest.json", "notes.txt", f"{NAME}.json", f"{NAME}.tar"]


def test_image_bytes_are_the_files_own(tmp_path: Path, samples: list) -> None:
    write_shard(str(tmp_path), NAME, samples)
    with tarfile.open(fileobj=io.BytesIO((tmp_path / f"{NAME}.tar").read_bytes())) as tar:
        names = tar.getnames()
        first = tar.extractfile(names[0])
        assert first is not None
        assert first.read() == samples[0][1]
    assert names[:2] == ["000000000001.jpg", "000000000001.json"]


def test_a_manifest_holds_the_whole_schema_and_an_old_one_its_name(tmp_path: Path) -> None:
    dog = KeypointSchema.from_dict({"name": "dog", "keypoints": ["nose", "tail"], "skeleton": [["nose", "tail"]]})
    manifest = Manifest(1, "val2017", dog, "f0", (), {}, ())
    write_manifest(str(tmp_path), manifest)
    assert read_manifest(str(tmp_path)) == manifest
    file = tmp_path / "manifest.json"
    content = json.loads(file.read_text())
    for schema, found in (("crowdpose14", CROWDPOSE14), (COCO17.as_dict(), COCO17)):
        file.write_text(json.dumps({**content, "schema": schema}))
        assert read_manifest(str(tmp_path)).schema == found
    file.write_text(json.dumps({**content, "schema": "dog"}))
    with pytest.raises(DataError, match=r"manifest.json: unknown keypoint schema 'dog'"):
        read_manifest(str(tmp_path))
