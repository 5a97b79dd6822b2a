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
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from posefleet.platform import tracking
from posefleet.platform.checkpoint import find_checkpoint, load_model
from posefleet.platform.comparison import costs
from posefleet.platform.config import ScalingConfig, build_experiment, to_dict
from posefleet.platform.mlflow_client import TrackingError
from posefleet.platform.progress import ProgressLine
from posefleet.platform.run import Run, RunSink, open_run, read_run
from posefleet.platform.search import Search
from posefleet.platform.space import apply
from posefleet.platform.train import carry_out
from posefleet.platform.worker import LocalWorker

log = logging.getLogger(__name__)

PEOPLE = 5
"""In the images that a trial's predictions are timed on."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """How the trials of a search are run."""

    samples: int = 16
    """Trials in all."""
    concurrent: int = 0
    """Trials at a time. 0: as many as the cluster has room for."""
    scheduler: Literal["asha", "none"] = "asha"
    """asha stops trials that are worse than others were at the same age; none trains all to the end."""
    reduction: float = 3.0
    """asha lets one in so many trials live, and doubts them again when they are so many times as old."""
    grace: float = 0.0
    """Epochs before asha stops a trial. 0: up to its first evaluation."""
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


def run_search(search: Search, engine: Engine, parent: Run) -> bool:
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
    at_once = engine.concurrent or room(scaling, ray.cluster_resources())
    left = engine.samples - len(search.trials())
    if left <= 0:
        return True
    scratch = Path(search.folder, "ray")
    shutil.rmtree(scratch, ignore_errors=True)  # of an earlier start; nothing in it is needed
    with ProgressLine(engine.samples, done=engine.samples - left) as line, ThreadPoolExecutor(1) as clerk, _sigterm():
        keeper = _Keeper(search, engine, parent, line, clerk)
        tuner = tune.Tuner(
            tune.with_resources(_trial, _resources(scaling)),
            tune_config=tune.TuneConfig(
                search_alg=keeper,
                scheduler=_scheduler(search, engine),
                num_samples=left,
                max_concurrent_trials=at_once,
                reuse_actors=False,
                trial_name_creator=lambda trial: f"trial-{trial.config['number']:03d}",
                trial_dirname_creator=lambda trial: f"trial-{trial.config['number']:03d}",
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(scratch),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=engine.retries),
                callbacks=[_Deaths(keeper)],
            ),
        )
        tuner.fit()
    shutil.rmtree(scratch, ignore_errors=True)
    return len(search.trials()) >= min(engine.samples, search.combinations)


def room(scaling: ScalingConfig, resources: Mapping[str, float]) -> int:
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


def _resources(scaling: ScalingConfig) -> dict[str, float]:
    """Of a trial's own process; its workers, where it has some, reserve theirs."""
    if scaling.num_workers:
        return {"memory": 1.0}  # a byte: Ray Tune allows no trial without resources, and the CPUs are the workers'
    return {"CPU": scaling.cpus_per_worker} | ({"GPU": 1.0} if scaling.use_gpu else {})


