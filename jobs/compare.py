"""Compare methods under equal conditions, trained on one budget or from finished runs: writes tables, a plot, a page.

posefleet compare --methods all --data synthetic --minutes 5
posefleet compare --methods smpr,pfs --data /data/shards --recipe paper --epochs 30 --backbone resnet50 \\
    --scaling.num_workers 8 --scaling.use_gpu true
posefleet compare --methods all --data synthetic-large --recipe paper --scratch --minutes 20 \\
    --scaling.num_workers 1 --scaling.use_gpu true
posefleet compare --runs runs/smpr-a runs/smpr-b --eval /data/shards/val2017
posefleet compare --search runs/tune-smpr --top 3
posefleet compare --registry smpr --eval /data/shards/val2017
posefleet compare --ablate smpr --data synthetic --epochs 0.7 --seeds 3 --rows baseline "+ PSM"
"""

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from posefleet.command_line import Given, Place, fail, one_of
from posefleet.platform.config.cli import WORKERS, override, parse_with_settings
from posefleet.platform.runtime.errors import PlatformError

if TYPE_CHECKING:
    from posefleet.platform.comparison.ablation import Row, Trials
    from posefleet.platform.config.experiment import Experiment

CONFIGS = Path(__file__).resolve().parent / "configs"
IMAGES, HELD_OUT = 4000, 150
"""Number of rendered images for training, and number for scoring."""

BEST = 5
"""Number of trials of a search that are compared by default."""

SYNTHETIC = {"synthetic": "easy", "synthetic-crowded": "crowded", "synthetic-large": "large"}
"""Value of ``--data`` that asks for rendered people -> kind of scenes."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to compare, and how to train it first."""

    methods: Annotated[str, "NAMES"] = ""
    """Train these methods and compare them: all, or names with commas, such as smpr,pfs."""
    runs: Annotated[tuple[str, ...], "RUN"] = ()
    """Compare finished runs: folders, checkpoints, MLflow run ids, models:/NAME@ALIAS."""
    search: Annotated[str, Place("FOLDER")] = ""
    """Compare the best trials of a search with trial 0, which has the settings that the search started from."""
    registry: Annotated[tuple[str, ...], "MODEL"] | None = None
    """Compare champion, challenger and previous version of these registered models. Without names: of all models."""
    ablate: Annotated[str, "METHOD"] = ""
    """Train the rows of the method's published ablation."""
    top: Annotated[int, "N"] | None = None
    """With --search: number of its best trials. Default: 5."""
    data: Annotated[str, "FOLDER"] = "synthetic"
    """Folder of shards with train2017/ and val2017/. Or render people: synthetic, synthetic-crowded (people hide
    people), synthetic-large (512 px)."""
    eval: Annotated[str, Place("SHARDS")] = ""
    """Shards to score on. Default: those of --data, or each run's own."""
    minutes: float | None = None
    """Training time of each run, minutes; the measured time of its steps gives its epochs. More minutes, higher AP."""
    epochs: float | None = None
    """Passes over the training images of each run, instead of --minutes. Default: those of the recipe."""
    rows: Annotated[tuple[str, ...], "ROW"] = ()
    """With --ablate: rows to train, by name or number. Default: all."""
    seeds: int = 1
    """With --ablate: number of seeds that each row is trained with; --seed is the first. More seeds show the spread and
    take proportionally longer."""
    recipe: Literal["demo", "paper"] = "demo"
    """Settings to start from: jobs/configs/METHOD_demo.yaml (CPU, minutes), or METHOD_paper.yaml, or METHOD.yaml if
    there is no such file (GPUs, as published)."""
    backbone: Annotated[str, "NAME"] = ""
    """The same backbone for every method that has one, such as resnet50."""
    scratch: bool = False
    """Start backbones at random, so that no weights are downloaded."""
    out: Annotated[str, Place("FOLDER")] = "runs/compare"
    """Folder on a disk for data, runs, tables, plot and page. A folder that was used before is continued."""

    def __post_init__(self) -> None:
        one_of(self, "methods", "runs", "search", "registry", "ablate")
        if self.minutes is not None and self.epochs is not None:
            raise ValueError("give --minutes or --epochs, not both")
        if self.seeds < 1:
            raise ValueError(f"--seeds {self.seeds} must be at least 1")
        if (self.rows or self.seeds > 1) and not self.ablate:
            raise ValueError("--rows and --seeds belong to --ablate")
        if self.top is not None and (not self.search or self.top < 1):
            raise ValueError(f"--top {self.top} belongs to --search and must be at least 1")


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare what the options name. Exit status: 0 finished, 1 a training failed, 2 bad arguments."""
    options, overrides = _parse(arguments)
    from posefleet.platform.comparison import report, sources
    from posefleet.platform.comparison.budget import folder_of, train_all

    if "://" in options.out:
        fail(f"--out {options.out} must be a folder on a disk")
    out = Path(options.out)
    try:
        if options.ablate:
            rows, trials = _ablation(options, overrides, out)
            if not train_all({trained.run.name: trained for trained, _ in trials.values()}):
                return 1
            sys.stdout.write(report.compare_rows(rows, trials, out))
            return 0
        if options.methods:
            experiments = _methods(options, overrides, out)
            if not train_all(experiments):
                return 1
            runs, about = {name: folder_of(experiment) for name, experiment in experiments.items()}, _budget(options)
        elif options.search:
            runs = sources.trials(options.search, options.top or BEST)
            about = f"The best trials of the search in {options.search}; it began from trial 0."
        elif options.registry is not None:
            runs, about = sources.registered(options.registry), "Registered models by version and alias."
        else:
            runs, about = sources.named_runs(options.runs), ""
        sys.stdout.write(report.compare_runs(runs, out, data=options.eval, about=about))
        return 0
    except (ValueError, PlatformError) as error:
        fail(error)


def _parse(arguments: Sequence[str] | None) -> tuple[Options, Given]:
    shown = ("seed", "data.batch_size", *WORKERS)
    options, overrides = parse_with_settings(Options, arguments, command="compare", about=__doc__ or "", shown=shown)
    if overrides and not (options.methods or options.ablate):
        settings = " ".join(" ".join([f"--{path}", *values]) for path, values in overrides.items())
        fail(f"{settings}: nothing is trained, so settings of experiments have no effect")
    return options, overrides


# ---------------------------------------------------------------------------------------------------- what to train


def _methods(options: Options, overrides: Given, out: Path) -> dict[str, "Experiment"]:
    from posefleet.models import available_methods
    from posefleet.platform.comparison.budget import budgeted

    methods = available_methods() if options.methods == "all" else options.methods.split(",")
    common = _common(methods, options, overrides, out)
    experiments = {method: _experiment(method, {}, options, {**common, "run.name": [method]}) for method in methods}
    return budgeted(experiments, epochs=options.epochs, minutes=options.minutes)


def _budget(options: Options) -> str:
    """The training budget of each method, as a sentence."""
    if options.minutes is not None:
        return f"{options.minutes:g} minutes of training each, on {options.data}."
    return f"{options.epochs:g} epochs each, on {options.data}." if options.epochs is not None else ""


def _common(methods: Sequence[str], options: Options, overrides: Given, out: Path) -> Given:
    """Settings that every experiment gets: its data and the folder of its runs. Renders synthetic data first."""
    from posefleet.models import load_method
    from posefleet.platform.runtime.paths import resolve_path

    for method in methods:
        load_method(method)  # reports an unknown name, and the known ones, before anything is rendered
    rendered = options.data in SYNTHETIC
    shards = _synthetic(options.data, out) if rendered else resolve_path(options.data).rstrip("/")
    places = {"data.train": f"{shards}/train2017", "data.eval": options.eval or f"{shards}/val2017"}
    return {**{name: [place] for name, place in places.items()}, "run.storage": [str(out / "runs")], **overrides}


def _experiment(method: str, settings: Mapping[str, Any], options: Options, arguments: Given) -> "Experiment":
    """The method's recipe, changed by ``settings`` (dotted names), then by the options of the command line."""
    from posefleet.models.parts.layers.backbones import InputConfig
    from posefleet.platform.checkpoints.load import untrained
    from posefleet.platform.config.loading import build_experiment, read_yaml, with_settings

    recipe = CONFIGS / f"{method}_{options.recipe}.yaml"
    values = read_yaml(recipe if recipe.exists() else CONFIGS / f"{method}.yaml")
    values["train"] = {**values.get("train", {}), "eval_every": 1e9}  # evaluate once, at the end
    values = with_settings(values, settings)
    experiment = override(build_experiment(values, where=f"{method} with {settings}"), arguments)
    model = experiment.model
    if options.backbone and hasattr(model, "backbone"):
        own = {"style": "pytorch", "input": InputConfig()}  # those of the weights that it gets now
        backbone = dataclasses.replace(model.backbone, name=options.backbone, weights="", pretrained=True, **own)
        model = dataclasses.replace(model, backbone=backbone)
    if options.scratch:
        model = untrained(model)
        if hasattr(model, "backbone"):
            backbone = dataclasses.replace(model.backbone, frozen_stages=0, norm="trained")
            model = dataclasses.replace(model, backbone=backbone)
        if hasattr(model, "detector"):  # torchvision's is never trained
            model = dataclasses.replace(model, detector=dataclasses.replace(model.detector, kind="shared"))
    return dataclasses.replace(experiment, model=model)


