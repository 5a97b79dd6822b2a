"""The architecture as tests: who may import whom, what every folder opens to others, and what no file may contain."""

import ast
import os
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import structure

from posefleet.jobs.cli import VERBS
from posefleet.models import available_methods

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("data", "models", "platform", "serve", "jobs")

MAY_IMPORT = {
    "data": {"data"},
    "models": {"models", "data"},
    "platform": {"platform", "models", "data"},
    "serve": {"serve", "platform", "models", "data"},
    "jobs": {"jobs", "platform", "models", "data"},
}

MODELS_MAY_IMPORT = {"posefleet.data.schemas", "posefleet.data.structures"}

DOORS = {
    "ray": {
        "serve/http/gateway.py",
        "platform/prediction/worker.py",
        "data/io/cluster.py",
        "data/shards/build.py",
        "jobs/serve.py",
        "platform/prediction/batch.py",
        "platform/training/elastic.py",
        "platform/training/ray_trainer.py",
        "platform/tuning/ray_tuner.py",
        "serve/app.py",
        "serve/deployments/metrics.py",
        "serve/deployments/replica.py",
        "serve/deployments/versions.py",
    },
    "mlflow": {
        "platform/tracking/client.py",
        "platform/tracking/registry.py",
        "platform/tracking/sender.py",
        "platform/tracking/runs.py",
    },
    "tensorboardX": {"platform/tracking/mirrors.py"},
    "wandb": {"platform/tracking/mirrors.py"},
    "optuna": {"platform/tuning/study.py", "platform/tuning/space.py", "platform/tuning/report.py"},
    "webdataset": {"data/shards/layout.py", "data/loading/shard_dataset.py"},
    "pycocotools": {"data/evaluation/matching.py", "data/coco/segmentations.py"},
    "fastapi": {"serve/http/routes.py", "serve/app.py", "serve/http/schema.py"},
    "jinja2": {"platform/comparison/html.py", "platform/visualization/html.py"},
    "onnx": {"platform/exports/exported.py"},
    "onnxruntime": {"platform/exports/exported.py"},
    "openvino": {"platform/exports/exported.py"},
    "s3fs": {"data/io/s3.py"},
    "botocore": {"data/io/s3.py"},
}
"""The few files that may import each heavy library."""

ORDER = (
    "data/schemas",
    "data",  # errors, structures: what flows
    "data/io",
    "data/coco data/synthetic",
    "data/doctor data/evaluation data/review data/yolo",
    "data/shards",
    "data/loading",
    "models/parts models/parts/layers",
    "models/parts/ops",
    "models/parts/regression",
    "models",
    "models/detposenet models/inspose models/logocap models/smpr",
    "platform/runtime",
    "platform/config platform/tracking platform/visualization",
    "platform/checkpoints platform/monitoring",
    "platform/exports",
    "platform/inference",
    "platform/bundles platform/prediction platform/promotion platform/training",
    "platform/comparison platform/tuning",
    "platform/review",
    "serve/deployments",
    "serve/http",
    "serve",
    "jobs",
)
"""Packages, lower ones first: a package imports only those of lines above its own (and jobs/ none of serve/)."""

OPEN = {
    "data": "boxes decode_process errors findings image_limits images masks structures transforms video_file",
    "data/coco": "annotations file_names file_schema image_files labels layouts reader records results source split",
    "data/doctor": "examine",
    "data/evaluation": "accumulate annotators bootstrap boxes error_analysis evaluate ground_truth",
    "data/io": "cluster files json_stream ranges tars",
    "data/loading": "coco_dataset loader shard_dataset source union",
    "data/review": "corrections suspects tasks",
    "data/schemas": "category names positions schema shipped sigmas union",
    "data/shards": "build layout unsharded verify",
    "data/synthetic": "dataset scenes",
    "data/yolo": "data_file from_coco problems to_coco",
    "models/parts/layers": "backbones blocks deform_conv fpn fusion keypoint_channels published released safe_load",
    "models/parts/ops": "assign cells counts decode heatmaps losses nms oks",
    "models/parts/regression": "dense_model oks_gate pose_decode pose_head pose_loss positives pyramid_model",
    "platform/bundles": "layout tolerance verify write",
    "platform/checkpoints": "format load released resolve saver store transfer",
    "platform/comparison": "ablation budget report sources",
    "platform/config": "cli experiment loading sources",
    "platform/exports": "backends exported quantize",
    "platform/inference": "agreement evaluate execution latency predictor sources split",
    "platform/monitoring": "interruptions profiler stragglers watchdog",
    "platform/prediction": "batch inputs live stream tracker worker",
    "platform/promotion": "agreement checks gate release shadow thresholds",
    "platform/review": "folds report",
    "platform/runtime": "activity errors leftovers lock logs paths placement ports processes progress redaction worker",
    "platform/tracking": "client mirrors registry run_folder runs tracker",
    "platform/training": "launch loop optim run step",
    "platform/tuning": "decoding ray_tuner report space study",
    "platform/visualization": "drawing html plots report schema_picture tables",
    "serve/deployments": "errors metrics replica settings versions",
    "serve/http": "gateway routes",
}
"""The doors of each package: the modules that other packages import. A package that is not here has none."""

