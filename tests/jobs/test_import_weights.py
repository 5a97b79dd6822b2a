"""The job: it imports files in the authors' formats, and refuses others with a sentence that says why."""

import json
import pickle
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from published import hollow, inspose_weights, recorded_keys, save_mmdet
from safetensors.torch import load_file
from torch import Tensor

from posefleet.jobs.import_weights import main
from posefleet.models import available_methods, load_method, load_released
from posefleet.platform.checkpoints.format import read_meta, verify
from posefleet.platform.tracking.registry import find_model, find_version

Change = Callable[[dict[str, Tensor]], object]

METHODS = [method for method in available_methods() if load_released(method)]
PUBLISHED = ["inspose", "logocap", "smpr"]


def save(path: Path, method: str, change: Change = lambda weights: None) -> Path:
    """A file with the names and shapes that the authors of ``method`` published, all zero, after ``change``."""
    weights = hollow(recorded_keys(method))
    change(weights)
    if method == "logocap":
        torch.save(weights, path)
        return path
    return save_mmdet(path, weights)


def deeper(weights: dict[str, Tensor], blocks: tuple[int, int] = (8, 36)) -> None:
    """Turn a ResNet-50 into one with more blocks in its second and third stage; by default into a ResNet-152."""
    for name, value in list(weights.items()):
        for last, count in (("layer2.3.", blocks[0]), ("layer3.5.", blocks[1])):
            if name.startswith(f"backbone.{last}"):
                more = range(int(last[-2]) + 1, count)
                weights |= {name.replace(last, f"{last[:-2]}{i}."): value for i in more}


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which the job refuses its arguments."""
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("error: ") and output.err.count("\n") == 1
    return output.err


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ------------------------------------------------------------------------------------------------ what is written


@pytest.mark.parametrize("method", METHODS)
def test_every_method_imports_a_file_as_its_authors_save_it(
    method: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = save(folder / "authors.pth", method)
    assert main(["--method", method, "--weights", str(file), "--out", "out"]) == 0
    output = capsys.readouterr().out
    module = load_released(method)
    assert module is not None and module.LICENCE in output and f"--checkpoint {folder / 'out'} " in output
    verify(str(folder / "out"))
    meta = read_meta(str(folder / "out"))
    preset = load_method(method).Config.released()
    assert meta.experiment.method == method and meta.experiment.train.precision == "float32"
    assert meta.experiment.model.decode == preset.decode and not meta.experiment.model.backbone.pretrained
    origin = meta.provenance
    assert len(origin["sha256"]) == 64 and origin["file"] == "authors.pth" and origin["source"] == module.SOURCE
    card = (folder / "out" / "model_card.md").read_text()
    assert all(origin[name] in card for name in ("sha256", "file", "source", "licence", "reported", "imported"))


def test_the_weights_in_the_checkpoint_are_the_authors(folder: Path) -> None:
    weights = inspose_weights()
    file = save_mmdet(folder / "r50.pth", {f"module.{name}": value for name, value in weights.items()})
    assert main(["--method", "inspose", "--weights", str(file), "--out", str(folder / "out")]) == 0
    stored = load_file(folder / "out" / "model.safetensors")
    assert torch.equal(stored["head.controller.weight"], weights["bbox_head.controller.weight"])
    assert torch.equal(stored["backbone.body.layer4.2.bn3.running_var"], weights["backbone.layer4.2.bn3.running_var"])


def test_it_can_be_run_again_but_overwrites_no_other_checkpoint(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--method", "inspose", "--weights", "a.pth", "--out", "out"]
    save(folder / "a.pth", "inspose")
    assert main(arguments) == main(arguments) == 0
    capsys.readouterr()
    save(folder / "a.pth", "inspose", lambda weights: weights.update({"neck.fpn_convs.0.conv.bias": torch.ones(256)}))
    assert "already holds another checkpoint" in refusal(capsys, *arguments)


def test_the_backbone_is_found_by_its_weights(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(folder / "a.pth", "inspose", lambda weights: deeper(weights, (4, 23)))
    assert main(["--method", "inspose", "--weights", "a.pth", "--out", "out"]) == 0
    assert "the authors report no AP for resnet101" in capsys.readouterr().out
    assert read_meta(str(folder / "out")).experiment.model.backbone.name == "resnet101"


def test_decoding_can_be_chosen(folder: Path) -> None:
    save(folder / "a.pth", "inspose")
    chosen = ["--model.decode.score_floor", "0.2", "--evaluate.flip", "true"]
    assert main(["--method", "inspose", "--weights", "a.pth", "--out", "out", *chosen]) == 0
    experiment = read_meta(str(folder / "out")).experiment
    assert experiment.model.decode.score_floor == 0.2 and experiment.evaluate.flip


def test_half_precision_and_the_old_format_of_torch_are_read(folder: Path) -> None:
    weights = {
        name: value.half() if value.is_floating_point() else value
        for name, value in hollow(recorded_keys("inspose")).items()
    }
    torch.save({"state_dict": weights}, folder / "old.pth", _use_new_zipfile_serialization=False)
    assert main(["--method", "inspose", "--weights", "old.pth", "--out", "out"]) == 0
    stored = load_file(folder / "out" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float32, torch.int64}


def test_it_becomes_a_version_of_a_registered_model(
    folder: Path, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(folder / "a.pth", "inspose")
    assert main(["--method", "inspose", "--weights", "a.pth", "--register", "people", "--tracking", store]) == 0
    assert "models:/people@released: inspose resnet50" in capsys.readouterr().out
    version = find_version("models:/people@released", store)
    assert version.number == "1" and version.tags["gate"] == "not measured"
    path = find_model("models:/people@released", store)
    verify(path)
    assert version.tags["sha256"] == read_meta(path).provenance["sha256"]
    assert "Apache License 2.0" in Path(path, "model_card.md").read_text()


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(("method", "other"), [pair for pair in product(METHODS, PUBLISHED) if pair[0] != pair[1]])
def test_weights_of_another_method(method: str, other: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = save(folder / "other.pth", other)
    error = refusal(capsys, "--method", method, "--weights", str(file), "--out", "out")
    if other in METHODS:
        assert f"holds weights of {other}, not of {method}; give --method {other}" in error
    assert f"of {method}" in error and "other.pth" in error and not (folder / "out").exists()


def test_a_method_without_published_weights(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(folder / "a.pth", "inspose")
    error = refusal(capsys, "--method", "detposenet", "--weights", "a.pth", "--out", "out")
    assert "no published weights of 'detposenet'" in error and "inspose" in error
    assert "unknown method 'insp'" in refusal(capsys, "--method", "insp", "--weights", "a.pth", "--out", "out")


@pytest.mark.parametrize(
    ("change", "arguments", "messages"),
    [
        (lambda w: w.pop("neck.fpn_convs.0.conv.bias"), [], ["1 missing: neck.output.0.bias"]),
        (lambda w: w.pop("backbone.bn1.weight"), [], ["weights of resnet50: 1 missing: bn1.weight"]),
        (
            lambda w: w.update({"bbox_head.extra": torch.zeros(1), "neck.other": torch.zeros(1)}),
            [],
            ["2 not expected: bbox_head.extra, neck.other"],
        ),
        (
            lambda w: w.update({"bbox_head.conv_cls.bias": torch.zeros(2)}),
            [],
            ["head.cls.bias is (2,), expected (1,)"],
        ),
        (deeper, [], ["the backbone is resnet152", "resnet50, resnet101"]),
        (
            lambda w: w.update({"bbox_head.controller.weight": torch.zeros(()).expand(241, 512, 3, 3)}),
            [],
            ["241 outputs", "17 keypoints has 313"],
        ),
        (
            lambda w: w.update(
                {
                    "bbox_head.kpt_offset.weight": torch.zeros(()).expand(28, 512, 3, 3),
                    "bbox_head.controller.weight": torch.zeros(()).expand(286, 512, 3, 3),
                }
            ),
            [],
            ["predicts 14 keypoints, but schema coco17 has 17"],
        ),
        (lambda w: None, ["--schema", "crowdpose14"], ["predicts 17 keypoints, but schema crowdpose14 has 14"]),
        (
            lambda w: None,
            ["--model.backbone.name", "resnet101"],
            ["model.backbone.name is 'resnet101', but the weights of a.pth have 'resnet50'"],
        ),
        (lambda w: None, ["--model.head.tags", "false"], ["model.head.tags is False", "have True"]),
        (lambda w: w.update({"bbox_head.conv_cls.bias": torch.tensor([torch.nan])}), [], ["not finite, in head.cls.b"]),
        (lambda w: w.update({"bbox_head.note": "x"}), [], ["holds no state dict, but bbox_head.note (str)"]),
    ],
    ids=[
        "missing in the neck",
        "missing in the backbone",
        "left over",
        "shape",
        "depth of the backbone",
        "depth of KP-Net",
        "keypoints",
        "schema",
        "backbone",
        "network",
        "not a number",
        "no tensor",
    ],
)
def test_what_does_not_fit_is_named(
    change: Change, arguments: list[str], messages: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(folder / "a.pth", "inspose", change)
    error = refusal(capsys, "--method", "inspose", "--weights", "a.pth", "--out", "out", *arguments)
    assert "a.pth" in error and all(message in error for message in messages), error
    assert not (folder / "out").exists()


def test_a_huge_tensor_in_a_small_file_is_refused_by_its_shape(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("bbox_head.hm_pred.weight", "backbone.layer2.0.conv1.weight"):
        save(folder / "a.pth", "inspose", lambda w, name=name: w.update({name: torch.zeros(()).expand(10**6, 10**6)}))
        error = refusal(capsys, "--method", "inspose", "--weights", "a.pth", "--out", "out")
        assert "is (1000000, 1000000), expected" in error


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (Path("was-here"), "code ran")


def test_damaged_truncated_foreign_and_hostile_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = save(folder / "whole.pth", "inspose").read_bytes()
    old = folder / "old.pth"
    torch.save({"state_dict": hollow(recorded_keys("inspose"))}, old, _use_new_zipfile_serialization=False)
    old_bytes, middle = old.read_bytes(), len(whole) // 2
    save_mmdet(folder / "hostile.pth", hollow(recorded_keys("inspose")), hook=Hostile())
    files = {
        "empty.pth": b"",
        "text.pth": b"<html>Google Drive - Quota exceeded</html>",
        "truncated.pth": whole[:middle],
        "old_truncated.pth": old_bytes[: len(old_bytes) // 2],
        "flipped.pth": old_bytes[:300] + bytes(byte ^ 255 for byte in old_bytes[300:340]) + old_bytes[340:],
        "pickle.pth": pickle.dumps(Hostile()),
        "list.pth": None,
        "nothing.pth": None,
        "notes.pth": None,
    }
    for name, content in files.items():
        if content is not None:
            (folder / name).write_bytes(content)
    torch.save([torch.zeros(1)], folder / "list.pth")
    torch.save({"state_dict": {}}, folder / "nothing.pth")
    torch.save({"epoch": 3, "notes": "x"}, folder / "notes.pth")
    for name in [*files, "hostile.pth", "absent.pth"]:
        error = refusal(capsys, "--method", "inspose", "--weights", name, "--out", "out")
        assert name in error, error
    assert not (folder / "was-here").exists() and not (folder / "out").exists()


def test_arguments(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--out", "a", "--register", "b"]):
        with pytest.raises(SystemExit) as end:
            main(["--method", "inspose", "--weights", "a.pth", *arguments])
        assert end.value.code == 2 and "give one of --out, --register" in capsys.readouterr().err
    save(folder / "a.pth", "inspose")
    error = refusal(capsys, "--method", "inspose", "--weights", "a.pth", "--register", "a/b")
    assert "model name 'a/b'" in error


def test_the_meta_file_says_where_the_weights_come_from(folder: Path) -> None:
    save(folder / "a.pth", "inspose")
    assert main(["--method", "inspose", "--weights", "a.pth", "--out", "out"]) == 0
    content = json.loads((folder / "out" / "meta.json").read_text())
    assert content["metrics"] == {} and content["step"] == 0
    assert content["provenance"]["reported"].startswith("AP 65.2") and "opera" in content["provenance"]["source"]
