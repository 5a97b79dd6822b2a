"""A search that trains: trials side by side on a Ray cluster. The only file of the platform that knows ``ray.tune``.

Ray Tune starts and stops the trials; what was tried, and what came of it, is in the :class:`Search`'s own folder, so
that a search goes on after anything that happens to Ray or to the driver. Each trial is a small process that launches
a training like any other (``train.carry_out``), as a run of its own under ``FOLDER/trials``; it goes on from its last
checkpoint when it is started again.
"""

import dataclasses
import logging
import math
import os
import random
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher

from posefleet.memory import collect_garbage_rarely
from posefleet.platform.checkpoints.format import CheckpointError, read_meta
from posefleet.platform.checkpoints.load import load_model
from posefleet.platform.checkpoints.resolve import find_checkpoint
from posefleet.platform.config.experiment import Experiment, ScalingConfig
from posefleet.platform.config.loading import build_experiment, to_dict
from posefleet.platform.inference.latency import predict_costs
from posefleet.platform.runtime import logs
from posefleet.platform.runtime.placement import STEADY, TRAINING
from posefleet.platform.runtime.progress import ProgressLine
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.tracking import runs as tracking
from posefleet.platform.tracking.client import TrackingError
from posefleet.platform.tracking.tracker import Status
from posefleet.platform.training.launch import run_training
from posefleet.platform.training.run import Run, RunLogger, open_run, read_run
from posefleet.platform.tuning.space import Choice, Range, apply, settings_of
from posefleet.platform.tuning.study import Search, Trial

log = logging.getLogger(__name__)

PEOPLE = 5
"""In the images that a trial's predictions are timed on."""

