"""Published weights that cannot be fetched: the error comes in seconds and names the file and what helps."""

import socket
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_settings import small_settings

from posefleet.models import available_methods
from posefleet.models.detposenet.detector import DetectorConfig, TorchvisionDetector
from posefleet.models.parts.layers.backbones import Backbone, BackboneConfig
from posefleet.models.parts.layers.published import PublishedFile, check_published
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.loading import build_experiment, read_yaml, with_settings
from posefleet.platform.training.run import open_run

CONFIGS = Path(__file__).resolve().parents[4] / "jobs" / "configs"
RESNET50 = "https://huggingface.co/timm/resnet50.a1_in1k/resolve/main/model.safetensors"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No server is found, no proxy is named, and nothing was downloaded before."""

    def refuse(*_: Any, **__: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def experiment(path: Path, **changes: Any) -> Experiment:
    """The shipped config for people, with other settings by their dotted names."""
    return build_experiment(with_settings(read_yaml(path), {"schema": "coco17", **changes}))


@pytest.mark.parametrize("method", available_methods())
@pytest.mark.parametrize("recipe", ["", "_paper"])
def test_every_config_with_published_weights_names_the_file_and_two_options_that_help(method: str, recipe: str) -> None:
    if not (path := CONFIGS / f"{method}{recipe}.yaml").exists():
        pytest.skip(f"{method} has no config {recipe}")
    with pytest.raises(ValueError, match=r"https://\S+ cannot be fetched \(\[Errno -2\] Name or") as found:
        check_published(experiment(path).model)
    local, fresh = str(found.value).split("Give a local file")[1].split("; or start from random weights: ")
    part = "detector" if method == "detposenet" else "backbone"
    assert f"--model.{part}.pretrained false --model.{part}.weights FILE" in local
    words = fresh.replace("--", "").split()
    advice = {name: yaml.safe_load(value) for name, value in zip(words[::2], words[1::2], strict=True)}
    assert advice[f"model.{part}.pretrained"] is False
    check_published(experiment(path, **advice).model)
    check_published(experiment(path, **{f"model.{part}.pretrained": False, f"model.{part}.weights": "file.pth"}).model)


def test_building_fails_at_once_too() -> None:
    start = time.monotonic()
    with pytest.raises(ValueError, match=RESNET50):
        Backbone(BackboneConfig(name="resnet50"))
    with pytest.raises(ValueError, match=r"fasterrcnn_resnet50_fpn_coco-258fb6c6\.pth cannot be fetched"):
        TorchvisionDetector(DetectorConfig(kind="torchvision", pretrained=True))
    assert time.monotonic() - start < 60, "the hub's own attempts take a minute for one file"


def test_a_copy_needs_no_network(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "models--timm--resnet50.a1_in1k" / "snapshots" / "a1b2"
    folder.mkdir(parents=True)
    with pytest.raises(ValueError, match="there is no copy"):
        check_published(BackboneConfig(name="resnet50"))
    (folder / "model.safetensors").write_bytes(b"")
    check_published(BackboneConfig(name="resnet50"))


def test_behind_a_proxy_the_proxy_is_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tried = list[tuple[str, int]]()

    class Connection:
        def close(self) -> None:
            """Nothing is open."""

    def connect(address: tuple[str, int], timeout: float) -> Connection:
        tried.append(address)
        return Connection()

    monkeypatch.setattr(socket, "create_connection", connect)
    file = PublishedFile(url=RESNET50, copy=tmp_path / "x", setting="model.backbone", content="weights", fresh={})
    file.check()
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "http://proxy.local:3128"})
    file.check()
    assert tried == [("huggingface.co", 443), ("proxy.local", 3128)]


def test_a_new_run_on_this_machine_is_refused_before_it_is_opened(people_shards: Path, tmp_path: Path) -> None:
    settings = small_settings(people_shards, tmp_path / "runs")
    settings["model"]["backbone"] = {"name": "resnet50", "pretrained": True}
    with pytest.raises(ValueError, match=RESNET50):
        open_run(build_experiment(settings))
    assert not (tmp_path / "runs" / "small" / "run.json").exists() and not (tmp_path / "runs" / "mlflow.db").exists()
