"""Bundles that a stranger made: each is refused with one sentence, and nothing appears outside the temporary folder."""

import hashlib
import json
import pickle
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from small_settings import untrained_checkpoint

from posefleet.data.schemas.shipped import COCO17
from posefleet.jobs import verify
from posefleet.platform.bundles.layout import COUNTS
from posefleet.platform.bundles.verify import verify_bundle

Member = tuple[tarfile.TarInfo, bytes]

PERSON = {"id": 1, "image_id": 7, "category_id": 1, "keypoints": [8.0, 8.0, 2] * 17, "num_keypoints": 17}
CONTENT: dict[str, Any] = {
    "experiment.json": {"method": "smpr", "data": {}, "evaluate": {"max_detections": 20}},
    "schema.json": COCO17.as_dict(),
    "data.json": {"name": "val", "fingerprint": "f" * 64},
    "environment.json": {"posefleet": "0.1.0", "packages": {}},
    "run.json": {"method": "smpr", "step": 6, "weights_sha256": "0" * 64},
    "metrics.json": {
        "evaluation": {"AP": 1.0},
        "counts": dict.fromkeys(COUNTS, 1) | {"images_without_people": 0, "ignored_people": 0, "max_detections": 20},
        "record": {},
        "score_rule": "any",
    },
    "predictions.json": [{"image_id": 7, "category_id": 1, "keypoints": [8.0, 8.0, 0.5] * 17, "score": 0.5}],
    "truth.json": {
        "images": [{"id": 7, "width": 32, "height": 32}],
        "annotations": [{**PERSON, "bbox": [0, 0, 16, 16], "area": 99.5, "iscrowd": 0}],
    },
}


def entry(name: str, data: bytes = b"x", **fields: Any) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def manifest_of(files: Mapping[str, bytes], **changes: Any) -> bytes:
    records = {name: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for name, d in files.items()}
    return json.dumps({"format": "posefleet-bundle", "version": 1, "members": records, **changes}).encode()


def tar_of(*members: Member) -> bytes:
    """Written by hand, as tarfile would refuse some of it."""
    blocks = b"".join(i.tobuf(tarfile.GNU_FORMAT) + d + b"\0" * (-len(d) % 512) for i, d in members)
    return blocks + b"\0" * 1024


def bundle(
    content: Mapping[str, Any] | None = None, *more: Member, leave_out: str = "", manifest: bytes | None = None
) -> bytes:
    """A bundle of ``CONTENT`` with some of it replaced: values become JSON, bytes stay as they are."""
    every = {**CONTENT, **(content or {})}
    files = {n: c if isinstance(c, bytes) else json.dumps(c).encode() for n, c in every.items() if n != leave_out}
    listed = manifest_of(files) if manifest is None else manifest
    return tar_of(entry("manifest.json", listed), *(entry(name, data) for name, data in files.items()), *more)


def with_value(name: str, place: tuple[str | int, ...], value: Any) -> bytes:
    """The bundle with one value of a member replaced."""
    content = json.loads(json.dumps(CONTENT[name]))
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return bundle({name: content})


class Planted:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        return exec, ("import pathlib; pathlib.Path('planted').touch()",)


FILES = {name: json.dumps(content).encode() for name, content in CONTENT.items()}

