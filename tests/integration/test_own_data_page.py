"""Every command of docs/own-data.md, in its order, on a small export of rendered animals."""

import json
import os
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from posefleet.data.images import verify_image
from posefleet.data.shards.layout import read_manifest
from posefleet.data.synthetic.dataset import write_dataset
from posefleet.data.synthetic.scenes import SCENES
from posefleet.jobs import cli, serve
from posefleet.platform.checkpoints.resolve import find_checkpoint
from posefleet.platform.config.loading import read_yaml
from posefleet.platform.inference.predictor import Predictor
from posefleet.serve.deployments.settings import ServerSettings

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    *("--train.epochs", "1", "--train.eval_every", "1", "--train.patience", "0", "--data.eval_batch_size", "4"),
    *("--data.resize.short_side", "64", "--data.resize.long_side", "64", "--data.augment.crop", "64"),
    *("--model.backbone.name", "test_resnet", "--model.backbone.weights", "", "--model.head.channels", "16"),
    *("--model.decode.score_floor", "0.0", "--evaluate.overlays", "2"),
]
"""What makes the training of the page take seconds; its commands stay as they are otherwise."""


def commands() -> list[list[str]]:
    """The commands in the code blocks of the page, in order; lines that end with a backslash go on."""
    found: list[list[str]] = []
    for line in (ROOT / "docs" / "own-data.md").read_text().replace("\\\n", " ").splitlines():
        if line.startswith("    ") and line.split()[:1] in (["posefleet"], ["curl"]):
            found.append(shlex.split(line))
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which the page is read: CVAT's export, a folder of pictures, and the repository's configs."""
    place = tmp_path_factory.mktemp("place")
    scenes = replace(SCENES["easy"], figure="animal", width=(64, 64), height=(64, 64))
    write_dataset(place / "rendered", "default", 24, scenes)
    (place / "dogs" / "images").mkdir(parents=True)
    shutil.move(place / "rendered" / "annotations", place / "dogs" / "annotations")
    shutil.move(place / "rendered" / "default", place / "dogs" / "images" / "default")
    (place / "pictures").mkdir()
    for path in sorted((place / "dogs" / "images" / "default").iterdir())[:2]:
        shutil.copy(path, place / "pictures")
    (place / "jobs").symlink_to(ROOT / "jobs")
    before = Path.cwd()
    os.chdir(place)
    yield place
    os.chdir(before)


@pytest.fixture(scope="module")
def served() -> list[Any]:
    """Filled with the config that `posefleet serve` would hand to Ray Serve."""
    return []


def run(arguments: list[str], served: list[Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serve, "run", lambda config: served.append(yaml.safe_load(Path(config).read_text())))
        patch.setenv("MLFLOW_TRACKING_URI", "")
        more = SMALL if arguments[0] == "train" else []
        try:
            status = cli.main([*arguments, *more])
        except SystemExit as end:
            status = end.code
    assert status in (0, None), " ".join(arguments)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_the_page_leads_from_an_export_to_a_served_model(
    place: Path, served: list[Any], local_ray: None, capsys: Any
) -> None:
    done = [command for command in commands() if command[0] == "posefleet"]
    for _, *arguments in done:
        if arguments[0] == "compare":  # the second run that it names
            (train,) = ([*one[1:]] for one in done if one[1] == "train")
            train[train.index("dogs")] = "dogs-2"
            run(train, served)
        run(arguments, served)
    verbs = [command[1] for command in done]
    assert verbs == ["schema", "doctor", "shard", "train", "evaluate", "compare", "promote", "serve", "predict"]

    assert min(verify_image((place / "skeleton.png").read_bytes())) > 0
    parts = [read_manifest(str(place / "shards" / name)) for name in ("train", "val")]
    assert sum(part.samples for part in parts) == 24 and all(len(part.schema) == 12 for part in parts)
    assert (place / "runs" / "dogs" / "report" / "targets" / "first_images.jpg").exists()
    (config,) = served
    (model,) = ServerSettings.model_validate(config["applications"][0]["args"]).models
    assert (model.name, model.source) == ("dogs", "models:/dogs@champion")
    predictor = Predictor.from_checkpoint(find_checkpoint(model.source))
    assert predictor.schema.keypoints == parts[0].schema.keypoints
    assert json.loads((place / "poses" / "results.json").read_text()) is not None
    assert len(list((place / "poses" / "overlays").iterdir())) == 2


def test_the_config_of_the_page_is_that_of_the_demo_with_what_helps_small_data() -> None:
    """So a training can start from the demo's model."""
    own, demo = (read_yaml(ROOT / "jobs" / "configs" / f"smpr_{name}.yaml") for name in ("small_data", "demo"))
    assert own["model"] == demo["model"] and own["data"]["resize"] == demo["data"]["resize"]
