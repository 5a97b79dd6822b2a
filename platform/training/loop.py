"""The training loop: the same on a laptop, under torchrun and in a Ray worker.

It knows neither Ray nor MLflow: a ``LocalWorker`` (or its Ray kind) runs it, metrics and files go to the worker's sink,
checkpoints to a store. A run is a function of its experiment: random numbers depend on (seed, step, micro-batch), the
order of the data on the position. So a run that was killed and started again ends with the weights of one that was not.
"""

import logging
from collections.abc import Mapping
from functools import partial

from torch import nn

from posefleet.data.loading.loader import Batches, training_batches
from posefleet.data.loading.source import SampleSource
from posefleet.data.transforms import EvalTransform
from posefleet.platform.checkpoints.saver import BackgroundSaver
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.sources import fingerprint
from posefleet.platform.inference.evaluate import evaluate, evaluation_set
from posefleet.platform.inference.sources import evaluated_sources, training_source
from posefleet.platform.monitoring.interruptions import InterruptionLog
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.training.monitor import TrainingMonitor, log_interruption, monitored
from posefleet.platform.training.optim import Freezing, set_learning_rate
from posefleet.platform.training.schedule import Schedule
from posefleet.platform.training.state import TrainingState, finish_saving, initial_state, save_checkpoint
from posefleet.platform.training.step import StepShare, train_step

log = logging.getLogger(__name__)


class Stopped(RuntimeError):
    """The run was asked to stop; its last checkpoint holds its state."""


