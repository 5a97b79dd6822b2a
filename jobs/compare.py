"""Compare methods under equal conditions: train them on one budget, or take finished runs; one table, one plot.

python jobs/compare.py --methods all --data synthetic --minutes 5
python jobs/compare.py --methods smpr,pfs --data /data/shards --recipe paper --epochs 30 --backbone resnet50 \\
    --scaling.num_workers 8 --scaling.use_gpu true
python jobs/compare.py --methods all --data synthetic-large --recipe paper --scratch --minutes 20 \\
    --scaling.num_workers 1 --scaling.use_gpu true
python jobs/compare.py --runs runs/smpr-a runs/smpr-b --eval /data/shards/val2017
python jobs/compare.py --ablate smpr --data synthetic --epochs 0.7 --seeds 3
python jobs/compare.py --ablate smpr --data synthetic --epochs 0.7 --seeds 3 --rows baseline "+ PSM"
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posefleet.platform.ablation import Row
    from posefleet.platform.config import Experiment

CONFIGS = Path(__file__).resolve().parent / "configs"
IMAGES, HELD_OUT = 4000, 150
"""Rendered images to train on and to score on."""

STOPPED = 130
"""Status of a training that a signal stopped: the others are not wanted either."""

SYNTHETIC = {"synthetic": "easy", "synthetic-crowded": "crowded", "synthetic-large": "large"}
"""Values of ``--data`` that render people, and the kind of scenes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 when a training failed, 2 on bad arguments."""
    options, overrides = _parse(arguments)
    from posefleet.data.errors import DataError
    from posefleet.platform.checkpoint import CheckpointError
    from posefleet.platform.config import fail
    from posefleet.platform.paths import resolve_path

    out = Path(resolve_path(options.out))
    try:
        if options.ablate:
            return _ablate(options, overrides, out)
        if options.runs:
            runs = {Path(run).name: resolve_path(run) for run in options.runs}
        else:
            experiments = _budgeted(_methods(options, overrides, out), options)
            if not _train(experiments):
                return 1
            runs = {name: _folder(experiment) for name, experiment in experiments.items()}
        return _compare(runs, options.eval, out)
    except (ValueError, DataError, CheckpointError) as error:
        fail(str(error))


def _parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,  # --seed is an option of the experiments and no short form of --seeds
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Other options, such as --scaling.num_workers 2 or --seed 1, go to the experiment of every method.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--methods", help="all, or names with commas: smpr,pfs")
    what.add_argument("--runs", nargs="+", help="finished runs (folders or checkpoints) instead of new ones")
    what.add_argument("--ablate", metavar="METHOD", help="train the rows of the method's published ablation")
    parser.add_argument(
        "--data",
        default="synthetic",
        help=f"folder of shards with train2017/ and val2017/; or rendered: {', '.join(SYNTHETIC)}",
    )
    parser.add_argument("--eval", default="", help="shards to score on, where they are not the runs' own")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, help="of training for each run, from the measured time of its steps")
    budget.add_argument("--epochs", type=float, help="of training for each run")
    parser.add_argument("--rows", nargs="+", default=[], help="of the ablation, by name or number; default: all")
    parser.add_argument(
        "--seeds", type=int, default=1, help="trainings of each row of an ablation, from --seed on (%(default)s)"
    )
    parser.add_argument(
        "--recipe", choices=["demo", "paper"], default="demo", help="configs/METHOD_demo.yaml or METHOD.yaml"
    )
    parser.add_argument("--backbone", help="the same backbone for every method that has one")
    parser.add_argument("--scratch", action="store_true", help="backbones start at random: nothing is downloaded")
    parser.add_argument(
        "--out",
        default="runs/compare",
        help="folder for data, runs, table and plot; the same one goes on (%(default)s)",
    )
    options, overrides = parser.parse_known_args(arguments)
    if options.seeds < 1:
        parser.error(f"--seeds {options.seeds} must be at least 1")
    if (options.rows or options.seeds > 1) and not options.ablate:
        parser.error("--rows and --seeds belong to --ablate")
    return options, overrides


# ---------------------------------------------------------------------------------------------------- what to train


def _methods(options: argparse.Namespace, overrides: list[str], out: Path) -> dict[str, "Experiment"]:
    from posefleet.models import available_methods

    methods = available_methods() if options.methods == "all" else options.methods.split(",")
    common = _common(methods, options, overrides, out)
    return {method: _experiment(method, {}, options, [*common, "--run.name", method]) for method in methods}


def _common(methods: Sequence[str], options: argparse.Namespace, overrides: list[str], out: Path) -> list[str]:
    """Options that every experiment gets; synthetic data is made here."""
    from posefleet.models import load_method
    from posefleet.platform.paths import resolve_path

    for method in methods:
        load_method(method)  # an unknown name is told, with the known ones, before anything is rendered
    rendered = options.data in SYNTHETIC
    shards = _synthetic(options.data, out) if rendered else resolve_path(options.data).rstrip("/")
    common = ["--data.train", f"{shards}/train2017", "--data.eval", options.eval or f"{shards}/val2017"]
    return [*common, "--run.storage", str(out / "runs"), *overrides]


def _experiment(
    method: str, settings: Mapping[str, Any], options: argparse.Namespace, arguments: list[str]
) -> "Experiment":
    """The method's recipe, with ``settings`` (dotted names) and then the command line over it."""
    from posefleet.platform.config import build_experiment, override, read_yaml, with_settings

    values = read_yaml(CONFIGS / f"{method}{'_demo' if options.recipe == 'demo' else ''}.yaml")
    values["train"] = {**values.get("train", {}), "eval_every": 1e9}  # once, at the end
    values = with_settings(values, settings)
    experiment = override(build_experiment(values, where=f"{method} with {settings}"), arguments)
    if not hasattr(experiment.model, "backbone"):
        return experiment
    backbone = experiment.model.backbone
    if options.backbone:
        backbone = dataclasses.replace(backbone, name=options.backbone, weights="", pretrained=True)
    if options.scratch:
        backbone = dataclasses.replace(backbone, weights="", pretrained=False, frozen_stages=0, norm="trained")
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, backbone=backbone))


