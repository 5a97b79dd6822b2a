"""posefleet from Python: the commands ``train``, ``evaluate`` and ``predict`` as functions, and ``load``.

    import posefleet

    run = posefleet.train("smpr", "jobs/configs/smpr_demo.yaml", {"data.train": "shards/train", "run.name": "first"})
    print(posefleet.evaluate(run, "shards/val"))
    prediction = posefleet.predict(run, "photo.jpg")
    prediction.plot("poses.jpg")

They are the code of the commands, so a run that a notebook began goes on with ``posefleet train`` and the other way
round. Settings have the names of the commands' options. Errors are exceptions: ``ValueError`` for what was given
wrongly, :class:`posefleet.platform.runtime.errors.PlatformError` for data, checkpoints and runs that cannot be used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from posefleet.data.evaluation.evaluate import Evaluation
from posefleet.memory import keep_freed_memory
from posefleet.models import trust
from posefleet.platform.config.loading import build_experiment, read_yaml, to_dict, with_settings
from posefleet.platform.exports.backends import describe, device_for, locate, open_model
from posefleet.platform.inference.evaluate import evaluate as evaluate_model
from posefleet.platform.inference.predictor import ImageInput, Prediction, Predictor
from posefleet.platform.prediction.batch import BatchResult, WorkerPool, predict_images
from posefleet.platform.prediction.inputs import list_images
from posefleet.platform.prediction.worker import PredictionOptions
from posefleet.platform.runtime.errors import PlatformError
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.training.launch import run_training
from posefleet.platform.training.loop import check_data
from posefleet.platform.training.outcome import ReportMetrics
from posefleet.platform.training.run import open_run

Settings = Mapping[str, Any]
"""Values by dotted name, such as ``{"optim.lr": 0.001}``: the names of the commands' options."""


class RunError(PlatformError):
    """A training did not reach its end. The same call resumes it from its last checkpoint."""


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A training that is finished."""

    folder: str
    """Absolute path or URI of the run; wherever a model is named, it stands for the run's best checkpoint."""
    checkpoint: str
    """The checkpoint with the highest AP, or the last one."""
    metrics: Mapping[str, float]
    """Of the last evaluation, AP in 0..1; empty if there was none."""
    tracking: str
    """MLflow store that has the run."""

    def load(self, **options: Any) -> Predictor:
        """Predicts with the best checkpoint; ``options`` are those of :func:`load`."""
        return load(self, **options)

    def __str__(self) -> str:
        ap = f", AP {self.metrics['AP']:.3f}" if "AP" in self.metrics else ""
        return f"run {self.folder}{ap}"


Model = str | Path | TrainedRun
"""A run or the folder of one (its best checkpoint), a checkpoint, ``models:/NAME@ALIAS``, an exported file."""


def train(
    method: str,
    config: str | Path | Mapping[str, Any] | None = None,
    settings: Settings | None = None,
    *,
    report: ReportMetrics | None = None,
) -> TrainedRun:
    """Train a method, as ``posefleet train METHOD`` does; a run of the same ``run.name`` is resumed.

    Args:
        method: ``smpr``, ``pfs``, ``inspose``, ``logocap`` or ``detposenet``, the name of a file in ``models/``, or the
            importable name of a module of your own, which naming it here allows to be imported: ``my_package.mine``.
        config: A YAML file, or its nested values. Default: the method's own defaults.
        settings: Replace values of ``config``. ``{"scaling.num_workers": 0}`` trains in this process, without Ray.
        report: Called with the metrics of every evaluation.

    Raises:
        ValueError: A setting is unknown, wrong or missing; the message names it.
        RunError: The training ended with an error, or was asked to stop.
        PlatformError: The data, a checkpoint or the store of runs cannot be used.
    """
    values = dict(config) if isinstance(config, Mapping) else read_yaml(config) if config else {}
    if values.setdefault("method", method) != method:
        raise ValueError(f"the config is for method {values['method']!r}, not for {method!r}")
    trust(method)
    experiment = build_experiment(with_settings(values, settings or {}), where=_named(config, settings))
    check_data(experiment)
    experiment, run = open_run(experiment)
    outcome = run_training(experiment, run, report=report)
    if outcome.error:
        raise RunError(f"{outcome.error} ({run.folder})")
    store = run.store(experiment)
    best = store.best() or store.latest() or ""
    return TrainedRun(folder=run.folder, checkpoint=best, metrics=outcome.metrics, tracking=run.tracking_uri)


