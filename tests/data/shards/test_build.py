"""Sharding COCO data gives the same bytes after crashes, repairs and on any cluster."""

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import shared
from PIL import Image

from posefleet.data.coco.records import decode_record
from posefleet.data.coco.source import find_source
from posefleet.data.coco.split import read_coco
from posefleet.data.errors import DataError
from posefleet.data.images import decode_image
from posefleet.data.schemas.shipped import COCO17, CROWDPOSE14
from posefleet.data.shards import build as sharding
from posefleet.data.shards.build import ShardingResult, shard_coco
from posefleet.data.shards.layout import read_manifest, read_members
from posefleet.data.shards.plan import ShardPlan, plan_shards

REPO = Path(__file__).resolve().parents[3]
SMALL = 8 / 1024  # MiB; two or three of the small images

Jpeg = Callable[..., bytes]


def shard(coco: Any, root: Path | str, **settings: Any) -> ShardingResult:
    return shard_coco(coco.source, str(root), COCO17, parallel=False, **{"shard_mib": SMALL, **settings})


def contents(root: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in root.iterdir()}


def decoded(root: str) -> Iterator[tuple[int, tuple[int, int], tuple[int, ...]]]:
    """(image id, recorded size, decoded shape) of every sample."""
    for info in read_manifest(root).shards:
        with fsspec.open(f"{root}/{info.name}.tar") as file:
            tar = file.read()
        for start, size, record_start, record_size, _ in read_members(root, info.name).tolist():
            image_id, recorded, _, _ = decode_record(tar[record_start : record_start + record_size], COCO17)
            yield image_id, recorded, decode_image(tar[start : start + size]).shape


def test_every_image_is_in_one_shard(tiny_coco: Any, tmp_path: Path) -> None:
    result = shard(tiny_coco, tmp_path / "out")
    manifest = result.manifest
    assert len(manifest.shards) > 1
    assert sorted(image_id for image_id, _, _ in decoded(str(tmp_path / "out"))) == [1, 2, 3, 4, 5, 6]
    assert (manifest.samples, manifest.labelled, manifest.split, manifest.schema) == (6, 6, "train2017", COCO17)
    assert manifest.counts == {
        "images": 6, "people": 6, "keypoint_people": 6, "crowd": 0, "unlabelled": 0, "skipped": 0, "dropped_people": 0,
        "segmentations": 0, "bad_segmentations": 0,
    }  # fmt: skip
    assert result.shards_written == len(manifest.shards)


def test_a_second_run_writes_nothing(tiny_coco: Any, tmp_path: Path) -> None:
    shard(tiny_coco, tmp_path / "out")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
    result = shard(tiny_coco, tmp_path / "out")
    assert (result.shards_written, result.samples_written) == (0, 0)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()} == before


def test_shards_are_of_about_the_size_asked_for(tiny_coco: Any) -> None:
    for number in range(7, 47):
        tiny_coco.add_image(number, (tiny_coco.folder / f"{1:012d}.jpg").read_bytes())
    split = read_coco(str(tiny_coco.save().annotation_file), COCO17)
    size = (tiny_coco.folder / f"{1:012d}.jpg").stat().st_size
    plan = plan_shards(tiny_coco.source, split, shard_mib=10 * size / 2**20)
    assert [len(part.records) for part in plan.shards()] == [10, 9, 9, 9, 9]  # 46 images in shards of about 10
    assert all(ShardPlan.unpack(part.pack()) == part for part in plan.shards())
    everything = plan_shards(tiny_coco.source, split, shard_mib=1000)
    assert [part.name for part in everything.shards()] == ["shard-000000"]


def test_the_fingerprint_is_of_the_source_alone(tiny_coco: Any) -> None:
    def fingerprint(**settings: Any) -> str:
        split = read_coco(str(tiny_coco.save().annotation_file), COCO17)
        return plan_shards(tiny_coco.source, split, **{"shard_mib": 1.0, **settings}).fingerprint

    original = fingerprint()
    assert fingerprint(seed=7, shard_mib=SMALL) == original
    tiny_coco.people.reverse()
    assert fingerprint() == original  # one person in each image, so this changes nothing
    tiny_coco.people[0]["keypoints"][0] += 1
    assert fingerprint() != original


