"""Compare methods under equal conditions: train them on one budget, or take finished runs; one table, one plot.

python jobs/compare.py --methods all --data synthetic --minutes 5
python jobs/compare.py --methods smpr,pfs --data /data/shards --recipe paper --epochs 30 --backbone resnet50 \\
    --scaling.num_workers 8 --scaling.use_gpu true
python jobs/compare.py --runs runs/smpr-a runs/smpr-b --eval /data/shards/val2017
python jobs/compare.py --ablate smpr --data synthetic --minutes 3
"""

import argparse
import dataclasses
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posefleet.platform.config import Experiment

CONFIGS = Path(__file__).resolve().parent / "configs"
IMAGES, HELD_OUT = 4000, 150
"""Rendered images to train on and to score on, for ``--data synthetic``."""

Row = tuple[str, "Experiment", dict[str, float]]
"""Name of a run, what it trains, and what the paper reports for it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 when a training failed, 2 on bad arguments."""
    options, overrides = _parse(arguments)
    from posefleet.data.errors import DataError
    from posefleet.platform.checkpoint import CheckpointError
    from posefleet.platform.config import fail, resolve_path

    out = Path(resolve_path(options.out))
    try:
        if options.runs:
            runs, paper = {Path(run).name: resolve_path(run) for run in options.runs}, {}
        else:
            rows = _budgeted(_rows(options, overrides, out), options)
            runs, paper = {name: f"{e.run.storage}/{e.run.name}" for name, e, _ in rows}, {n: p for n, _, p in rows}
            if not _train(rows):
                return 1
        return _compare(runs, paper, options.eval, out)
    except (ValueError, DataError, CheckpointError) as error:
        fail(str(error))


def _parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Other options, such as --scaling.num_workers 2 or --seed 1, go to the experiment of every method.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--methods", help="all, or names with commas: smpr,pfs")
    what.add_argument("--runs", nargs="+", help="finished runs (folders or checkpoints) instead of new ones")
    what.add_argument("--ablate", metavar="METHOD", help="train the rows of the method's published ablation")
    parser.add_argument(
        "--data", default="synthetic", help="folder of shards with train2017/ and val2017/; or synthetic"
    )
    parser.add_argument("--eval", default="", help="shards to score on, where they are not the runs' own")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, help="of training for each run, from the measured time of its steps")
    budget.add_argument("--epochs", type=float, help="of training for each run")
    parser.add_argument(
        "--recipe", choices=["demo", "paper"], default="demo", help="configs/METHOD_demo.yaml or METHOD.yaml"
    )
    parser.add_argument("--backbone", help="the same backbone for every method that has one")
    parser.add_argument(
        "--out",
        default="runs/compare",
        help="folder for data, runs, table and plot; the same one goes on (%(default)s)",
    )
    return parser.parse_known_args(arguments)


# ---------------------------------------------------------------------------------------------------- what to train


def _rows(options: argparse.Namespace, overrides: list[str], out: Path) -> list[Row]:
    from posefleet.models import available_methods, load_method
    from posefleet.platform.config import resolve_path

    methods = available_methods() if options.methods == "all" else (options.ablate or options.methods).split(",")
    for method in methods:
        load_method(method)  # an unknown name is told, with the known ones, before anything is rendered
    shards = _synthetic(out / "data") if options.data == "synthetic" else resolve_path(options.data).rstrip("/")
    common = ["--data.train", f"{shards}/train2017", "--data.eval", options.eval or f"{shards}/val2017"]
    common += ["--run.storage", str(out / "runs"), *overrides]
    if options.ablate:
        return _ladder(options.ablate, options, common)
    return [(method, _experiment(method, {}, options, [*common, "--run.name", method]), {}) for method in methods]


def _ladder(method: str, options: argparse.Namespace, common: list[str]) -> list[Row]:
    """The rows of ``configs/ladders/METHOD.yaml``; each row's settings come on top of those of the rows before it."""
    from posefleet.platform.config import read_yaml

    path = CONFIGS / "ladders" / f"{method}.yaml"
    if not path.exists():
        names = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise ValueError(f"no ablation of {method!r}; configs/ladders/ has {names}")
    rows: list[Row] = []
    settings: dict[str, Any] = {}
    for number, row in enumerate(read_yaml(path)["rows"]):
        settings |= row.get("set", {})
        run = f"{method}-{number}-{re.sub(r'[^a-z0-9]+', '-', row['name'].lower()).strip('-')}"
        rows.append((row["name"], _experiment(method, settings, options, [*common, "--run.name", run]), row["paper"]))
    return rows