HOSTILE: dict[str, tuple[bytes, str]] = {
    "no tar": (b"x" * 2000, "plain files only"),
    "a pickle": (pickle.dumps(Planted()), "plain files only"),
    "a name with ..": (bundle(None, entry("../evil")), "'../evil': the name leads out"),
    "an absolute name": (bundle(None, entry("/tmp/evil")), "'/tmp/evil': the name leads out"),
    "a symbolic link": (
        bundle(None, entry("truth.json", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"), leave_out="truth.json"),
        "'truth.json': is a symbolic link",
    ),
    "a hard link": (bundle(None, entry("x", b"", type=tarfile.LNKTYPE, linkname="y")), "'x': is a hard link"),
    "a device": (bundle(None, entry("x", b"", type=tarfile.CHRTYPE)), "'x': is a device"),
    "a member twice": (bundle(None, entry("run.json")), "'run.json': comes twice"),
    "terabytes": (bundle(None, entry("model.safetensors", b"x", size=3 << 40)), "announces 3,298,534,883,328 bytes"),
    "more than there is": (bundle(None, entry("truth2.json", b"x", size=1 << 29)), "and the tar has"),
    "a huge manifest": (bundle(manifest=b" " * (1 << 22) + b"{}"), "manifest.json has 4,194,306 bytes"),
    "huge settings": (bundle({"experiment.json": b" " * (1 << 23)}), "experiment.json has 8,388,608 bytes"),
    "an additional member": (bundle(None, entry("setup.py")), "'setup.py' does not belong to a bundle"),
    "an additional member in the manifest": (bundle({"x.pkl": b"x"}), "'x.pkl' does not belong to a bundle"),
    "a sample of another name": (bundle({"samples/a.jpg": b"x"}), "'samples/a.jpg' does not belong"),
    "an unlisted sample": (bundle(None, entry("samples/7.jpg")), "'samples/7.jpg' does not belong to a bundle, or"),
    "no manifest": (tar_of(*(entry(name, data) for name, data in FILES.items())), "it has no manifest.json"),
    "a missing member": (bundle(leave_out="predictions.json"), "no member 'predictions.json'"),
    "a missing member of the manifest": (
        bundle(leave_out="truth.json", manifest=manifest_of(FILES)),
        "no member 'truth.json'",
    ),
    "another format": (bundle(manifest=manifest_of(FILES, format="zip")), "has the format 'zip'"),
    "another version": (bundle(manifest=manifest_of(FILES, version=2)), "of version 2, this code reads 1"),
    "a true version": (bundle(manifest=manifest_of(FILES, version=True)), "of version True, this code reads 1"),
    "members that are a list": (bundle(manifest=manifest_of(FILES, members=[])), "manifest.json is damaged"),
    "a size as text": (
        bundle(manifest=manifest_of(FILES, members={"run.json": {"bytes": "1", "sha256": "0"}})),
        "manifest.json is damaged",
    ),
    "damaged JSON": (bundle({"metrics.json": b'{"evaluation": '}), "metrics.json is damaged JSON"),
    "JSON that is nested without end": (bundle({"run.json": b"[" * 200_000}), "run.json is damaged JSON"),
    "a key that comes twice": (bundle({"run.json": b'{"step": 1, "step": 2}'}), "a key comes twice"),
    "a list in place of an object": (bundle({"data.json": []}), "data.json: expected a JSON object, found a list"),
    "a number that is not finite": (bundle({"run.json": b'{"step": Infinity}'}), "Infinity is no JSON"),
    "a number of thousands of digits": (bundle({"run.json": b'{"step": 1%s}' % (b"0" * 5000)}), "damaged JSON"),
    "a large number": (with_value("metrics.json", ("evaluation", "AP"), 10**300), "expected a number or null"),
    "a metric as text": (with_value("metrics.json", ("evaluation", "AP"), "0.9"), "'AP' is '0.9', expected a number"),
    "a metric that is true": (with_value("metrics.json", ("record",), {"AP": True}), "'AP' is True, expected a number"),
    "no AP": (with_value("metrics.json", ("evaluation",), {}), "evaluation has no AP"),
    "a count as text": (with_value("metrics.json", ("counts", "people"), "1"), "expected the integers images"),
    "detections without bound": (
        with_value("experiment.json", ("evaluate", "max_detections"), 10**9),
        "max_detections is 1000000000, expected 1 to 10,000",
    ),
    "a step as text": (with_value("run.json", ("step",), "6"), "step is '6', expected int"),
    "a schema without keypoints": (with_value("schema.json", ("keypoints",), []), "keypoints"),
    "control characters": (with_value("schema.json", ("keypoints", 0), "\x1b[2J"), "keypoint"),
    "a sigma of 0": (with_value("schema.json", ("sigmas", 0), 0), "sigma"),
    "a coordinate as text": (with_value("predictions.json", (0, "keypoints", 0), "8"), "51 numbers in keypoints"),
    "too few coordinates": (with_value("predictions.json", (0, "keypoints"), [1.0]), "51 numbers in keypoints"),
    "a score as text": (with_value("predictions.json", (0, "score"), "1"), "the score is not finite, or is no number"),
    "a coordinate that is not finite": (with_value("predictions.json", (0, "keypoints", 0), 1e999), "not finite"),
    "an unknown image": (with_value("predictions.json", (0, "image_id"), 8), "poses in image 8, which has no truth"),
    "an image id as text": (with_value("predictions.json", (0, "image_id"), "7"), "expected an integer image_id"),
    "a pose that is a list": (bundle({"predictions.json": [[]]}), "expected an object with image_id"),
    "an object of poses": (bundle({"predictions.json": {}}), "predictions.json: expected a json list"),
    "boxes as text": (
        bundle({"boxes.json": [{"image_id": 7, "bbox": ["0", 0, 1, 1], "score": 1}]}),
        "boxes.json: result 1: expected an integer image_id and 4 numbers in bbox",
    ),
    "people without an image": (
        with_value("truth.json", ("annotations", 0, "image_id"), 8),
        "people of image 8, which is not among the images",
    ),
    "an image twice": (with_value("truth.json", ("images",), [CONTENT["truth.json"]["images"][0]] * 2), "comes twice"),
    "a size that is no number": (with_value("truth.json", ("images", 0, "width"), None), "image 7: width and height"),
    "an area as text": (with_value("truth.json", ("annotations", 0, "area"), "1"), "annotation 1: area"),
    "an annotation that is a text": (
        with_value("truth.json", ("annotations", 0), "x"),
        "id is None, expected an integer",
    ),
    "an image that is a text": (with_value("truth.json", ("images", 0), "x"), "id is None, expected an integer"),
    "no lists of annotations": (bundle({"truth.json": {"images": []}}), "no lists 'images' and 'annotations'"),
}


def refusal(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert verify.main([str(path)]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("error: ") and output.err.count("\n") == 1, output.err
    assert "\x1b" not in output.err
    return output.err


def test_the_bundle_that_they_all_differ_from_is_read(tmp_path: Path) -> None:
    path = tmp_path / "b.tar"
    path.write_bytes(bundle())
    report = verify_bundle(str(path))
    assert [check.outcome for check in report.checks] == ["equal", "equal", *["not checked"] * 4], report


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_bundle_is_refused(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, message = HOSTILE[kind]
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "b.tar"
    path.write_bytes(data)
    assert message in refusal(path, capsys)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["b.tar", "temporary"]
    assert not [file for file in (tmp_path / "temporary").rglob("*") if "posefleet" not in file.parts[-1]]


def test_a_bundle_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "b.tar: no such file" in refusal(tmp_path / "b.tar", capsys)


@pytest.mark.parametrize(
    ("weights", "settings", "message"),
    [
        (pickle.dumps(Planted()), {}, "no file of safetensors"),
        (b"", {"model": {"head": {"channels": "many"}}}, "head.channels"),
        (b"", {"models": {}}, "unknown key 'models'"),
        (b"", {"method": "os"}, "os"),
        (b"", {"data": []}, "expected the sections data and evaluate"),
        (b"", {"data": {"resize": {"short_side": 10**6, "long_side": 10**6}}}, "images of 1000000 px; 4096 are"),
        (b"", {"evaluate": {"max_detections": 20, "scales": [10**6]}}, "images of 1000000 px; 4096 are"),
    ],
)
def test_hostile_weights_and_settings_are_refused(
    weights: bytes,
    settings: Mapping[str, Any],
    message: str,
    people_shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "b.tar"
    experiment = {**CONTENT["experiment.json"], **settings}
    path.write_bytes(bundle({"experiment.json": experiment, "model.safetensors": weights}))
    assert verify.main([str(path), "--data", str(people_shards / "val2017"), "--images", "1"]) == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1 and str(tmp_path) not in output.err
    assert not (tmp_path / "planted").exists()


def test_annotations_of_none_of_the_images_are_no_match(
    people_shards: Path, small_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights are those of a model, and the annotations are of an image that the data does not have."""
    checkpoint = Path(untrained_checkpoint(small_run, tmp_path))
    experiment = json.loads((checkpoint / "meta.json").read_text())["experiment"]
    del experiment["schema"]
    truth, poses = (json.loads(json.dumps(CONTENT[name])) for name in ("truth.json", "predictions.json"))
    truth["images"][0]["id"] = truth["annotations"][0]["image_id"] = poses[0]["image_id"] = 1 << 40
    path = tmp_path / "b.tar"
    weights = (checkpoint / "model.safetensors").read_bytes()
    content = {"experiment.json": experiment, "truth.json": truth, "predictions.json": poses}
    path.write_bytes(bundle({**content, "model.safetensors": weights}))
    assert verify.main([str(path), "--data", str(people_shards / "val2017"), "--images", "1"]) == 1
    assert "no image of the data is in the bundle" in capsys.readouterr().out


def test_control_characters_of_a_stranger_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "b.tar"
    evaluation = {"AP": 1.0, "\x1b[2J": 1.0}
    path.write_bytes(with_value("metrics.json", ("evaluation",), evaluation))
    assert verify.main([str(path)]) == 1
    output = capsys.readouterr().out
    assert "?[2J claimed 1, and there is no such number" in output and "\x1b" not in output
