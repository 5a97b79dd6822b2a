"""Runs a search that trains its trials in parallel on a Ray cluster; the only file that imports ``ray.tune``.

Ray Tune starts and stops the trials. Settings and results are kept by the :class:`Search` in its own folder, so that a
search can be resumed whatever happens to Ray or to the driver. Each trial is a small process that launches a training
(``training.launch.run_training``) with a run of its own under ``FOLDER/trials``; a trial that is started again goes on
from its last checkpoint.
"""

import dataclasses
import logging
import math
import os
import random
import shutil
import signal
import sys
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

from posefleet.data.evaluation.evaluate import Evaluation
from posefleet.data.io.cluster import start_ray
from posefleet.memory import collect_garbage_rarely
from posefleet.platform.checkpoints.format import CheckpointError, read_meta
from posefleet.platform.checkpoints.load import load_model
from posefleet.platform.checkpoints.resolve import find_checkpoint
from posefleet.platform.config.experiment import Experiment, ScalingConfig
from posefleet.platform.config.loading import build_experiment, to_dict
from posefleet.platform.inference.evaluate import evaluate
from posefleet.platform.inference.latency import predict_costs
from posefleet.platform.runtime import logs
from posefleet.platform.runtime.leftovers import claim, sweep
from posefleet.platform.runtime.placement import STEADY, TRAINING
from posefleet.platform.runtime.progress import ProgressLine
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.tracking import runs as tracking
from posefleet.platform.tracking.client import TrackingError
from posefleet.platform.tracking.tracker import Status
from posefleet.platform.training.launch import run_training
from posefleet.platform.training.run import Run, RunLogger, open_run, open_search, read_run
from posefleet.platform.tuning.report import NoResult, gain, log_search, report_files
from posefleet.platform.tuning.space import Choice, Range, apply, settings_of
from posefleet.platform.tuning.study import Search, Trial

log = logging.getLogger(__name__)

PEOPLE = 5
"""Number of people in the images on which a trial's predictions are timed."""

TRIAL_PATIENCE = 120.0
"""Seconds that a trial which is started again waits for its earlier process to end."""

