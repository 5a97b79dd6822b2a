"""Code planted wherever files are read: it is refused with an error that names the file, and never run."""

import hashlib
import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import safetensors.torch
import torch
from small_settings import small_release, small_settings, untrained_checkpoint

from posefleet.data.coco.split import read_coco
from posefleet.data.errors import DataError
from posefleet.data.loading.loader import training_batches
from posefleet.data.loading.shard_dataset import ShardDataset
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.shards.layout import read_manifest
from posefleet.data.transforms import EvalTransform, Resize
from posefleet.models.detposenet.detector import DetectorConfig, TorchvisionDetector
from posefleet.models.parts.layers.backbones import Backbone, BackboneConfig
from posefleet.models.parts.layers.safe_load import read_tensors
from posefleet.platform.checkpoints.format import CheckpointError, read_state
from posefleet.platform.checkpoints.load import load_model
from posefleet.platform.checkpoints.resolve import find_checkpoint
from posefleet.platform.comparison.sources import trials
from posefleet.platform.config.loading import read_yaml
from posefleet.platform.inference.predictor import Predictor
from posefleet.platform.prediction.batch import predict_images
from posefleet.platform.prediction.inputs import list_images
from posefleet.platform.prediction.tables import read_part
from posefleet.platform.tracking.__main__ import sync_spool
from posefleet.platform.tracking.registry import CHAMPION, promote
from posefleet.platform.training.run import read_run
from posefleet.platform.tuning.space import build_space
from posefleet.platform.tuning.study import Search


class _Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.fixture
def evidence(tmp_path: Path) -> Any:
    """The file that planted code makes; it must not be there in the end."""
    path = tmp_path / "code-ran"
    yield path
    assert not path.exists(), "planted code was run"


@pytest.fixture
def evil(evidence: Path) -> bytes:
    """A pickle as ``pickle.dump`` writes it."""
    return pickle.dumps(_Touch(evidence), protocol=2)


@pytest.fixture
def evil_zip(evidence: Path) -> bytes:
    """A pickle as ``torch.save`` writes it."""
    file = io.BytesIO()
    torch.save({"weight": _Touch(evidence)}, file)
    return file.getvalue()


def test_the_planted_code_would_run(tmp_path: Path) -> None:
    """Without this, the other tests could not fail."""
    pickle.loads(pickle.dumps(_Touch(tmp_path / "a"), protocol=2))
    file = io.BytesIO()
    torch.save({"weight": _Touch(tmp_path / "b")}, file)
    torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    assert (tmp_path / "a").exists() and (tmp_path / "b").exists()


