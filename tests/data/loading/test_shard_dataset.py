"""Sample stream: every sample once an epoch on any ranks, resumable anywhere, the same in any loader process."""

import itertools
import json
import multiprocessing
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posefleet.data.coco.records import make_record
from posefleet.data.coco.source import find_source
from posefleet.data.errors import DataError
from posefleet.data.images import decode_image, encode_jpeg
from posefleet.data.loading import shard_dataset as stream
from posefleet.data.loading.coco_dataset import FolderDataset
from posefleet.data.loading.loader import evaluation_batches, training_batches
from posefleet.data.loading.shard_dataset import ShardDataset
from posefleet.data.loading.source import FirstSamples
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.schemas.shipped import COCO17, CROWDPOSE14
from posefleet.data.shards.build import shard_coco
from posefleet.data.shards.layout import Manifest, write_manifest, write_shard
from posefleet.data.shards.plan import shard_name
from posefleet.data.structures import Batch, Sample
from posefleet.data.synthetic.dataset import write_dataset
from posefleet.data.synthetic.scenes import SceneConfig
from posefleet.data.transforms import Augment, EvalTransform, Resize, TrainTransform

EVAL = EvalTransform(Resize(short_side=32, long_side=64), COCO17)
TRAIN = TrainTransform(Resize(short_side=48, long_side=64), Augment(crop=32, flip=0.5, scale=(0.9, 1.2)), COCO17)


def write_shards(root: str, counts: list[int], schema: KeypointSchema = COCO17) -> None:
    """Shards of 32 x 32 images with ids 0, 1, ...; every third (0, 3, ...) shows a labelled person."""
    shards, start = [], 0
    for number, count in enumerate(counts):
        shards.append(write_shard(root, shard_name(number), [_sample(i) for i in range(start, start + count)]))
        start += count
    write_manifest(root, Manifest(1, "train2017", schema, "0" * 64, tuple(shards), {}, ()))


def _sample(image_id: int) -> tuple[str, bytes, dict]:
    image = np.random.default_rng(image_id).integers(0, 256, (32, 32, 3), np.uint8)
    person = {
        "id": image_id,
        "keypoints": [10 + image_id % 10, 12, 2] + [0, 0, 0] * 16,
        "bbox": [5, 5, 20, 20],
        "area": 300.0,
        "iscrowd": 0,
    }
    record = {"id": image_id, "file_name": f"{image_id}.jpg", "width": 32, "height": 32}
    return f"{image_id:012d}", encode_jpeg(image), make_record(record, [person] if image_id % 3 == 0 else [])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """41 samples in four shards."""
    root = str(tmp_path_factory.mktemp("shards"))
    write_shards(root, [7, 20, 1, 13])
    return root


def ids(batches: list[Batch]) -> list[int]:
    return [image_id for batch in batches for image_id in batch.image_ids.tolist()]


def assert_equal(first: list[Batch], second: list[Batch]) -> None:
    assert ids(first) == ids(second)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.packed_people.keypoints, b.packed_people.keypoints)
        assert torch.equal(a.matrices, b.matrices)


