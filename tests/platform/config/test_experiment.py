import dataclasses
from pathlib import Path

import pytest
import yaml

from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.shards.layout import Manifest, write_manifest
from posefleet.platform.config.cli import override, parse_experiment
from posefleet.platform.config.experiment import ScalingConfig
from posefleet.platform.config.loading import build_experiment, parameters, read_yaml, to_dict, to_yaml
from posefleet.platform.runtime.paths import resolve_path

CONFIGS = sorted((Path(__file__).resolve().parents[3] / "jobs" / "configs").glob("*.yaml"))
MINIMAL = {"method": "smpr", "data": {"train": "shards"}}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_valid_and_begins_with_its_command(path: Path) -> None:
    build_experiment(read_yaml(path), where=str(path))
    command = "".join(path.read_text().splitlines(keepends=True)[:2])
    assert command.startswith(("# ray job submit", "# posefleet train", "# make"))
    assert command.startswith("# make") or f"--config jobs/configs/{path.name}" in command


def test_an_experiment_survives_the_way_through_yaml() -> None:
    import yaml

    experiment = build_experiment({**MINIMAL, "evaluate": {"scales": [600, 800]}})
    assert build_experiment(yaml.safe_load(to_yaml(experiment))) == experiment
    assert dataclasses.asdict(build_experiment(to_dict(experiment))) == dataclasses.asdict(experiment)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**MINIMAL, "trian": {}}, "unknown key 'trian'; did you mean 'train'"),
        (
            {"method": "smpr", "data": {"train": "x", "bach_size": 3}},
            r"data\.bach_size.*did you mean 'data.batch_size'",
        ),
        ({**MINIMAL, "optim": {"learning_rate": 1}}, r"unknown key 'optim\.learning_rate'; did you mean 'optim\.lr'"),
        ({**MINIMAL, "epochs": 3}, r"unknown key 'epochs'; did you mean 'train\.epochs'"),
        ({**MINIMAL, "scaling": {"workers": 3}}, r"did you mean 'scaling\.num_workers'"),
        ({**MINIMAL, "model": {"head": {"chanels": 3}}}, r"model\.head\.chanels.*model\.head has: channels"),
        ({**MINIMAL, "optim": {"lr": "fast"}}, r"optim\.lr: .*'fast'"),
        ({**MINIMAL, "optim": {"name": "adam"}}, r"optim\.name: .*'sgd' or 'adamw'"),
        ({**MINIMAL, "train": {"epochs": 0}}, r"train: train\.epochs 0\.0 must be positive"),
        ({**MINIMAL, "schema": "coco18"}, "unknown keypoint schema 'coco18'"),
        ({**MINIMAL, "method": "smrp"}, "unknown method 'smrp'.*smpr"),
        ({"data": {"train": "x"}}, "method is missing"),
        ({"method": "smpr"}, "data: Field required"),
        ({**MINIMAL, "optim": {"schedule": "cosine", "milestones": [3]}}, "milestones .* have no effect"),
    ],
)
def test_bad_settings_are_named(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_experiment(values)


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("method: smpr\ndata: {train: shards, batch_size: 3}\ntrain: {epochs: 7}\n")
    experiment = parse_experiment(
        "smpr",
        ["--config", str(config), "--scaling.use_gpu", "true", "--data.batch_size", "5", "--evaluate.scales", "6", "8"],
    )
    assert experiment.data.batch_size == 5
    assert experiment.train.epochs == 7
    assert experiment.scaling.use_gpu is True
    assert experiment.evaluate.scales == (6, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "data.train is missing"),
        (["--config", "nowhere.yaml"], "no config file nowhere.yaml"),
        (["--data.train", "x", "--train.epochs", "-1"], "train.epochs -1.0 must be positive"),
        (["--data.train", "x", "--scalling.num_workers", "1"], "scaling.num_workers"),
        (["--data.train", "x", "--optim.lr", "fast"], "--optim.lr"),
        (["--config"], "--config: expected one argument"),
        (["--data.train", "x", "--run.note", "two\nlines"], "must be one line of at most 300 printable characters"),
    ],
)
def test_bad_arguments_end_the_job_with_a_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse_experiment("smpr", arguments)
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert message in captured.err + captured.out


def test_a_config_of_another_method_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("method: other\n")
    with pytest.raises(SystemExit):
        parse_experiment("smpr", ["--config", str(config)])
    assert "'other'" in capsys.readouterr().err


