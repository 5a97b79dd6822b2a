"""Search for better settings: by training trials, or by decoding one checkpoint's network outputs again.

posefleet tune --method smpr --config jobs/configs/smpr.yaml --space jobs/configs/spaces/smpr.yaml \\
    --samples 64 --concurrent 8 --data.train /data/shards/train2017 --data.eval /data/shards/val2017
posefleet tune --resume runs/tune-smpr
posefleet tune --decode-only --checkpoint runs/smpr-r50 --space jobs/configs/spaces/smpr_decoding.yaml \\
    --samples 300 --data.eval /data/shards/val2017
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from posefleet.command_line import Given, Place, fail, one_of, report_error
from posefleet.platform.config.cli import DATA, WORKERS, configured, override, parse_with_settings

if TYPE_CHECKING:
    from posefleet.data.evaluation.evaluate import Evaluation
    from posefleet.platform.config.experiment import Experiment
    from posefleet.platform.tuning.space import Space

PLAN = "plan.yaml"
"""File in the folder of a search: the options, space and experiment that it was started with."""

STOPPED = 130
"""Exit status of a search that was stopped on request."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to search, and how."""

    method: Annotated[str, "METHOD"] = ""
    """Train trials of this method."""
    decode_only: bool = False
    """Search decoding settings on one checkpoint, without training."""
    resume: Annotated[str, Place("FOLDER")] = ""
    """Continue the search in this folder; --samples may ask for more trials."""
    config: Annotated[str, "FILE"] = ""
    """With --method: YAML file of the experiment that the search starts from."""
    checkpoint: Annotated[str, Place("PATH")] = ""
    """With --decode-only: a checkpoint, or a run's folder (its best checkpoint)."""
    space: Annotated[str, "FILE"] = ""
    """YAML file of settings and their ranges, such as those in jobs/configs/spaces/."""
    samples: int | None = None
    """Total number of trials. More trials find better settings and take proportionally longer. Default: 16; with
    --decode-only 200."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """How settings are drawn: tpe learns from earlier trials, random does not, grid takes each combination once."""
    seed: int = 0
    """Seed of the sampler."""
    out: Annotated[str, Place("FOLDER")] = ""
    """Folder on a disk; a search in it is continued. Default: runs/tune-METHOD; with --decode-only runs/tune."""
    objectives: Annotated[str, "NAMES"] = "AP"
    """With --method: AP, or AP and costs, separated by commas: parameters, gflops, predict_ms."""
    concurrent: int = 0
    """With --method: number of trials that run at the same time. 0: as many as fit on the cluster."""
    scheduler: Literal["asha", "pbt", "none"] = "asha"
    """With --method: asha stops trials that are worse than others after the same number of epochs. pbt trains a
    population and replaces its worst members by copies of the best with slightly changed settings."""
    reduction: float = 3.0
    """With --scheduler asha: asha keeps the best 1/X of the trials at each rung. Raise it to stop more trials early."""
    grace: float = 0.0
    """With --method: epochs before asha may stop a trial, and between replacements by pbt. Raise it if learning starts
    slowly. 0: one evaluation."""
    retries: int = 2
    """With --method: how often a trial is restarted after its process died."""
    images: int = 0
    """With --decode-only: score on the first N images. Fewer images are faster and less exact. 0: all."""

    def __post_init__(self) -> None:
        one_of(self, "method", "decode_only", "resume")
        needed = () if self.resume else ("space", "checkpoint") if self.decode_only else ("space",)
        if missing := [f"--{name}" for name in needed if not getattr(self, name)]:
            raise ValueError(f"{' and '.join(missing)} missing")
        if (self.samples is not None and self.samples < 1) or self.images < 0:
            raise ValueError(
                f"--samples {self.samples} must be at least 1 and --images {self.images} must not be negative"
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a search. Exit status: 0 finished, 1 no trial has a result, 2 bad arguments or bad data, 130 stopped."""
    options, overrides = parse_with_settings(
        Options, arguments, command="tune", about=__doc__ or "", shown=(*DATA, "train.epochs", *WORKERS)
    )
    from posefleet.data.errors import DataError
    from posefleet.platform.checkpoints.format import CheckpointError
    from posefleet.platform.tracking.client import TrackingError

    try:
        plan = _resumed(options, overrides) if options.resume else _planned(options, overrides)
        return _decode_only(plan) if plan.options["decode_only"] else _train(plan)
    except (ValueError, DataError, CheckpointError, TrackingError, MemoryError) as error:
        fail(str(error))


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """Everything that a search needs to start or to continue."""

    folder: Path
    options: dict[str, Any]
    base: "Experiment"
    space: "Space"
    written: dict[str, Any]
    """Content of the file ``PLAN``."""

    def keep(self) -> None:
        """Write the plan into the search's folder; called after the search was checked."""
        import yaml

        (self.folder / PLAN).write_text(yaml.safe_dump(self.written, sort_keys=False))