# ---------------------------------------------------------------------------------------------------- batches


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(window=st.integers(1, 50), ranks=st.integers(1, 4), batch_size=st.integers(1, 9), position=st.integers(0, 100))
def test_the_ranks_together_stream_each_position_once(
    root: str, window: int, ranks: int, batch_size: int, position: int
) -> None:
    dataset = ShardDataset(root, COCO17, EVAL, seed=1, window=window)
    steps = -(-2 * len(dataset) // (ranks * batch_size))
    parts = []
    for rank in range(ranks):
        batches = training_batches(dataset, batch_size=batch_size, rank=rank, world_size=ranks, position=position)
        parts.append([ids([batch]) for batch in itertools.islice(batches, steps)])
    assert {len(batch) for part in parts for batch in part} == {batch_size}
    together = [image_id for step in zip(*parts, strict=True) for batch in step for image_id in batch]
    undisturbed = ids([dataset.batch(range(position, position + len(together)))])
    assert together == undisturbed


def test_steps_of_three_batches_are_the_same_for_any_number_of_ranks(root: str) -> None:
    dataset = ShardDataset(root, COCO17, EVAL, seed=1, window=16)
    expected = [ids([dataset.batch(range(12 + 2 * m, 14 + 2 * m))]) for m in range(9)]  # three steps from position 12
    for ranks in (1, 2, 3):
        steps: list[list[list[int]]] = [[[]] * 3 for _ in range(3)]
        for rank in range(ranks):
            batches = training_batches(dataset, batch_size=2, rank=rank, world_size=ranks, per_step=3, position=12)
            for step in steps:
                for m in range(rank, 3, ranks):
                    step[m] = ids([next(batches)])
        assert [batch for step in steps for batch in step] == expected


def test_every_sample_once_an_epoch_whatever_divides_what(root: str) -> None:
    dataset = ShardDataset(root, COCO17, EVAL, seed=1, window=16)
    batches = training_batches(dataset, batch_size=4)
    streamed = ids(list(itertools.islice(batches, 41)))  # 4 epochs of 41, none of which is a multiple of 4
    for epoch in range(4):
        assert sorted(streamed[epoch * 41 : (epoch + 1) * 41]) == list(range(41))


def test_loader_processes_change_neither_samples_nor_augmentation(root: str) -> None:
    dataset = ShardDataset(root, COCO17, TRAIN, seed=5, window=16)
    runs = []
    for workers in (0, 1, 2):
        with training_batches(dataset, batch_size=8, workers=workers) as batches:
            runs.append(list(itertools.islice(batches, 15)))  # more than the workers have buffers for
    assert_equal(runs[0], runs[1])
    assert_equal(runs[0], runs[2])
    assert runs[2][0].images.is_contiguous(memory_format=torch.channels_last)
    assert not multiprocessing.active_children()


def test_augmentation_depends_on_the_position_not_on_the_batch_it_is_in(root: str) -> None:
    dataset = ShardDataset(root, COCO17, TRAIN, seed=5, window=16)
    one = next(training_batches(dataset, batch_size=8))
    other = next(training_batches(dataset, batch_size=4, rank=1, world_size=2))
    assert torch.equal(one.images[4:], other.images)
    again = dataset.batch([p + len(dataset) for p in range(41)])  # the next epoch draws anew
    first = dataset.batch(range(41))
    slots = torch.argsort(first.image_ids), torch.argsort(again.image_ids)
    assert not torch.equal(first.matrices[slots[0]], again.matrices[slots[1]])


def test_starting_the_stream_leaves_the_global_random_numbers_alone(root: str) -> None:
    dataset = ShardDataset(root, COCO17, EVAL)
    state = torch.get_rng_state()
    next(training_batches(dataset, batch_size=2))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 8), (3, 4), (41, 2), (50, 1)])
def test_evaluation_reads_each_sample_once_and_ends(root: str, world_size: int, batch_size: int) -> None:
    dataset = ShardDataset(root, COCO17, EVAL, seed=None)
    for rank in range(world_size):
        batches = list(evaluation_batches(dataset, batch_size=batch_size, rank=rank, world_size=world_size))
        assert ids(batches) == list(range(41))[rank::world_size]
        assert [record["image_id"] for record in dataset.records(rank, world_size)] == ids(batches)


@pytest.mark.parametrize(("count", "world_size"), [(1, 1), (5, 1), (5, 3), (10**6, 2)])
def test_the_first_samples_are_those_of_the_whole(root: str, count: int, world_size: int) -> None:
    transform = EvalTransform(Resize(short_side=32, long_side=32), COCO17)
    whole = ShardDataset(root, COCO17, transform, seed=None)
    first = FirstSamples(whole, count)
    assert len(first) == min(count, len(whole)) and first.notes == whole.notes
    for rank in range(world_size):
        expected = [record["image_id"] for record in whole.records()][: len(first)][rank::world_size]
        assert [record["image_id"] for record in first.records(rank, world_size)] == expected
        read = evaluation_batches(first, batch_size=2, rank=rank, world_size=world_size)
        assert [number for batch in read for number in batch.image_ids.tolist()] == expected


def test_only_labelled_images(root: str) -> None:
    dataset = ShardDataset(root, COCO17, EVAL, window=10, labelled_only=True)
    assert len(dataset) == 14  # 0, 3, ... 39
    batch = dataset.batch(range(14))
    assert sorted(batch.image_ids.tolist()) == list(range(0, 41, 3))
    assert all(people.labelled.any() for people in batch.people)


