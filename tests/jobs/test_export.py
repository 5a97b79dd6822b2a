"""INT8 files and the gate before them; one exported network stands for every export, which takes seconds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from small_settings import small_settings, untrained_checkpoint

from posefleet.data.schemas.shipped import COCO17
from posefleet.jobs import evaluate, predict, promote
from posefleet.jobs.export import main
from posefleet.platform.checkpoints.format import copy_for_use, network_in, read_meta
from posefleet.platform.checkpoints.load import build_model
from posefleet.platform.config.loading import build_experiment
from posefleet.platform.exports import backends
from posefleet.platform.exports.backends import is_exported, open_model, read_facts, read_files
from posefleet.platform.exports.exported import ExportedFile, build_exported
from posefleet.platform.exports.onnx import export_onnx
from posefleet.platform.exports.quantize import quantize_onnx
from posefleet.platform.inference.predictor import Predictor
from posefleet.platform.tracking.registry import find_model
from posefleet.serve.deployments.settings import ServedModel
from posefleet.serve.deployments.versions import _resolve_source

LOOSE = ("--check.ap_drop", "0.4", "--check.keypoint_drop", "0.5", "--check.people", "1")
"""Bounds for an untrained network, whose poses hang on small differences."""


def write_coco(root: Path, split: str, images: list[np.ndarray], people: list[list[dict[str, Any]]]) -> str:
    """A data set in COCO's layout; returns FOLDER@SPLIT."""
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    records, annotations = [], []
    for number, (image, found) in enumerate(zip(images, people, strict=True), start=1):
        name = f"{number:012d}.png"
        Image.fromarray(image).save(root / split / name)
        records.append({"id": number, "file_name": name, "width": image.shape[1], "height": image.shape[0]})
        for person in found:
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": 1, **person})
    category = {"id": 1, "name": "person", "keypoints": list(COCO17.keypoints), "skeleton": []}
    content = {"images": records, "annotations": annotations, "categories": [category]}
    (root / "annotations" / f"person_keypoints_{split}.json").write_text(json.dumps(content))
    return f"{root}@{split}"


