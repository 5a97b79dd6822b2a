"""The commands bundle and verify: what one packs the other finds equal, and each change is found and named."""

import getpass
import io
import json
import math
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from small_settings import small_settings, untrained_checkpoint, with_settings

from posefleet.data.evaluation.evaluate import evaluate as score
from posefleet.jobs import bundle, cli, verify
from posefleet.platform.bundles.layout import BOXES, COUNTS, METRICS, PREDICTIONS, SCHEMA, TRUTH
from posefleet.platform.bundles.read import read_bundle
from posefleet.platform.bundles.write import _pack
from posefleet.platform.checkpoints.format import WEIGHTS, read_meta
from posefleet.platform.checkpoints.load import load_model
from posefleet.platform.inference.evaluate import evaluate
from posefleet.platform.runtime.worker import LocalWorker

Files = dict[str, bytes]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "bundles.md"


@pytest.fixture(scope="module")
def run(people_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run whose only checkpoint has recorded its evaluation."""
    folder = tmp_path_factory.mktemp("home") / "jane.doe" / "small"
    settings = small_settings(people_shards, folder.parent)
    record(untrained_checkpoint(with_settings(settings, data={"eval_batch_size": 3}), folder, sure=True))
    return folder


def record(checkpoint: str) -> None:
    """Write into a checkpoint what a training would have: the numbers of an evaluation."""
    model, experiment = load_model(checkpoint)
    result = evaluate(model, experiment, LocalWorker())
    assert result is not None
    file = Path(checkpoint, "meta.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "metrics": result.as_dict()}))


@pytest.fixture(scope="module")
def packed(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of ``run``."""
    out = tmp_path_factory.mktemp("packed") / "small.tar"
    assert bundle.main([str(run), "--out", str(out), "--sample", "2"]) == 0
    return out


def files_in(path: Path) -> Files:
    with tarfile.open(path) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]