def fit(
    experiment: Experiment, worker: LocalWorker, store: CheckpointStore, *, provenance: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Train, or resume from the last checkpoint in ``store``, and return the metrics of the last evaluation.

    ``state`` is what a checkpoint holds; ``schedule`` computes what is due when; ``monitor`` collects losses and times.

    Raises:
        FatalError: A loss is not finite, or a checkpoint cannot be written; trying again would not help.
        Stopped: The worker was asked to stop; a checkpoint holds the state.
        DataError: The shards cannot be used.
        ValueError: There are more workers than the run was made for.
    """
    interruptions = InterruptionLog("" if worker.rank else worker.folder, devices=worker.world_size)
    dataset = training_set(experiment)
    state = initial_state(experiment, worker, store)
    interruptions.begin(state.step)
    provenance = {**(provenance or {}), "data": fingerprint(experiment.data.train)}
    saver = BackgroundSaver(store, interruptions.saved)
    save = partial(save_checkpoint, state, experiment, worker, saver, provenance)
    share = share_of(experiment, worker)
    schedule = Schedule(experiment, len(dataset), experiment.data.batch_size * share.micro_batches)
    freezing = _freezing(experiment, worker, state)
    _log_targets(experiment, worker, dataset, state.model)
    # A run that was stopped where an evaluation was due, and saved before it, makes up for it.
    evaluation_owed = bool(experiment.data.eval) and not state.metrics and schedule.evaluation_due(state.position)
    save_wanted = False
    while evaluation_owed or not _ended(experiment, state, schedule):  # again after frozen parts thaw
        freezing.set(schedule.frozen(state.position))
        network = worker.prepare(state.model)
        freezing.train(network)
        thaw = schedule.next_thaw(state.position)
        with (
            saver,
            _open_batches(experiment, worker, dataset, share, state.position) as batches,
            monitored(experiment, worker, network, state, schedule) as monitor,
        ):
            while evaluation_owed or (state.position < thaw and not _ended(experiment, state, schedule)):
                goal = state.position if evaluation_owed else schedule.next_evaluation(state.position)
                monitor.restart()
                while state.position < min(goal, thaw):
                    rate = schedule.learning_rate(state.step, state.position)
                    set_learning_rate(state.optimizer, rate)
                    micro_batches = monitor.next_batches(batches, len(share.mine))
                    losses, norm = train_step(
                        network,
                        micro_batches,
                        state.optimizer,
                        share=share,
                        seed=experiment.seed * 1_000_003 + state.step,
                        clip_norm=experiment.optim.clip_norm,
                        precision=experiment.train.precision,
                        scaler=state.scaler,
                    )
                    state.step_taken(schedule.images_per_step)
                    log_interruption(worker, interruptions.step_taken(state.step))
                    monitor.add_step(losses, norm, rate, micro_batches)
                    del micro_batches  # its memory, shared with the loaders, is free before the next ones are fetched
                    save_due = schedule.save_due(state.step)
                    look_due = save_due or schedule.log_due(state.step) or state.position >= min(goal, thaw)
                    if look_due or (worker.world_size == 1 and worker.stop_requested()):
                        # Only here does the host wait for the device.
                        stop, save_wanted = monitor.read_losses(save_wanted=saver.failed)
                        if stop or ((save_due or save_wanted) and state.position < goal):
                            save(wait=stop or save_wanted)
                        if stop:
                            raise Stopped(f"stopped at step {state.step} on request")
                if state.position < goal:
                    break  # the frozen parts thaw
                if experiment.data.eval:
                    _evaluate(experiment, worker, state, monitor)
                    freezing.train(network)
                evaluation_owed = False
                save(wait=save_wanted)
                metrics = {**state.metrics, "step": state.step, "epoch": schedule.epoch(state.position)}
                worker.report(metrics, store.path_of(state.step))
    finish_saving(worker, saver)
    interruptions.ended()
    if state.position < schedule.end and worker.rank == 0:
        epochs = f"{schedule.epoch(state.position):.4g} of {experiment.train.epochs:g} epochs"
        log.warning("ended after %s: %d evaluations without a higher AP (train.patience)", epochs, state.stale)
    return state.metrics


def check_data(experiment: Experiment) -> None:
    """Open the shards that the experiment names, so that bad data is reported before any worker starts.

    Raises:
        DataError: Shards are missing, empty or of another schema.
        SchemaError: The keypoints of several sources do not fit the schema.
    """
    training_set(experiment)
    if experiment.data.eval:
        view = EvalTransform(experiment.data.resize, experiment.keypoints)
        if sources := evaluated_sources(experiment):
            for source in sources:
                source.open(view)
        else:
            evaluation_set(experiment, view)


# ---------------------------------------------------------------------------------------------------- parts of fit


def _ended(experiment: Experiment, state: TrainingState, schedule: Schedule) -> bool:
    """Whether the run has seen its epochs, or ``train.patience`` evaluations without a higher AP."""
    patience = experiment.train.patience
    return state.position >= schedule.end or bool(patience and state.stale >= patience)


def _freezing(experiment: Experiment, worker: LocalWorker, state: TrainingState) -> Freezing:
    """The parts that ``train.freeze`` names; a name that no model has is an error of every rank."""
    try:
        return Freezing(state.model, experiment.train.freeze, new=state.partial)
    except ValueError as error:
        worker.agree(str(error))
        raise


def _open_batches(
    experiment: Experiment, worker: LocalWorker, dataset: SampleSource, share: StepShare, position: int
) -> Batches:
    """This rank's batches of a run that has seen ``position`` samples."""
    return training_batches(
        dataset,
        batch_size=experiment.data.batch_size,
        rank=worker.rank,
        world_size=worker.world_size,
        per_step=share.micro_batches,
        position=position,
        workers=experiment.data.loaders,
        pin_memory=worker.device.type == "cuda",
    )


def _evaluate(experiment: Experiment, worker: LocalWorker, state: TrainingState, monitor: TrainingMonitor) -> None:
    """Evaluate the weights that a checkpoint would hold; every rank gets the metrics in ``state``."""
    with state.averaged():
        result = evaluate(state.model, experiment, worker, step=state.step)
    state.evaluated(worker.broadcast(result.as_dict() if result else None))
    if result:
        monitor.log_evaluation(result)


def training_set(experiment: Experiment) -> SampleSource:
    """The samples that the experiment trains on; see :func:`training_source`."""
    return training_source(experiment)


def share_of(experiment: Experiment, worker: LocalWorker) -> StepShare:
    """The micro-batches of every step that ``worker`` computes.

    Raises:
        ValueError: There are more workers than the run was made for.
    """
    scaling = experiment.scaling
    planned_workers = scaling.num_workers if scaling.elastic else worker.world_size
    return StepShare(worker.rank, worker.world_size, planned_workers, experiment.train.accumulate)


def _log_targets(experiment: Experiment, worker: LocalWorker, dataset: SampleSource, model: nn.Module) -> None:
    """Draw the first training images with their targets, so that wrong targets are seen before training ends."""
    if worker.sink is None or worker.rank or not hasattr(model, "target_points"):
        return
    from posefleet.platform.visualization.report import log_targets

    batch = dataset.batch(range(min(len(dataset), 8)))
    log_targets(worker.sink, batch, model.target_points(batch.images.shape[-2:], batch.people), experiment.keypoints)  # type: ignore[operator]