def _synthetic(data: str, out: Path) -> str:
    """Render and shard people, unless that was done before."""
    from posefleet.data.coco import find_source
    from posefleet.data.keypoints import COCO17
    from posefleet.data.sharding import shard_coco
    from posefleet.data.synthetic import SCENES, write_dataset

    folder, scenes = out / data.replace("synthetic", "data"), SCENES[SYNTHETIC[data]]
    for split, count in (("train2017", IMAGES), ("val2017", HELD_OUT)):
        root = folder / "shards" / split
        if not (root / "manifest.json").exists():
            write_dataset(
                folder / "coco", split, count, scenes, workers=os.cpu_count() or 1, progress=sys.stderr.isatty()
            )
            shard_coco(find_source(str(folder / "coco"), split), str(root), COCO17, parallel=False)
    return str(folder / "shards")


def _budgeted(experiments: Mapping[str, "Experiment"], options: argparse.Namespace) -> dict[str, "Experiment"]:
    """Every run with the epochs that its budget allows."""
    if options.epochs is None and options.minutes is None:
        return dict(experiments)
    if options.epochs is not None:
        return {name: _with_epochs(experiment, options.epochs) for name, experiment in experiments.items()}
    return {name: _with_epochs(e, _epochs(name, e, options.minutes)) for name, e in experiments.items()}


def _epochs(name: str, experiment: "Experiment", minutes: float) -> float:
    """That fit in some minutes; a run that was begun keeps those that it began with."""
    from posefleet.data.shards import read_manifest
    from posefleet.platform.checkpoint import build_model
    from posefleet.platform.comparison import begun, train_speed
    from posefleet.platform.worker import LocalWorker

    if meta := begun(_folder(experiment)):
        return meta.experiment.train.epochs
    worker = LocalWorker()
    speed = train_speed(build_model(experiment).to(worker.device), experiment, worker)
    images = minutes * 60 * speed * max(1, experiment.scaling.num_workers)
    epochs = images / read_manifest(experiment.data.train).labelled
    sys.stderr.write(f"{name}: {speed:.1f} images/s a worker, so {minutes:g} minutes are {epochs:.2f} epochs\n")
    return epochs


def _with_epochs(experiment: "Experiment", epochs: float) -> "Experiment":
    """The learning-rate schedule keeps its shape."""
    optim, factor = experiment.optim, epochs / experiment.train.epochs
    optim = dataclasses.replace(optim, milestones=tuple(milestone * factor for milestone in optim.milestones))
    return dataclasses.replace(experiment, optim=optim, train=dataclasses.replace(experiment.train, epochs=epochs))


def _folder(experiment: "Experiment") -> str:
    return f"{experiment.run.storage}/{experiment.run.name}"


def _train(experiments: Mapping[str, "Experiment"]) -> bool:
    """Train what is not finished; a run that failed does not keep the others from being trained."""
    from posefleet.platform.comparison import finished
    from posefleet.platform.train import train

    failed, waiting = [], [name for name, experiment in experiments.items() if not finished(experiment)]
    for number, name in enumerate(waiting, start=1):
        sys.stderr.write(f"\n== training {name} ({number} of {len(waiting)})\n")
        if status := train(experiments[name]):
            failed.append(f"{name} (status {status})")
        if status == STOPPED:
            break
    if failed:
        sys.stderr.write(f"error: these trainings did not finish: {', '.join(failed)}; the same command goes on\n")
    return not failed