def load(model: Model, **options: Any) -> Predictor:
    """Predicts with a trained model: call the result with an image, or a list of images.

    Args:
        model: A run, a checkpoint or a registered model.
        options: ``device``, ``precision``, ``channels_last``, ``backend``, ``tracking``; see
            :meth:`posefleet.platform.inference.predictor.Predictor.from_checkpoint`.

    Raises:
        CheckpointError: There is no such model, or its files are damaged.
    """
    return Predictor.from_checkpoint(_address(model), **options)


def evaluate(
    model: Model, data: str | Sequence[str] = "", settings: Settings | None = None, *, tracking: str = ""
) -> Evaluation:
    """Score a model on annotated images, as ``posefleet evaluate`` does; ``print`` shows the result as a table.

    Args:
        model: A run, a checkpoint or a registered model.
        data: A folder of shards, or ``FOLDER@SPLIT`` for a data set in COCO's own files; several are scored one by one
            and together. Default: the images that the model was evaluated on.
        settings: Replace settings of the model's run, such as ``{"evaluate.flip": True}``.
        tracking: MLflow store of registered models.

    Raises:
        ValueError: A setting is unknown or wrong, or there are no images to score on.
        PlatformError: The data or the checkpoint cannot be used.
    """
    path = locate(_address(model), tracking=tracking)
    values = to_dict(describe(path).experiment, passwords=True)
    changes = {**({"data.eval": data} if data else {}), **(settings or {})}
    experiment = build_experiment(with_settings(values, changes), where=_named(None, settings))
    if not experiment.data.eval:
        raise ValueError("no images to evaluate on; give a folder of shards, or FOLDER@SPLIT")
    keep_freed_memory()
    network, _ = open_model(path, experiment=experiment)
    worker = LocalWorker(device=device_for(network))
    result = evaluate_model(network.to(worker.device), experiment, worker)
    assert result, "the only rank has the result"
    return result


@overload
def predict(model: Model | Predictor, images: ImageInput) -> Prediction: ...
@overload
def predict(model: Model | Predictor, images: list[ImageInput]) -> list[Prediction]: ...
def predict(model: Model | Predictor, images: ImageInput | list[ImageInput]) -> Prediction | list[Prediction]:
    """The poses in one image or in each of a list of images; for folders and videos see :func:`predict_files`.

    Args:
        model: A run, a checkpoint, a registered model, or what :func:`load` returned, which saves loading it again.
        images: Paths, URIs, bytes of image files, or (H, W, 3) uint8 RGB pixels.

    Raises:
        DataError: An image cannot be decoded.
        OSError: An image cannot be read.
        CheckpointError: There is no such model, or its files are damaged.
    """
    return (model if isinstance(model, Predictor) else load(model))(images)


def predict_files(
    model: Model,
    source: str | Path,
    output: str | Path,
    *,
    split: str = "",
    overlays: bool = False,
    score_threshold: float | None = None,
    max_people: int | None = None,
    workers: int | None = None,
    parallel: bool = False,
    tracking: str = "",
) -> BatchResult:
    """The poses in a folder, a pattern, a video or a data set, as ``posefleet predict`` writes them.

    Args:
        model: A run, a checkpoint or a registered model.
        source: What ``posefleet predict --input`` takes.
        output: Folder for tables, COCO results and drawn images. The same call finishes what was interrupted.
        split: Split of a data set in COCO's layout.
        overlays: Also draw the poses.
        score_threshold: Leave out poses with a lower score, 0..1.
        max_people: Keep at most this many poses of an image, best first.
        workers: Largest number of Ray workers. Default: what the cluster has room for.
        parallel: Predict on a Ray cluster, instead of in this process.
        tracking: MLflow store of registered models.

    Raises:
        ValueError: ``output`` holds predictions of another model, source or options.
        PlatformError: The model or the source cannot be used.
        OSError: A file cannot be read or written.
    """
    options = PredictionOptions(score_threshold=score_threshold, max_people=max_people, overlays=overlays)
    images = list_images(str(source), split=split, ignore=str(output))
    pool = WorkerPool(workers=workers)
    return predict_images(
        images, str(output), _address(model), options=options, tracking=tracking, pool=pool, parallel=parallel
    )


def _address(model: Model) -> str:
    return model.folder if isinstance(model, TrainedRun) else str(model)


def _named(config: str | Path | Mapping[str, Any] | None, settings: Settings | None) -> str:
    """Where settings come from, for messages."""
    file = "config" if isinstance(config, Mapping) else str(config or "")
    return " and ".join(filter(None, (file, "settings" if settings or not file else "")))
