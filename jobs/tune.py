"""Search for better settings: by training trials, or by decoding one checkpoint's network outputs again.

posefleet tune --method smpr --config jobs/configs/smpr.yaml --space jobs/configs/spaces/smpr.yaml \\
    --samples 64 --concurrent 8 --data.train /data/shards/train2017 --data.eval /data/shards/val2017
posefleet tune --resume runs/tune-smpr
posefleet tune --decode-only --checkpoint runs/smpr-r50 --space jobs/configs/spaces/smpr_decoding.yaml \\
    --samples 300 --data.eval /data/shards/val2017
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from posefleet.command_line import Given, Place, fail, one_of, report_error
from posefleet.platform.config.cli import DATA, WORKERS, configured, override, parse_with_settings
from posefleet.platform.runtime.errors import PlatformError

if TYPE_CHECKING:
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
            verb = "is" if len(missing) == 1 else "are"
            raise ValueError(f"{' and '.join(missing)} {verb} missing; jobs/configs/spaces/ has examples of spaces")
        if (self.samples is not None and self.samples < 1) or self.images < 0:
            raise ValueError(
                f"--samples {self.samples} must be at least 1 and --images {self.images} must not be negative"
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a search. Exit status: 0 finished, 1 no trial has a result, 2 bad arguments or bad data, 130 stopped."""
    options, overrides = parse_with_settings(
        Options, arguments, command="tune", about=__doc__ or "", shown=(*DATA, "train.epochs", *WORKERS)
    )
    from posefleet.platform.runtime.lock import FolderLock
    from posefleet.platform.tuning.report import NoResult

    try:
        plan = _resumed(options, overrides) if options.resume else _planned(options, overrides)
        with FolderLock(str(plan.folder), f"search {plan.folder.name}"):
            return _decode_only(plan) if plan.options["decode_only"] else _train(plan)
    except NoResult as error:
        report_error(error)
        return 1
    except (ValueError, MemoryError, PlatformError) as error:
        fail(error)


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
        checkpoint = find_checkpoint(options.checkpoint, tracking=overrides.get("run.tracking", [""])[-1])
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


def _train(plan: _Plan) -> int:
    """Search by training trials."""
    from posefleet.platform.config.sources import fingerprint
    from posefleet.platform.training.loop import check_data
    from posefleet.platform.tuning.ray_tuner import SearchConfig, train_trials
    from posefleet.platform.tuning.study import Search

    options, base = plan.options, plan.base
    names = {field.name for field in dataclasses.fields(SearchConfig)}
    config = SearchConfig(**{name: value for name, value in options.items() if name in names})
    check_data(base)
    search = Search(
        plan.folder,
        base,
        plan.space,
        about={
            "training data": fingerprint(base.data.train),
            "data": fingerprint(base.data.eval),
            "images a step": str(base.images_per_step),
        },
        seed=options["seed"],
        sampler=options["sampler"],
        objectives=options["objectives"].split(","),
    )
    plan.keep()
    text, complete = train_trials(search, config, {"space": plan.written["space"], **options})
    if text:
        _print_report(text, plan.folder)
    return 0 if complete else STOPPED


def _decode_only(plan: _Plan) -> int:
    """Search settings of decoding, without training."""
    from posefleet.memory import keep_freed_memory
    from posefleet.platform.config.sources import fingerprint
    from posefleet.platform.runtime.worker import LocalWorker
    from posefleet.platform.tuning.decoding import Redecoder
    from posefleet.platform.tuning.report import gain, log_search
    from posefleet.platform.tuning.study import Search

    options, base = plan.options, plan.base
    keep_freed_memory()
    redecoder = Redecoder(options["checkpoint"], base, LocalWorker().device, images=options["images"])
    if trained := [name for name in plan.space if not redecoder.may_vary(name)]:
        may = ", ".join(redecoder.variable)
        raise ValueError(f"{', '.join(trained)} needs training; --decode-only varies {may}")
    about = {
        "checkpoint": options["checkpoint"],
        "data": fingerprint(base.data.eval),
        "images": str(options["images"]),
    }
    search = Search(plan.folder, base, plan.space, about=about, seed=options["seed"], sampler=options["sampler"])
    plan.keep()
    search.run(lambda experiment: redecoder.evaluate(experiment).statistics, options["samples"])
    remark = ""
    if best := search.best():
        found = redecoder.evaluate(search.experiment(best))
        remark = gain(found, redecoder.evaluate(base), "the checkpoint's own settings")
    _print_report(log_search(search, remark), plan.folder)
    return 0


def _print_report(text: str, folder: Path) -> None:
    sys.stdout.write(f"{text}\n\n  best   {folder / 'best.yaml'}\n  table  {folder / 'search.md'}\n")


if __name__ == "__main__":
    raise SystemExit(main())