def write(path: Path, files: Mapping[str, bytes]) -> Path:
    """A tar with these members as they are."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def sealed(path: Path, files: Mapping[str, bytes]) -> Path:
    """A bundle of these members whose digests are right, as somebody would write who wants to deceive."""
    folder = path.with_suffix("")
    (folder / "samples").mkdir(parents=True)
    for name, data in files.items():
        if name != "manifest.json":
            (folder / name).write_bytes(data)
    _pack(folder, str(path))
    return path


def changed(files: Files, name: str, change: Callable[[Any], object]) -> Files:
    content = json.loads(files[name])
    change(content)
    return {**files, name: json.dumps(content).encode()}


class Checked:
    """What the command found: its status, and the outcome and text of each check."""

    def __init__(self, path: Path, *options: object) -> None:
        file = path.with_name(f"{path.name}.report.json")
        self.status = verify.main([str(path), "--json", str(file), *map(str, options)])
        checks = json.loads(file.read_text())["checks"]
        self.outcome = {check["name"]: check["outcome"] for check in checks}
        self.what = {check["name"]: check["what"] for check in checks}
        self.differs = [name for name, outcome in self.outcome.items() if outcome == "differs"]
        self.open = [name for name, outcome in self.outcome.items() if outcome == "not checked"]


def refusal(capsys: pytest.CaptureFixture[str], main: Callable[[list[str]], int], *arguments: object) -> str:
    """The one line with which a command refuses its arguments."""
    assert main([str(argument) for argument in arguments]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("error: ") and output.err.count("\n") == 1, output.err
    return output.err


# ------------------------------------------------------------------------------------------------------- equal


def test_a_bundle_is_equal_alone_and_on_its_data(
    packed: Path, people_shards: Path, people_coco: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = Checked(packed)
    assert alone.status == 0 and alone.open == ["data", "annotations", "predictions"]
    assert capsys.readouterr().out.splitlines()[-1] == "equal; not checked: data, annotations, predictions"
    assert "numbers that the run recorded at step 6" in alone.what["run's record"]
    on_shards = Checked(packed, "--data", people_shards / "val2017")
    assert on_shards.status == 0 and on_shards.open == [] and len(on_shards.outcome) == 7
    assert "35 poses in 7 images predicted again, 0 of them apart" in on_shards.what["predictions"]
    on_files = Checked(packed, "--data", f"{people_coco}@val2017", "--images", 2)
    assert on_files.status == 0 and "10 poses in 2 images" in on_files.what["predictions"]


def test_equal_runs_give_equal_bytes_and_the_members_are_those_of_the_page(
    run: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert bundle.main([str(run), "--sample", "2"]) == 0
    assert "as the run recorded" in capsys.readouterr().out
    assert (tmp_path / "small.bundle.tar").read_bytes() == packed.read_bytes()
    with tarfile.open(packed) as tar:
        assert all(entry.mtime == entry.uid == entry.gid == 0 and entry.isreg() for entry in tar)
    names = list(files_in(packed))
    assert names[0] == "manifest.json" and sum(name.startswith("samples/") for name in names) == 2
    page = PAGE.read_text()
    assert [name for name in (*names, BOXES) if not name.startswith("samples") and f"`{name}`" not in page] == []


def test_the_commands_of_the_page_work(
    run: Path, people_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "smpr-r50").symlink_to(run)
    commands = re.findall(r"^    posefleet (.*)$", PAGE.read_text(), re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["bundle", "verify", "verify"]
    for command in commands:
        assert cli.main(command.replace("/data/shards", str(people_shards)).split()) == 0, capsys.readouterr()


def test_a_bundle_has_every_number_and_no_places_or_names(run: Path, packed: Path) -> None:
    files = files_in(packed)
    numbers = json.loads(files[METRICS])
    recorded = read_meta(str(next(run.glob("checkpoints/step-*")))).metrics
    assert numbers["evaluation"].keys() == recorded.keys() and "AP_keypoint/nose" in recorded
    assert numbers["record"] == {name: None if math.isnan(v) else v for name, v in recorded.items()}
    text = b"".join(data for name, data in files.items() if name.endswith(".json")).decode()
    assert not [place for place in ("/home", "/tmp", "jane.doe", str(Path.home())) if place in text]
    assert getpass.getuser() in ("data",) or f"/{getpass.getuser()}/" not in text
    settings = json.loads(files["experiment.json"])
    assert settings["data"]["eval"] == "val2017" and settings["run"]["storage"] == ""


def test_what_is_left_out_is_not_there_and_not_checked(
    run: Path, people_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bare.tar"
    assert bundle.main([str(run), "--out", str(out), "--no-truth", "--no-weights", "--sample", "0"]) == 0
    assert "without annotations, weights, 0 pictures" in capsys.readouterr().out
    assert not {TRUTH, WEIGHTS} & files_in(out).keys() and "samples" not in " ".join(files_in(out))
    assert "holds no annotations to score against; give --data" in refusal(capsys, verify.main, out)
    checked = Checked(out, "--data", people_shards / "val2017")
    assert checked.status == 0 and checked.open == ["annotations", "predictions"]
    assert "holds no weights" in checked.what["predictions"]


# ------------------------------------------------------------------------------------------- the run's own numbers


def test_other_numbers_than_the_run_recorded_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, out = tmp_path / "copy", tmp_path / "b.tar"
    shutil.copytree(run, copy)
    (file,) = copy.glob("checkpoints/step-*/meta.json")
    content = json.loads(file.read_text())
    content["metrics"]["AP"] = 0.75
    file.write_text(json.dumps(content))
    said = refusal(capsys, bundle.main, copy, "--out", out)
    assert "the run claims AP 0.750000, and this evaluation gives AP 0.0" in said and "--allow-different" in said
    assert not out.exists()
    assert bundle.main([str(copy), "--out", str(out), "--allow-different", "--sample", "0"]) == 0
    checked = Checked(out)
    assert (checked.status, checked.differs) == (1, ["run's record"])
    assert checked.what["run's record"].startswith("AP claimed 0.75, found 0 (-0.75) (52 numbers")
    accepted = Checked(out, "--allow-different")
    assert accepted.status == 0 and "AP claimed 0.75" in accepted.what["run's record"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("/nowhere",), "no checkpoint in /nowhere"),
        (("RUN", "--data.eval", ""), "names no data to evaluate on; give --data.eval"),
        (("RUN", "--data.eval", "/nowhere"), "no manifest.json"),
        (("RUN", "--evaluate.detections", "/x.json"), "boxes from a file, which a bundle does not hold"),
        (("RUN", "--sample", "-1"), "--sample -1 must be 0 or more"),
    ],
)
def test_a_run_that_cannot_be_packed(
    options: tuple[str, ...], message: str, run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = [str(run) if option == "RUN" else option for option in options]
    try:
        status = bundle.main([*arguments, "--out", str(tmp_path / "b.tar")])
    except SystemExit as end:
        status = int(end.code or 0)
    assert status == 2 and message in capsys.readouterr().err and not (tmp_path / "b.tar").exists()


# ------------------------------------------------------------------------------------------------------ changes


def raise_nose(content: Any) -> None:
    content["evaluation"]["AP_keypoint/nose"] = (content["evaluation"]["AP_keypoint/nose"] or 0.0) + 0.125


def move_pose(content: Any) -> None:
    content[6]["keypoints"][3] += 2.5


def move_wrist(content: Any) -> None:
    content["annotations"][4]["keypoints"][27] += 3


def test_a_changed_number_is_named(packed: Path, tmp_path: Path) -> None:
    files = changed(files_in(packed), METRICS, raise_nose)
    unsealed = Checked(write(tmp_path / "open.tar", files))
    assert (unsealed.status, unsealed.differs) == (1, ["digests", "numbers"])
    assert unsealed.what["digests"].startswith("metrics.json (")
    assert unsealed.what["numbers"].startswith("AP_keypoint/nose claimed 0.125, found 0 (-0.12) (")
    assert Checked(sealed(tmp_path / "sealed.tar", files)).differs == ["numbers"]


def with_good_poses(files: Files) -> Files:
    """The same with the annotated people as poses, and the numbers that these have."""
    people = json.loads(files[TRUTH])["annotations"]
    poses = [
        {"image_id": person["image_id"], "category_id": 1, "keypoints": person["keypoints"], "score": 0.5}
        for person in people
        if person["num_keypoints"]
    ]
    with tempfile.TemporaryDirectory() as name:
        file = sealed(Path(name, "b.tar"), {**files, PREDICTIONS: json.dumps(poses).encode()})
        bundle = read_bundle(str(file), Path(name))
    assert bundle.truth is not None
    result = score(bundle.truth, bundle.predictions, bundle.schema)
    numbers = json.loads(files[METRICS])
    numbers["evaluation"] = numbers["record"] = {n: None if math.isnan(v) else v for n, v in result.as_dict().items()}
    numbers["counts"] = {name: getattr(result.protocol, name) for name in COUNTS}
    return {**files, PREDICTIONS: json.dumps(poses).encode(), METRICS: json.dumps(numbers).encode()}


def test_numbers_that_a_pose_or_an_annotation_changes_are_named(packed: Path, tmp_path: Path) -> None:
    """Without the data, and with digests that are right."""
    files = with_good_poses(files_in(packed))
    assert Checked(sealed(tmp_path / "good.tar", files)).status == 0
    assert json.loads(files[METRICS])["evaluation"]["AP"] > 0.99

    def move(numbers: list[float]) -> None:
        numbers[::3] = [x + 2.5 for x in numbers[::3]]

    changes: dict[str, Callable[[Any], None]] = {
        PREDICTIONS: lambda content: move(content[6]["keypoints"]),
        TRUTH: lambda content: move(content["annotations"][4]["keypoints"]),
    }
    for name, change in changes.items():
        checked = Checked(sealed(tmp_path / f"{name}.tar", changed(files, name, change)))
        assert (checked.status, checked.differs) == (1, ["numbers", "run's record"]), checked.what
        assert "OKS_keypoint/" in checked.what["numbers"] or "AP_keypoint/" in checked.what["numbers"]


def test_a_number_that_no_evaluation_gives_is_named(packed: Path, tmp_path: Path) -> None:
    files = changed(files_in(packed), METRICS, lambda content: content["evaluation"].update(beauty=1.0))
    checked = Checked(sealed(tmp_path / "b.tar", files))
    assert "beauty claimed 1, and there is no such number" in checked.what["numbers"]


def test_a_changed_pose_is_named(packed: Path, people_shards: Path, tmp_path: Path) -> None:
    files = changed(files_in(packed), PREDICTIONS, move_pose)
    image = json.loads(files[PREDICTIONS])[6]["image_id"]
    unsealed = Checked(write(tmp_path / "open.tar", files))
    assert unsealed.status == 1 and unsealed.what["digests"].startswith("predictions.json (")
    checked = Checked(sealed(tmp_path / "sealed.tar", files), "--data", people_shards / "val2017")
    assert checked.status == 1 and "predictions" in checked.differs and "annotations" not in checked.differs
    assert checked.what["predictions"].startswith(f"image {image}: 1 of 5 poses, ")
    assert "at most 2.5 px" in checked.what["predictions"]
    allowed = Checked(tmp_path / "sealed.tar", "--data", people_shards / "val2017", "--tolerance.share", 0.05)
    assert "predictions" not in allowed.differs and f"image {image}: 1 of 5" in allowed.what["predictions"]


def test_a_changed_annotation_is_named(packed: Path, people_shards: Path, tmp_path: Path) -> None:
    files = changed(files_in(packed), TRUTH, move_wrist)
    person = json.loads(files[TRUTH])["annotations"][4]
    assert Checked(write(tmp_path / "open.tar", files)).what["digests"].startswith("truth.json (")
    checked = Checked(sealed(tmp_path / "sealed.tar", files), "--data", people_shards / "val2017")
    assert checked.status == 1 and "annotations" in checked.differs and "data" not in checked.differs
    said = checked.what["annotations"]
    assert said.startswith(f"image {person['image_id']}, annotation 5: keypoints left_wrist "), said


def test_a_changed_digest_is_named(packed: Path, tmp_path: Path) -> None:
    def spoil(content: Any) -> None:
        content["members"]["environment.json"]["sha256"] = "0" * 64

    checked = Checked(write(tmp_path / "b.tar", changed(files_in(packed), "manifest.json", spoil)))
    assert checked.status == 1 and checked.differs == ["digests"]
    assert checked.what["digests"].startswith("environment.json (")


def test_other_sigmas_are_named(packed: Path, people_shards: Path, tmp_path: Path) -> None:
    """Larger sigmas forgive more, so that the same poses would score higher."""
    files = changed(files_in(packed), SCHEMA, lambda content: content["sigmas"].__setitem__(0, 0.5))
    checked = Checked(sealed(tmp_path / "b.tar", files), "--data", people_shards / "val2017")
    assert "data" in checked.differs and "sigma of nose 0.5, 0.026 in the data" in checked.what["data"]


def test_other_weights_than_the_run_names_are_found(packed: Path, people_shards: Path, tmp_path: Path) -> None:
    from safetensors.torch import load, save

    files = files_in(packed)
    weights = load(files[WEIGHTS])
    weights["head.cls.bias"] += 1
    files[WEIGHTS] = save(weights)
    checked = Checked(sealed(tmp_path / "sealed.tar", files), "--data", people_shards / "val2017", "--images", 1)
    assert checked.status == 1 and "is not the file that the run names" in checked.what["digests"]
    assert "predictions" in checked.differs
    unsealed = Checked(
        write(tmp_path / "open.tar", {**files_in(packed), WEIGHTS: files[WEIGHTS]}), "--data", people_shards / "val2017"
    )
    assert unsealed.open == ["predictions"] and "the weights are damaged" in unsealed.what["predictions"]


def test_an_oracle_shows(run: Path, people_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, options = tmp_path / "oracle.tar", ("--evaluate.oracle_scores", "true", "--allow-different", "--sample", "0")
    assert bundle.main([str(run), "--out", str(out), *options]) == 0
    checked = Checked(out, "--data", people_shards / "val2017", "--allow-different")
    assert checked.status == 0 and "score: ORACLE: true OKS" in capsys.readouterr().out
    files = changed(files_in(out), METRICS, lambda content: content.update(score_rule="cls"))
    forged = Checked(sealed(tmp_path / "forged.tar", files), "--data", people_shards / "val2017", "--allow-different")
    assert forged.differs == ["AP again"] and "score rule 'cls' claimed, found 'ORACLE" in forged.what["AP again"]


def test_other_data_are_found(packed: Path, people_shards: Path) -> None:
    checked = Checked(packed, "--data", people_shards / "train2017", "--images", 1)
    assert checked.status == 1 and checked.differs[:2] == ["data", "annotations"]
    assert "AP again" in checked.outcome
    assert "fingerprint " in checked.what["data"] and "images are in the data alone" in checked.what["annotations"]
