"""TensorBoard and Weights & Biases get the metrics and pictures of a run; neither can end it."""

import copy
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import wait_for

from posefleet.data.images import encode_image
from posefleet.platform.config.loading import build_experiment
from posefleet.platform.tracking import mirrors
from posefleet.platform.tracking.mirrors import Mirrors, check_mirrors, open_mirrors, wandb_mode
from posefleet.platform.training.launch import train

PICTURE = encode_image(np.zeros((8, 8, 3), np.uint8), ".png")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard would show."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    found = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    return found | {name: [(e.step, e.width) for e in events.Images(name)] for name in events.Tags()["images"]}


@pytest.mark.filterwarnings("ignore")
def test_a_training_is_shown_in_tensorboard_and_goes_on_there(tracked_run: dict[str, Any]) -> None:
    settings = copy.deepcopy(tracked_run)
    settings["run"]["mirrors"] = ["tensorboard"]
    assert train(build_experiment(settings)) == 0
    folder = Path(settings["run"]["storage"], "small", "tensorboard")
    found = scalars(folder)
    assert [step for step, _ in found["loss"]] == [2, 4, 6] and [step for step, _ in found["AP"]] == [6]
    assert {"evaluation/overlays", "evaluation/precision_recall", "targets/first_images"} <= found.keys()
    assert found["evaluation/overlays"][0][0] == 6
    settings["train"]["epochs"] = 2
    assert train(build_experiment(settings)) == 0
    assert [step for step, _ in scalars(folder)["loss"]] == [2, 4, 6, 8, 10, 12]


@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases_gets_a_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # no netrc
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    given = {"run_id": "a" * 32, "project": "posefleet", "settings": {"optim.lr": 0.1}}
    for steps in ((1, 2), (2, 3)):  # it resumed from step 1
        shown = open_mirrors(["wandb"], str(folder), **given)
        for step in steps:
            shown.log_metrics({"loss": 1 / step}, step)
        shown.log_bytes("evaluation/step-0000002/overlays.png", PICTURE)
        shown.close()
    kept = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(kept) == 2
    # Only `wandb sync` reads them. wandb's own process may write the end of a run after it said that it had.
    wait_for(lambda: all(path.stat().st_size > 1000 for path in kept), detail=lambda: str([p.stat() for p in kept]))
    assert list((folder / "wandb").glob("offline-run-*/files/media/images/evaluation/overlays_*.png"))


@pytest.mark.parametrize(
    ("variables", "mode"),
    [({}, "offline"), ({"WANDB_API_KEY": "k" * 40}, "online"), ({"WANDB_MODE": "disabled"}, "disabled")],
)
def test_nobody_is_asked_for_a_key(
    variables: dict[str, str], mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert wandb_mode() == mode


def test_a_mirror_that_fails_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        calls = 0

        def log_metrics(self, metrics: Any, step: int) -> None:
            self.calls += 1
            raise ConnectionError("gone")

    def never() -> Any:
        raise RuntimeError("no service")

    broken = Broken()
    shown = Mirrors({"wandb": lambda: broken, "tensorboard": never})  # type: ignore[dict-item,return-value]
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            shown.log_metrics({"loss": 1.0}, step)
        shown.log_bytes("a.png", PICTURE)
        shown.close()
    assert broken.calls == 1
    assert "tensorboard does not get this run any more: RuntimeError: no service" in caplog.text
    assert "wandb does not get this run any more: ConnectionError: gone" in caplog.text


def test_what_cannot_be_is_said_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="tensorboard writes to a disk, and the run is in s3://bucket/runs/a"):
        check_mirrors(["tensorboard"], "s3://bucket/runs/a")
    monkeypatch.setattr(mirrors.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="wandb needs the package wandb: pip install wandb"):
        check_mirrors(["wandb"], "/runs/a")
