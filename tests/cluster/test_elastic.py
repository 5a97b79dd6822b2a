"""Runs whose nodes come and go."""

import copy
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from elastic_nodes import ElasticRun, Nodes, nodes, power_cut_and_new_node
from elastic_record import last_taken
from small_settings import small_settings
from torch.nn.utils import parameters_to_vector
from tracked_runs import find_runs

from posefleet.data.shards.layout import read_manifest
from posefleet.platform.checkpoints.format import read_meta
from posefleet.platform.checkpoints.load import build_model, load_model
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.config.loading import build_experiment
from posefleet.platform.tracking.runs import read_metrics

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore"),
]

EPOCHS, STEPS = 10, 60


@pytest.fixture
def cluster() -> Iterator[Nodes]:
    with nodes() as found:
        yield found


@pytest.fixture(scope="module")
def settings(people_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Sixty steps of two micro-batches of two images, one or two workers."""
    settings = small_settings(people_shards, tmp_path_factory.mktemp("runs"))
    settings["data"] |= {"batch_size": 2, "eval_batch_size": 2}
    # Plain SGD with a small rate: Adam magnifies rounding, and large steps soon turn which cell is a person's best.
    settings["optim"] = {"name": "sgd", "lr": 1e-4, "schedule": "cosine", "warmup_steps": 2}
    settings["train"] |= {"epochs": EPOCHS, "log_every": 2, "eval_every": 5, "checkpoint_every": 10}
    settings["scaling"] = {"num_workers": 2, "min_workers": 1, "grow_every": 3, "max_failures": 5}
    return settings


def named(settings: dict[str, Any], name: str) -> dict[str, Any]:
    settings = copy.deepcopy(settings)
    settings["run"]["name"] = name
    return settings


def weights(run: ElasticRun) -> torch.Tensor:
    store = CheckpointStore(f"{run.folder}/checkpoints")
    return parameters_to_vector(load_model(str(store.latest()))[0].parameters())


@pytest.fixture(scope="module")
def undisturbed(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> ElasticRun:
    """The run with two workers from its first step to its last."""
    run = ElasticRun(named(settings, "undisturbed"), tmp_path_factory.mktemp("undisturbed") / "log")
    with nodes() as found:
        found.add()
        found.add()
        assert run.train() == 0
    assert {step.workers for step in last_taken(run.parts).values()} == {2}
    return run


def assert_same_run(run: ElasticRun, undisturbed: ElasticRun) -> None:
    """The same optimiser steps on the same images, the same points in MLflow as one run, nearly the same weights."""
    steps, expected = last_taken(run.parts), last_taken(undisturbed.parts)
    assert list(steps) == list(expected) == list(range(STEPS))
    assert [step.images for step in steps.values()] == [step.images for step in expected.values()]
    samples = read_manifest(run.settings["data"]["train"]).samples
    seen = Counter(image for step in steps.values() for images in step.images for image in images)
    assert seen == Counter(dict.fromkeys(range(1, samples + 1), EPOCHS))
    meta = read_meta(str(CheckpointStore(f"{run.folder}/checkpoints").latest()))
    assert (meta.step, meta.position) == (STEPS, EPOCHS * samples)

    uri = f"sqlite:///{run.settings['run']['storage']}/mlflow.db"
    runs = {
        name: [r for r in find_runs(uri, "posefleet") if r.name == name] for name in (run.folder.name, "undisturbed")
    }
    assert [len(found) for found in runs.values()] == [1, 1]
    (own,), (other,) = runs.values()
    assert own.status == "FINISHED"
    assert json.loads((run.folder / "run.json").read_text())["run_id"] == own.run_id
    for name in ("lr", "loss", "AP"):
        points, others = (read_metrics(uri, r.run_id, [name])[name] for r in (own, other))
        assert [step for step, _ in points] == [step for step, _ in others], name
        for (_, value), (_, expected_value) in zip(points, others, strict=True):
            assert value == pytest.approx(expected_value, rel=1e-3, abs=1e-3), name

    torch.manual_seed(0)
    start = parameters_to_vector(build_model(build_experiment(run.settings)).parameters())
    way, apart = (weights(undisturbed) - start).norm(), (weights(run) - weights(undisturbed)).norm()
    assert way > 0
    assert apart < 1e-3 * way, f"{apart / way:.1e} of the way apart"  # rounding of float32 over sixty steps


def cost(run: ElasticRun) -> tuple[int, str, float]:
    """Steps done again, what was lost, and seconds from the last step of two workers to one that had not been taken."""
    alone = next(part.time for part in run.parts if part.workers == 1)
    last = [part for part in run.parts if part.time < alone][-1]
    new = min(part.time for part in run.parts if part.step > last.step)
    again = sum(step.times - 1 for step in last_taken(run.parts).values())
    return again, "nothing; weights equal up to rounding", new - last.time


def test_a_node_goes_and_another_comes(
    cluster: Nodes, settings: dict[str, Any], undisturbed: ElasticRun, tell: Callable[..., None]
) -> None:
    run = ElasticRun(named(settings, "shrinks"), undisturbed.log.parent / "shrinks")
    first = cluster.add()
    cluster.add()

    assert run.train(lambda: power_cut_and_new_node(cluster, run, first, step=12)) == 0
    assert_same_run(run, undisturbed)
    steps = last_taken(run.parts)
    assert steps[0].workers == 2
    assert 1 in {step.workers for step in steps.values()}
    assert steps[STEPS - 1].workers == 2
    alone = next(part.time for part in run.parts if part.workers == 1)
    grown = min(part.step for part in run.parts if part.workers == 2 and part.time > alone)
    again = sum(steps[step].times - 1 for step in range(grown, STEPS))
    assert again <= 2, f"the node that came cost {again} steps, though the workers could save before"
    tell("elastic run: power cut of one of two nodes; another comes later", "nothing", *cost(run))


def test_an_announced_end_of_a_node_costs_few_steps(
    cluster: Nodes, settings: dict[str, Any], undisturbed: ElasticRun, tell: Callable[..., None]
) -> None:
    lonely = named(settings, "announced")
    lonely["train"]["checkpoint_every"] = 0
    lonely["scaling"]["max_failures"] = 0  # a node whose end was announced is no failure
    run = ElasticRun(lonely, undisturbed.log.parent / "announced")
    first = cluster.add()
    cluster.add()
    saved: list[int] = []

    def act() -> None:
        run.wait_for(lambda part: part.step >= 12 and part.workers == 2)
        cluster.announce_end(first, 15)
        time.sleep(15)
        saved.extend(int(path.name[5:]) for path in run.folder.glob("checkpoints/step-*"))
        first.kill()
        run.wait_for(lambda part: part.workers == 1)

    assert run.train(act) == 0
    assert saved, "no checkpoint was written within the time of grace"
    assert_same_run(run, undisturbed)
    steps = last_taken(run.parts)
    assert steps[STEPS - 1].workers == 1
    assert min(part.step for part in run.parts if part.workers == 1) == max(saved)
    tell("elastic run: the end of one of two nodes, announced 15 s before", "nothing", *cost(run))
