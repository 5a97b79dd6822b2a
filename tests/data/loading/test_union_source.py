"""Several sources as one stream: sampled by weights, resumed anywhere, with what each source labels marked."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from posefleet.data.coco.records import make_record
from posefleet.data.errors import DataError
from posefleet.data.images import encode_jpeg
from posefleet.data.loading.loader import training_batches
from posefleet.data.loading.shard_dataset import ShardDataset
from posefleet.data.loading.union import SpreadSource, Supervision, UnionSource
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.schemas.shipped import COCO17, CROWDPOSE14
from posefleet.data.schemas.union import union_of
from posefleet.data.shards.layout import Manifest, write_manifest, write_shard
from posefleet.data.shards.plan import shard_name
from posefleet.data.structures import Batch
from posefleet.data.transforms import GROUP, Augment, Resize, TrainTransform

OWN = KeypointSchema.from_dict({"name": "worker", "keypoints": ["helmet", "R_Wrist", "L_Wrist"]})
SOURCES = {"coco": COCO17, "crowd": CROWDPOSE14, "own": OWN}
SIZES = {"coco": 23, "crowd": 9, "own": 4}
UNION = union_of(SOURCES)
WEIGHTS = (6.0, 3.0, 1.0)
RESIZE = Resize(short_side=32, long_side=32)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the three sources; an image id says its source: 1xx coco, 2xx crowd, 3xx own."""
    root = tmp_path_factory.mktemp("sources")
    for number, (name, schema) in enumerate(SOURCES.items(), start=1):
        samples = [_sample(100 * number + i, schema) for i in range(SIZES[name])]
        shards = [
            write_shard(str(root / name), shard_name(i), part) for i, part in enumerate((samples[:3], samples[3:]))
        ]
        write_manifest(str(root / name), Manifest(1, "train", schema, f"{number}" * 64, tuple(shards), {}, ()))
    return root


def _sample(image_id: int, schema: KeypointSchema) -> tuple[str, bytes, dict]:
    image = np.random.default_rng(image_id).integers(0, 256, (32, 32, 3), np.uint8)
    keypoints = [value for k in range(len(schema)) for value in (4 + k, 6 + k, 2)]
    person = {"id": image_id, "keypoints": keypoints, "bbox": [2, 2, 28, 24], "area": 300.0, "iscrowd": 0}
    record = {"id": image_id, "file_name": f"{image_id}.jpg", "width": 32, "height": 32}
    return f"{image_id:012d}", encode_jpeg(image), make_record(record, [person])


def opened(root: Path, augment: Augment | None = None, seed: int = 0) -> UnionSource:
    transform = TrainTransform(RESIZE, augment or Augment(crop=0, flip=0.5, scale=(0.9, 1.2)), UNION)
    sources = [
        SpreadSource(
            ShardDataset(str(root / name), schema, transform, seed=seed, window=8),
            Supervision.of(UNION, schema),
            transform,
        )
        for name, schema in SOURCES.items()
    ]
    return UnionSource(sources, WEIGHTS, transform, seed=seed)