MOST_FILES = 12
"""Modules in a folder; jobs/ has a file for each command, and one-line train_METHOD.py files."""

FILES = sorted(path.relative_to(ROOT) for folder in PACKAGES for path in (ROOT / folder).rglob("*.py"))
METHODS = {f"posefleet.models.{method}" for method in available_methods()}


def imports(source: str) -> set[str]:
    """Full names of everything imported anywhere in ``source``, ``a.b.c`` for ``from a.b import c``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names}
    return names


def is_within(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def problems(path: str, source: str, methods: set[str]) -> list[str]:
    """What is wrong with the file ``path`` of one of the five packages."""
    folder, *_ = path.split("/")
    found = [] if ast.get_docstring(ast.parse(source)) else ["has no docstring"]
    for name in sorted(imports(source)):
        if name.startswith("."):
            found.append(f"imports {name} relatively; write posefleet.{folder}...")
        for library, doors in DOORS.items():
            if is_within(name, library) and path not in doors:
                found.append(f"imports {name}; only {', '.join(sorted(doors))} may")
        package = next((package for package in PACKAGES if is_within(name, f"posefleet.{package}")), None)
        if package is None:
            continue
        if package not in MAY_IMPORT[folder]:
            found.append(f"imports {name}: {folder} stands below {package}")
        if folder == "models" and package == "data" and not any(is_within(name, ours) for ours in MODELS_MAY_IMPORT):
            found.append(f"imports {name}; models know only {', '.join(sorted(MODELS_MAY_IMPORT))} of data")
        own = "posefleet." + ".".join(Path(path).with_suffix("").parts[:2])  # a method's package knows itself
        if folder == "models" and any(is_within(name, method) for method in methods - {own}):
            found.append(f"imports {name}: methods do not know each other; shared code belongs in models/parts")
    if folder == "models" and (device := re.search(r"""\.cuda\(|["']cuda""", source)):
        found.append(f"contains {device.group()!r}: the caller chooses the device")
    if any(isinstance(node, ast.Name) and node.id == "print" for node in ast.walk(ast.parse(source))):
        found.append("prints; a tool writes with sys.stdout.write or rich")
    return found


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_keeps_to_the_architecture(path: Path) -> None:
    assert problems(path.as_posix(), (ROOT / path).read_text(), METHODS) == []


@pytest.mark.parametrize(
    ("path", "line", "complaint"),
    [
        ("data/a.py", "import posefleet.models.smpr", "data stands below models"),
        ("data/a.py", "from posefleet import platform", "data stands below platform"),
        ("models/a.py", "from posefleet.platform.training.loop import fit", "models stands below platform"),
        ("platform/a.py", "from posefleet.jobs import tune", "platform stands below jobs"),
        ("jobs/a.py", "from posefleet.serve.app import App", "jobs stands below serve"),
        ("models/a.py", "from posefleet.data.coco.annotations import load", "models know only"),
        ("models/a.py", "from posefleet.data import coco", "models know only"),
        ("models/a.py", "from posefleet.models.smpr import Model", "methods do not know each other"),
        ("models/parts/a.py", "from posefleet.models import smpr", "methods do not know each other"),
        ("models/pfs/a.py", "from posefleet.models.smpr import Model", "methods do not know each other"),
        ("models/a.py", "def f():\n    import ray.train", "imports ray.train; only"),
        ("platform/a.py", "def f():\n    if x:\n        from mlflow.entities import Metric", "imports mlflow"),
        ("platform/training/ray_trainer.py", "from .loop import fit", "relatively"),
        ("models/a.py", "x = y.cuda()", "the caller chooses the device"),
        ("models/a.py", "x = torch.zeros(3, device='cuda:0')", "the caller chooses the device"),
        ("data/a.py", "print(3)", "prints"),
    ],
)  # fmt: skip
def test_a_planted_violation_is_found(path: str, line: str, complaint: str) -> None:
    found = problems(path, f'"""Planted."""\n\n{line}\n', {"posefleet.models.smpr", "posefleet.models.pfs"})
    assert len(found) == 1 and complaint in found[0]