QUANTILE = 0.25
"""Share of a population whose worst members are replaced by copies of its best."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """How the trials of a search are run."""

    samples: int = 16
    """Trials in all."""
    concurrent: int = 0
    """Trials at a time. 0: as many as the cluster has room for."""
    scheduler: Literal["asha", "pbt", "none"] = "asha"
    """asha stops trials that are worse than others were at the same age; pbt trains all, and lets the worst go on as
    copies of the best with settings a little off; none trains all to the end."""
    reduction: float = 3.0
    """asha lets one in so many trials live, and doubts them again when they are so many times as old."""
    grace: float = 0.0
    """Epochs before asha stops a trial, and between the looks of pbt. 0: up to the first evaluation."""
    retries: int = 2
    """Times that a trial whose process died is started again."""

    def __post_init__(self) -> None:
        if self.samples < 1 or self.concurrent < 0 or self.retries < 0:
            raise ValueError(
                f"samples {self.samples} must be at least 1, concurrent {self.concurrent} and retries {self.retries} "
                "not negative"
            )
        if self.reduction <= 1 or self.grace < 0:
            raise ValueError(f"reduction {self.reduction} must be above 1 and grace {self.grace} not negative")


def run_search(search: Search, engine: SearchConfig, parent: Run) -> bool:
    """Train trials until there are ``engine.samples``.

    Args:
        search: What to try; its base has absolute paths.
        engine: How.
        parent: The run that the trials' runs are listed under.

    Returns:
        Whether all ended; otherwise someone stopped the search, which can go on.

    Raises:
        ValueError: The cluster has no room for a single trial.
    """
    if not ray.is_initialized():
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a trial that failed has no AP
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # no tables beside the progress line
    logging.getLogger("ray").setLevel(logging.ERROR)  # it says where it keeps what nobody needs
    scaling = search.base.scaling
    at_once = engine.concurrent or max_concurrent_trials(scaling, ray.cluster_resources())
    done = search.ended
    if done >= engine.samples:
        return True
    scratch = Path(search.folder, "ray")
    shutil.rmtree(scratch, ignore_errors=True)  # of an earlier start; nothing in it is needed
    with (
        logs.log_to_folder(str(search.folder), "search"),
        ProgressLine(engine.samples, done=done) as line,
        RunLogger(parent, system_every=0) as sink,
        ThreadPoolExecutor(1) as clerk,
        _sigterm(),
    ):
        population = engine.scheduler == "pbt"
        common = {
            "base": to_dict(search.base),
            "folder": str(search.folder),
            "parent": parent.run_id,
            "costs": search.objectives != ("AP",),
            "population": population,
        }
        members = tune.grid_search(_population(search, engine.samples)) if population else None

        def trial(config: dict[str, Any]) -> None:
            _trial(config, parent.tracking_uri)  # not a setting: Ray Tune writes those down, and it may hold a password

        tuner = tune.Tuner(
            tune.with_resources(trial, _resources(scaling)),
            param_space={**common, "member": members} if population else {},
            tune_config=tune.TuneConfig(
                search_alg=None if population else _StudySearcher(search, engine.samples, common),
                scheduler=_scheduler(search, engine),
                num_samples=1 if population else engine.samples - done,
                max_concurrent_trials=at_once,
                reuse_actors=False,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(scratch),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=engine.retries),
                callbacks=[_TrialRecorder(search, sink, line, clerk)],
            ),
        )
        tuner.fit()
        for number in search.under_way:  # someone stopped the search
            clerk.submit(_close, f"{search.folder}/trials/trial-{number:03d}", "KILLED")
    shutil.rmtree(scratch, ignore_errors=True)
    return search.ended >= min(engine.samples, search.combinations)


def max_concurrent_trials(scaling: ScalingConfig, resources: Mapping[str, float]) -> int:
    """Trials that the cluster's resources suffice for at the same time.

    Raises:
        ValueError: Not for one.
    """
    workers = max(1, scaling.num_workers)
    needs = {"CPU": workers * scaling.cpus_per_worker} | ({"GPU": workers} if scaling.use_gpu else {})
    fits = min(math.floor(resources.get(kind, 0) / need + 1e-9) for kind, need in needs.items() if need)
    if fits < 1:
        wanted = " and ".join(f"{need:g} {kind}s" for kind, need in needs.items())
        there = " and ".join(f"{resources.get(kind, 0):g} {kind}s" for kind in needs)
        raise ValueError(
            f"one trial needs {wanted} for its {workers} workers and the cluster has {there}; lower "
            "scaling.num_workers or scaling.cpus_per_worker, or give --concurrent where the cluster will grow"
        )
    return fits


def _resources(scaling: ScalingConfig) -> tune.PlacementGroupFactory:
    """Of a trial's own process; its workers, where it has some, reserve theirs."""
    if scaling.num_workers:  # a byte: Ray Tune allows no trial without resources, and the CPUs are the workers'
        return tune.PlacementGroupFactory([{"memory": 1.0}], bundle_label_selector=[dict(STEADY)])
    needs = {"CPU": scaling.cpus_per_worker} | ({"GPU": 1.0} if scaling.use_gpu else {})
    return tune.PlacementGroupFactory([needs], bundle_label_selector=[dict(TRAINING)])


def _name(trial: Any) -> str:
    """What Ray Tune calls a trial for ever; in a population its settings, number included, may become another's."""
    return f"trial-{trial.config['member']['number']:03d}"


def _number(name: str) -> int:
    return int(name.removeprefix("trial-"))


# ---------------------------------------------------------------------------------------------------- schedulers


