"""Both dashboards against a Prometheus that scrapes a server and a training run: each panel has data."""

import json
import re
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from processes import free_port, kill_family, wait_for
from server import Load, Server, running_server
from small_settings import small_settings

ROOT = Path(__file__).resolve().parents[2]
GRAFANA = ROOT / "docs" / "grafana"
WITHOUT_DATA = re.compile("gpu|GPU|gram|autoscaler_|eviction|unexpected_worker_failure|error_counter")
"""Queries without data on a cluster without GPUs and autoscaler where nothing dies."""

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]

Query = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def server(registry: str) -> Iterator[Server]:
    """Two models: one whose challenger finds other poses, one that is its own challenger."""
    common = {"source": "models:/pose@champion", "warm_up": [[96, 128]], "score_threshold": 0.0}
    models = [
        {**common, "name": "pose", "shadow": {"source": "models:/pose@challenger", "share": 1.0}},
        {**common, "name": "twin", "shadow": {"source": "models:/pose@champion", "share": 1.0}},
    ]
    with running_server({"models": models, "tracking": registry}) as running:
        yield running


@pytest.fixture(scope="module")
def prometheus(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Query]:
    """A query function of a Prometheus with the configuration of docs/grafana, which scrapes the server's Ray."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("no prometheus on this machine")
    folder = tmp_path_factory.mktemp("prometheus")
    config = (GRAFANA / "prometheus.yml").read_text().replace("/tmp/ray/", f"{server.folder}/")
    (folder / "prometheus.yml").write_text(config.replace("scrape_interval: 10s", "scrape_interval: 2s"))
    address = f"127.0.0.1:{free_port()}"
    options = {"config.file": folder / "prometheus.yml", "storage.tsdb.path": folder, "web.listen-address": address}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([program, *(f"--{k}={v}" for k, v in options.items())], stdout=log, stderr=log)

    def query(expression: str) -> list[dict[str, Any]]:
        parameters = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"http://{address}/api/v1/query?{parameters}", timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return found

    def listens() -> bool:
        try:
            return bool(query("ray_node_cpu_utilization"))
        except OSError:
            return False

    try:
        wait_for(listens, 60, (folder / "log").read_text)
        yield query
    finally:
        kill_family(process.pid)
        process.wait()


@pytest.fixture(scope="module")
def loaded(
    server: Server,
    prometheus: Query,
    photographs: list[bytes],
    people_shards: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Query:
    """The query function after valid and invalid requests and a training run on the same Ray."""
    settings = small_settings(people_shards, tmp_path_factory.mktemp("training"))
    settings["scaling"] = {"num_workers": 1}
    settings["train"]["epochs"] = 8
    file = Path(settings["run"]["storage"], "settings.yaml")
    file.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "jobs/train_smpr.py", "--config", str(file)]
    address = ray.get_runtime_context().gcs_address
    training = subprocess.Popen(
        ["env", f"RAY_ADDRESS={address}", *command], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    bodies = [*photographs, b"no image"]
    with (
        Load(server, "/v1/models/pose/poses", bodies, clients=2),
        Load(server, "/v1/models/twin/poses", bodies, clients=1),
    ):
        _, log = training.communicate(timeout=300)
        wait_for(lambda: prometheus("ray_posefleet_shadow_images_total") and prometheus("ray_posefleet_refused_total"))
        wait_for(lambda: prometheus('sum(rate(ray_posefleet_refused_total{model=~".*"}[1m]))'), 60)
    assert training.returncode == 0, log.decode()
    return prometheus


def panels() -> Iterator[Any]:
    """Every panel that has queries."""
    for path in sorted(GRAFANA.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            if panel["type"] != "row":
                yield pytest.param(panel, id=f"{path.stem}: {panel['title']}")


@pytest.mark.parametrize("panel", list(panels()))
def test_a_panel_has_data_with_the_labels_of_its_legend(panel: dict[str, Any], loaded: Query) -> None:
    for target in panel["targets"]:
        series = loaded(re.sub(r"\$\w+", ".*", target["expr"]))
        if WITHOUT_DATA.search(target["expr"]):
            continue  # without data, only the syntax of the query is checked
        assert any(float(one["value"][1]) >= 0 for one in series), target["expr"]  # NaN where no request came lately
        for one in series:
            labels = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            if one["metric"].get("reason") == "no_model":  # failed before a model was chosen
                labels.discard("model")
            assert labels <= set(one["metric"]), one["metric"]