def test_a_missing_docstring_is_found() -> None:
    assert problems("data/a.py", "x = 1\n", set()) == ["has no docstring"]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("models/a.py", "from posefleet.data.structures import People"),
        ("models/a.py", "from posefleet.models.parts.layers.fpn import Fpn"),
        ("models/smpr/model.py", "from posefleet.models.smpr.head import Head"),
        ("platform/training/ray_trainer.py", "import ray.train"),
        ("data/a.py", "import rayon"),
        ("jobs/a.py", "from posefleet.platform.config.experiment import Experiment"),
    ],
)
def test_what_is_allowed_is_not_reported(path: str, line: str) -> None:
    assert problems(path, f'"""Fine."""\n\n{line}\n', {"posefleet.models.smpr"}) == []


def floor_of(package: str) -> int:
    return next(i for i, line in enumerate(ORDER) if package in line.split())


@pytest.mark.parametrize("package", sorted(structure.between_packages()))
def test_a_package_imports_only_lower_ones(package: str) -> None:
    found = structure.between_packages()[package]
    assert [other for other in sorted(found) if floor_of(other) >= floor_of(package)] == []


def test_the_order_names_every_package() -> None:
    assert sorted(" ".join(ORDER).split()) == sorted(structure.between_packages())


@pytest.mark.parametrize("package", sorted(structure.doors()))
def test_the_doors_of_a_package(package: str) -> None:
    """One that nobody uses any more is no door, and a new one is decided on here."""
    assert sorted(structure.doors()[package]) == OPEN.get(package, "").split()


@pytest.mark.parametrize("package", sorted(OPEN))
def test_the_docstring_of_a_package_names_its_doors(package: str) -> None:
    if package in ("data", "models/parts/layers", "models/parts/ops", "models/parts/regression"):
        return  # all their modules are doors
    text = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text())) or ""
    assert [door for door in OPEN[package].split() if f"``{door}``" not in text] == []


@pytest.mark.parametrize("package", sorted(structure.between_packages()))
def test_a_folder_has_few_files(package: str) -> None:
    names = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"}
    if package == "jobs":
        commands = {module.removeprefix("jobs.") for module, _ in VERBS.values()}
        assert {name for name in names if not name.startswith("train_")} <= commands | {"cli"}
    else:
        assert len(names) <= MOST_FILES, sorted(names)


def test_test_files_have_different_names() -> None:
    """pytest imports them by their names alone, because the folders of tests/ are no packages."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_modules_do_not_import_each_other_in_circles() -> None:
    *_, highest = structure.floors(structure.imports())
    circles = {name: targets & highest for name, targets in structure.imports().items() if name in highest}
    assert {name: targets for name, targets in circles.items() if targets} == {}


def test_the_structure_is_printed() -> None:
    lines = structure.report().splitlines()
    assert lines[0].split()[:3] == ["package", "files", "lines"] and len(lines) > len(OPEN)


def test_platform_does_not_shadow_the_standard_library() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()


@pytest.mark.parametrize("package", PACKAGES)
def test_the_import_package_links_to_the_root_folders(package: str) -> None:
    assert os.readlink(ROOT / "posefleet" / package) == f"../{package}"


def test_ignored_paths_are_anchored() -> None:
    """Ray's upload of a working folder honours .gitignore: a bare ``data/`` would drop that package from every job."""
    lines = [line for line in (ROOT / ".gitignore").read_text().splitlines() if line and not line.startswith("#")]
    caches = re.compile(r"(__pycache__|\.\w+_cache)/")
    assert [line for line in lines if not line.startswith("/") and not caches.fullmatch(line)] == []
    assert [line for line in lines if line.strip("/").partition("/")[0] in PACKAGES] == []


def test_no_file_names_a_package_index() -> None:
    """Which index to install from is the reader's own setting."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"], capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    index = re.compile(
        r"(--(extra-)?index-url|PIP_(EXTRA_)?INDEX_URL|pypi\.org|pythonhosted|download\.pytorch\.org/whl)\b"
    )
    named = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path == Path(__file__).resolve() or not path.is_file() or path.stat().st_size > 1_000_000:
            continue
        if match := index.search(path.read_bytes().decode(errors="replace")):
            named.append(f"{name}: {match.group()}")
    assert named == []
