"""The Grafana dashboards query metrics that exist, and their panels are complete."""

import ast
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DASHBOARDS = sorted((ROOT / "docs" / "grafana").glob("*.json"))
METRIC = re.compile(r"\b(?:ray|autoscaler)_[a-z0-9_]+")
LABELS = re.compile(r"\bby \([^)]*\)|\{[^}]*\}|\$\w+")


def own_metrics() -> set[str]:
    """Metrics of serve/deployments/metrics.py under the names that Ray exports: with a prefix, and a suffix by kind."""
    suffixes = {"Counter": ["_total"], "Histogram": ["_bucket", "_sum", "_count"], "Gauge": [""]}
    source = (ROOT / "serve/deployments/metrics.py").read_text()
    calls = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)]
    return {
        f"ray_{call.args[0].value}{suffix}"
        for call in calls
        if isinstance(call.func, ast.Name) and isinstance(call.args[0], ast.Constant)
        for suffix in suffixes[call.func.id]
    }


def ray_metrics() -> set[str]:
    """Metrics that the dashboards inside the installed Ray query."""
    (ray,) = importlib.util.find_spec("ray").submodule_search_locations  # type: ignore[union-attr,misc]
    files = Path(ray, "dashboard", "modules", "metrics", "dashboards").glob("*_panels.py")
    return {name for file in files for name in METRIC.findall(file.read_text())}


def expressions(dashboard: dict[str, Any]) -> Iterator[str]:
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    for variable in dashboard["templating"]["list"]:
        yield from re.findall(r"label_values\((\w+),", str(variable.get("definition", "")))


def metrics(expression: str) -> set[str]:
    return set(METRIC.findall(LABELS.sub("", expression)))


def unknown(dashboard: dict[str, Any], known: set[str]) -> set[str]:
    """Metrics that the dashboard queries but that are not known; a histogram's sum and count belong to its name."""
    used = {name for expression in expressions(dashboard) for name in metrics(expression)}
    return {name for name in used if name not in known and re.sub("_(sum|count)$", "_bucket", name) not in known}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_every_metric_exists(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    assert unknown(dashboard, own_metrics() | ray_metrics()) == set()
    assert len({name for text in expressions(dashboard) for name in metrics(text)}) > 15


def test_every_own_metric_is_shown() -> None:
    shown = {
        name for path in DASHBOARDS for text in expressions(json.loads(path.read_text())) for name in metrics(text)
    }
    names = {re.sub("_(total|bucket|sum|count)$", "", name) for name in own_metrics()}
    assert names - {re.sub("_(total|bucket|sum|count)$", "", name) for name in shown} == set()


def test_an_unknown_metric_is_found() -> None:
    wrong = {"panels": [{"targets": [{"expr": "rate(ray_posefleet_refused[5m])"}]}], "templating": {"list": []}}
    assert unknown(wrong, own_metrics() | ray_metrics()) == {"ray_posefleet_refused"}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_every_panel_has_a_title_description_unit_and_legend(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids)) and len({panel["title"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["description"] and panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        references = [target["refId"] for target in panel["targets"]]
        assert references and len(references) == len(set(references)), panel["title"]
        for target in panel["targets"]:
            assert target["legendFormat"], panel["title"]
            used = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            grouped = re.findall(r"by \(([^)]*)\)", target["expr"])
            if grouped:  # the query must keep the labels that the legend shows
                assert used <= {label.strip() for label in grouped[-1].split(",")}, panel["title"]


def test_dashboards_have_different_uids() -> None:
    uids = [json.loads(path.read_text())["uid"] for path in DASHBOARDS]
    assert len(uids) == len(set(uids)) == 2


def test_prometheus_reads_the_discovery_file_of_ray() -> None:
    config = yaml.safe_load((ROOT / "docs" / "grafana" / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    (ray,) = importlib.util.find_spec("ray").submodule_search_locations  # type: ignore[union-attr,misc]
    (name,) = re.findall(
        r'PROMETHEUS_SERVICE_DISCOVERY_FILE = "(.+)"', Path(ray, "_private", "ray_constants.py").read_text()
    )
    assert job["file_sd_configs"] == [{"files": [f"/tmp/ray/{name}"]}]