def _experiment(
    method: str, settings: dict[str, Any], options: argparse.Namespace, arguments: list[str]
) -> "Experiment":
    """The method's recipe, with ``settings`` (dotted names) and then the command line over it."""
    from posefleet.platform.config import build_experiment, override, read_yaml

    values = read_yaml(CONFIGS / f"{method}{'_demo' if options.recipe == 'demo' else ''}.yaml")
    values["train"] = {**values.get("train", {}), "eval_every": 1e9}  # once, at the end
    for dotted, value in settings.items():
        *sections, name = dotted.split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    experiment = override(build_experiment(values, where=f"{method} with {settings}"), arguments)
    if options.backbone and hasattr(experiment.model, "backbone"):
        backbone = dataclasses.replace(experiment.model.backbone, name=options.backbone, weights="", pretrained=True)
        experiment = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, backbone=backbone))
    return experiment


def _synthetic(folder: Path) -> str:
    """Render and shard people, unless that was done before."""
    from posefleet.data.coco import find_source
    from posefleet.data.keypoints import COCO17
    from posefleet.data.sharding import shard_coco
    from posefleet.data.synthetic import EASY_SCENES, write_dataset

    for split, count in (("train2017", IMAGES), ("val2017", HELD_OUT)):
        root = folder / "shards" / split
        if not (root / "manifest.json").exists():
            write_dataset(
                folder / "coco", split, count, EASY_SCENES, workers=os.cpu_count() or 1, progress=sys.stderr.isatty()
            )
            shard_coco(find_source(str(folder / "coco"), split), str(root), COCO17, parallel=False)
    return str(folder / "shards")


def _budgeted(rows: list[Row], options: argparse.Namespace) -> list[Row]:
    """Every run with the epochs that its budget allows."""
    if options.epochs is None and options.minutes is None:
        return rows
    if options.epochs is not None:
        return [(name, _with_epochs(experiment, options.epochs), paper) for name, experiment, paper in rows]
    from posefleet.data.shards import read_manifest
    from posefleet.platform.checkpoint import build_model
    from posefleet.platform.comparison import train_speed
    from posefleet.platform.worker import LocalWorker

    budgeted = []
    for name, experiment, paper in rows:
        worker = LocalWorker()
        speed = train_speed(build_model(experiment).to(worker.device), experiment, worker)
        images = options.minutes * 60 * speed * max(1, experiment.scaling.num_workers)
        epochs = images / read_manifest(experiment.data.train).labelled
        sys.stderr.write(
            f"{name}: {speed:.1f} images/s a worker, so {options.minutes:g} minutes are {epochs:.2f} epochs\n"
        )
        budgeted.append((name, _with_epochs(experiment, epochs), paper))
    return budgeted


def _with_epochs(experiment: "Experiment", epochs: float) -> "Experiment":
    """The learning-rate schedule keeps its shape."""
    optim, factor = experiment.optim, epochs / experiment.train.epochs
    optim = dataclasses.replace(optim, milestones=tuple(milestone * factor for milestone in optim.milestones))
    return dataclasses.replace(experiment, optim=optim, train=dataclasses.replace(experiment.train, epochs=epochs))


def _train(rows: list[Row]) -> bool:
    from posefleet.platform.train import train

    failed = []
    for name, experiment, _ in rows:
        sys.stderr.write(f"\n== training {name}\n")
        if status := train(experiment):
            failed.append(f"{name} (status {status})")
    if failed:
        sys.stderr.write(f"error: these trainings did not finish: {', '.join(failed)}; the same command goes on\n")
    return not failed


# ---------------------------------------------------------------------------------------------------- what came out


def _compare(runs: dict[str, str], paper: dict[str, dict[str, float]], data: str, out: Path) -> int:
    from posefleet.platform import comparison, report
    from posefleet.platform.checkpoint import find_checkpoint, read_meta
    from posefleet.platform.worker import LocalWorker

    warning = comparison.same_data({n: read_meta(find_checkpoint(run)).experiment for n, run in runs.items()})
    entries = []
    for name, run in runs.items():
        sys.stderr.write(f"scoring and timing {name}\n")
        entries.append(comparison.examine(name, run, LocalWorker(), data=data))
    text = comparison.as_markdown(entries)
    if any(paper.values()):
        text += f"\n\n{comparison.beside_paper(entries, paper)}"
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