@pytest.mark.parametrize(
    "harm",
    [
        lambda root: (root / "shard-000001.tar").unlink(),
        lambda root: (root / "shard-000001.json").unlink(),
        lambda root: (root / "shard-000001.tar").write_bytes((root / "shard-000001.tar").read_bytes()[:-512]),
        lambda root: (root / "shard-000001.tar").write_bytes((root / "shard-000000.tar").read_bytes()),
        lambda root: (root / "shard-000001.json").write_text("{"),
        lambda root: (root / "shard-000001.json").write_text('{"members": [[1]], "bytes": 4}'),
        lambda root: (root / "manifest.json").unlink(),
        lambda root: (root / "manifest.json").write_text("{}"),
        lambda root: (root / "shard-000009.tar").write_bytes(b"of an earlier plan"),
        lambda root: (root / "shard-000001.tar.12ab34cd.unfinished").write_bytes(b"of a killed run"),
    ],
    ids=["tar", "index", "cut", "other", "json", "nonsense", "manifest", "old manifest", "stale", "unfinished"],
)
def test_a_broken_folder_is_repaired(harm: Callable[[Path], object], tiny_coco: Any, tmp_path: Path) -> None:
    root = tmp_path / "out"
    shard(tiny_coco, root)
    whole = contents(root)
    harm(root)
    result = shard(tiny_coco, root)
    assert contents(root) == whole
    assert result.shards_written <= 1


def test_other_settings_replace_the_shards(tiny_coco: Any, tmp_path: Path) -> None:
    shard(tiny_coco, tmp_path / "a")
    shard(tiny_coco, tmp_path / "a", seed=5, shard_mib=1.0)
    shard(tiny_coco, tmp_path / "b", seed=5, shard_mib=1.0)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert sorted(contents(tmp_path / "a")) == ["manifest.json", "shard-000000.json", "shard-000000.tar"]


def test_corrected_annotations_replace_only_the_shard_that_has_them(tiny_coco: Any, tmp_path: Path) -> None:
    shard(tiny_coco, tmp_path / "out")
    tiny_coco.people[0]["area"] = 701.0
    tiny_coco.save()
    assert shard(tiny_coco, tmp_path / "out").shards_written == 1


def test_images_that_cannot_be_used_are_skipped_and_named(tiny_coco: Any, tmp_path: Path, noise_jpeg: Jpeg) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    truncated, missing, resized, turned = (tiny_coco.folder / image["file_name"] for image in tiny_coco.images[:4])
    truncated.write_bytes(truncated.read_bytes()[:1000])
    missing.unlink()
    resized.write_bytes(noise_jpeg(3, (32, 24)))
    turned.write_bytes(noise_jpeg(4, exif=exif))
    manifest = shard(tiny_coco, tmp_path / "out").manifest
    assert [(image["image_id"], image["reason"]) for image in manifest.skipped] == [
        (1, "corrupt_image"),
        (2, "missing_image"),
        (3, "size_mismatch"),
        (4, "exif_mismatch"),
    ]
    assert "image file is truncated" in manifest.skipped[0]["detail"]
    assert (manifest.samples, manifest.counts["skipped"]) == (2, 4)
    assert shard(tiny_coco, tmp_path / "out").shards_written == 0
    assert read_manifest(str(tmp_path / "out")) == manifest