def _scheduler(search: Search, engine: Engine) -> TrialScheduler:
    if engine.scheduler == "none":
        return FIFOScheduler()
    train = search.base.train
    scheduler: Any = ASHAScheduler(
        time_attr="epoch",
        metric="AP",
        mode="max",
        max_t=train.epochs,  # type: ignore[arg-type]  # numbers of any kind do
        grace_period=engine.grace or min(train.eval_every, train.epochs),  # type: ignore[arg-type]
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


# ---------------------------------------------------------------------------------------------------- in the driver


class _Keeper(Searcher):
    """Hands trials of the search to Ray Tune and tells the search what comes of them."""

    def __init__(
        self, search: Search, engine: Engine, parent: Run, line: ProgressLine, clerk: ThreadPoolExecutor
    ) -> None:
        super().__init__(metric="AP", mode="max")
        self._search, self._engine, self._parent, self._line, self._clerk = search, engine, parent, line, clerk
        self._sink = RunSink(parent, system_every=0)
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Any:
        """Settings for Ray Tune's next trial; those that contradict each other fail here and now."""
        while trial := self._search.ask(self._engine.samples):
            try:
                experiment = apply(self._search.base, trial.settings, where=f"trial {trial.number}")
            except ValueError as error:
                self._search.fail(trial.number, str(error))
                continue
            self._numbers[trial_id] = trial.number
            run = dataclasses.replace(
                experiment.run,
                storage=f"{self._search.folder}/trials",
                name=f"trial-{trial.number:03d}",
                tracking=self._parent.tracking_uri,
                parent=self._parent.run_id,
                resume=True,
            )
            experiment = dataclasses.replace(experiment, run=run)
            return {
                "number": trial.number,
                "experiment": to_dict(experiment),
                "costs": self._search.objectives != ("AP",),
            }
        return Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A trial was evaluated and goes on."""
        if "AP" in result:
            self._search.report(self._numbers[trial_id], result["epoch"], _scores(result), run=result["run"])
            self._show(f"trial {self._numbers[trial_id]}: AP {result['AP']:.4f} after {result['epoch']:.3g} epochs")

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A trial ended, or was stopped."""
        if error or result is None:
            return  # ``died`` says more
        number, search = self._numbers[trial_id], self._search
        if result.get("failed"):
            search.fail(number, result["failed"])
        else:
            search.report(number, result["epoch"], _scores(result), run=result["run"])
            if result.get("ended"):
                try:
                    search.tell(number, _scores(result))
                except ValueError as problem:
                    search.fail(number, str(problem))
            else:
                search.stop(number, result["epoch"])
                self._clerk.submit(_close, result["run"], result["epoch"])
        self._show(f"trial {number} ended")

    def died(self, trial_id: str, reason: str) -> None:
        """A trial's process died more often than it may."""
        number = self._numbers[trial_id]
        self._search.fail(number, reason)
        self._clerk.submit(_close, f"{self._search.folder}/trials/trial-{number:03d}", None)
        self._show(f"trial {number} failed")

    def _show(self, text: str) -> None:
        ended = self._search.trials()
        if best := self._search.best():
            self._sink.log_metrics({"best_AP": best.scores["AP"], "trials": len(ended)}, len(ended))
        self._line.update(len(ended), f"{self._search.standing()}  {text}")

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune writes a copy of its searcher down, and the search keeps itself."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the search keeps itself."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the search keeps itself."""


class _Deaths(tune.Callback):
    """Tells the keeper why a trial died, which Ray Tune tells a searcher not."""

    def __init__(self, keeper: _Keeper) -> None:
        self._keeper = keeper

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A trial's process died for the last time."""
        self._keeper.died(trial.trial_id, str(trial.get_error() or "its process died").strip().splitlines()[-1])


def _scores(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a report that are the trial's and not Ray Tune's."""
    return {name: value for name, value in result.items() if name in result["scores"].split(",")}


def _close(folder: str, epoch: float | None) -> None:
    """End the run of a trial whose process is gone, so that MLflow does not show it as running for ever."""
    try:
        if run := read_run(folder):
            if epoch is not None:
                tracking.set_tags(run.tracking_uri, run.run_id, {"stopped_after_epochs": f"{epoch:.4g}"})
            run.finish("FAILED" if epoch is None else "FINISHED")
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


def _trial(config: dict[str, Any]) -> None:
    """What the process of a trial runs."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    experiment, run = open_run(build_experiment(config["experiment"]))

    def report(metrics: Mapping[str, float]) -> None:
        tune.report(_as_report(run, metrics))

    callbacks = [_Forward(run)] if experiment.scaling.num_workers else []
    outcome = carry_out(experiment, run, report=report, callbacks=callbacks)
    if outcome.error:
        tune.report({"failed": outcome.error, "run": run.folder})
        return
    metrics = {**outcome.metrics, "epoch": experiment.train.epochs}
    if config["costs"]:
        model, _ = load_model(find_checkpoint(run.folder))
        metrics |= costs(model, experiment, LocalWorker(), people=PEOPLE)
    tune.report({**_as_report(run, metrics), "ended": True})


class _Forward(TuneReportCallback):
    """Forwards what workers report to the trial's process."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Rank 0's metrics."""
        super().after_report(run_context, [_as_report(self._run, metrics[0])], checkpoint)


def _as_report(run: Run, metrics: Mapping[str, float]) -> dict[str, Any]:
    return {**metrics, "scores": ",".join(metrics), "run": run.folder}
