"""The functions of the package: the commands in Python."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import posefleet
from posefleet.data.errors import DataError
from posefleet.jobs import evaluate as evaluate_command
from posefleet.platform.runtime.errors import PlatformError


@pytest.fixture(scope="module")
def run(people_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> posefleet.TrainedRun:
    from small_settings import small_settings

    folder = tmp_path_factory.mktemp("python")
    settings = small_settings(people_shards, folder / "runs")
    settings["model"]["decode"] = {"score_floor": 0.0, "max_poses": 3}
    reports: list[dict[str, float]] = []
    found = posefleet.train("smpr", settings, {"train.eval_every": 0.5}, report=reports.append)
    assert [report["epoch"] for report in reports] == [0.5, 1.0]
    assert found.metrics["AP"] == pytest.approx(reports[-1]["AP"], nan_ok=True)
    return found


def test_a_training_leaves_the_run_that_the_command_would(run: posefleet.TrainedRun, people_shards: Path) -> None:
    assert Path(run.checkpoint).is_relative_to(run.folder) and str(run).startswith(f"run {run.folder}, AP ")
    evaluation = posefleet.evaluate(run)
    assert evaluation.as_dict()["AP"] == pytest.approx(run.metrics["AP"], nan_ok=True)
    out = Path(run.folder, "poses.json")
    assert evaluate_command.main(["--checkpoint", run.folder, "--out", str(out)]) == 0
    again = posefleet.evaluate(run.folder, str(people_shards / "val2017"), {"evaluate.flip": False})
    assert again.statistics == pytest.approx(evaluation.statistics, nan_ok=True)


def test_the_same_call_goes_on_with_the_run(
    people_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from small_settings import small_settings

    from posefleet.platform.training import launch

    settings = small_settings(people_shards, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(launch.InterruptibleWorker, "stop_requested", lambda self: True)
        with pytest.raises(posefleet.api.RunError, match=r"stopped at step \d+ on request .*small"):  # type: ignore[attr-defined]
            posefleet.train("smpr", settings)
    found = posefleet.train("smpr", settings)
    assert found.checkpoint.endswith("6") and "AP" in found.metrics


def test_poses_of_images_of_any_form(run: posefleet.TrainedRun, people_coco: Path) -> None:
    file = sorted((people_coco / "val2017").iterdir())[0]
    model = posefleet.load(run, device="cpu")
    one, by_bytes = posefleet.predict(run, file), posefleet.predict(model, file.read_bytes())
    several = posefleet.predict(model, [file, one.image])
    for other in (by_bytes, *several):
        np.testing.assert_allclose(other.poses.keypoints, one.poses.keypoints, atol=0.05)
    assert isinstance(one._repr_png_(), bytes) and one._repr_png_()[:4] == b"\x89PNG"
    height, width = one.image.shape[:2]
    assert repr(one).startswith(f"<Prediction in {width} x {height} px: {len(one.poses)} poses of coco17, scores 0.")
    assert len(repr(one)) < 120


def test_files_of_a_folder(run: posefleet.TrainedRun, people_coco: Path, tmp_path: Path) -> None:
    output = tmp_path / "poses"
    result = posefleet.predict_files(run, people_coco / "val2017", output, overlays=True, max_people=2)
    assert result.counts.images == 7 and len(list((output / "overlays").iterdir())) == 7
    assert posefleet.predict_files(run, people_coco / "val2017", output, overlays=True, max_people=2).predicted == 0


def test_errors_say_what_is_wrong(run: posefleet.TrainedRun, small_run: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"settings(.|\n)*optim\.learning_rate"):
        posefleet.train("smpr", small_run, {"optim.learning_rate": 1.0})
    with pytest.raises(ValueError, match="for method 'smpr', not for 'pfs'"):
        posefleet.train("pfs", small_run)
    with pytest.raises(DataError, match="nowhere"):
        posefleet.train("smpr", small_run, {"data.train": str(tmp_path / "nowhere")})
    with pytest.raises(PlatformError, match="nobody"):
        posefleet.load(tmp_path / "nobody")
    with pytest.raises(ValueError, match="no images to evaluate on"):
        posefleet.evaluate(run, settings={"data.eval": ""})
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = posefleet.trian  # type: ignore[attr-defined]


def test_the_import_is_light() -> None:
    code = "import posefleet, sys; assert 'torch' not in sys.modules and 'train' in dir(posefleet)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