def test_shards_in_an_object_store_stream_the_same(root: str) -> None:
    remote = "memory://stream-test"
    write_shards(remote, [7, 20, 1, 13])
    local = ShardDataset(root, COCO17, TRAIN).batch(range(20, 60))
    assert_equal([ShardDataset(remote, COCO17, TRAIN).batch(range(20, 60))], [local])


def test_only_some_shards_stay_open(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "OPEN_SHARDS", 2)
    dataset = ShardDataset(root, COCO17, EVAL, window=50)
    assert Counter(dataset.batch(range(41)).image_ids.tolist()) == Counter(range(41))
    assert len(dataset._reader._shards) == 2


def test_real_images_stream_through_shards(coco_mini: Path, tmp_path: Path) -> None:
    content = json.loads((coco_mini / "annotations" / "person_keypoints_val2017.json").read_text())
    images = sorted(content["images"], key=lambda image: image["id"])[:12]
    annotations = {image["id"]: [a for a in content["annotations"] if a["image_id"] == image["id"]] for image in images}
    samples = [
        (
            f"{image['id']:012d}",
            (coco_mini / "val2017" / image["file_name"]).read_bytes(),
            make_record(image, annotations[image["id"]]),
        )
        for image in images
    ]
    info = write_shard(str(tmp_path), "shard-000000", samples)
    write_manifest(str(tmp_path), Manifest(1, "val2017", COCO17, "0" * 64, (info,), {}, ()))

    dataset = ShardDataset(tmp_path, COCO17, EvalTransform(Resize(short_side=256, long_side=512), COCO17), seed=None)
    batches = list(evaluation_batches(dataset, batch_size=5))
    assert ids(batches) == [image["id"] for image in images]
    assert [size for b in batches for size in b.original_sizes.tolist()] == [[i["width"], i["height"]] for i in images]
    assert [n for b in batches for n in b.counts.tolist()] == [len(annotations[image["id"]]) for image in images]


@pytest.fixture(scope="module")
def masked_root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twelve rendered images, half of whose people have no keypoints, in two shards."""
    folder = tmp_path_factory.mktemp("masked")
    config = SceneConfig(width=(96, 128), height=(96, 128), unlabelled_rate=0.5, crowd_rate=0.5)
    write_dataset(folder, "train2017", 12, config, seed=3, workers=1)
    root = str(folder / "shards")
    shard_coco(find_source(str(folder), "train2017"), root, COCO17, shard_mib=0.02, parallel=False)
    return root


def test_masks_stream_the_same_from_any_position_ranks_and_processes(masked_root: str) -> None:
    transform = TrainTransform(Resize(short_side=64, long_side=96), Augment(crop=64, rotate=20), COCO17)
    dataset = ShardDataset(masked_root, COCO17, transform, seed=5, window=8)
    expected = dataset.batch(range(24)).masks
    assert expected is not None and 0.02 < expected.float().mean() < 0.9
    assert expected.any((1, 2)).sum() > 12
    for workers, ranks in ((0, 1), (2, 1), (0, 2)):
        for rank in range(ranks):
            arguments = dict(batch_size=4, rank=rank, world_size=ranks, position=8, workers=workers)
            with training_batches(dataset, **arguments) as batches:
                for start in range(8 + 4 * rank, 24, 4 * ranks):
                    batch = next(batches)
                    assert batch.masks is not None
                    height, width = batch.masks.shape[1:]
                    assert torch.equal(batch.masks, expected[start : start + 4, :height, :width])
                    assert all(p.outlined.any() or not p.mask.any() for p in batch.people)


MOSAIC = TrainTransform(
    Resize(short_side=64, long_side=96), Augment(crop=64, mosaic=0.6, hue=20.0, noise=0.5, erase=0.5), COCO17
)


def test_mosaics_are_the_same_from_any_position_ranks_and_processes(masked_root: str) -> None:
    for labelled_only in (False, True):
        dataset = ShardDataset(masked_root, COCO17, MOSAIC, seed=5, window=8, labelled_only=labelled_only)
        expected = [dataset.batch([position]) for position in range(36)]
        assert sum(batch.counts.item() for batch in expected) > 36
        for workers, ranks, size, start in ((0, 1, 5, 3), (0, 3, 2, 12), (0 if labelled_only else 1, 1, 8, 8)):
            for rank in range(ranks):
                arguments = dict(batch_size=size, rank=rank, world_size=ranks, position=start, workers=workers)
                with training_batches(dataset, **arguments) as batches:
                    for first in range(start + size * rank, 37 - size, size * ranks):
                        batch = next(batches)
                        for index, people in enumerate(batch.people):
                            alone = expected[first + index]
                            assert torch.equal(batch.images[index], alone.images[0])
                            assert torch.equal(people.keypoints, alone.people[0].keypoints)
                            assert torch.equal(people.visibility, alone.people[0].visibility)
                            if people.mask is not None and people.mask.any():
                                assert torch.equal(people.mask, alone.people[0].mask)


def test_a_batch_of_mosaics_decodes_no_image_twice(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole groups of positions need no image besides their own."""
    decoded = []

    def decode(data: bytes) -> np.ndarray:
        decoded.append(bytes(data))
        return decode_image(data)

    monkeypatch.setattr(stream, "decode_image", decode)
    always = TrainTransform(MOSAIC.resize, Augment(crop=64, mosaic=1.0), COCO17)
    dataset = ShardDataset(root, COCO17, always, seed=1, window=41)
    dataset.samples(range(8, 24))
    assert len(decoded) == len(set(decoded)) == 16
    decoded.clear()
    dataset.samples(range(8, 12))
    assert 4 < len(decoded) == len(set(decoded)) <= 8


