"""The job: what it says, what it registers and how it ends."""

import dataclasses
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from small_settings import small_release, untrained_checkpoint

from posefleet.data.synthetic.dataset import write_dataset
from posefleet.data.synthetic.scenes import SCENES
from posefleet.jobs import evaluate, export, shard_coco, tune
from posefleet.jobs.promote import main
from posefleet.platform.checkpoints.format import read_meta
from posefleet.platform.exports import backends
from posefleet.platform.tracking.registry import CHALLENGER, CHAMPION, find_model, promote

QUICK = ("--gate.latency_people", "1", "--gate.served_images", "1")


@pytest.fixture
def run(small_run: dict[str, Any], tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a run that was tracked in ``store``."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    untrained_checkpoint(small_run, folder)
    (folder / "run.json").write_text(json.dumps({"run_id": "", "tracking_uri": store, "method": "smpr"}))
    return folder


def versions(store: str) -> list[Any]:
    return sorted(MlflowClient(store, store).search_model_versions(), key=lambda version: int(version.version))


def test_a_run_becomes_champion_and_the_next_one_can_be_taken_back(
    run: Path, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--run", str(run), "--to", "champion", *QUICK]) == 0
    output = capsys.readouterr().out
    assert "no champion to compare with" in output and "models:/smpr@champion is version 1\n" in output
    assert f"MLFLOW_TRACKING_URI={store} posefleet evaluate --checkpoint models:/smpr@champion\n" in output
    (first,) = versions(store)
    assert first.tags["gate"] == "passed" and first.tags["split"] == "val2017" and "forced" not in first.tags
    assert first.tags["checkpoint"] == str(run) and first.tags["data.train"] == "d" * 64
    files = Path(find_model("models:/smpr@champion", store)).parent
    assert (files / "gate.txt").read_text().startswith("pass  weights") and (files / "experiment.yaml").exists()
    assert (files / "evaluation" / "step-0000006" / "precision_recall.png").exists()

    assert main(["--run", str(run), "--to", "champion", *QUICK]) == 0
    output = capsys.readouterr().out
    assert "against models:/smpr/1, the champion" in output and "version 2, version 1 is the previous one" in output

    assert main(["--rollback", "--model", "smpr", "--tracking", store]) == 0
    assert capsys.readouterr().out == (
        "models:/smpr@champion is version 1 again, in place of version 2, which is the previous one now\n"
    )


def test_the_note_of_the_run_goes_with_the_version(
    small_run: dict[str, Any], run: Path, store: str, tmp_path: Path
) -> None:
    settings = {**small_run, "run": {**small_run["run"], "note": "Rendered people only."}}
    checkpoint = untrained_checkpoint(settings, tmp_path / "noted")
    assert main(["--run", checkpoint, "--to", "champion", "--tracking", store, *QUICK]) == 0
    (version,) = versions(store)
    assert version.tags["note"] == "Rendered people only." and "**Rendered people only.**" in version.description
    registered = read_meta(find_model("models:/smpr@champion", store))
    assert registered.experiment.run.note == "Rendered people only."


def test_the_gate_refuses_unless_it_is_forced_and_that_leaves_a_trace(
    run: Path, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    promote = ["--run", str(run), "--to", "champion", "--model", "all", *QUICK, "--gate.keypoint_floor", "0.9"]
    assert main(promote) == 1
    output = capsys.readouterr()
    assert "FAIL  keypoints" in output.out and "not promoted: keypoints failed; nothing was registered" in output.err
    assert versions(store) == []
    assert main([*promote, "--force"]) == 0
    (version,) = versions(store)
    assert version.name == "all" and version.tags["gate"] == "failed"
    assert version.tags["forced"].startswith("keypoints failed; forced by ") and " UTC" in version.tags["forced"]
    assert "**Forced**: keypoints failed" in version.description


def test_a_challenger_becomes_champion_with_other_settings(run: Path, store: str) -> None:
    assert main(["--run", str(run), "--to", "challenger", *QUICK]) == 0
    arguments = ["--run", "models:/smpr@challenger", "--to", "champion", "--tracking", store, *QUICK]
    assert main([*arguments, "--model.decode.max_poses", "1"]) == 0
    champion = find_model("models:/smpr@champion", store)
    assert read_meta(champion).experiment.model.decode.max_poses == 1
    aliases = MlflowClient(store, store).get_registered_model("smpr").aliases
    assert {alias: str(number) for alias, number in aliases.items()} == {"challenger": "1", "champion": "2"}


def test_the_best_trained_trial_of_a_search_is_taken(
    run: Path, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = tmp_path / "search"
    search.mkdir()
    trials = [
        {"trial": 0, "settings": {}, "scores": {"AP": 0.9}, "reason": ""},
        {"trial": 1, "settings": {}, "scores": {"AP": 0.5}, "reason": "", "run": str(run)},
        {"trial": 2, "settings": {}, "scores": {"AP": 0.4}, "reason": "", "run": "/nowhere"},
        {"trial": 3, "settings": {}, "scores": {}, "reason": "failed", "run": "/nowhere"},
        {"trial": 4, "settings": {}, "scores": {"AP": 0.9}, "reason": "", "run": "/nowhere", "stopped": 2.0},
    ]
    (search / "trials.json").write_text(json.dumps(trials))
    assert main(["--search", str(search), "--to", "challenger", *QUICK]) == 0
    assert versions(store)[0].tags["checkpoint"] == str(run)
    (search / "trials.json").write_text(json.dumps(trials[:1]))
    assert main(["--search", str(search), "--to", "challenger"]) == 2
    assert "is a search of decoding" in capsys.readouterr().err


def test_evaluation_takes_the_champion(run: Path, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["--run", str(run), "--to", "champion", *QUICK]) == 0
    results, champion = [], "models:/smpr@champion"
    for where, arguments in (("", (str(run),)), (store, (champion,)), ("", (champion, "--tracking", store))):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", where)
        out = tmp_path / "out.json"
        assert evaluate.main(["--out", str(out), "--checkpoint", *arguments]) == 0
        results.append(json.loads(out.read_text()))
    assert results[0] and all(found == results[0] for found in results)


def test_every_command_that_reads_a_model_finds_it_in_a_named_store(
    run: Path, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion = "models:/smpr@champion"
    exported: list[str] = []
    assert main(["--run", str(run), "--to", "champion", "--tracking", store, *QUICK]) == 0
    space = tmp_path / "space.yaml"
    space.write_text("model.decode.max_poses: [1, 2]")
    tuned = ("--samples", "1", "--space", str(space), "--out", str(tmp_path / "tuned"), "--run.tracking", store)
    assert tune.main(["--decode-only", "--checkpoint", champion, *tuned]) == 0

    def only_remember(checkpoint: str, **_: Any) -> None:  # exporting takes 20 seconds of the processor
        exported.append(checkpoint)
        raise ValueError("not exported")

    monkeypatch.setattr(backends, "export_onnx", only_remember)
    assert export.main(["--checkpoint", champion, "--out", "model.onnx", "--tracking", store]) == 2
    assert exported == [find_model(champion, store)]


@pytest.mark.parametrize("sharded", [False, True])
def test_images_with_other_keypoints_are_refused_in_one_sentence(
    sharded: bool, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    animals = tmp_path / "animals"
    scenes = dataclasses.replace(SCENES["easy"], figure="animal", width=(64, 64), height=(64, 64))
    write_dataset(animals, "val2017", 2, scenes, workers=1)
    where = ["--source", str(animals)]
    if sharded:
        assert shard_coco.main([*where, "--split", "val2017", "--out", str(tmp_path / "shards"), "--in-process"]) == 0
        where = ["--data.eval", str(tmp_path / "shards" / "val2017")]
    assert main(["--run", str(run), "--to", "champion", *where, *QUICK]) == 2
    error = capsys.readouterr().err
    assert error.count("left_shoulder") == 1, error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--run", "/nowhere", "--to", "champion"), "no checkpoint in /nowhere"),
        (("--run", "RUN", "--to", "champion", "--data.eval", "/nowhere"), "/nowhere: no manifest.json"),
        (("--run", "RUN", "--to", "champion", "--data.eval", ""), "no images to evaluate on"),
        (("--run", "RUN", "--to", "champion", "--tracking", "http://127.0.0.1:9"), "MLflow at http://127.0.0.1:9: "),
        (("--run", "RUN", "--to", "champion", "--model", "a/b"), "model name 'a/b'"),
        (("--run", "RUN", "--to", "champion", "--evaluate.oracle_scores", "true"), "they cannot be served"),
        (("--run", "models:/smpr@champion", "--to", "champion"), "there is no registry"),
        (("--search", "/nowhere", "--to", "champion"), "/nowhere is not the folder of a search"),
        (("--rollback", "--model", "smpr", "--tracking", "STORE"), "has no model 'smpr'"),
    ],
)
def test_bad_input_is_told_before_anything_is_registered(
    run: Path, store: str, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    places = {"RUN": str(run), "STORE": store}
    assert main([places.get(argument, argument) for argument in arguments]) == 2
    output = capsys.readouterr().err
    assert message in output and output.startswith("error: ")
    assert versions(store) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rollback",), "--rollback needs --model NAME"),
        (("--rollback", "--model", "a", "--run.name", "b"), "--rollback takes no settings such as --run.name"),
        (("--run", "a"), "--to is missing"),
        (("--run", "a", "--to", "best"), "--to best: Input should be 'champion' or 'challenger'"),
        (("--run", "a", "--rollback"), "not --run and --rollback"),
        ((), "give one of --run, --search, --from-shadow, --rollback"),
        (("--run", "a", "--to", "champion", "--gate.served_images", "0"), "must be at least 1"),
        (("--from-shadow", "http://a"), "--from-shadow needs --model NAME"),
        (("--from-shadow", "http://a", "--model", "a", "--to", "challenger"), "leave --to out"),
        (("--from-shadow", "http://a", "--run", "a"), "not --run and --from-shadow"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and message in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- from shadow

AGREED = {
    "images": 500, "champion": "models:/smpr/1", "challenger": "models:/smpr/2", "people": 2000, "mean_oks": 0.9,
    "only_champion": 100, "only_challenger": 50, "champion_ms": 10.0, "challenger_ms": 15.0,
}  # fmt: skip
ALIKE = ("--gate.latency_people", "1", "--model", "smpr")


class Shown(ThreadingHTTPServer):
    """Answers as a server would that shows live images to a challenger."""

    status, body, headers = 200, json.dumps(AGREED).encode(), dict[str, str]()

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str | None]] = []

    def handle_error(self, *_: Any) -> None:
        """Of clients that have read enough."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/models/smpr"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Shown)
        self.server.asked.append((self.path, self.headers["Authorization"]))
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shown]:
    monkeypatch.delenv("POSEFLEET_TOKEN", raising=False)
    with Shown() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def both(run: Path, store: str, small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Version 1 is champion, 2 challenger; the store is that of the environment."""
    for number, alias in enumerate((CHAMPION, CHALLENGER)):
        checkpoint = untrained_checkpoint(small_run, tmp_path / f"v{number}", seed=number)
        promote(store, "smpr", small_release(small_run, checkpoint, tmp_path / f"release{number}"), alias)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    return store


def aliases(store: str) -> dict[str, str]:
    found = MlflowClient(store, store).get_registered_model("smpr").aliases
    return {alias: str(number) for alias, number in found.items()}


def test_a_challenger_that_agrees_on_live_images_becomes_champion_itself(
    both: str, shown: Shown, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POSEFLEET_TOKEN", "secret")
    assert main(["--from-shadow", shown.address, *ALIKE]) == 0
    assert shown.asked == [("/v1/models/smpr/shadow", "Bearer secret")]
    output = capsys.readouterr().out
    assert (
        "models:/smpr/2 against models:/smpr/1, the champion" in output and "pass  agreement   mean OKS 0.900" in output
    )
    assert "models:/smpr@champion is version 2, version 1 is the previous one" in output
    assert aliases(both) == {"champion": "2", "previous": "1"}, "and nobody is challenger"
    _, version = versions(both)
    assert version.tags["shadow.mean_oks"] == "0.9" and version.tags["shadow.people"] == "2000"
    assert version.tags["shadow.gate"] == "passed" and version.tags["gate"] == "passed"
    assert version.description.startswith("Champion by ") and "**AP 0.5**" in version.description
    assert main(["--from-shadow", shown.address, *ALIKE]) == 2
    assert "has no alias 'challenger'" in capsys.readouterr().err


def test_annotated_images_are_scored_too_where_they_are_given(
    both: str, shown: Shown, people_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scored = ["--data.eval", str(people_shards / "val2017"), "--gate.tolerance", "1", "--gate.served_images", "1"]
    assert main(["--from-shadow", f"{shown.address}/shadow", *ALIKE, *scored]) == 0
    assert shown.asked == [("/v1/models/smpr/shadow", None)]
    lines = capsys.readouterr().out.splitlines()[1:12]
    assert [line.split()[1] for line in lines] == [
        "weights", "split", "AP", "keypoints", "latency", "served", "pair", "live", "agreement", "missed", "slower",
    ]  # fmt: skip


def test_a_challenger_that_does_not_agree_stays_one_unless_it_is_forced(
    both: str, shown: Shown, capsys: pytest.CaptureFixture[str]
) -> None:
    shown.body = json.dumps(AGREED | {"champion": "models:/smpr/7"}).encode()
    command = ["--from-shadow", shown.address, *ALIKE, "--gate.shadow_oks", "0.95"]
    assert main(command) == 1
    output = capsys.readouterr()
    assert "not promoted: pair, agreement failed; no alias moved" in output.err
    assert "compared models:/smpr/2 with models:/smpr/7  [models:/smpr/2 with models:/smpr/1]" in output.out
    assert aliases(both) == {"champion": "1", "challenger": "2"}
    assert main([*command, "--force"]) == 0
    assert versions(both)[1].tags["forced"].startswith("pair, agreement failed; forced by ")
    assert aliases(both)["champion"] == "2"


SILENT = [
    (401, b"", "set POSEFLEET_TOKEN"),
    (404, b"", "no `shadow` in the server's configuration"),
    (503, b"", "status 503; see the server's log"),
    (302, b"", "give the address of the server itself"),
    (200, b"<html>hello</html>", "this is no posefleet server"),
    (200, b'{"images": "many"}', "this is no posefleet server"),
    (200, b'{"images": 1, "mean_oks": NaN}', "this is no posefleet server"),
    (200, b"\xff" * 3_000_000, "this is no posefleet server"),
]


def test_servers_that_do_not_tell_are_named(both: str, shown: Shown, capsys: pytest.CaptureFixture[str]) -> None:
    for status, body, message in SILENT:
        shown.status, shown.body = status, body
        shown.headers = {"Location": f"{shown.address}/elsewhere"} if status == 302 else {}
        shown.asked.clear()
        assert main(["--from-shadow", shown.address, *ALIKE]) == 2
        output = capsys.readouterr().err
        assert output.startswith("error: ") and message in output and len(shown.asked) == 1
    assert aliases(both) == {"champion": "1", "challenger": "2"}


def test_what_cannot_be_asked_or_judged_is_told(both: str, shown: Shown, capsys: pytest.CaptureFixture[str]) -> None:
    for address, more, message in (
        ("http://127.0.0.1:9/v1/models/smpr", (), "no answer: "),
        ("file:///etc/passwd", (), "is no address of a served model"),
        ("models:/smpr", (), "is no address of a served model"),
        ("http://[bad", (), "error: "),
        (shown.address, ("--model.decode.nms", "hard"), "its settings cannot be changed"),
        (shown.address, ("--data.eval", "/nowhere"), "no manifest.json"),
    ):
        assert main(["--from-shadow", address, *ALIKE, *more]) == 2
        assert message in capsys.readouterr().err
    assert aliases(both) == {"champion": "1", "challenger": "2"}