def source_of(image_id: int) -> str:
    return list(SOURCES)[image_id // 100 - 1]


def labelled_by(name: str) -> torch.Tensor:
    return torch.tensor([place is not None for place in Supervision.of(UNION, SOURCES[name]).places])


def test_samples_come_by_weight_and_each_of_a_source_before_any_again(root: Path) -> None:
    source = opened(root)
    assert len(source) == 36
    ids = [sample.image_id for sample in source.samples(range(230))]
    assert Counter(map(source_of, ids)) == {"coco": 138, "crowd": 69, "own": 23}
    for start in range(0, 230, 10):
        assert Counter(map(source_of, ids[start : start + 10])) == {"coco": 6, "crowd": 3, "own": 1}
    for name, size in SIZES.items():
        mine = [image_id for image_id in ids if source_of(image_id) == name]
        for start in range(0, len(mine) - size, size):
            assert len(set(mine[start : start + size])) == size


def run(source: UnionSource, world_size: int, batch_size: int, position: int, steps: int) -> list[Batch]:
    """The batches of some steps, in the order of positions."""
    ranks = [
        list(
            itertools.islice(
                training_batches(
                    source, batch_size=batch_size, rank=rank, world_size=world_size, per_step=4, position=position
                ),
                steps * 4 // world_size,
            )
        )
        for rank in range(world_size)
    ]
    return [ranks[index % world_size][index // world_size] for index in range(4 * steps)]


def test_a_run_resumes_with_other_ranks_bit_by_bit(root: Path) -> None:
    whole = run(opened(root), 1, 2, 0, 6)
    resumed = [*run(opened(root), 4, 2, 0, 2), *run(opened(root), 2, 2, 16, 4)]
    for a, b in zip(whole, resumed, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.image_ids, b.image_ids)
        for name in ("keypoints", "visibility", "supervised", "centres"):
            assert torch.equal(getattr(a.packed_people, name), getattr(b.packed_people, name))
        assert torch.equal(a.supervised_maps, b.supervised_maps) and torch.equal(a.seams, b.seams)


def test_the_seed_decides_the_augmentation_and_where_the_pattern_starts(root: Path) -> None:
    first, other = ([s.image_id for s in opened(root, seed=seed).samples(range(36))] for seed in (0, 1))
    assert first == [s.image_id for s in opened(root).samples(range(36))] and first != other


def test_what_a_source_labels_is_marked(root: Path) -> None:
    for sample in opened(root, Augment(crop=0, flip=0.0)).samples(range(30)):
        name, people = source_of(sample.image_id), sample.people
        expected = labelled_by(name)
        assert torch.equal(people.supervised, expected[None])
        assert torch.equal(people.supervised_maps, expected.expand(2, 2, -1))
        assert torch.equal(people.visibility > 0, expected[None])
        assert torch.equal(people.centres, torch.tensor([[16.0, 14.0]]))  # the middle of the box
        # Own names, spelled otherwise, are where the union has them.
        places = {UNION.keypoints.index("left_wrist"): {"coco": 9, "crowd": 4, "own": 2}[name]}
        for index, own in places.items():
            assert people.keypoints[0, index].tolist() == [4.0 + own, 6.0 + own]


def test_marks_travel_through_loader_processes(root: Path) -> None:
    source = opened(root)
    with training_batches(source, batch_size=8, workers=1) as batches:
        loaded = next(batches)
    here = source.batch(range(8))
    assert torch.equal(loaded.packed_people.supervised, here.packed_people.supervised)
    assert torch.equal(loaded.supervised_maps, here.supervised_maps) and torch.equal(loaded.seams, here.seams)
    for a, b in zip(loaded.people, here.people, strict=True):
        assert torch.equal(a.supervised, b.supervised) and torch.equal(a.seam, b.seam)


def test_a_mosaic_of_several_sources_has_the_marks_of_each_in_its_part(root: Path) -> None:
    source = opened(root, Augment(crop=0, flip=0.5, mosaic=1.0))
    mixed = 0
    for position in range(4 * GROUP):
        parts, _ = source._plan(position)
        assert all(part // GROUP == position // GROUP for part in parts)  # partners come from the same stream
        sources, _ = source.interleaving.locate(parts)
        mixed += len(set(sources.tolist())) > 1
        (sample,) = source.samples([position])
        people, seam = sample.people, sample.people.seam
        rows = {tuple(row.tolist()) for row in people.supervised_maps.flatten(0, 1)}
        assert rows == {tuple(labelled_by(list(SOURCES)[index]).tolist()) for index in sources.tolist()}
        for person in range(len(people)):  # a person's keypoints are in their part, and so are their marks
            inside = people.keypoints[person][people.visibility[person] > 0]
            if len(inside):
                right, below = (inside.mean(0) >= seam).tolist()
                assert torch.equal(people.supervised_maps[int(below), int(right)], people.supervised[person])
    assert mixed > 8


def test_an_error_names_the_file_of_the_source(root: Path, tmp_path: Path) -> None:
    source = opened(root)
    sources, _ = source.interleaving.locate(range(10))
    position = sources.tolist().index(2)
    assert str(root / "own") in str(source.broken(position, DataError("it is broken")))


def test_records_of_all_sources_are_read(root: Path) -> None:
    ids = [record["image_id"] for record in opened(root).records()]
    assert sorted(ids) == sorted(100 * n + i for n, size in enumerate(SIZES.values(), start=1) for i in range(size))