QUANTILE = 0.25
"""Share of a population that is replaced, its worst members, by copies of as many of its best."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """Number, concurrency and early stopping of the trials of a search."""

    samples: int = 16
    """Number of trials in all. More trials find better settings and take as much longer."""
    concurrent: int = 0
    """Number of trials at a time. Raise it to finish sooner; each draw then knows fewer results. 0: as many as the
    cluster has room for."""
    scheduler: Literal["asha", "pbt", "none"] = "asha"
    """asha stops trials that are worse than others were after as many epochs. pbt trains a population: its worst
    members go on as copies of the best with mutated settings. none trains all trials to the end."""
    reduction: float = 3.0
    """asha keeps the best 1/``reduction`` of the trials at each rung; rungs are ``reduction`` times further apart each
    time. Raise it to stop more trials early."""
    grace: float = 0.0
    """Epochs before asha may stop a trial, and between replacements of pbt. Raise it where AP rises slowly at first. 0:
    until the first evaluation."""
    retries: int = 2
    """Number of times that a trial whose process died is started again, before it counts as failed."""

    def __post_init__(self) -> None:
        if self.samples < 1 or self.concurrent < 0 or self.retries < 0:
            raise ValueError(
                f"samples {self.samples} must be at least 1, concurrent {self.concurrent} and retries {self.retries} "
                "not negative"
            )
        if self.reduction <= 1 or self.grace < 0:
            raise ValueError(f"reduction {self.reduction} must be above 1 and grace {self.grace} not negative")


def train_trials(search: Search, config: SearchConfig, settings: Mapping[str, Any]) -> tuple[str, bool]:
    """Run a search in an MLflow run of its own, and write its report.

    Args:
        search: The trials; paths in its base experiment must be absolute.
        config: How the trials are run.
        settings: Settings of the search for its MLflow run, such as the space.

    Returns:
        The report, empty if the search was interrupted before a trial was complete; and whether all trials ended.

    Raises:
        ValueError: The cluster is too small for a single trial, or the folder holds a search of another method.
        NoResult: All trials ended, and none is complete.
        TrackingError: MLflow cannot open a new run.
    """
    parent = open_search(search.base, str(search.folder), settings)
    sys.stderr.write(f"search {search.folder}\n")
    try:
        complete = run_search(search, config, parent)
    except BaseException:
        parent.finish("KILLED", curves=False)
        raise
    if not complete:
        sys.stderr.write(f"stopped; posefleet tune --resume {search.folder} goes on\n")
    try:
        text = log_search(search, _gain(search) if complete else "")
    except NoResult:
        parent.finish("FAILED" if complete else "KILLED", curves=False)
        if complete:
            raise
        return "", complete
    with RunLogger(parent, system_every=0) as logger:
        for file in report_files(search.folder):
            logger.log_bytes(file.name, file.read_bytes())
    parent.finish("FINISHED" if complete else "KILLED", curves=False)
    return text, complete


def _gain(search: Search) -> str:
    """Sentence on the best trial against the default: both are scored again on the same images."""
    best, default = search.best(), search.default()
    if best is None:
        return ""
    if default is None:
        return "The default did not reach the end, so there is nothing to compare the best with."
    if best == default:
        return "No trial was better than the default."

    def scored(trial: Trial) -> Evaluation:
        model, experiment = load_model(find_checkpoint(trial.run))
        worker = LocalWorker()
        result = evaluate(model.to(worker.device), experiment, worker)
        assert result is not None, "this is one process"
        return result

    return gain(scored(best), scored(default), "the default")


def run_search(search: Search, config: SearchConfig, parent: Run) -> bool:
    """Train trials until there are ``config.samples``.

    Args:
        search: The trials; paths in its base experiment must be absolute.
        config: How the trials are run.
        parent: MLflow run of the search, under which the trials' runs are listed.

    Returns:
        Whether all trials ended; False: the search was interrupted and can be resumed.

    Raises:
        ValueError: The cluster is too small for a single trial.
    """
    start_ray(level=logging.ERROR, worker_output=False)
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a trial that failed has no AP
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # no tables beside the progress line
    logging.getLogger("ray").setLevel(logging.ERROR)  # it names its result folder, which is deleted below
    scaling = search.base.scaling
    at_once = config.concurrent or max_concurrent_trials(scaling, ray.cluster_resources())
    done = search.ended
    if done >= config.samples:
        return True
    scratch = Path(search.folder, "ray")
    shutil.rmtree(scratch, ignore_errors=True)  # Ray Tune's files of an earlier start are not needed
    with (
        logs.log_to_folder(str(search.folder), "search"),
        ProgressLine(config.samples, done=done) as line,
        RunLogger(parent, system_every=0) as sink,
        ThreadPoolExecutor(1) as closer,
        _sigterm(),
    ):
        population = config.scheduler == "pbt"
        common = {
            "base": to_dict(search.base),
            "folder": str(search.folder),
            "parent": parent.run_id,
            "costs": search.objectives != ("AP",),
            "population": population,
        }
        members = tune.grid_search(_population(search, config.samples)) if population else None

        def trial(trial_config: dict[str, Any]) -> None:
            # The URI may hold a password: it is not in the config, which Ray Tune writes to files.
            _run_trial(trial_config, parent.tracking_uri)

        tuner = tune.Tuner(
            tune.with_resources(trial, trial_resources(scaling)),
            param_space={**common, "member": members} if population else {},
            tune_config=tune.TuneConfig(
                search_alg=None if population else _StudySearcher(search, config.samples, common),
                scheduler=_scheduler(search, config),
                num_samples=1 if population else config.samples - done,
                max_concurrent_trials=at_once,
                reuse_actors=False,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(scratch),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=config.retries),
                callbacks=[_TrialRecorder(search, sink, line, closer)],
            ),
        )
        tuner.fit()
        for number in search.running:  # the search was interrupted
            closer.submit(_close_run, f"{search.folder}/trials/trial-{number:03d}", "KILLED")
    shutil.rmtree(scratch, ignore_errors=True)
    sweep()  # of trials on this machine that were killed
    return search.ended >= min(config.samples, search.combinations)


def max_concurrent_trials(scaling: ScalingConfig, resources: Mapping[str, float]) -> int:
    """Number of trials that fit into the cluster's resources ("CPU", "GPU") at the same time.

    Raises:
        ValueError: Not one trial fits.
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