def test_a_data_set_without_one_good_image_is_an_error(tiny_coco: Any, tmp_path: Path) -> None:
    for file in tiny_coco.folder.iterdir():
        file.unlink()
    with pytest.raises(DataError, match="none of the 6 images can be used: missing_image"):
        shard(tiny_coco, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_grey_cmyk_turned_and_tiny_images_keep_their_sizes(tiny_coco: Any, noise_jpeg: Jpeg) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    tiny_coco.add_image(11, noise_jpeg(1, mode="L"))
    tiny_coco.add_image(12, noise_jpeg(2, mode="CMYK"))
    tiny_coco.add_image(13, noise_jpeg(3, exif=exif), size=(48, 64))  # as a viewer shows it
    tiny_coco.add_image(14, noise_jpeg(4, (1, 1)), size=(1, 1))
    tiny_coco.save()
    root = "memory://kinds"
    assert shard(tiny_coco, root).manifest.skipped == ()
    sizes = {image_id: (size, shape) for image_id, size, shape in decoded(root)}
    assert all(shape == (height, width, 3) for (width, height), shape in sizes.values())
    assert [sizes[image_id][0] for image_id in (11, 12, 13, 14)] == [(64, 48), (64, 48), (48, 64), (1, 1)]
    fsspec.filesystem("memory").rm("/kinds", recursive=True)


def test_source_and_shards_may_be_remote(tiny_coco: Any, tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.put(str(tiny_coco.root), "/coco", recursive=True)
    source = find_source("memory://coco", "train2017")
    for _ in range(2):
        result = shard_coco(source, "memory://out/train2017", COCO17, shard_mib=SMALL, parallel=False)
    assert result.shards_written == 0
    shard(tiny_coco, tmp_path / "out")
    assert {Path(file).name: fs.cat_file(file) for file in fs.ls("/out/train2017", detail=False)} == contents(
        tmp_path / "out"
    )
    fs.rm("/coco", recursive=True)
    fs.rm("/out", recursive=True)


def test_records_with_errors_are_left_out_only_if_allowed_and_listed(tiny_coco: Any, tmp_path: Path) -> None:
    tiny_coco.people[0]["bbox"][0] = float("nan")
    tiny_coco.images[5]["width"] = None
    with pytest.raises(DataError, match=r"annotation 100 of image 1: bbox\[0\] is nan.*--allow-errors"):
        shard(tiny_coco.save(), tmp_path / "out")
    manifest = shard(tiny_coco, tmp_path / "out", allow_errors=True).manifest
    assert (manifest.samples, manifest.counts["people"], manifest.counts["dropped_people"]) == (5, 4, 2)
    listed = {"images": {"bad_image_record": [6]}, "annotations": {"not_finite": [100], "bad_image_record": [105]}}
    assert read_manifest(str(tmp_path / "out")) == manifest and manifest.left_out == listed


def test_a_manifest_without_anything_left_out_is_as_before(tiny_coco: Any, tmp_path: Path) -> None:
    manifest = shard(tiny_coco, tmp_path / "out").manifest
    assert "left_out" not in json.loads((tmp_path / "out" / "manifest.json").read_text()) and manifest.left_out == {}


def test_images_that_cannot_be_used_have_the_reason(tiny_coco: Any, tmp_path: Path) -> None:
    """A path outside the folder is not damaged, and a file that cannot be read is not missing."""
    tiny_coco.images[0]["file_name"] = "../train2017/000000000001.jpg"
    (tiny_coco.folder / "000000000002.jpg").unlink()
    (tiny_coco.folder / "000000000002.jpg").mkdir()
    skipped = shard(tiny_coco.save(), tmp_path / "out").manifest.skipped
    assert [image["reason"] for image in skipped] == ["image_outside_folder", "unreadable_image"]
    assert "is no file of the folder" in skipped[0]["detail"] and "Is a directory" in skipped[1]["detail"]


def test_segmentations_are_counted_and_those_that_cannot_be_used_left_out(tiny_coco: Any, tmp_path: Path) -> None:
    nobody = {"keypoints": [0] * 51, "num_keypoints": 0}
    tiny_coco.add_person(1, **nobody, segmentation=[[17, 4, 40, 4, 40, 40, 17, 40]])
    tiny_coco.add_person(2, **nobody, segmentation="garbage")
    tiny_coco.add_person(3, **nobody, iscrowd=1, segmentation={"size": [48, 64], "counts": [72, 3000]})
    tiny_coco.add_person(4, **nobody)
    counts = shard(tiny_coco.save(), tmp_path / "out").manifest.counts
    assert (counts["unlabelled"], counts["crowd"]) == (3, 1)
    assert (counts["segmentations"], counts["bad_segmentations"]) == (2, 1)


def test_a_folder_of_an_earlier_version_gains_the_segmentations(
    tiny_coco: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards without segmentations are those of another plan, so the same command writes them anew."""
    nobody = {"keypoints": [0] * 51, "num_keypoints": 0, "segmentation": [[17, 4, 40, 4, 40, 40, 17, 40]]}
    tiny_coco.add_person(1, **nobody)
    tiny_coco.save()
    with monkeypatch.context() as earlier:
        earlier.setattr("posefleet.data.coco.reader.outline_of", lambda *_: (None, ""))
        assert shard(tiny_coco, tmp_path / "out").manifest.counts["segmentations"] == 0
    assert shard(tiny_coco, tmp_path / "out").shards_written == 1
    assert read_manifest(str(tmp_path / "out")).counts["segmentations"] == 1


def test_relative_paths_are_those_of_the_caller(tiny_coco: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    source = find_source("coco", "train2017", images="coco/train2017")
    shard_coco(source, "out", COCO17, parallel=False)
    assert source.image_folder == f"file://{tmp_path}/coco/train2017"
    assert read_manifest(str(tmp_path / "out")).samples == 6


def test_a_limit_takes_the_first_images(tiny_coco: Any, tmp_path: Path) -> None:
    shard(tiny_coco, tmp_path / "out", limit=2)
    assert sorted(image_id for image_id, _, _ in decoded(str(tmp_path / "out"))) == [1, 2]


def test_settings_that_make_no_sense_are_refused(tiny_coco: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shard_mib 0"):
        shard(tiny_coco, tmp_path / "out", shard_mib=0)
    with pytest.raises(ValueError, match="limit -1"):
        shard(tiny_coco, tmp_path / "out", limit=-1)
    with pytest.raises(DataError, match=r"schema crowdpose14 and .* differ"):
        shard_coco(tiny_coco.source, str(tmp_path / "out"), CROWDPOSE14, parallel=False)


KILLED = textwrap.dedent(
    """
    # Run the sharding in a child, kill it, and so on: each attempt goes on from what the last one left.
    import os, signal, sys, time
    from posefleet.data.coco.source import Source
    from posefleet.data.schemas.shipped import COCO17
    from posefleet.data.shards.build import shard_coco
    import webdataset  # before the fork, or most kills would hit its import

    annotation_file, folder, root, *moments = sys.argv[1:]
    killed = 0
    for moment in moments:
        child = os.fork()
        if child == 0:
            source = Source(annotation_file, folder, "train2017")
            shard_coco(source, root, COCO17, shard_mib=0.3, parallel=False)
            os._exit(0)
        time.sleep(float(moment))
        os.kill(child, signal.SIGKILL)
        killed += os.waitpid(child, 0)[1] == signal.SIGKILL
    sys.stdout.write(str(killed))
    """
)


def test_a_run_killed_again_and_again_ends_with_the_same_bytes(
    tiny_coco: Any, tmp_path: Path, noise_jpeg: Jpeg
) -> None:
    data = noise_jpeg(0, (320, 240))
    for number in range(10, 50):
        tiny_coco.add_image(number, data, size=(320, 240))
    tiny_coco.save()
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    shard(tiny_coco, undisturbed, shard_mib=0.3)
    moments = [str(milliseconds / 1000) for milliseconds in (5, 15, 25, 40, 60, 80, 20, 30, 50)]
    paths = [str(tiny_coco.annotation_file), str(tiny_coco.folder), str(disturbed)]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    run = subprocess.run(
        [sys.executable, "-c", KILLED, *paths, *moments], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) >= 3
    shard(tiny_coco, disturbed, shard_mib=0.3)
    assert contents(disturbed) == contents(undisturbed)


def assert_ray_writes_the_same_bytes(tiny_coco: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """In the Ray that runs, as in this process, and nothing the second time."""
    monkeypatch.setattr(sharding, "PLANS_AT_ONCE", 1)
    monkeypatch.setattr(sharding, "PLANS_PER_CPU", 1)  # so that there is more than one pipeline
    shard(tiny_coco, tmp_path / "here")
    for expected in (len(read_manifest(str(tmp_path / "here")).shards), 0):
        result = shard_coco(tiny_coco.source, str(tmp_path / "ray"), COCO17, shard_mib=SMALL)
        assert result.shards_written == expected
    assert contents(tmp_path / "ray") == contents(tmp_path / "here")


@pytest.mark.ray
def test_ray_writes_the_same_bytes(tiny_coco: Any, tmp_path: Path, local_ray: None, monkeypatch: Any) -> None:
    assert_ray_writes_the_same_bytes(tiny_coco, tmp_path, monkeypatch)


@pytest.mark.ray
def test_a_folder_that_ray_cannot_write_to_is_told_as_an_error_of_the_system(tiny_coco: Any, local_ray: None) -> None:
    with pytest.raises(OSError, match="/proc/shards") as error:
        shard_coco(tiny_coco.source, "/proc/shards", COCO17, shard_mib=SMALL)
    assert error.value.strerror


@pytest.mark.slow
@pytest.mark.ray
def test_ray_writes_the_same_bytes_on_a_single_cpu(tiny_coco: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    import ray

    shared.end_others(None)
    ray_folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short: the path of a socket has at most 107 bytes
    ray.init(num_cpus=1, include_dashboard=False, _temp_dir=ray_folder, logging_level=logging.WARNING)
    try:
        assert_ray_writes_the_same_bytes(tiny_coco, tmp_path, monkeypatch)
    finally:
        ray.shutdown()
        shutil.rmtree(ray_folder, ignore_errors=True)


def test_a_manifest_names_what_it_holds(tiny_coco: Any, tmp_path: Path) -> None:
    shard(tiny_coco, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert sorted(manifest) == ["counts", "fingerprint", "schema", "shards", "skipped", "split", "version"]
    assert sorted(manifest["shards"][0]) == ["bytes", "labelled", "name", "samples", "sha256"]