def test_options_change_an_existing_experiment() -> None:
    experiment = override(build_experiment(MINIMAL), {"model.score.pose": ["initial"]})
    assert experiment.model.score.pose == "initial"


def test_relative_paths_of_a_ray_job_do_not_end_in_its_temporary_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("POSEFLEET_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert resolve_path("runs") == str(tmp_path / "runs")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert resolve_path("runs") == str(Path.home() / "runs")
    monkeypatch.setenv("POSEFLEET_HOME", "/shared")
    assert resolve_path("runs") == "/shared/runs"
    assert resolve_path("s3://bucket/x") == "s3://bucket/x"
    assert resolve_path("models:/smpr@champion") == "models:/smpr@champion"
    assert resolve_path("") == ""


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_the_configs_of_smprs_presets_are_the_presets(preset: str) -> None:
    from posefleet.models.smpr import Config

    path = next(path for path in CONFIGS if path.stem == f"smpr_{preset}")
    assert build_experiment(read_yaml(path)).model == getattr(Config, preset)()


def test_detposenets_config_differs_from_its_paper_preset_in_filter_and_limbs_alone() -> None:
    from posefleet.models.detposenet import Config

    by_name = {path.stem: build_experiment(read_yaml(path)).model for path in CONFIGS}
    paper, ours = by_name["detposenet_paper"], by_name["detposenet"]
    assert paper == Config.paper()
    assert ours.coarse.limb_overhang == by_name["detposenet_demo"].coarse.limb_overhang == 8
    coarse = dataclasses.replace(paper.coarse, limb_overhang=8.0)
    assert ours == dataclasses.replace(paper, coarse=coarse, filter=Config().filter)
    assert ours.detector.kind == "torchvision" and by_name["detposenet_whitebox"].detector.kind == "shared"


@pytest.mark.parametrize(
    ("scaling", "elastic"),
    [
        ({"num_workers": 4}, False),
        ({"num_workers": 4, "min_workers": 4}, False),
        ({"num_workers": 4, "min_workers": 1}, True),
    ],
)
def test_a_run_is_elastic_where_fewer_workers_are_enough(scaling: dict[str, int], elastic: bool) -> None:
    assert ScalingConfig(**scaling).elastic is elastic


def test_more_than_all_workers_cannot_be_the_fewest() -> None:
    with pytest.raises(ValueError, match=r"scaling.min_workers 5 must be from 0 to scaling.num_workers, 4"):
        ScalingConfig(num_workers=4, min_workers=5)


DOG = KeypointSchema.from_dict({"name": "dog", "keypoints": ["nose", "tail"], "skeleton": [["nose", "tail"]]})


def shards_of(folder: Path, schema: KeypointSchema) -> str:
    write_manifest(str(folder), Manifest(1, "train2017", schema, "0" * 64, (), {}, ()))
    return str(folder)


def test_schema_auto_is_that_of_the_shards_and_is_kept_whole(tmp_path: Path) -> None:
    experiment = build_experiment({"method": "smpr", "data": {"train": shards_of(tmp_path, DOG)}})
    assert experiment.keypoints == DOG and experiment.schema == DOG.as_dict()
    (tmp_path / "manifest.json").unlink()
    again = build_experiment(yaml.safe_load(to_yaml(experiment)))
    assert again == experiment and again.keypoints.skeleton == DOG.skeleton
    assert parameters(experiment)["schema"] == "dog" and to_dict(experiment)["schema"]["keypoints"] == ["nose", "tail"]
    experiment = build_experiment({"method": "smpr", "data": {"train": shards_of(tmp_path, COCO17)}})
    assert experiment.schema == "coco17"


def test_a_schema_file_is_read_once(tmp_path: Path) -> None:
    file = tmp_path / "dog.yaml"
    file.write_text(yaml.safe_dump(DOG.as_dict()))
    experiment = build_experiment({**MINIMAL, "schema": str(file)})
    file.unlink()
    assert experiment.keypoints == DOG and build_experiment(to_dict(experiment)).keypoints == DOG
    with pytest.raises(ValueError, match=r"configuration: .*dog\.yaml: no such file"):
        build_experiment({**MINIMAL, "schema": str(file)})


def test_schema_auto_without_shards_is_an_error_when_it_is_needed() -> None:
    experiment = build_experiment(MINIMAL)
    assert experiment.schema == "auto"
    with pytest.raises(ValueError, match=r"shards: no manifest\.json"):
        _ = experiment.keypoints