def _synthetic(data: str, out: Path) -> str:
    """Render people and write them as shards, unless the shards exist; returns the folder of the shards."""
    from posefleet.data.coco.source import find_source
    from posefleet.data.schemas.shipped import COCO17
    from posefleet.data.shards.build import shard_coco
    from posefleet.data.synthetic.dataset import write_dataset
    from posefleet.data.synthetic.scenes import SCENES

    folder, scenes = out / data.replace("synthetic", "data"), SCENES[SYNTHETIC[data]]
    for split, count in (("train2017", IMAGES), ("val2017", HELD_OUT)):
        root = folder / "shards" / split
        if not (root / "manifest.json").exists():
            write_dataset(
                folder / "coco", split, count, scenes, workers=os.cpu_count() or 1, progress=sys.stderr.isatty()
            )
            shard_coco(find_source(str(folder / "coco"), split), str(root), COCO17, parallel=False)
    return str(folder / "shards")


# ---------------------------------------------------------------------------------------------------- ablations


def _ablation(options: Options, overrides: Given, out: Path) -> "tuple[list[Row], Trials]":
    """The rows to train, and their experiments."""
    from posefleet.platform.comparison.ablation import choose, plan_trials

    rows = choose(_ladder(options.ablate), options.rows)
    common = _common([options.ablate], options, overrides, out)
    build = partial(_experiment, options.ablate, options=options, arguments=common)
    return rows, plan_trials(rows, build, seeds=options.seeds, epochs=options.epochs, minutes=options.minutes)


def _ladder(method: str) -> "list[Row]":
    from posefleet.platform.comparison.ablation import read_ladder

    path = CONFIGS / "ladders" / f"{method}.yaml"
    if not path.exists():
        names = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise ValueError(f"no ablation of {method!r}; configs/ladders/ has {names}")
    return read_ladder(path)


if __name__ == "__main__":
    raise SystemExit(main())