def _planned(options: Options, overrides: Given) -> _Plan:
    from posefleet.platform.checkpoints.format import read_meta
    from posefleet.platform.checkpoints.resolve import find_checkpoint
    from posefleet.platform.config.loading import read_yaml

    if options.decode_only:
        checkpoint = find_checkpoint(options.checkpoint)
        base = override(read_meta(checkpoint).experiment, overrides)
        folder = options.out or "runs/tune"
    else:
        checkpoint = options.checkpoint
        base = configured(options.method, options.config, overrides)
        folder = options.out or f"{base.run.storage}/tune-{options.method}"
    if not base.data.eval:
        raise ValueError("nothing to score on; give --data.eval SHARDS")
    settled = {"checkpoint": checkpoint, "samples": options.samples or (200 if options.decode_only else 16)}
    saved = {**dataclasses.asdict(options), **settled}
    for name in ("resume", "config", "space", "out"):
        del saved[name]
    return _plan(folder, saved, base, read_yaml(options.space), options.space)


def _resumed(options: Options, overrides: Given) -> _Plan:
    from posefleet.platform.config.loading import build_experiment, read_yaml

    if overrides:
        raise ValueError(f"a search goes on with the settings it has; --{next(iter(overrides))} cannot change them")
    path = Path(options.resume) / PLAN
    if not path.exists():
        raise ValueError(f"{options.resume} holds no search: there is no {PLAN} in it")
    plan = read_yaml(path)
    saved = plan["options"] | ({"samples": options.samples} if options.samples else {})
    if options.space:
        plan["space"] = read_yaml(options.space)
    return _plan(
        str(path.parent), saved, build_experiment(plan["experiment"]), plan["space"], options.space or str(path)
    )


def _plan(folder: str, options: dict[str, Any], base: "Experiment", space: dict[str, Any], where: str) -> _Plan:
    from posefleet.platform.config.loading import to_dict
    from posefleet.platform.runtime.paths import resolve_path
    from posefleet.platform.tuning.space import build_space

    folder = resolve_path(folder)
    if "://" in folder:
        raise ValueError(f"{folder} must be a folder on a disk, shared by all nodes; give --out FOLDER")
    return _Plan(
        folder=Path(folder),
        options=options,
        base=base,
        space=build_space(space, base, where=where),
        written={"options": options, "space": space, "experiment": to_dict(base)},
    )


# ---------------------------------------------------------------------------------------------------- with training


def _train(plan: _Plan) -> int:
    from posefleet.data.shards.layout import read_manifest
    from posefleet.platform.training.loop import check_data
    from posefleet.platform.training.run import RunLogger, open_search
    from posefleet.platform.tuning.ray_tuner import SearchConfig, run_search
    from posefleet.platform.tuning.report import log_search, report_files
    from posefleet.platform.tuning.study import Search

    options, base = plan.options, plan.base
    names = {field.name for field in dataclasses.fields(SearchConfig)}
    engine = SearchConfig(**{name: value for name, value in options.items() if name in names})
    check_data(base)
    search = Search(
        plan.folder,
        base,
        plan.space,
        about={
            "training data": read_manifest(base.data.train).fingerprint,
            "data": read_manifest(base.data.eval).fingerprint,
            "images a step": str(base.images_per_step),
        },
        seed=options["seed"],
        sampler=options["sampler"],
        objectives=options["objectives"].split(","),
    )
    plan.keep()
    parent = open_search(base, str(plan.folder), {"space": plan.written["space"], **options})
    sys.stderr.write(f"search {plan.folder}\n")
    try:
        complete = run_search(search, engine, parent)
    except BaseException:
        parent.finish("KILLED", curves=False)
        raise
    if not complete:
        sys.stderr.write(f"stopped; python jobs/tune.py --resume {plan.folder} goes on\n")
    try:
        text = log_search(search, _gain_of_runs(search) if complete else "")
    except ValueError as error:  # no trial has a result
        parent.finish("FAILED" if complete else "KILLED", curves=False)
        if not complete:
            return STOPPED
        report_error(error)
        return 1
    with RunLogger(parent, system_every=0) as logger:
        for file in report_files(plan.folder):
            logger.log_bytes(file.name, file.read_bytes())
    parent.finish("FINISHED" if complete else "KILLED", curves=False)
    sys.stdout.write(f"{text}\n\n{_where(plan.folder)}")
    return 0 if complete else STOPPED


