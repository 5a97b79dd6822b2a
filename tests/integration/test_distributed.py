"""Training in several processes, without Ray."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from fit_process import evaluate_rank, in_processes, recorded_ids
from processes import free_port, in_ranks
from small_settings import untrained_checkpoint, with_settings
from torch.nn.utils import parameters_to_vector

from posefleet.data.shards.layout import read_manifest
from posefleet.platform.checkpoints.format import read_meta
from posefleet.platform.checkpoints.load import build_model, load_model
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.config.loading import build_experiment
from posefleet.platform.inference.evaluate import evaluate
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.training.loop import fit


@pytest.mark.parametrize(("backend", "ranks"), [pytest.param("pycocotools", 3, marks=pytest.mark.slow), ("faster", 2)])
def test_an_evaluation_is_the_same_among_many(
    backend: str, ranks: int, small_run: dict[str, Any], tmp_path: Path
) -> None:
    settings = with_settings(small_run, data={"eval_batch_size": 1}) | {"evaluate": {"backend": backend}}
    checkpoint = untrained_checkpoint(settings, tmp_path / "run", sure=True)
    alone = evaluate(load_model(checkpoint)[0], build_experiment(settings), LocalWorker(device="cpu"))
    arguments = (json.dumps(settings), checkpoint, str(tmp_path / "found.json"))
    in_ranks(evaluate_rank, (ranks, free_port(), *arguments), ranks)
    found = json.loads((tmp_path / "found.json").read_text())
    assert alone is not None and alone.protocol.poses > 10
    assert found["numbers"] == pytest.approx(alone.as_dict(), rel=1e-12, abs=0, nan_ok=True)
    assert {name: found["numbers"][name] for name in alone.statistics} == pytest.approx(
        alone.statistics, rel=0, abs=0, nan_ok=True
    )
    assert tuple(found["notes"]) == alone.notes


def test_two_workers_end_where_one_process_with_the_whole_batch_does(small_run: dict[str, Any], tmp_path: Path) -> None:
    # Plain SGD: Adam divides by the gradient's own size and so magnifies rounding. Two steps: later, rounding may turn
    # which cell is a person's best, and from there the ways part (3e-6, 5e-5 and 4e-3 after 2, 3 and 6 steps).
    sgd = {"name": "sgd", "lr": 0.01, "schedule": "constant", "warmup_steps": 0}
    one = with_settings(small_run, optim=sgd, data={"batch_size": 4, "eval": ""}, train={"epochs": 1 / 3})
    two = with_settings(small_run, optim=sgd, data={"batch_size": 2, "eval": ""}, train={"epochs": 1 / 3})
    fit(build_experiment(one), LocalWorker(device="cpu"), CheckpointStore(str(tmp_path / "one")))
    in_processes(2, two, tmp_path / "two")
    stores = CheckpointStore(str(tmp_path / "one")), CheckpointStore(str(tmp_path / "two" / "checkpoints"))
    torch.manual_seed(0)
    start, first, second = (
        parameters_to_vector(model.parameters())
        for model in (build_model(build_experiment(one)), *(load_model(str(store.latest()))[0] for store in stores))
    )
    assert (second - first).norm() < 1e-4 * (first - start).norm()  # rounding, against the way that was gone


def test_a_run_resumed_by_other_workers_sees_every_sample_once(small_run: dict[str, Any], tmp_path: Path) -> None:
    settings = with_settings(small_run, data={"batch_size": 2, "eval": ""}, train={"epochs": 2, "log_every": 1})
    in_processes(2, settings, tmp_path / "run", looks=4)
    store = CheckpointStore(str(tmp_path / "run" / "checkpoints"))
    samples = read_manifest(settings["data"]["train"]).samples
    assert 0 < read_meta(str(store.latest())).position < samples
    settings["data"]["batch_size"] = 3
    with recorded_ids(tmp_path / "run" / "ids-1-0"):
        fit(build_experiment(settings), LocalWorker(device="cpu"), store)
    seen = Counter(int(line) for file in (tmp_path / "run").glob("ids-*") for line in file.read_text().split())
    position = read_meta(str(store.latest())).position
    assert sum(seen.values()) == position
    assert set(seen) == set(range(1, samples + 1))
    # Two epochs, and where the last step reaches beyond them, the beginning of a third.
    assert Counter(seen.values())[2] == samples - (position - 2 * samples)
    assert set(seen.values()) <= {2, 3}


def test_an_elastic_run_goes_on_with_fewer_workers_as_if_nothing_had_happened(
    small_run: dict[str, Any], tmp_path: Path
) -> None:
    sgd = {"name": "sgd", "lr": 1e-3, "schedule": "cosine", "warmup_steps": 0}
    settings = with_settings(
        small_run,
        optim=sgd,
        data={"batch_size": 2, "eval": ""},
        train={"epochs": 1, "log_every": 1},
        scaling={"num_workers": 3, "min_workers": 1},
    )
    experiment, samples = build_experiment(settings), read_manifest(settings["data"]["train"]).samples
    stores = [CheckpointStore(str(tmp_path / name / "checkpoints")) for name in ("alone", "fewer")]
    fit(experiment, LocalWorker(device="cpu"), stores[0])

    in_processes(2, settings, tmp_path / "fewer", looks=2)  # with three micro-batches of a step, one rank has two
    assert read_meta(str(stores[1].latest())).position == 2 * 6
    with recorded_ids(tmp_path / "fewer" / "ids-1-0"):
        fit(experiment, LocalWorker(device="cpu"), stores[1])

    metas = [read_meta(str(store.latest())) for store in stores]
    assert [(meta.step, meta.position) for meta in metas] == [(4, samples), (4, samples)]
    seen = Counter(int(line) for file in (tmp_path / "fewer").glob("ids-*") for line in file.read_text().split())
    assert seen == Counter(range(1, samples + 1))
    torch.manual_seed(0)
    start, first, second = (
        parameters_to_vector(model.parameters())
        for model in (build_model(experiment), *(load_model(str(store.latest()))[0] for store in stores))
    )
    assert (second - first).norm() < 1e-3 * (first - start).norm()  # rounding, against the way that was gone