# ---------------------------------------------------------------------------------------------------- ablations


def _ablate(options: argparse.Namespace, overrides: list[str], out: Path) -> int:
    """Train every row once for each seed, then show the ladder and its orderings."""
    from posefleet.platform import ablation, comparison, report
    from posefleet.platform.worker import LocalWorker

    rows = ablation.choose(_ladder(options.ablate), options.rows)
    common = _common([options.ablate], options, overrides, out)
    trials = _trials(rows, options, common)
    if not _train({experiment.run.name: experiment for experiment, _ in trials.values()}):
        return 1
    worker = LocalWorker()
    scores: dict[str, dict[int, dict[str, float]]] = {row.name: {} for row in rows}
    for (row, seed), (trained, decoded) in trials.items():
        scores[row][seed] = comparison.scores(_folder(trained), decoded, worker)
    found = ablation.orderings(rows, scores)
    text = f"{ablation.as_markdown(rows, scores)}\n\n{ablation.orderings_as_markdown(found)}"
    out.mkdir(parents=True, exist_ok=True)
    (out / "ablation.md").write_text(text + "\n")
    (out / "ablation.json").write_text(json.dumps(scores, indent=1) + "\n")
    here = {row.name: [values["AP"] for values in scores[row.name].values()] for row in rows}
    figure = report.ablation_figure(here, {row.name: row.paper["AP"] / 100 for row in rows})
    report.save_png(figure, out / "ablation.png")
    sys.stdout.write(f"{text}\n\n  table  {out / 'ablation.md'}\n  plot   {out / 'ablation.png'}\n")
    return 0


def _ladder(method: str) -> "list[Row]":
    from posefleet.platform.ablation import read_ladder

    path = CONFIGS / "ladders" / f"{method}.yaml"
    if not path.exists():
        names = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise ValueError(f"no ablation of {method!r}; configs/ladders/ has {names}")
    return read_ladder(path)


def _trials(
    rows: "Sequence[Row]", options: argparse.Namespace, common: list[str]
) -> "dict[tuple[str, int], tuple[Experiment, Experiment]]":
    """(row, seed) -> the experiment that is trained, and the one that its weights are scored with.

    All rows come before the next seed, so that a whole ladder is there as early as possible.
    """

    def experiment(settings: Mapping[str, Any]) -> "Experiment":
        return _experiment(options.ablate, settings, options, common)

    def of_seed(experiment: "Experiment", training: str, seed: int) -> "Experiment":
        run = dataclasses.replace(experiment.run, name=f"{training}-seed{seed}")
        return dataclasses.replace(experiment, seed=seed, run=run)

    first = experiment({}).seed
    trained = {row.training: of_seed(experiment(row.trained), row.training, first) for row in rows}
    trained = _budgeted(trained, options)
    decoded = {row.name: experiment(row.decoded) for row in rows}
    trials = {}
    for seed in range(first, first + options.seeds):
        for row in rows:
            whole = of_seed(trained[row.training], row.training, seed)
            other = decoded[row.name]
            trials[row.name, seed] = whole, dataclasses.replace(whole, model=other.model, evaluate=other.evaluate)
    return trials


# ---------------------------------------------------------------------------------------------------- what came out


def _compare(runs: dict[str, str], data: str, out: Path) -> int:
    from posefleet.platform import comparison, report
    from posefleet.platform.checkpoint import find_checkpoint, read_meta
    from posefleet.platform.worker import LocalWorker

    warning = comparison.same_data({n: read_meta(find_checkpoint(run)).experiment for n, run in runs.items()})
    entries = []
    for name, run in runs.items():
        sys.stderr.write(f"scoring and timing {name}\n")
        entries.append(comparison.examine(name, run, LocalWorker(), data=data))
    text = comparison.as_markdown(entries)
    if warning:
        text += f"\n\nNot the same conditions: {warning}."
    out.mkdir(parents=True, exist_ok=True)
    (out / "comparison.md").write_text(text + "\n")
    (out / "comparison.json").write_text(json.dumps(comparison.as_dict(entries), indent=1) + "\n")
    times = {entry.name: entry.cost.predict_ms for entry in entries}
    report.save_png(report.comparison_figure({e.name: e.evaluation.ap for e in entries}, times), out / "comparison.png")
    sys.stdout.write(f"{text}\n\n  table  {out / 'comparison.md'}\n  plot   {out / 'comparison.png'}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