def test_people_with_keypoints_are_outlined_nowhere(masked_root: str) -> None:
    batch = ShardDataset(masked_root, COCO17, TRAIN).batch(range(12))
    assert batch.packed_people.outlined.any()
    assert not (batch.packed_people.outlined & batch.packed_people.labelled).any()
    assert ShardDataset(masked_root, COCO17, EVAL, seed=None).batch(range(12)).masks is None


def test_images_of_a_folder_have_outlines_too(masked_root: str) -> None:
    folder = Path(masked_root).parent
    seen = []

    def keep(sample: Sample, _: np.random.Generator) -> Sample:
        seen.append((sample.image_id, sample.outlines))
        return sample

    FolderDataset(find_source(str(folder), "train2017"), COCO17, keep).samples(range(12))
    from_folder = dict(seen)
    seen.clear()
    ShardDataset(masked_root, COCO17, keep, seed=None).samples(range(12))
    assert dict(seen) == from_folder and any(from_folder.values())


# ---------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("counts", ["garbage!", "0", "", "o" * 5000 + "0"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_segmentation_is_named_and_ends_the_workers(tmp_path: Path, counts: str, workers: int) -> None:
    key, image, record = _sample(0)
    record["people"][0] |= {"keypoints": [0] * 51, "segmentation": {"size": [32, 32], "counts": counts}}
    info = write_shard(str(tmp_path), "shard-000000", [(key, image, record)])
    write_manifest(str(tmp_path), Manifest(1, "train2017", COCO17, "0" * 64, (info,), {}, ()))
    with (
        training_batches(ShardDataset(tmp_path, COCO17, TRAIN), batch_size=1, workers=workers) as batches,
        pytest.raises(DataError, match=r"shard-000000\.tar: the sample at byte 512: run lengths"),
    ):
        next(batches)
    assert not multiprocessing.active_children()


def test_shards_of_the_same_keypoints_under_another_name_are_read(tmp_path: Path) -> None:
    mine = KeypointSchema.from_dict({"name": "mine", "keypoints": [name.upper() for name in COCO17.keypoints]})
    write_shards(str(tmp_path), [3], mine)
    assert len(ShardDataset(str(tmp_path), COCO17, EVAL)) == 3


def test_a_damaged_segmentation_in_a_mosaic_is_named_as_what_it_is(tmp_path: Path) -> None:
    samples = [_sample(number) for number in range(8)]
    key, image, record = samples[6]
    people = [record["people"][0] | {"keypoints": [0] * 51, "segmentation": {"size": [32, 32], "counts": "o"}}]
    samples[6] = key, image, record | {"people": people}
    info = write_shard(str(tmp_path), "shard-000000", samples)
    write_manifest(str(tmp_path), Manifest(1, "train2017", COCO17, "0" * 64, (info,), {}, ()))
    always = TrainTransform(MOSAIC.resize, Augment(crop=64, mosaic=1.0), COCO17)
    with pytest.raises(DataError) as alone:
        ShardDataset(tmp_path, COCO17, MOSAIC, seed=None).samples([6])
    with pytest.raises(DataError) as composed:
        ShardDataset(tmp_path, COCO17, always, seed=None).samples(range(8))
    assert str(composed.value) == str(alone.value)
    assert "shard-000000.tar: the sample at byte" in str(alone.value)