def trial_resources(scaling: ScalingConfig) -> tune.PlacementGroupFactory:
    """Resources of a trial's own process; its workers, if it has any, reserve theirs."""
    if scaling.num_workers:  # one byte: Ray Tune refuses a trial without resources, and the CPUs are for the workers
        return tune.PlacementGroupFactory([{"memory": 1.0}], bundle_label_selector=[dict(STEADY)])
    needs = {"CPU": scaling.cpus_per_worker} | ({"GPU": 1.0} if scaling.use_gpu else {})
    return tune.PlacementGroupFactory([needs], bundle_label_selector=[dict(TRAINING)])


def _name(trial: Any) -> str:
    """Name of a trial in Ray Tune, made once: in a population its config, number included, may be replaced."""
    return f"trial-{trial.config['member']['number']:03d}"


def _number(name: str) -> int:
    return int(name.removeprefix("trial-"))


# ---------------------------------------------------------------------------------------------------- schedulers


def _scheduler(search: Search, config: SearchConfig) -> TrialScheduler:
    train = search.base.train
    grace = config.grace or min(train.eval_every, train.epochs)
    if config.scheduler == "pbt":
        rng = random.Random(search.seed)
        return PopulationBasedTraining(
            time_attr="epoch",
            metric="AP",
            mode="max",
            perturbation_interval=grace,
            quantile_fraction=QUANTILE,
            hyperparam_mutations={
                "member": {"settings": {name: _mutations(domain, rng) for name, domain in search.space.items()}}
            },
            custom_explore_fn=lambda mutated: _moved_into_space(mutated, search),
            log_config=False,
            require_attrs=False,  # a trial that failed has no AP
        )
    if config.scheduler == "none":
        return FIFOScheduler()
    scheduler: Any = ASHAScheduler(
        time_attr="epoch",
        metric="AP",
        mode="max",
        max_t=train.epochs,  # type: ignore[arg-type]  # floats work too
        grace_period=grace,  # type: ignore[arg-type]
        reduction_factor=config.reduction,
        stop_last_trials=False,  # a trial that reached the end closes its run itself
    )
    for trial in search.seen():  # evaluations before a restart count, too
        known = SimpleNamespace(trial_id=f"earlier-{trial.number}")
        scheduler.on_trial_add(None, known)
        for epoch, ap in trial.curve.items():
            scheduler.on_trial_result(None, known, {"epoch": epoch, "AP": ap})
    found: TrialScheduler = scheduler
    return found


def _mutations(domain: Choice | Range, rng: random.Random) -> Any:
    """Mutations of a setting as Ray Tune takes them: a list, of whose neighbours it takes one, or a function."""
    if isinstance(domain, Choice):
        return list(domain.values)
    return lambda: domain.random(rng)


def _moved_into_space(config: dict[str, Any], search: Search) -> dict[str, Any]:
    """A mutated config whose settings are moved to the nearest values of the space."""
    member = config["member"]
    settings = {name: search.space[name].nearest(value) for name, value in member["settings"].items()}
    return {**config, "member": {**member, "settings": settings}}


# ---------------------------------------------------------------------------------------------------- in the driver


def _population(search: Search, samples: int) -> list[dict[str, Any]]:
    """All trials at once, as members of a population replace each other and must all be known from the start."""
    members = []
    while trial := _next_valid(search, samples):
        members.append({"number": trial.number, "settings": _current_settings(search, trial)})
    return members


def _next_valid(search: Search, samples: int) -> Trial | None:
    """The next trial whose settings do not contradict each other; trials before it are recorded as failed."""
    while trial := search.ask(samples):
        try:
            apply(search.base, trial.settings, where=f"trial {trial.number}")
        except ValueError as error:
            search.fail(trial.number, str(error))
        else:
            return trial
    return None


def _current_settings(search: Search, trial: Trial) -> dict[str, Any]:
    """Settings of a member of a population: those of its last checkpoint if it has one, as training mutates them."""
    try:
        checkpoint = find_checkpoint(f"{search.folder}/trials/trial-{trial.number:03d}")
    except CheckpointError:
        return dict(trial.settings)
    return settings_of(read_meta(checkpoint).experiment, list(search.space))


