"""ONNX files: the same poses, whatever computes the network, and files that say what they are."""

import functools
import json
import subprocess
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from small_models import K, build, images, saved, schema_of, small

from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.structures import Poses
from posefleet.jobs import export as job
from posefleet.models import available_methods
from posefleet.platform.checkpoints.format import CheckpointError, copy_for_use, read_content
from posefleet.platform.exports import backends, tensorrt
from posefleet.platform.exports import exported as export
from posefleet.platform.exports.backends import (
    cached_export,
    is_exported,
    open_model,
    read_facts,
    read_files,
    write_exported,
)
from posefleet.platform.exports.onnx import OnnxNetwork, export_onnx
from posefleet.platform.inference.agreement import Agreement
from posefleet.platform.inference.predictor import Predictor

PIXELS, SCORES = 0.01, 1e-4
ROOT = Path(__file__).resolve().parents[3]
METHODS = available_methods()
FAST = ("detposenet", "smpr")
"""A network with few operations, and one with deformable convolutions; an export of each takes 10 to 20 s."""
SHARED = [pytest.param(method, marks=() if method in FAST else pytest.mark.slow) for method in METHODS]
Make = Callable[..., str]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Path of a checkpoint of the small model of a method."""

    @functools.cache
    def make(method: str, schema: KeypointSchema = COCO17) -> str:
        return saved(method, tmp_path_factory.mktemp(method), schema)

    return make


@pytest.fixture(scope="module")
def exported(checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Path of its ONNX file."""

    @functools.cache
    def make(method: str) -> str:
        path = tmp_path_factory.mktemp("onnx") / f"{method}.onnx"
        path.write_bytes(export_onnx(checkpoint(method)))
        return str(path)

    return make


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch, exported: Make) -> None:
    """What was exported before stands for every export, which takes seconds."""
    data = Path(exported("smpr")).read_bytes()
    monkeypatch.setattr(backends, "export_onnx", lambda *_, **__: data)


@pytest.mark.parametrize("method", SHARED)
def test_onnx_runtime_finds_the_same_poses_in_batches_and_sizes_it_was_not_exported_with(
    method: str, exported: Make
) -> None:
    ours, theirs = build(method).eval(), open_model(exported(method))[0]
    assert isinstance(theirs.forward_features, OnnxNetwork)
    for batch in (images(1), images(2), images(1, 160, 64)):
        with torch.inference_mode():
            agreement = Agreement.of(ours.predict(batch), theirs.predict(batch))
        assert agreement.poses > 0
        assert agreement.within(PIXELS, SCORES), f"{tuple(batch.shape)}: {agreement}"


OTHER_SCHEMAS = [pytest.param("detposenet", schema_of(1), marks=pytest.mark.slow)]
"""A single keypoint has no affinity fields, which is another network."""
OTHER_SCHEMAS += [
    pytest.param(method, schema, marks=pytest.mark.slow)
    for method in METHODS
    for schema in (schema_of(4, skeleton=False), schema_of(133))
]