def _gain_of_runs(search: Any) -> str:
    """Sentence on the best trial against the default: both are scored again on the same images."""
    from posefleet.platform.checkpoints.load import load_model
    from posefleet.platform.checkpoints.resolve import find_checkpoint
    from posefleet.platform.inference.evaluate import evaluate
    from posefleet.platform.runtime.worker import LocalWorker

    best, default = search.best(), search.default()
    if best is None:
        return ""
    if default is None:
        return "The default did not reach the end, so there is nothing to compare the best with."
    if best == default:
        return "No trial was better than the default."

    def scored(trial: Any) -> "Evaluation":
        model, experiment = load_model(find_checkpoint(trial.run))
        worker = LocalWorker()
        result = evaluate(model.to(worker.device), experiment, worker)
        assert result is not None, "this is one process"
        return result

    return _gain(scored(best), scored(default), "the default")


# ---------------------------------------------------------------------------------------------------- decoding only


def _decode_only(plan: _Plan) -> int:
    from posefleet.data.shards.layout import read_manifest
    from posefleet.memory import keep_freed_memory
    from posefleet.platform.runtime.worker import LocalWorker
    from posefleet.platform.tuning.decoding import Redecoder
    from posefleet.platform.tuning.report import log_search
    from posefleet.platform.tuning.study import Search

    options, base = plan.options, plan.base
    keep_freed_memory()
    redecoder = Redecoder(options["checkpoint"], base, LocalWorker().device, images=options["images"])
    if trained := [name for name in plan.space if not redecoder.may_vary(name)]:
        may = ", ".join(redecoder.variable)
        raise ValueError(f"{', '.join(trained)} needs training; --decode-only varies {may}")
    about = {
        "checkpoint": options["checkpoint"],
        "data": read_manifest(base.data.eval).fingerprint,
        "images": str(options["images"]),
    }
    search = Search(plan.folder, base, plan.space, about=about, seed=options["seed"], sampler=options["sampler"])
    plan.keep()

    def score(experiment: "Experiment") -> Mapping[str, float]:
        return redecoder.evaluate(experiment).statistics

    search.run(score, options["samples"])
    best = search.best()
    own = "the checkpoint's own settings"
    remark = _gain(redecoder.evaluate(search.experiment(best)), redecoder.evaluate(base), own) if best else ""
    sys.stdout.write(f"{log_search(search, remark)}\n\n{_where(plan.folder)}")
    return 0


def _gain(best: "Evaluation", own: "Evaluation", other: str) -> str:
    """Sentence on the gain in AP of the best settings over ``other``, and whether it exceeds noise on these images."""
    from posefleet.data.evaluation.bootstrap import CONFIDENCE, difference

    if best.matches is None or own.matches is None:
        return ""
    found = difference(best.matches, own.matches)
    certainty = "more than noise" if found.certain else "may be noise"
    return (
        f"Best against {other}: AP {found}, {certainty}; in brackets {CONFIDENCE:.0%} of draws of images. "
        "It was chosen on these images, so expect less on others."
    )


def _where(folder: Path) -> str:
    return f"  best   {folder / 'best.yaml'}\n  table  {folder / 'search.md'}\n"


if __name__ == "__main__":
    raise SystemExit(main())