def test_shards_of_another_schema_are_refused(root: str) -> None:
    with pytest.raises(DataError, match="schema crowdpose14 and shards of coco17 differ"):
        ShardDataset(root, CROWDPOSE14, EVAL)


def test_no_samples_and_no_labelled_samples_are_refused(tmp_path: Path) -> None:
    write_shards(str(tmp_path), [])
    with pytest.raises(DataError, match="no samples among 0 samples in 0 shards"):
        ShardDataset(tmp_path, COCO17, EVAL)
    info = write_shard(str(tmp_path), "shard-000000", [_sample(1), _sample(2)])
    write_manifest(str(tmp_path), Manifest(1, "train2017", COCO17, "0" * 64, (info,), {}, ()))
    with pytest.raises(DataError, match="no images with a labelled person among 2 samples in 1 shards"):
        ShardDataset(tmp_path, COCO17, EVAL, labelled_only=True)


def test_a_missing_shard_is_named_with_the_remedy(tmp_path: Path) -> None:
    write_shards(str(tmp_path), [3, 3])
    (tmp_path / "shard-000001.tar").unlink()
    with pytest.raises(DataError, match=r"shard-000001\.tar: cannot open it.*run posefleet shard again"):
        ShardDataset(tmp_path, COCO17, EVAL).batch(range(6))


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    write_shards(str(tmp_path), [3])
    tar = tmp_path / "shard-000000.tar"
    tar.write_bytes(tar.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"shard-000000\.tar: truncated: it ends before byte \d+"):
        ShardDataset(tmp_path, COCO17, EVAL).batch(range(3))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_no_longer_decodes_is_named_and_ends_the_workers(tmp_path: Path, workers: int) -> None:
    write_shards(str(tmp_path), [3])
    tar = tmp_path / "shard-000000.tar"
    content = bytearray(tar.read_bytes())
    content[512:1024] = bytes(512)  # the head of the first image
    tar.write_bytes(content)
    with (
        training_batches(ShardDataset(tmp_path, COCO17, EVAL), batch_size=3, workers=workers) as batches,
        pytest.raises(
            DataError, match=r"^\S+shard-000000\.tar: the sample at byte 512: image: cannot decode \d+ bytes"
        ),
    ):
        next(batches)
    assert not multiprocessing.active_children()


def test_an_image_of_another_size_than_its_record_is_refused(tmp_path: Path) -> None:
    key, image, record = _sample(0)
    info = write_shard(str(tmp_path), "shard-000000", [(key, image, record | {"width": 64})])
    write_manifest(str(tmp_path), Manifest(1, "train2017", COCO17, "0" * 64, (info,), {}, ()))
    with pytest.raises(DataError, match=r"the image is \(32, 32\) \(width, height\), its record says \(64, 32\)"):
        ShardDataset(tmp_path, COCO17, EVAL).batch([0])


class FlakyStore(MemoryFileSystem):
    """An object store whose reads of tars fail as often as ``failures`` says."""

    protocol = "flaky"
    failures = 0

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: object) -> bytes:
        if path.endswith(".tar") and FlakyStore.failures > 0:
            FlakyStore.failures -= 1
            raise ConnectionResetError("reset by peer")
        return super().cat_file(path, start, end, **kwargs)


def test_a_store_that_fails_for_a_moment_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("flaky", FlakyStore, clobber=True)
    monkeypatch.setattr(stream, "RETRY_PAUSES", (0.0, 0.0))
    write_shards("flaky://root", [3, 2])
    dataset = ShardDataset("flaky://root", COCO17, EVAL)
    FlakyStore.failures = 7  # of 5 reads, then of 2 of the 5 again
    assert sorted(dataset.batch(range(5)).image_ids.tolist()) == [0, 1, 2, 3, 4]

    FlakyStore.failures = 1000
    with pytest.raises(DataError, match=r"shard-00000\d\.tar: cannot read it: ConnectionResetError\('reset by peer'\)"):
        dataset.batch(range(5))
    FlakyStore.failures = 0