@pytest.mark.parametrize(("method", "schema"), OTHER_SCHEMAS, ids=lambda value: str(getattr(value, "name", value)))
def test_other_keypoints_are_exported(method: str, schema: KeypointSchema, checkpoint: Make, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(export_onnx(checkpoint(method, schema)))
    theirs, experiment = open_model(str(path))
    assert experiment.keypoints == schema
    with torch.inference_mode():
        agreement = Agreement.of(build(method, schema=schema).eval().predict(images(2)), theirs.predict(images(2)))
    assert agreement.within(PIXELS, SCORES), agreement
    assert agreement.poses > 0 or method == "logocap"  # which finds nobody with these weights


@pytest.mark.parametrize("method", SHARED)
def test_a_file_says_what_it_is(method: str, exported: Make, checkpoint: Make) -> None:
    facts, content = read_facts(exported(method)), read_content(checkpoint(method))
    assert facts["method"] == method and facts["schema"] == "coco17" and facts["step"] == "6"
    assert facts["run_id"] == "r1" and facts["data"] == "d" * 64
    assert facts["checkpoint"] == content["files"]["model.safetensors"]["sha256"]
    assert json.loads(facts["keypoints"]) == list(COCO17.keypoints)
    assert KeypointSchema.from_dict(json.loads(facts["keypoint_schema"])) == COCO17
    assert json.loads(facts["experiment"]) == content["experiment"]
    assert open_model(exported(method))[1].model == small(method)
    proto = onnx.load(exported(method))
    onnx.checker.check_model(proto)
    (given,) = proto.graph.input
    output = json.loads(facts["input"])
    assert given.name == output["name"] == "images" and output["layout"] == "NCHW" and output["type"] == "uint8"
    outputs = json.loads(facts["outputs"])
    assert [output.name for output in proto.graph.output] == list(outputs)
    maps = build(method).eval().forward_features(images(1, 256, 256))
    for name, levels in maps.items():
        for level, values in enumerate(levels):
            shape = outputs[f"{name}.{level}"]
            assert values.shape[1:] == (shape["channels"], 256 // shape["stride"], 256 // shape["stride"])


def test_a_predictor_runs_from_a_file_and_from_a_checkpoint(
    checkpoint: Make, exported: Make, no_export: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    picture = images(1)[0].permute(1, 2, 0).numpy()
    poses = [
        Predictor.from_checkpoint(path, device="cpu", backend=backend).predict_images([picture])
        for path, backend in (
            (checkpoint("smpr"), "torch"),
            (checkpoint("smpr"), "onnxruntime"),
            (exported("smpr"), "torch"),
        )
    ]
    assert len(poses[0][0]) > 0
    assert Agreement.of(poses[0], poses[1]).within(PIXELS, SCORES)
    assert Agreement.of(poses[0], poses[2]).within(PIXELS, SCORES)
    with pytest.raises(ValueError, match="runs on cpu, not on cuda"):
        Predictor.from_checkpoint(exported("smpr"), device="cuda")


@pytest.fixture
def tensorrt_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> list[Mapping[str, str]]:
    """ONNX Runtime's CPU in place of TensorRT, bound to tensors as it is; the options that TensorRT would get."""
    options: list[Mapping[str, str]] = []

    def build_on_the_cpu(graph: bytes, facts: Mapping[str, str]) -> tensorrt.BoundNetwork:
        options.append(tensorrt.provider_options(facts))
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        return tensorrt.BoundNetwork(session, tensorrt.outputs_of(facts), "cpu")

    monkeypatch.setattr(tensorrt, "_build", build_on_the_cpu)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    return options


def test_a_file_for_tensorrt_is_computed_where_its_tensors_are(
    exported: Make, checkpoint: Make, tensorrt_on_the_cpu: list[Mapping[str, str]], tmp_path: Path
) -> None:
    path = str(tmp_path / "model.trt.onnx")
    write_exported(path, {".trt.onnx": Path(exported("smpr")).read_bytes()})
    assert read_files(path).keys() == {".trt.onnx"} and Path(path).read_bytes() == Path(exported("smpr")).read_bytes()
    bound, plain = open_model(path)[0], open_model(exported("smpr"))[0]
    assert isinstance(bound.forward_features, tensorrt.BoundNetwork)
    for batch in (images(1), images(2), images(1, 160, 64)):
        with torch.inference_mode():
            ours, theirs = bound.forward_features(batch), plain.forward_features(batch)
            assert len(bound.predict(batch)[0]) > 0
        assert ours.keys() == theirs.keys()
        for name in ours:
            for a, b in zip(ours[name], theirs[name], strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    (options,) = tensorrt_on_the_cpu
    assert options["trt_fp16_enable"] == "False" and options["trt_profile_min_shapes"] == "images:1x3x32x32"
    copy_for_use(checkpoint("smpr"), tmp_path / "promoted", network={"network.trt.onnx": Path(path).read_bytes()})
    assert isinstance(open_model(str(tmp_path / "promoted"))[0].forward_features, tensorrt.BoundNetwork)
    assert not is_exported(open_model(str(tmp_path / "promoted"), backend="torch")[0])


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_tensorrt_says_what_it_misses(
    exported: Make,
    checkpoint: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "model.trt.onnx"
    arguments = ["--checkpoint", checkpoint("smpr"), "--out", str(path)]
    assert job.main(arguments) == 2 and not path.exists()
    assert "this onnxruntime has no TensorrtExecutionProvider" in capsys.readouterr().err
    path.write_bytes(Path(exported("smpr")).read_bytes())
    with pytest.raises(ValueError, match="no TensorrtExecutionProvider"):
        open_model(str(path))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [tensorrt.PROVIDER])
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="needs an NVIDIA GPU"):
            open_model(str(path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with pytest.raises(ValueError, match="TensorRT does not start"):
        open_model(str(path))


def test_a_checkpoint_is_exported_once(
    checkpoint: Make, no_export: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = Path(cached_export(checkpoint("smpr"), "onnxruntime"))
    assert tmp_path in first.parents and [path.name for path in first.parent.iterdir()] == [first.name]
    written = first.stat().st_mtime_ns
    assert cached_export(checkpoint("smpr"), "onnxruntime") == str(first) and first.stat().st_mtime_ns == written
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) // 2])
    assert cached_export(checkpoint("smpr"), "onnxruntime") == str(first) and first.read_bytes() == whole


def test_damaged_files_and_other_peoples_files_are_told(exported: Make, tmp_path: Path) -> None:
    whole, path = Path(exported("smpr")).read_bytes(), tmp_path / "model.onnx"
    proto = onnx.load_model_from_string(whole)
    tensor = max(proto.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]
    stranger = onnx.load_model_from_string(whole)
    del stranger.metadata_props[:]
    for content, complaint in (
        (whole[: len(whole) // 2], "damaged"),
        (proto.SerializeToString(), "its weights are not those that were written"),
        (stranger.SerializeToString(), "no ONNX file of format 1 by posefleet export"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=complaint):
            open_model(str(path))
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_model(str(tmp_path / "missing.onnx"))


def test_what_cannot_be_exported_is_told(checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("wrapped") from NotImplementedError("no such operator\nand a page of advice")

    with monkeypatch.context() as patch:
        patch.setattr(torch.onnx, "export", refuse)
        with pytest.raises(CheckpointError, match=r"cannot be expressed in ONNX: no such operator$"):
            export_onnx(checkpoint("smpr"))
    with monkeypatch.context() as patch:
        patch.setattr(export, "load_model", lambda *_, **__: (torch.nn.Identity(), types.SimpleNamespace(method="toy")))
        with pytest.raises(ValueError, match="'toy' does not say where its network ends"):
            export_onnx(checkpoint("smpr"))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(ValueError, match=r"needs onnxruntime: pip install 'posefleet\[onnx\]'"):
            OnnxNetwork(b"")


def poses(*xs: float, score: float = 0.5) -> Poses:
    keypoints = torch.tensor(xs).view(-1, 1, 1).expand(-1, K, 2).clone()
    scores = torch.full((len(xs),), score)
    return Poses(keypoints, scores[:, None].expand(-1, K).clone(), scores)


def test_agreement_is_of_the_nearest_poses_and_notices_what_is_alone_or_no_number() -> None:
    swapped = Agreement.of([poses(1.0, 50.0)], [poses(50.5, 1.0, score=0.25)])
    assert swapped == Agreement(images=1, poses=2, unpaired=0, pixels=0.5, scores=0.25)
    assert Agreement.of([poses(1.0, 50.0)], [poses(50.0)]).unpaired == 1
    assert not Agreement.of([poses()], [poses(1.0)]).within(9, 9)
    assert not Agreement.of([poses(1.0)], [poses(torch.nan)]).within(9, 9)
    assert Agreement.of([poses()], [poses()]).within(0, 0)


def test_the_job_checks_and_writes(
    checkpoint: Make, no_export: None, people_coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "smpr.onnx"
    data = ["--source", str(people_coco), "--split", "val2017", "--check.images", "3"]
    assert job.main(["--checkpoint", checkpoint("smpr"), "--out", str(out), *data]) == 0
    output = capsys.readouterr().out
    assert "pass  poses" in output and "poses in 3 images: at most" in output and f"{out}, " in output
    assert "pass  latency" in output
    assert read_facts(str(out))["method"] == "smpr"
    assert [path.name for path in out.parent.iterdir()] == ["smpr.onnx"]


def test_a_failed_check_leaves_no_file(
    checkpoint: Make,
    no_export: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--checkpoint", checkpoint("smpr"), "--out", str(tmp_path / "smpr.onnx"), "--check.images", "2"]
    assert job.main([*arguments, "--check.pixels", "-1"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("not exported: poses: ") and "px and 0.001]; nothing was written to" in error
    monkeypatch.setattr(Predictor, "predict_images", lambda _, pictures: [poses()] * len(pictures))
    assert job.main(arguments) == 1
    assert "no pose was found, so nothing could be compared" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_job_helps_before_it_imports_torch_and_tells_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (
        "import sys; from posefleet.jobs.export import main\n"
        "try: main(['--help'])\n"
        "finally: assert 'torch' not in sys.modules"
    )
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "--check.pixels" in output and "0.1" in output
    assert job.main(["--checkpoint", str(tmp_path), "--out", str(tmp_path / "a.onnx")]) == 2
    assert "no checkpoint in" in capsys.readouterr().err