class _StudySearcher(Searcher):
    """Gives Ray Tune the trials of a search; results are recorded by :class:`_TrialRecorder`."""

    def __init__(self, search: Search, samples: int, common: Mapping[str, Any]) -> None:
        super().__init__(metric="AP", mode="max")
        self._search, self._samples, self._common = search, samples, common

    def suggest(self, trial_id: str) -> Any:
        """Settings for Ray Tune's next trial."""
        if trial := _next_valid(self._search, self._samples):
            return {"member": {"number": trial.number, "settings": dict(trial.settings)}, **self._common}
        return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing: the recorder is called, too."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune pickles its searcher, and the study is in the search's folder."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the study is in the search's folder."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the study is in the search's folder."""


class _TrialRecorder(tune.Callback):
    """Records evaluations and ends of trials in the search, its MLflow run and the progress line."""

    def __init__(self, search: Search, sink: RunLogger, line: ProgressLine, closer: ThreadPoolExecutor) -> None:
        self._search, self._sink, self._line, self._closer = search, sink, line, closer

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune pickles its callbacks."""
        return {}

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """Record an evaluation."""
        if "AP" in result:
            self._record(_number(str(trial)), result)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Record a trial that ended or was stopped early."""
        number, search, result = _number(str(trial)), self._search, trial.last_result
        if result.get("failed"):
            search.fail(number, result["failed"])
        elif ended := result.get("ended"):
            self._record(number, ended)
            try:
                search.finish(number, ended["scores"])
            except ValueError as problem:
                search.fail(number, str(problem))
        else:
            search.stop(number, result["epoch"])
            self._closer.submit(_close_run, result["run"], "FINISHED", result["epoch"])
        self._show(f"trial {number} ended")

    def _record(self, number: int, result: Mapping[str, Any]) -> None:
        epoch, scores = result["epoch"], result["scores"]
        self._search.report(number, epoch, scores, run=result["run"], settings=result["settings"])
        self._show(f"trial {number}: AP {scores['AP']:.4f} after {epoch:.3g} epochs")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Record a trial whose process died more often than ``retries``."""
        number = _number(str(trial))
        self._search.fail(number, str(trial.get_error() or "its process died").strip().splitlines()[-1])
        self._closer.submit(_close_run, f"{self._search.folder}/trials/{trial}", "FAILED")
        self._show(f"trial {number} failed")

    def _show(self, text: str) -> None:
        ended = self._search.ended
        if best := self._search.best():
            self._sink.log_metrics({"best_AP": best.scores["AP"], "trials": ended}, ended)
        self._line.update(ended, f"{self._search.standing()}  {text}")


def _close_run(folder: str, status: Status, epoch: float | None = None) -> None:
    """End the run of a trial whose process is gone, so that MLflow does not show it as running forever."""
    try:
        if run := read_run(folder):
            if epoch is not None:
                tracking.set_tags(run.tracking_uri, run.run_id, {"stopped_after_epochs": f"{epoch:.4g}"})
            run.finish(status)
    except (OSError, TrackingError) as error:
        log.warning("the run in %s stays open in MLflow: %s", folder, error)


@contextmanager
def _sigterm() -> Iterator[None]:
    """In the block, SIGTERM (``ray job stop``) acts like SIGINT: Ray Tune ends the trials and ``fit`` returns."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: os.kill(os.getpid(), signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# ---------------------------------------------------------------------------------------------------- in a trial


def _run_trial(config: dict[str, Any], tracking_uri: str) -> None:
    """Train a trial, in its own process; its run is in the MLflow store at ``tracking_uri``."""
    claim()
    collect_garbage_rarely()
    logging.basicConfig(level=logging.INFO, format=logs.TERMINAL)
    name = tune.get_context().get_trial_name()
    # Ray Tune runs a trial once at a time: another process that has its run is one that Ray is about to end.
    experiment, run = open_run(_experiment(config, str(name), tracking_uri), patience=TRIAL_PATIENCE)
    checkpoints = run.store(experiment)
    if copied := tune.get_checkpoint():  # in a population: of a better member, or its own
        with copied.as_directory() as folder:
            checkpoints.start_from(folder)

    def report(metrics: Mapping[str, float]) -> None:
        if metrics["epoch"] < experiment.train.epochs:  # after the last epoch there is nothing to stop
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


def _experiment(config: Mapping[str, Any], name: str, tracking_uri: str) -> Experiment:
    """The experiment of a trial, with a run of its own."""
    experiment = apply(build_experiment(config["base"]), config["member"]["settings"], where=name)
    run = dataclasses.replace(
        experiment.run,
        storage=f"{config['folder']}/trials",
        name=name,
        tracking=tracking_uri,
        parent=config["parent"],
        resume=True,
    )
    return dataclasses.replace(experiment, run=run)
