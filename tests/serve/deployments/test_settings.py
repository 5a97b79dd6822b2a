"""Settings of a server: the shipped configurations, contradictions, the token."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from posefleet.serve.deployments.settings import ServerSettings, read_token
from posefleet.serve.deployments.versions import VersionController

ROOT = Path(__file__).resolve().parents[3]
CONFIG = ROOT / "serve" / "config.yaml"
MODEL = {"name": "smpr", "source": "models:/smpr@champion"}


def test_the_shipped_configuration_is_valid_and_listens_on_localhost() -> None:
    content = yaml.safe_load(CONFIG.read_text())
    deploy = ServeDeploySchema.model_validate(content)
    assert deploy.http_options.host == "127.0.0.1"
    assert deploy.logging_config.encoding == "JSON"  # for programs that collect logs
    settings = ServerSettings.model_validate(deploy.applications[0].args)
    assert settings.models[0].source == "models:/smpr@champion"
    assert not settings.access.origins and settings.access.token_for == "changes"


@pytest.mark.parametrize("path", ["serve/config.yaml", "docs/cluster/rayservice.yaml"])
def test_shipped_configurations_name_the_deployment_of_the_controller(path: str) -> None:
    """Serve refuses a configuration that names a deployment which the application does not have."""
    assert re.findall(r"^ +- name: (\S+)\n +user_config:", (ROOT / path).read_text(), re.M) == [VersionController.name]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"models": []}, "at least 1"),
        ({"models": [MODEL, MODEL]}, "several models are called smpr"),
        ({"models": [{**MODEL, "sorce": "x"}]}, "sorce"),
        ({"models": [{**MODEL, "name": "../x"}]}, "name"),
        ({"models": [{**MODEL, "name": "smpr.challenger"}]}, "challenger"),
        ({"models": [{**MODEL, "shadow": {"source": "x", "share": 0}}]}, "share"),
        ({"models": [MODEL], "limits": {"images": 0}}, "images"),
        ({"models": [MODEL], "direct": True, "ingress": {"num_replicas": 2}}, "no ingress"),
        ({"models": [{**MODEL, "deployment": {"autoscaling_config": {"min_replicas": 0}}}], "direct": True}, "min_rep"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused_by_name(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ServerSettings.model_validate(args)


def test_the_token_comes_from_the_environment_or_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("POSEFLEET_TOKEN", raising=False)
    monkeypatch.delenv("POSEFLEET_TOKEN_FILE", raising=False)
    assert read_token() == ""
    monkeypatch.setenv("POSEFLEET_TOKEN", "one")
    assert read_token() == "one"
    path = tmp_path / "token"
    monkeypatch.setenv("POSEFLEET_TOKEN_FILE", str(path))
    with pytest.raises(ValueError, match="POSEFLEET_TOKEN_FILE"):
        read_token()
    path.write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        read_token()
    path.write_text("two\n")
    assert read_token() == "two"