@pytest.fixture(scope="module")
def checkpoint(people_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("untrained")
    return untrained_checkpoint(small_settings(people_shards, folder), folder, sure=True)


@pytest.fixture(scope="module")
def data(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in which the people are those that the checkpoint finds, so that its AP is 1; and plain images, in which
    the values of the network are near 0."""
    random, images = np.random.default_rng(0), []
    for _ in range(8):
        blocks = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        images.append(blocks.repeat(16, 0).repeat(16, 1))
    people = []
    for poses in Predictor.from_checkpoint(checkpoint, device="cpu").predict_images(images):
        count = len(poses)
        points = torch.cat([poses.keypoints, torch.full((count, len(COCO17), 1), 2.0)], -1).flatten(1).tolist()
        people.append(
            [
                {"keypoints": each, "num_keypoints": 17, "area": 2000.0, "bbox": [1, 1, 90, 90], "iscrowd": 0}
                for each in points
            ]
        )
    root = tmp_path_factory.mktemp("found")
    write_coco(root, "val2017", images, people)
    plain = [(np.array([124, 116, 104]) + random.integers(0, 2, image.shape)).astype(np.uint8) for image in images]
    write_coco(root, "plain", plain, people)
    corner = {
        "keypoints": [95.0, 95.0, 2] * 17,
        "num_keypoints": 17,
        "area": 1200.0,
        "bbox": [94, 94, 2, 2],
        "iscrowd": 0,
    }
    write_coco(root, "elsewhere", images[:1], [[corner]])
    return root


@pytest.fixture(scope="module")
def graph(checkpoint: str) -> bytes:
    return export_onnx(checkpoint)


@pytest.fixture
def no_export(graph: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "export_onnx", lambda *_, **__: graph)


@pytest.fixture(scope="module")
def int8(graph: bytes, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of an INT8 file of the checkpoint."""
    path = tmp_path_factory.mktemp("int8") / "small.onnx"
    random = torch.Generator().manual_seed(0)
    images = (torch.randint(0, 256, (1, 3, 64, 64), generator=random, dtype=torch.uint8) for _ in range(4))
    path.write_bytes(quantize_onnx(graph, images, calibration="noise"))
    return str(path)


def test_an_int8_file_is_written_if_its_ap_is_about_pytorchs(
    checkpoint: str, data: Path, no_export: None, graph: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, annotated = tmp_path / "small.onnx", ("--source", str(data), "--split", "val2017")
    quantise = ("--checkpoint", checkpoint, "--out", str(out), "--precision", "int8")
    assert main([*quantise, *annotated, "--calibration", f"{data}@val2017", *LOOSE]) == 0
    output = capsys.readouterr().out
    assert "pass  AP" in output and "PyTorch's 1.0000" in output and "pass  keypoints" in output
    facts = read_facts(str(out))
    assert facts["precision"] == "int8" and facts["calibration"] == f"8 images of {data}@val2017"
    assert len(out.read_bytes()) < 0.5 * len(graph)
    written = out.read_bytes()

    assert main([*quantise, *annotated, "--calibration", f"{data}@plain", *LOOSE]) == 1
    output, error = capsys.readouterr()
    assert "FAIL  AP" in output and "FAIL  keypoints" in output
    assert "not exported: AP: 0." in error and "of 17 keypoints lose too much" in error
    assert f"nothing was written to {out}" in error
    assert out.read_bytes() == written and [path.name for path in tmp_path.iterdir()] == ["small.onnx"]

    elsewhere = ("--source", str(data), "--split", "elsewhere")
    assert main([*quantise, *elsewhere, "--calibration", f"{data}@val2017", *LOOSE]) == 1
    assert "PyTorch's is 0.0000, so nothing can be compared on these images" in capsys.readouterr().err


def test_int8_needs_annotated_images_and_images_to_calibrate_with(
    checkpoint: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantise = ("--checkpoint", checkpoint, "--precision", "int8", "--out")
    for arguments, complaint in (
        ((str(tmp_path / "a.onnx"), "--data.eval", ""), "give annotated images with --source PATH or --data.eval"),
        ((str(tmp_path / "a.onnx"), "--calibration", str(tmp_path)), "give them with --calibration SHARDS"),
    ):
        assert main([*quantise, *arguments]) == 2
        assert complaint in capsys.readouterr().err
    for precision, file, complaint in (
        ("int8", "a.xml", "int8 is for ONNX Runtime: --out must end in .onnx, not in .xml"),
        ("int8", "a.trt.onnx", "must end in .onnx, not in .trt.onnx"),
        ("float16", "a.onnx", "float16 is for TensorRT: --out must end in .trt.onnx, not in .onnx"),
    ):
        with pytest.raises(SystemExit):
            main(["--checkpoint", checkpoint, "--precision", precision, "--out", str(tmp_path / file)])
        assert complaint in capsys.readouterr().err


def test_commands_take_an_exported_file(checkpoint: str, int8: str, data: Path, tmp_path: Path) -> None:
    scores, images = {}, ("--source", str(data), "--split", "val2017")
    for name, model in (("torch", checkpoint), ("int8", int8)):
        out = tmp_path / f"{name}.json"
        assert evaluate.main(["--checkpoint", model, "--out", str(out), *images]) == 0
        scores[name] = json.loads(out.with_suffix(".metrics.json").read_text())["AP"]
    assert scores["torch"] == 1 and 0 < scores["int8"] < 1

    output = tmp_path / "poses"
    files = ("--input", str(data / "val2017"), "--output", str(output))
    assert predict.main(["--model", int8, *files, "--in-process"]) == 0
    summary = json.loads((output / "summary.json").read_text())
    assert summary["counts"]["images"] == 8 and summary["model"]["weights"] == read_facts(int8)["weights"]
    assert _resolve_source(int8, "").step == 6


def test_an_exported_file_is_promoted_and_then_predicts(
    checkpoint: str, int8: str, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--run", checkpoint, "--to", "champion", "--tracking", store, "--gate.served_images", "1"]
    assert promote.main([*arguments, "--exported", int8, "--gate.latency_people", "1"]) == 0
    output = capsys.readouterr().out
    assert f"{checkpoint} as {int8}" in output and "on cpu" in output
    (version,) = MlflowClient(store, store).search_model_versions()
    assert version.tags["backend"] == "onnxruntime" and version.tags["precision"] == "int8"
    assert version.tags["network"] == read_facts(int8)["weights"]
    champion = find_model("models:/smpr@champion", store)
    assert Path(network_in(champion)).read_bytes() == Path(int8).read_bytes()
    assert ServedModel(name="smpr", source="models:/smpr@champion").backend is None
    assert is_exported(open_model(champion)[0]) and not is_exported(open_model(champion, backend="torch")[0])

    other = tmp_path / "other"
    copy_for_use(checkpoint, other, network={"network.onnx": Path(int8).read_bytes()[:-1]})
    assert promote.main([*arguments, "--exported", str(other / "network.onnx")]) == 2
    assert "damaged" in capsys.readouterr().err
    shards = read_meta(checkpoint).experiment.data.train
    another = untrained_checkpoint(small_settings(Path(str(shards)).parent, tmp_path), tmp_path / "another", seed=1)
    assert promote.main(["--run", another, *arguments[2:], "--exported", int8]) == 2
    assert "holds other weights than" in capsys.readouterr().err


def test_a_copy_keeps_its_network(checkpoint: str, int8: str, tmp_path: Path) -> None:
    files = {f"network{suffix}": data for suffix, data in read_files(int8).items()}
    copy_for_use(checkpoint, tmp_path / "one", network=files)
    copy_for_use(str(tmp_path / "one"), tmp_path / "two")
    assert (tmp_path / "two" / "network.onnx").read_bytes() == Path(int8).read_bytes()
    (tmp_path / "two" / "network.onnx").write_bytes(b"")
    with pytest.raises(Exception, match=r"network\.onnx is damaged"):
        open_model(str(tmp_path / "two"))


def test_a_deep_network_has_fewer_tensors_in_a_file_than_in_the_model() -> None:
    """A convolution of a file holds its normalisation: one or two tensors instead of up to six."""
    backbone = {"name": "hrnet_w32", "pretrained": False}
    values = {"method": "logocap", "schema": "coco17", "data": {"train": "none"}, "model": {"backbone": backbone}}
    experiment = build_experiment(values)
    model = build_model(experiment)
    folded = [value.numel() for value in model.state_dict().values() if value.ndim == 4]
    decoder = {n: v for n, v in model.state_dict().items() if n.split(".")[0] in model.decoder}  # type: ignore[operator]
    file = ExportedFile({}, decoder, [*folded, *(v.numel() for v in decoder.values())], lambda: None)  # type: ignore[arg-type, return-value]
    build_exported(file, experiment, "model.onnx")