def _scheduler(search: Search, engine: SearchConfig) -> TrialScheduler:
    train = search.base.train
    grace = engine.grace or min(train.eval_every, train.epochs)
    if engine.scheduler == "pbt":
        rng = random.Random(search.seed)
        return PopulationBasedTraining(
            time_attr="epoch",
            metric="AP",
            mode="max",
            perturbation_interval=grace,
            quantile_fraction=QUANTILE,
            hyperparam_mutations={
                "member": {"settings": {name: _drawing(domain, rng) for name, domain in search.space.items()}}
            },
            custom_explore_fn=lambda config: _inside(config, search),
            log_config=False,
            require_attrs=False,  # a trial that failed has no AP
        )
    if engine.scheduler == "none":
        return FIFOScheduler()
    scheduler: Any = ASHAScheduler(
        time_attr="epoch",
        metric="AP",
        mode="max",
        max_t=train.epochs,  # type: ignore[arg-type]  # numbers of any kind do
        grace_period=grace,  # type: ignore[arg-type]
        reduction_factor=engine.reduction,
        stop_last_trials=False,  # a trial at its end has its run to close
    )
    for trial in search.seen():  # what was seen before this start counts too
        known = SimpleNamespace(trial_id=f"earlier-{trial.number}")
        scheduler.on_trial_add(None, known)
        for epoch, ap in trial.curve.items():
            scheduler.on_trial_result(None, known, {"epoch": epoch, "AP": ap})
    found: TrialScheduler = scheduler
    return found


def _drawing(domain: Choice | Range, rng: random.Random) -> Any:
    """What a population takes for a setting that is drawn anew: neighbours in a list, or a number of a range."""
    if isinstance(domain, Choice):
        return list(domain.values)
    return lambda: domain.random(rng)


def _inside(config: dict[str, Any], search: Search) -> dict[str, Any]:
    """A mutated member's settings brought back into the space."""
    member = config["member"]
    settings = {name: search.space[name].nearest(value) for name, value in member["settings"].items()}
    return {**config, "member": {**member, "settings": settings}}


# ---------------------------------------------------------------------------------------------------- in the driver


def _population(search: Search, samples: int) -> list[dict[str, Any]]:
    """All trials at once: members replace each other, so that all must be known."""
    found = []
    while trial := _valid(search, samples):
        found.append({"number": trial.number, "settings": _kept_settings(search, trial)})
    return found


def _valid(search: Search, samples: int) -> Trial | None:
    """The next trial whose settings do not contradict each other; others fail here and now."""
    while trial := search.ask(samples):
        try:
            apply(search.base, trial.settings, where=f"trial {trial.number}")
        except ValueError as error:
            search.fail(trial.number, str(error))
        else:
            return trial
    return None


def _kept_settings(search: Search, trial: Trial) -> dict[str, Any]:
    """Of a member of a population: those of its last checkpoint, if it was interrupted, for they change on the way."""
    try:
        checkpoint = find_checkpoint(f"{search.folder}/trials/trial-{trial.number:03d}")
    except CheckpointError:
        return dict(trial.settings)
    return settings_of(read_meta(checkpoint).experiment, list(search.space))


class _StudySearcher(Searcher):
    """Hands out the trials of a search."""

    def __init__(self, search: Search, samples: int, common: Mapping[str, Any]) -> None:
        super().__init__(metric="AP", mode="max")
        self._search, self._samples, self._common = search, samples, common

    def suggest(self, trial_id: str) -> Any:
        """Settings for Ray Tune's next trial."""
        if trial := _valid(self._search, self._samples):
            return {"member": {"number": trial.number, "settings": dict(trial.settings)}, **self._common}
        return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the ledger hears of it, too."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune writes a copy of its searcher down, and the search keeps itself."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the search keeps itself."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the search keeps itself."""


