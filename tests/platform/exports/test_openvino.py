"""OpenVINO files: the same poses as PyTorch, and files that say what they are."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_models import build, images, saved

from posefleet.jobs import export as job
from posefleet.models import available_methods
from posefleet.platform.checkpoints.format import CheckpointError, read_content
from posefleet.platform.exports import backends
from posefleet.platform.exports.backends import export_network, open_model, read_facts, read_files, write_exported
from posefleet.platform.exports.openvino import OpenVinoNetwork
from posefleet.platform.inference.agreement import Agreement
from posefleet.platform.inference.predictor import Predictor

PIXELS, SCORES = 0.01, 1e-4
CHEAP = "detposenet"
METHODS = [pytest.param(name, marks=() if name == CHEAP else pytest.mark.slow) for name in available_methods()]
"""An export of the others takes 20 to 60 CPU seconds."""
Make = Callable[[str], str]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Make:
    return functools.cache(lambda method: saved(method, tmp_path_factory.mktemp(method)))


@pytest.fixture(scope="module")
def exported(checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Path of the OpenVINO file of a method."""

    @functools.cache
    def make(method: str) -> str:
        path = str(tmp_path_factory.mktemp("openvino") / f"{method}.xml")
        write_exported(path, export_network(checkpoint(method), "openvino"))
        return path

    return make


@pytest.mark.parametrize("method", METHODS)
def test_openvino_finds_the_same_poses_in_batches_and_sizes_it_was_not_exported_with(
    method: str, exported: Make
) -> None:
    ours, theirs = build(method).eval(), open_model(exported(method))[0]
    assert isinstance(theirs.forward_features, OpenVinoNetwork)
    for batch in (images(1), images(2), images(1, 160, 64)):
        with torch.inference_mode():
            agreement = Agreement.of(ours.predict(batch), theirs.predict(batch))
        assert agreement.poses > 0
        assert agreement.within(PIXELS, SCORES), f"{tuple(batch.shape)}: {agreement}"


def test_a_file_says_what_it_is_and_runs_without_posefleet(exported: Make, checkpoint: Make) -> None:
    openvino = pytest.importorskip("openvino")
    facts, content = read_facts(exported(CHEAP)), read_content(checkpoint(CHEAP))
    assert facts["method"] == CHEAP and facts["step"] == "6" and facts["precision"] == "float32"
    assert facts["checkpoint"] == content["files"]["model.safetensors"]["sha256"]
    network = openvino.Core().read_model(exported(CHEAP))
    assert [port.get_any_name() for port in network.inputs] == ["images"]
    assert "heat.0" in [port.get_any_name() for port in network.outputs]
    assert "openvino_telemetry" not in sys.modules


def test_damaged_files_are_told(exported: Make, tmp_path: Path) -> None:
    files, path = read_files(exported(CHEAP)), str(tmp_path / "model.xml")
    whole, graph = files[".bin"], files[".xml"]
    for changed, complaint in (
        ({".bin": whole[:-1] + bytes([whole[-1] ^ 1])}, "its weights are not those that were written beside it"),
        ({".bin": whole[:100]}, "is damaged"),
        ({".xml": graph[:1000]}, "is damaged, or no file of OpenVINO"),
        (
            {".xml": graph.replace(b"posefleet>", b"stranger>")},
            "format 1 by",
        ),
    ):
        write_exported(path, {**files, **changed})
        with pytest.raises(CheckpointError, match=complaint):
            read_facts(path)
    Path(path).with_suffix(".bin").unlink()
    with pytest.raises(CheckpointError, match=r"model\.xml cannot be read"):
        read_facts(path)


def test_the_job_writes_both_files_and_a_checkpoint_is_exported_once(
    exported: Make,
    checkpoint: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = read_files(exported(CHEAP))
    monkeypatch.setattr(backends, "export_openvino", lambda *_, **__: files)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "small.xml"
    arguments = ["--checkpoint", checkpoint(CHEAP), "--out", str(out), "--check.images", "2"]
    assert job.main([*arguments, "--check.slower", "0.0001"]) == 1
    assert "not exported: latency: " in capsys.readouterr().err and not out.exists()
    assert job.main(arguments) == 0
    assert "float32 for openvino against PyTorch" in capsys.readouterr().out
    assert read_files(str(out)) == files
    picture = images(1)[0].permute(1, 2, 0).numpy()
    found = [
        Predictor.from_checkpoint(path, device="cpu", backend=backend).predict_images([picture])
        for path, backend in ((str(out), None), (checkpoint(CHEAP), "openvino"), (checkpoint(CHEAP), None))
    ]
    assert Agreement.of(found[0], found[1]).within(0, 0) and Agreement.of(found[0], found[2]).within(PIXELS, SCORES)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ValueError, match=r"OpenVINO needs openvino: pip install 'posefleet\[openvino\]'"):
        read_facts(str(out))
