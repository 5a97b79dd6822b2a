from dataclasses import replace
from pathlib import Path

import pytest

from posefleet.jobs import compare
from posefleet.models import available_methods
from posefleet.models.inspose import Config as InsPose
from posefleet.platform.checkpoints.load import build_model
from posefleet.platform.comparison.budget import budgeted

SHARDS = ("--data", "/data/shards")
DATA = {"data.train": ["/data/shards/train2017"]}
OUT = Path("/out")

LADDERS = sorted(path.stem for path in (compare.CONFIGS / "ladders").glob("*.yaml"))


@pytest.mark.parametrize("method", LADDERS)
def test_every_row_of_a_ladder_differs_from_the_others_and_can_be_built(method: str) -> None:
    rows, trials = compare._ablation(*compare._parse(["--ablate", method, *SHARDS]), OUT)
    assert [name for name, _ in trials] == [row.name for row in rows]
    assert len({str((e.model, e.evaluate, e.train.epochs)) for _, e in trials.values()}) == len(rows)
    assert len({row.training for row in rows}) == len({str((row.trained, row.length)) for row in rows})
    assert all(40 < row.paper["AP"] < 80 for row in rows)
    for _, scored in trials.values():
        build_model(replace(scored, schema="coco17"), pretrained=False)


def test_a_row_is_trained_once_for_each_seed_and_the_run_is_named_after_it() -> None:
    chosen = ["--rows", "1", "+ PSM", "--seeds", "2", "--seed", "5", "--epochs", "1"]
    _, trials = compare._ablation(*compare._parse(["--ablate", "smpr", *chosen, *SHARDS]), OUT)
    trained = [experiment for experiment, _ in trials.values()]
    names = ["smpr-1-baseline-seed5", "smpr-5-psm-seed5", "smpr-1-baseline-seed6", "smpr-5-psm-seed6"]
    assert [e.run.name for e in trained] == names
    assert [e.seed for e in trained] == [5, 5, 6, 6] and {e.train.epochs for e in trained} == {1}
    assert not trained[0].model.head.refine and trained[1].model.head.refine  # settings of the rows between, too


def test_rows_that_the_paper_trains_longer_are_trained_longer() -> None:
    for given, longest in ((("--epochs", "0.62"), 0.62), ((), 3.5)):
        _, trials = compare._ablation(*compare._parse(["--ablate", "pfs", *given, *SHARDS]), OUT)
        epochs = {name: trained.train.epochs for (name, _), (trained, _) in trials.items()}
        assert epochs["Baseline*"] == epochs["+ PSM"] == longest
        assert epochs["Baseline"] == epochs["+ Heatmap"] == pytest.approx(longest * 24 / 31)


def test_only_the_last_row_of_smpr_adds_a_path_to_the_pyramid_whatever_the_recipe() -> None:
    """And the rows before the OKS filter do without what the filter brings: clean labels, weights, 0.5."""
    for recipe in ("demo", "paper"):
        _, trials = compare._ablation(*compare._parse(["--ablate", "smpr", "--recipe", recipe, *SHARDS]), OUT)
        models = [scored.model for _, scored in trials.values()]
        assert [m.neck for m in models] == ["fpn"] * 6 + ["pafpn"]
        assert [m.assign.cls_target for m in models] == ["s1"] * 3 + ["s2"] * 4
        assert [m.loss.oks_weighted_regression for m in models] == [False] * 3 + [True] * 4
        assert [m.assign.refine_oks_threshold for m in models[2:]] == [0.0] + [0.5] * 4


def test_rows_that_only_decode_differently_share_a_training() -> None:
    _, trials = compare._ablation(*compare._parse(["--ablate", "detposenet", *SHARDS]), OUT)
    assert {trained.run.name for trained, _ in trials.values()} == {"detposenet-1-box-nms-seed0"}
    assert {trained.model.filter.mode for trained, _ in trials.values()} == {"nms"}
    scored = {name: (e.model.filter.mode, e.evaluate.oracle_boxes) for (name, _), (_, e) in trials.items()}
    assert scored["with missed people"] == ("nms", "no_missed") and scored["coarse-pose filter"] == ("coarse", "none")


def test_seeds_and_rows_are_of_ablations(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--methods", "smpr", "--seeds", "2"], ["--ablate", "smpr", "--seeds", "0"]):
        with pytest.raises(SystemExit):
            compare._parse(arguments)
    assert "--rows and --seeds belong to --ablate" in capsys.readouterr().err


@pytest.mark.parametrize("what", [["--runs", "a"], ["--search", "a"]])
def test_settings_have_no_effect_where_nothing_is_trained(what: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare._parse([*what, "--optim.lr", "0.1"])
    assert "--optim.lr 0.1: nothing is trained" in capsys.readouterr().err


def test_every_method_has_a_recipe_of_each_kind() -> None:
    for method in available_methods():
        for suffix in ("", "_demo"):
            assert Path(compare.CONFIGS, f"{method}{suffix}.yaml").exists()


def test_the_recipe_of_the_paper_is_the_config_of_that_name() -> None:
    options, _ = compare._parse(["--methods", "inspose", "--recipe", "paper"])
    assert compare._experiment("inspose", {}, options, DATA).model == InsPose.paper()
    assert compare._experiment("pfs", {}, options, DATA).train.epochs == 31  # pfs.yaml: there is no pfs_paper.yaml


@pytest.mark.parametrize("method", available_methods())
def test_published_recipes_start_from_scratch_where_nothing_can_be_downloaded(method: str) -> None:
    options, _ = compare._parse(["--methods", method, "--recipe", "paper", "--scratch"])
    experiment = replace(compare._experiment(method, {}, options, DATA), schema="coco17")
    parameters = dict(build_model(experiment).named_parameters())  # would fail without a network if it asked for one
    frozen = [
        name for name, parameter in parameters.items() if not parameter.requires_grad and "fuse_layers" not in name
    ]
    assert not frozen


def test_a_budget_of_epochs_keeps_the_shape_of_the_schedule() -> None:
    options, _ = compare._parse(["--methods", "smpr", "--recipe", "paper", "--epochs", "10"])
    experiment = compare._experiment("smpr", {}, options, DATA)
    short = budgeted({"smpr": experiment}, epochs=options.epochs)["smpr"]
    assert experiment.train.epochs == 100 and experiment.optim.milestones == (80, 90)
    assert short.train.epochs == 10 and short.optim.milestones == pytest.approx((8, 9))