class _TrialRecorder(tune.Callback):
    """Tells the search, its run and the person who watches what comes of the trials."""

    def __init__(self, search: Search, sink: RunLogger, line: ProgressLine, clerk: ThreadPoolExecutor) -> None:
        self._search, self._sink, self._line, self._clerk = search, sink, line, clerk

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune writes a copy of its callbacks down."""
        return {}

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """A trial was evaluated."""
        if "AP" in result:
            self._note(_number(str(trial)), result)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A trial ended, or was stopped."""
        number, search, result = _number(str(trial)), self._search, trial.last_result
        if result.get("failed"):
            search.fail(number, result["failed"])
        elif ended := result.get("ended"):
            self._note(number, ended)
            try:
                search.tell(number, ended["scores"])
            except ValueError as problem:
                search.fail(number, str(problem))
        else:
            search.stop(number, result["epoch"])
            self._clerk.submit(_close, result["run"], "FINISHED", result["epoch"])
        self._show(f"trial {number} ended")

    def _note(self, number: int, result: Mapping[str, Any]) -> None:
        epoch, scores = result["epoch"], result["scores"]
        self._search.report(number, epoch, scores, run=result["run"], settings=result["settings"])
        self._show(f"trial {number}: AP {scores['AP']:.4f} after {epoch:.3g} epochs")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A trial's process died more often than it may."""
        number = _number(str(trial))
        self._search.fail(number, str(trial.get_error() or "its process died").strip().splitlines()[-1])
        self._clerk.submit(_close, f"{self._search.folder}/trials/{trial}", "FAILED")
        self._show(f"trial {number} failed")

    def _show(self, text: str) -> None:
        ended = self._search.ended
        if best := self._search.best():
            self._sink.log_metrics({"best_AP": best.scores["AP"], "trials": ended}, ended)
        self._line.update(ended, f"{self._search.standing()}  {text}")


def _close(folder: str, status: Status, epoch: float | None = None) -> None:
    """End the run of a trial whose process is gone, so that MLflow does not show it as running for ever."""
    try:
        if run := read_run(folder):
            if epoch is not None:
                tracking.set_tags(run.tracking_uri, run.run_id, {"stopped_after_epochs": f"{epoch:.4g}"})
            run.finish(status)
    except (OSError, TrackingError) as error:
        log.warning("the run in %s stays open in MLflow: %s", folder, error)


@contextmanager
def _sigterm() -> Iterator[None]:
    """Within, SIGTERM (``ray job stop``) does what SIGINT does: Ray Tune ends the trials and comes back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: os.kill(os.getpid(), signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# ---------------------------------------------------------------------------------------------------- in a trial


def _trial(config: dict[str, Any], store: str) -> None:
    """What the process of a trial runs; its run is in the MLflow store at the address ``store``."""
    collect_garbage_rarely()
    logging.basicConfig(level=logging.INFO, format=logs.TERMINAL)
    name = tune.get_context().get_trial_name()
    experiment, run = open_run(_experiment(config, str(name), store))
    checkpoints = run.store(experiment)
    if copied := tune.get_checkpoint():  # in a population: of a better member, or the own one
        with copied.as_directory() as folder:
            checkpoints.start_from(folder)

    def report(metrics: Mapping[str, float]) -> None:
        if metrics["epoch"] < experiment.train.epochs:  # schedulers have no say when all is done
            newest = checkpoints.latest() if config["population"] else None
            checkpoint = tune.Checkpoint.from_directory(newest) if newest else None
            tune.report(_report(metrics, config, run, metrics["epoch"]), checkpoint=checkpoint)

    outcome = run_training(experiment, run, report=report)
    if outcome.error:
        tune.report({"failed": outcome.error})
        return
    metrics = dict(outcome.metrics)
    if config["costs"]:
        model, _ = load_model(find_checkpoint(run.folder))
        metrics |= predict_costs(model, experiment, LocalWorker(), people=PEOPLE)
    tune.report({"ended": _report(metrics, config, run, experiment.train.epochs)})


def _report(metrics: Mapping[str, float], config: Mapping[str, Any], run: Run, epoch: float) -> dict[str, Any]:
    known = {"scores": dict(metrics), "settings": config["member"]["settings"], "run": run.folder}
    return {"AP": metrics["AP"], "epoch": epoch, **known}


def _experiment(config: Mapping[str, Any], name: str, store: str) -> Experiment:
    """The experiment of a trial, as a run of its own."""
    experiment = apply(build_experiment(config["base"]), config["member"]["settings"], where=name)
    run = dataclasses.replace(
        experiment.run,
        storage=f"{config['folder']}/trials",
        name=name,
        tracking=store,
        parent=config["parent"],
        resume=True,
    )
    return dataclasses.replace(experiment, run=run)