# ---------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("ending", ["pt", "pth", "safetensors"])
@pytest.mark.parametrize("kind", ["evil", "evil_zip"])
def test_weights_of_a_backbone(ending: str, kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = tmp_path / f"resnet18.{ending}"
    path.write_bytes(request.getfixturevalue(kind))
    with pytest.raises(ValueError, match=rf"resnet18\.{ending} is refused, and nothing of it was run: .*safetensors"):
        Backbone(BackboneConfig(name="resnet18", pretrained=False, weights=str(path)))


def test_what_it_would_have_run_is_named(evil_zip: bytes) -> None:
    with pytest.raises(
        ValueError, match=r"weights\.pt is refused.*it would run pathlib\.Path\.touch|posixpath|getattr"
    ):
        read_tensors(io.BytesIO(evil_zip), "weights.pt")


def test_weights_of_a_detector(evil_zip: bytes, tmp_path: Path) -> None:
    path = tmp_path / "detector.pth"
    path.write_bytes(evil_zip)
    with pytest.raises(ValueError, match=r"detector\.pth is refused"):
        TorchvisionDetector(DetectorConfig(kind="torchvision", pretrained=False, weights=str(path)))


def test_a_download_that_torchvision_kept(evil_zip: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    kept = tmp_path / "hub" / "checkpoints" / "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(evil_zip)
    with pytest.raises(ValueError, match=r"the download of https://.*258fb6c6\.pth is refused"):
        TorchvisionDetector(DetectorConfig(kind="torchvision", pretrained=True))


def test_tensors_are_still_read(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3.0), "b": torch.ones(2, dtype=torch.int64)}
    torch.save(tensors, tmp_path / "x.pt")
    torch.save(tensors, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors")
    for name in ("x.pt", "old.pt", "x.safetensors"):
        found = read_tensors(tmp_path / name)
        assert found.keys() == tensors.keys() and all(torch.equal(found[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old format"])
def test_any_damage_is_named(old: bool) -> None:
    """Random bytes make PyTorch's reader fail in a dozen ways; each becomes an error that names the file."""
    buffer, random = io.BytesIO(), Random(0)
    torch.save(
        {"state_dict": {"a": torch.randn(4), "b": torch.ones(2)}, "epoch": 3},
        buffer,
        _use_new_zipfile_serialization=not old,
    )
    refused = 0
    for _ in range(150):
        data = bytearray(buffer.getvalue())
        for _ in range(random.randint(1, 6)):
            data[random.randrange(len(data))] = random.randrange(256)
        try:
            read_tensors(io.BytesIO(data[: random.choice([len(data), random.randrange(len(data))])]), "weights.pt")
        except ValueError as error:
            refused += 1
            assert str(error).startswith("weights.pt ")
    assert refused > 75


def test_a_packed_file_of_weights(tmp_path: Path) -> None:
    """64 MiB of zeros in 64 KiB."""
    torch.save({"weight": torch.zeros(1 << 24)}, tmp_path / "flat.pt")
    with zipfile.ZipFile(tmp_path / "flat.pt") as flat, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as bomb:
        for entry in flat.infolist():
            bomb.writestr(entry.filename, flat.read(entry), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bomb.pt").stat().st_size < 1 << 17
    with pytest.raises(ValueError, match=r"bomb\.pt is refused: it is compressed"):
        read_tensors(tmp_path / "bomb.pt")


# ---------------------------------------------------------------------------------------------------- checkpoints


@pytest.fixture
def settings(people_shards: Path, tmp_path: Path) -> dict[str, Any]:
    return small_settings(people_shards, tmp_path / "runs")


@pytest.fixture
def checkpoint(settings: dict[str, Any], tmp_path: Path) -> Path:
    return Path(untrained_checkpoint(settings, tmp_path / "run"))


def plant(checkpoint: Path, file: str, data: bytes) -> None:
    """Put a file into a checkpoint, with its true size and SHA-256 in ``meta.json``: whoever plants can count, too."""
    (checkpoint / file).write_bytes(data)
    if file != "meta.json":
        meta = json.loads((checkpoint / "meta.json").read_text())
        meta["files"][file] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (checkpoint / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize("kind", ["evil", "evil_zip"])
@pytest.mark.parametrize(
    ("file", "read", "message"),
    [
        ("meta.json", load_model, r"is not a checkpoint: no readable meta\.json"),
        ("model.safetensors", load_model, r"model\.safetensors is refused: it is no file of safetensors"),
        ("state.pt", read_state, r"state\.pt is refused, and nothing of it was run"),
    ],
)
def test_files_of_a_checkpoint(
    kind: str, file: str, read: Callable[[str], Any], message: str, checkpoint: Path, request: pytest.FixtureRequest
) -> None:
    plant(checkpoint, file, request.getfixturevalue(kind))
    with pytest.raises(CheckpointError, match=message):
        read(str(checkpoint))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda meta: meta["files"].update({"../../../etc/passwd": meta["files"]["state.pt"]}), "it names the files"),
        (lambda meta: meta.pop("experiment"), "no usable experiment"),
        (lambda meta: meta.update(files=[]), "no usable files"),
        (lambda meta: meta.update(step="1; rm -rf"), "no usable step"),
    ],
)
def test_a_description_that_lies(change: Callable[[dict[str, Any]], Any], message: str, checkpoint: Path) -> None:
    meta = json.loads((checkpoint / "meta.json").read_text())
    change(meta)
    (checkpoint / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(CheckpointError, match=message):
        load_model(str(checkpoint))


def test_a_description_nested_without_end(checkpoint: Path) -> None:
    (checkpoint / "meta.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="no readable meta"):
        load_model(str(checkpoint))


def test_artifacts_of_a_registered_model(
    evil: bytes, checkpoint: Path, settings: dict[str, Any], store: str, tmp_path: Path
) -> None:
    """MLflow's own way to run models, a pickle named in MLmodel, is not ours; planted weights are refused."""
    promote(store, "pose", small_release(settings, str(checkpoint), tmp_path / "release"), CHAMPION)
    found = Path(find_checkpoint("models:/pose@champion", tracking=store))
    (found.parent / "python_model.pkl").write_bytes(evil)
    (found.parent / "MLmodel").write_text(
        "flavors: {python_function: {loader_module: mlflow.pyfunc.model, python_model: python_model.pkl}}\n"
    )
    load_model(str(found))
    plant(found, "model.safetensors", evil)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is refused"):
        Predictor.from_registry("models:/pose@champion", tracking=store)


def test_an_exported_file(evil: bytes, evil_zip: bytes, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    for data in (evil, evil_zip):
        (tmp_path / "model.onnx").write_bytes(data)
        with pytest.raises(CheckpointError, match=r"model\.onnx is (damaged|no ONNX file)"):
            Predictor.from_checkpoint(str(tmp_path / "model.onnx"))


def test_an_exported_file_that_reads_others(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.UINT8, dims=[10])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    graphs = {
        "initializer": onnx.helper.make_graph([], "g", [], [], initializer=[tensor]),
        "constant": onnx.helper.make_graph([onnx.helper.make_node("Constant", [], ["w"], value=tensor)], "g", [], []),
    }
    inner = onnx.helper.make_node("If", ["c"], ["w"], then_branch=graphs["constant"], else_branch=graphs["constant"])
    graphs["branch"] = onnx.helper.make_graph([inner], "g", [], [])
    for name, graph in graphs.items():
        (tmp_path / f"{name}.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
        with pytest.raises(CheckpointError, match=rf"{name}\.onnx is refused: it names other files"):
            Predictor.from_checkpoint(str(tmp_path / f"{name}.onnx"))


# ---------------------------------------------------------------------------------------------------- data


@pytest.fixture
def shards(people_shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(people_shards / "train2017", tmp_path / "shards"))


def dataset(shards: Path) -> ShardDataset:
    return ShardDataset(shards, COCO17, EvalTransform(Resize(short_side=64, long_side=64), COCO17), seed=None)


@pytest.mark.parametrize("file", ["manifest.json", "shard-000000.json"])
def test_manifest_and_index_of_shards(file: str, evil: bytes, shards: Path) -> None:
    (shards / file).write_bytes(evil)
    with pytest.raises(DataError, match=rf"{file}: damaged, or no JSON.*run posefleet shard again"):
        dataset(shards).samples([0])
    with pytest.raises(DataError, match=rf"{file}: damaged"):
        list_images(str(shards))


def plant_member(shards: Path, column: int, evil: bytes) -> None:
    """Over the beginning of the first sample's image (0) or record (2)."""
    name = read_manifest(str(shards)).shards[0].name
    start, size = json.loads((shards / f"{name}.json").read_text())["members"][0][column : column + 2]
    tar = bytearray((shards / f"{name}.tar").read_bytes())
    assert size >= len(evil)
    tar[start : start + size] = evil.ljust(size, b"\0")
    (shards / f"{name}.tar").write_bytes(tar)


@pytest.mark.parametrize(("column", "message"), [(0, "cannot decode"), (2, "not a record")])
@pytest.mark.parametrize("loaders", [0, 1])
def test_members_of_a_shard(column: int, message: str, loaders: int, evil: bytes, shards: Path) -> None:
    """Also through loader processes, which hand batches over by pickling: what is read stays bytes."""
    plant_member(shards, column, evil)
    with (
        training_batches(dataset(shards), batch_size=4, workers=loaders) as batches,
        pytest.raises(DataError, match=rf"shard-000000\.tar: the sample at byte 512: .*{message}"),
    ):
        next(batches)


def test_an_annotation_file(evil: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(evil)
    with pytest.raises(DataError, match=r"a\.json: not json"):
        read_coco(str(tmp_path / "a.json"), COCO17)


# ---------------------------------------------------------------------------------------------------- results


def test_pictures_summaries_and_parts_of_predictions(evil: bytes, checkpoint: Path, tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(evil)
    counts = predict_images(list_images(str(photos)), str(out), str(checkpoint), parallel=False).counts
    assert (counts.images, counts.bad) == (0, 1)
    assert "none of JPEG" in json.loads((out / "bad_images.json").read_text())[0]["reason"]
    (out / "summary.json").write_bytes(evil)
    with pytest.raises(DataError, match=r"summary\.json: damaged, or no JSON"):
        predict_images(list_images(str(photos)), str(out), str(checkpoint), parallel=False)
    (out / "part-00000.parquet").write_bytes(evil)
    with pytest.raises(DataError, match=r"part-00000\.parquet: damaged"):
        read_part(str(out / "part-00000.parquet"), COCO17)


def test_results_of_a_search(evil: bytes, settings: dict[str, Any], tmp_path: Path) -> None:
    from posefleet.platform.config.loading import build_experiment

    (tmp_path / "trials.json").write_bytes(evil)
    with pytest.raises(DataError, match=r"trials\.json: damaged, or no JSON"):
        trials(str(tmp_path), 3)
    base = build_experiment(settings)
    (tmp_path / "study.log").write_bytes(evil + b"\n")
    with pytest.raises((ValueError, UnicodeDecodeError)):
        Search(tmp_path, base, build_space({"optim.lr": [0.1, 0.2]}, base, where="x"), about={}, seed=0)


def test_what_a_run_remembers(evil: bytes, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(evil)
    with pytest.raises(DataError, match=r"run\.json: damaged, or no JSON"):
        read_run(str(tmp_path))
    with pytest.raises(ValueError, match=r"run\.json"):
        sync_spool(tmp_path)


def test_a_config_file(evil: bytes, evidence: Path, tmp_path: Path) -> None:
    tagged = f"method: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{evidence}]]\n"
    for data in (tagged.encode(), evil):
        (tmp_path / "config.yaml").write_bytes(data)
        with pytest.raises(ValueError, match=r"config\.yaml is not valid YAML"):
            read_yaml(tmp_path / "config.yaml")
