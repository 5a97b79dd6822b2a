"""Fixtures that several folders of tests share."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import shared
from processes import start_fork_server, start_ray
from small_settings import small_settings

if TYPE_CHECKING:
    from object_store import ObjectStore

MANY = 500
"""With more tests than these, some of them start ranks, and the server that these fork from pays."""

COCO_MINI = Path(__file__).resolve().parents[2] / "shared" / "coco-mini"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start Ray or other programs come first: last, they would leave one of two processes without work."""
    long = {item.path for item in items if item.get_closest_marker("ray") or item.path.parent.name == "jobs"}
    items.sort(key=lambda item: (item.path not in long, shared.group_of(item.path) or ""))


def pytest_collection_finish(session: pytest.Session) -> None:
    if len(session.items) > MANY:
        start_fork_server()


def pytest_runtest_setup(item: pytest.Item) -> None:
    shared.end_others(shared.group_of(item.path))
    shared.refuse_a_forgotten_ray(item.path)


def pytest_sessionfinish() -> None:
    shared.end_others(None)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Each process takes whole files, and files that share a Ray together."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = str(super()._split_scope(nodeid))
            return shared.group_of(Path(file)) or file

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def coco_mini() -> Path:
    """A small cut of COCO 2017 in COCO's own layout; tests that want it skip where it is not."""
    if not COCO_MINI.is_dir():
        pytest.skip(f"no real COCO images at {COCO_MINI}")
    return COCO_MINI


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in the order of a worker of one thread."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def local_ray() -> None:
    """A Ray of two CPUs that consecutive files share."""
    shared.use("local_ray", _two_cpus)


@contextmanager
def _two_cpus() -> Iterator[None]:
    import ray

    before = dict(os.environ)
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "RAY_DEDUP_LOGS": "0"}
    os.environ |= {"RAY_worker_niceness": "0"}  # beside other work they would starve
    os.environ.pop("RAY_ADDRESS", None)
    folder = tempfile.mkdtemp(prefix="pf-", dir="/tmp")
    # Ray Train asks the dashboard whose workers' places are free again.
    start_ray(folder, num_cpus=2)
    try:
        yield
    finally:
        ray.shutdown()
        os.environ.clear()
        os.environ |= before
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def people_coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered people in COCO's layout: 24 images to train on, 7 to evaluate on."""
    from posefleet.data.synthetic.dataset import write_dataset
    from posefleet.data.synthetic.scenes import SceneConfig

    root = tmp_path_factory.mktemp("people")
    config = SceneConfig(width=(96, 128), height=(96, 128))
    for split, count, seed in (("train2017", 24, 1), ("val2017", 7, 2)):
        write_dataset(root, split, count, config, seed=seed, workers=1)
    return root


@pytest.fixture(scope="session")
def people_shards(people_coco: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of ``people_coco``: a folder for each split, several shards in each."""
    from posefleet.data.coco.source import find_source
    from posefleet.data.schemas.shipped import COCO17
    from posefleet.data.shards.build import shard_coco

    root = tmp_path_factory.mktemp("shards")
    for split in ("train2017", "val2017"):
        shard_coco(find_source(str(people_coco), split), str(root / split), COCO17, shard_mib=0.05, parallel=False)
    return root


@pytest.fixture(scope="session")
def new_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of MLflow without runs; making its tables takes seconds."""
    from posefleet.platform.tracking.client import connect

    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    connect(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(new_database: Path, tmp_path: Path) -> str:
    """URI of an MLflow store of this test's own."""
    (tmp_path / "store").mkdir()
    shutil.copy(new_database, tmp_path / "store")
    return f"sqlite:///{tmp_path}/store/mlflow.db"


@pytest.fixture
def small_run(people_shards: Path, tmp_path: Path) -> dict[str, Any]:
    """Settings of a run that takes seconds, in a folder of this test's own."""
    return small_settings(people_shards, tmp_path / "runs")


@pytest.fixture
def tracked_run(small_run: dict[str, Any], new_database: Path) -> dict[str, Any]:
    """The same, whose storage has a database of MLflow already."""
    storage = Path(small_run["run"]["storage"])
    storage.mkdir()
    shutil.copy(new_database, storage)
    return small_run


@pytest.fixture(scope="module")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[ObjectStore]":
    """An S3 server of this module's own, which ``s3://bucket`` means."""
    pytest.importorskip("moto", reason="the S3 server of the tests is not installed (pip install 'moto[s3]')")
    from object_store import ObjectStore, environment

    store = ObjectStore(tmp_path_factory.mktemp("moto"))
    with environment(store.address):
        yield store
    store.stop()
