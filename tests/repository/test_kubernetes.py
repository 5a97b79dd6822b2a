"""The manifests and the image of docs/cluster fit KubeRay's fields, each other, the pins, the jobs and the server."""

import copy
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from autoscaling import started
from kuberay_schema import MANIFESTS
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.serve.schema import ServeDeploySchema

import posefleet
from posefleet.platform.config.cli import parse_experiment
from posefleet.platform.runtime.placement import MARKET, ROLE, SERVING, TRAINING
from posefleet.serve.deployments.settings import TOKEN, ServerSettings

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "cluster"
IN_IMAGE = "/home/ray/posefleet/"
"""Where the image has the project."""

Manifest = dict[str, Any]


def manifest(name: str) -> Manifest:
    content: Manifest = yaml.safe_load((FOLDER / name).read_text())
    return content


def cluster_of(content: Manifest) -> dict[str, Any]:
    spec = content["spec"]
    found: dict[str, Any] = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    return found


def groups(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {"head": cluster["headGroupSpec"]} | {group["groupName"]: group for group in cluster["workerGroupSpecs"]}


def container(group: dict[str, Any]) -> dict[str, Any]:
    (only,) = group["template"]["spec"]["containers"]
    found: dict[str, Any] = only
    return found


def constrained(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found
    return found[1]


@pytest.fixture(params=sorted(MANIFESTS))
def content(request: pytest.FixtureRequest) -> Manifest:
    return manifest(request.param)


@pytest.fixture
def cluster(content: Manifest) -> dict[str, Any]:
    return cluster_of(content)


@pytest.mark.parametrize("name", sorted(MANIFESTS))
def test_a_manifest_has_only_fields_that_kuberay_knows(name: str) -> None:
    jsonschema.validate(manifest(name), MANIFESTS[name])


@pytest.mark.parametrize(
    "path",
    [
        ("spec", "rayVersions"),
        ("spec", "headGroupSpec", "rayStartParam"),
        ("spec", "workerGroupSpecs", 1, "maxReplica"),
        ("spec", "workerGroupSpecs", 1, "template", "spec", "nodeSelectors"),
        ("spec", "workerGroupSpecs", 1, "template", "spec", "containers", 0, "resource"),
    ],
    ids=lambda path: path[-1],
)
def test_a_misspelt_field_is_found(path: tuple[Any, ...]) -> None:
    wrong = copy.deepcopy(manifest("raycluster.yaml"))
    inner = wrong
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = "x"
    with pytest.raises(jsonschema.ValidationError, match=path[-1]):
        jsonschema.validate(wrong, MANIFESTS["raycluster.yaml"])


def test_no_two_have_one_name_for_kuberay_names_services_after_them() -> None:
    assert len({manifest(name)["metadata"]["name"] for name in MANIFESTS}) == len(MANIFESTS)


def test_every_pod_has_the_image_of_this_version_and_the_ray_of_the_constraints(cluster: dict[str, Any]) -> None:
    version = posefleet.__version__
    assert {container(group)["image"] for group in groups(cluster).values()} == {f"REGISTRY/posefleet:{version}"}
    assert cluster["rayVersion"] == constrained("ray")


def test_everything_asks_for_the_token_and_nothing_is_reached_from_outside(content: Manifest) -> None:
    cluster = cluster_of(content)
    assert cluster["authOptions"] == {"mode": "token", "secretName": "posefleet-ray"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    text = yaml.safe_dump(content)
    assert "Ingress" not in text and "NodePort" not in text and "LoadBalancer" not in text


def test_pods_get_what_they_ask_for_and_say_how_they_are(cluster: dict[str, Any]) -> None:
    for name, group in groups(cluster).items():
        pod, only = group["template"]["spec"], container(group)
        wanted = only["resources"]["limits"]
        assert only["resources"]["requests"] == wanted
        assert only["readinessProbe"] and only["livenessProbe"]
        assert pod["securityContext"]["runAsNonRoot"] and only["securityContext"]
        mounted = {mount["name"]: mount["mountPath"] for mount in only["volumeMounts"]}
        assert mounted == {"shared": "/shared", "shm": "/dev/shm"}
        assert {"name": "POSEFLEET_HOME", "value": "/shared"} in only["env"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert gibibytes(volumes["shm"]["emptyDir"]["sizeLimit"]) <= gibibytes(wanted["memory"]) / 2
        claim = volumes["shared"]["persistentVolumeClaim"]["claimName"]
        assert claim == yaml.safe_load((FOLDER / "storage.yaml").read_text())["metadata"]["name"]
        on_gpus = "nvidia.com/gpu" in wanted
        assert on_gpus == (name not in ("head", "data"))
        assert on_gpus == ("nvidia.com/gpu" in {toleration["key"] for toleration in pod.get("tolerations", [])})


def gibibytes(quantity: str) -> int:
    assert quantity.endswith("Gi")
    return int(quantity.removesuffix("Gi"))


def test_only_training_is_on_spot_and_labels_say_so(cluster: dict[str, Any]) -> None:
    for name, group in groups(cluster).items():
        spot = name == "train-spot"
        assert group["labels"] == {ROLE: name.partition("-")[0], MARKET: "spot" if spot else "on-demand"}
        selector = group["template"]["spec"]["nodeSelector"]
        assert selector == {"eks.amazonaws.com/capacityType": "SPOT" if spot else "ON_DEMAND"}


def autoscaling(name: str) -> dict[str, Any]:
    """What Ray's autoscaler reads in a cluster that KubeRay has made of the manifest."""
    resource = {"metadata": {"name": "posefleet", "namespace": "default"}, "spec": cluster_of(manifest(name))}
    derived: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(resource)
    return derived


def test_what_the_autoscaler_starts() -> None:
    worker = ({"CPU": 8, "GPU": 1}, TRAINING)
    lasting = autoscaling("raycluster.yaml")
    assert lasting["available_node_types"]["headgroup"]["resources"]["CPU"] == 0
    assert started(lasting, [({"CPU": 1}, {})] * 9) == {"data": 2}
    assert started(lasting, [worker] * 4) == {"train-spot": 4}
    assert started(lasting, [worker] * 9) == {"train-spot": 8, "train-on-demand": 1}
    assert started(lasting, [worker], available={"train-spot": 0.0}) == {"train-on-demand": 1}
    assert started(autoscaling("rayjob.yaml"), [worker] * 4) == {"train-spot": 4}
    half = ({"CPU": 2, "GPU": 0.5}, SERVING)
    assert started(autoscaling("rayservice.yaml"), [half] * 2) == {"serve": 1}  # which is there from the start
    assert started(autoscaling("rayservice.yaml"), [half] * 3) == {"serve": 2}


def test_the_training_of_the_job_exists_and_fits_its_cluster() -> None:
    spec = manifest("rayjob.yaml")["spec"]
    python, job, *arguments = (word.replace(IN_IMAGE, f"{ROOT}/") for word in shlex.split(spec["entrypoint"]))
    assert python == "python" and Path(job) == ROOT / "jobs" / "train_smpr.py" and Path(job).exists()
    experiment = parse_experiment("smpr", arguments)
    assert all(path.startswith("/shared/") for path in (experiment.data.train, experiment.data.eval))
    assert experiment.run.name and experiment.run.storage == "/shared/runs", "a second try goes on with the first"
    assert spec["backoffLimit"] > 0 and experiment.run.resume

    scaling, found = experiment.scaling, groups(cluster_of(manifest("rayjob.yaml")))
    for name in ("train-spot", "train-on-demand"):
        room = container(found[name])["resources"]["limits"]
        assert scaling.use_gpu and room["nvidia.com/gpu"] == "1"
        assert scaling.cpus_per_worker <= int(room["cpu"]) and scaling.num_workers <= found[name]["maxReplicas"]


def test_the_job_and_the_lasting_cluster_train_on_the_same_pods() -> None:
    job, lasting = (groups(cluster_of(manifest(name))) for name in ("rayjob.yaml", "raycluster.yaml"))
    assert {"head", "train-spot", "train-on-demand"} == set(job)
    assert job == {name: lasting[name] for name in job}


def test_the_service_serves_what_the_shipped_configuration_says_but_for_what_is_marked() -> None:
    shipped = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
    shipped["http_options"]["host"] = "0.0.0.0"
    (model,) = shipped["applications"][0]["args"]["models"]
    model["deployment"]["ray_actor_options"] = {"num_cpus": 2, "num_gpus": 0.5}
    shipped["applications"][0]["args"]["direct"] = False
    text = manifest("rayservice.yaml")["spec"]["serveConfigV2"]
    assert yaml.safe_load(text) == shipped
    assert text.count("# differs") == 3

    deploy = ServeDeploySchema.model_validate(shipped)
    settings = ServerSettings.model_validate(deploy.applications[0].args)
    spec = cluster_of(manifest("rayservice.yaml"))
    serve = container(groups(spec)["serve"])
    assert deploy.http_options.port == serve["ports"][0]["containerPort"] == serve["readinessProbe"]["httpGet"]["port"]
    assert TOKEN in {variable["name"] for variable in serve["env"]}
    options = settings.models[0].deployment["ray_actor_options"]
    replicas = settings.models[0].deployment["autoscaling_config"]["max_replicas"]
    pods = groups(spec)["serve"]["maxReplicas"]
    assert options["num_cpus"] * 2 <= int(serve["resources"]["limits"]["cpu"]), "two share a GPU"
    assert replicas * options["num_gpus"] <= pods


def test_the_image_is_built_on_the_pinned_ray_and_pins_the_rest() -> None:
    steps = dockerfile()
    (base,) = (argument for step, argument in steps if step == "FROM")
    image, tag = base.split(":")
    version, python, _ = tag.split("-")
    assert (image, version) == ("rayproject/ray", constrained("ray"))
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert required == f">={python[2]}.{python[3:]}"
    installs = [argument for step, argument in steps if step == "RUN" and "pip install" in argument]
    assert all("--constraint constraints.txt" in line or "--no-deps" in line for line in installs) and installs


def test_the_image_takes_nothing_from_the_web_and_runs_as_nobody_special() -> None:
    steps = dockerfile()
    assert not [argument for step, argument in steps if step == "ADD" or re.search(r"://|index", argument)]
    assert steps[-1] == ("USER", "ray")
    assert not [argument for step, argument in steps if step == "USER" and argument in ("root", "0")]


def test_the_image_holds_the_code() -> None:
    steps = dockerfile()
    assert ("WORKDIR", IN_IMAGE.rstrip("/")) in steps
    copies = [shlex.split(argument) for step, argument in steps if step == "COPY"]
    sources = {name for _, *names, _ in copies for name in names}
    assert all((ROOT / name).exists() for name in sources)
    assert {"data", "models", "platform", "serve", "jobs", "posefleet", "pyproject.toml"} <= sources
    sent = (FOLDER / "Dockerfile.dockerignore").read_text().split()
    assert {f"!{name}" for name in sources} | {"*", "**/__pycache__"} == set(sent)


def dockerfile() -> list[tuple[str, str]]:
    """Instructions with what follows them, lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (FOLDER / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [
        (step, argument.strip()) for step, _, argument in (line.partition(" ") for line in text.splitlines() if line)
    ]
