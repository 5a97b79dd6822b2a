from pathlib import Path

import pytest

from posefleet.jobs import compare
from posefleet.models import available_methods
from posefleet.platform.checkpoint import build_model

LADDERS = sorted(path.stem for path in (compare.CONFIGS / "ladders").glob("*.yaml"))


@pytest.mark.parametrize("method", LADDERS)
def test_every_row_of_a_ladder_is_a_model_of_its_own(method: str) -> None:
    options, _ = compare._parse(["--ablate", method])
    rows = compare._ladder(method, options, ["--data.train", "/data/shards/train2017"])
    models = [experiment.model for _, experiment, _ in rows]
    assert len(set(map(str, models))) == len(rows)
    assert len({experiment.run.name for _, experiment, _ in rows}) == len(rows)
    assert all(40 < paper["AP"] < 70 for _, _, paper in rows)
    for _, experiment, _ in rows:
        build_model(experiment, pretrained=False)


def test_every_method_has_a_recipe_of_each_kind() -> None:
    for method in available_methods():
        for suffix in ("", "_demo"):
            assert Path(compare.CONFIGS, f"{method}{suffix}.yaml").exists()


def test_a_budget_of_epochs_keeps_the_shape_of_the_schedule() -> None:
    options, _ = compare._parse(["--methods", "smpr", "--recipe", "paper", "--epochs", "10"])
    experiment = compare._experiment("smpr", {}, options, ["--data.train", "/data/shards/train2017"])
    ((_, short, _),) = compare._budgeted([("smpr", experiment, {})], options)
    assert experiment.train.epochs == 100 and experiment.optim.milestones == (80, 90)
    assert short.train.epochs == 10 and short.optim.milestones == pytest.approx((8, 9))
