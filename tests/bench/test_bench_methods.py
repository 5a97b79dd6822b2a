"""The benchmark of the methods needs little to run, and measures the models of the shipped configs."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from posefleet.models import available_methods
from posefleet.platform.config.loading import build_experiment, read_yaml
from tests.bench import methods as bench

ROOT = Path(__file__).resolve().parents[2]
ABSENT = ("ray", "mlflow", "pydantic", "webdataset", "pycocotools", "rich", "matplotlib", "psutil")


@pytest.mark.slow
def test_it_needs_only_torch_torchvision_timm_numpy_and_opencv() -> None:
    """It runs, and every method imports, in a process for which nothing else of our requirements is installed."""
    options = ["--sizes", "64", "--methods", "smpr", "--measure", "predict", "train", "--rounds", "1", "--people", "3"]
    code = f"""
import sys
sys.modules |= dict.fromkeys({ABSENT!r})  # None: importing it raises ModuleNotFoundError
sys.argv = ["methods.py", *{options!r}]
from tests.bench import methods
for name in methods.available_methods():
    methods.paper_config(name)
methods.main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "smpr         64 |" in done.stdout and "post-processing at most 10%" in done.stdout


def without_weights(config: Any) -> Any:
    """The same model with random weights and no flip averaging."""
    if hasattr(config, "backbone"):
        config = replace(config, backbone=replace(config.backbone, pretrained=False))
    if hasattr(config, "prs"):
        config = replace(config, prs=replace(config.prs, flip_average=False))
    if hasattr(config.decode if hasattr(config, "decode") else None, "flip_average"):
        config = replace(config, decode=replace(config.decode, flip_average=False))
    return config


@pytest.mark.parametrize("method", available_methods())
def test_its_models_are_those_of_the_shipped_configs(method: str) -> None:
    name = {"inspose": "inspose_paper", "detposenet": "detposenet_whitebox"}.get(method, method)
    experiment = build_experiment(read_yaml(ROOT / "jobs/configs" / f"{name}.yaml"))
    assert bench.paper_config(method) == without_weights(experiment.model)
