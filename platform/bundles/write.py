"""Makes a bundle: predicts the evaluated data once more, and packs what checks the numbers."""

import dataclasses
import hashlib
import json
import math
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posefleet.data.coco.results import write_results
from posefleet.data.evaluation.evaluate import Evaluation
from posefleet.data.images import encode_jpeg
from posefleet.data.io.files import create
from posefleet.data.io.tars import MAX_MEMBER_BYTES
from posefleet.data.loading.shard_dataset import ShardDataset
from posefleet.data.shards.layout import read_manifest
from posefleet.data.structures import Detections, Poses
from posefleet.data.transforms import EvalTransform
from posefleet.platform.bundles.anonymous import without_places
from posefleet.platform.bundles.environment import describe_environment
from posefleet.platform.bundles.layout import (
    AS_RECORDED,
    BOXES,
    COUNTS,
    DATA,
    ENVIRONMENT,
    EXPERIMENT,
    FORMAT,
    MANIFEST,
    METRICS,
    MOST_SMALL,
    OPTIONAL,
    PREDICTIONS,
    REQUIRED,
    RUN,
    SCHEMA,
    SMALL,
    TRUTH,
    VERSION,
    BundleError,
    differences,
)
from posefleet.platform.bundles.poses import write_boxes
from posefleet.platform.bundles.truth import write_truth
from posefleet.platform.checkpoints.format import META, WEIGHTS, Meta, copy_for_use, read_content, read_meta
from posefleet.platform.checkpoints.load import load_model
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.loading import to_dict
from posefleet.platform.inference.evaluate import evaluate, evaluation_set, ground_truth
from posefleet.platform.inference.sources import evaluated_sources
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.visualization.report import draw_best_poses

ORIGIN = ("data", "run_id", "imported", "sha256", "source", "licence", "reported")
"""What of a checkpoint's provenance goes into a bundle; who imported weights does not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """What goes into a bundle besides what always does."""

    truth: bool = True
    """Annotations of the evaluated data."""
    weights: bool = True
    samples: int = 4
    """Images with their poses drawn; the first ones of the data."""
    allow_different: bool = False
    """Write the bundle even if the numbers are not those that the run recorded."""


@dataclass(frozen=True, slots=True)
class Written:
    """What was written."""

    evaluation: Evaluation
    recorded: bool
    """Whether the run has numbers of its own."""
    data: str
    """Name of the evaluated data."""
    members: tuple[str, ...]
    size: int
    """Bytes of the file."""


def write_bundle(out: str, checkpoint: str, experiment: Experiment, worker: LocalWorker, content: Content) -> Written:
    """Evaluate a checkpoint on ``data.eval``, and write the bundle if the numbers are those that the run recorded.

    Args:
        out: File to write, any fsspec path; it appears whole or not at all.
        checkpoint: Folder of the checkpoint.
        experiment: Its settings, which may have been changed for this evaluation.
        worker: A single process.
        content: What goes into the bundle.

    Raises:
        BundleError: The numbers are not those of the run, the settings cannot be checked by others, or a member
            becomes too large.
        CheckpointError, DataError: Checkpoint or data cannot be used.
    """
    _check_settings(experiment)
    evaluate_settings = dataclasses.replace(experiment.evaluate, backend="pycocotools", overlays=0)
    experiment = dataclasses.replace(experiment, evaluate=evaluate_settings)
    data = read_manifest(experiment.data.one_eval)
    meta = read_meta(checkpoint)
    model, _ = load_model(checkpoint, experiment=experiment)
    poses: dict[int, Poses] = {}
    boxes: dict[int, Detections] = {}
    result = evaluate(model.to(worker.device), experiment, worker, keep=poses.update, keep_boxes=boxes.update)
    assert result is not None  # there is one rank
    if not content.allow_different:
        _refuse_others(result, meta.metrics)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_results(str(folder / PREDICTIONS), dict(sorted(poses.items())), exact=True)
        if boxes:
            write_boxes(folder / BOXES, boxes)
        if content.truth:
            view = EvalTransform(experiment.data.resize, experiment.keypoints)
            write_truth(folder / TRUTH, ground_truth(evaluation_set(experiment, view)), experiment.keypoints)
        if content.weights:
            copy_for_use(checkpoint, folder)
            (folder / META).unlink()
        _draw_samples(folder, experiment, poses, content.samples)
        _write_json(folder / EXPERIMENT, _describe_settings(experiment))
        _write_json(folder / SCHEMA, without_places(experiment.keypoints.as_dict()))
        about = {"name": data.split, "fingerprint": data.fingerprint, "counts": data.counts, "notes": result.notes}
        _write_json(folder / DATA, without_places(about))
        _write_json(folder / ENVIRONMENT, describe_environment(worker.device))
        _write_json(folder / RUN, _describe_run(meta, checkpoint))
        _write_json(folder / METRICS, _describe_metrics(result, meta))
        members, size = _pack(folder, out)
    return Written(result, bool(meta.metrics), data.split, members, size)


def _check_settings(experiment: Experiment) -> None:
    if not experiment.data.eval:
        raise BundleError("the run names no data to evaluate on; give --data.eval SHARDS or FOLDER@SPLIT")
    if evaluated_sources(experiment):
        raise BundleError(
            "data.eval has several sources or other keypoints than the model, and a bundle holds one evaluation with "
            "the model's keypoints; give --data.eval SHARDS that have them"
        )
    if experiment.evaluate.detections:
        raise BundleError(
            "evaluate.detections takes boxes from a file, which a bundle does not hold; leave out --evaluate.detections"
        )


def _refuse_others(result: Evaluation, recorded: Mapping[str, float]) -> None:
    wrong = differences(dict(recorded), result.as_dict(), AS_RECORDED)
    if wrong:
        raise BundleError(
            f"the run claims AP {recorded.get('AP', math.nan):.6f}, and this evaluation gives AP {result.ap:.6f}; "
            f"{len(wrong)} of {len(recorded)} numbers differ, most: {wrong[0]}. Evaluate the same data with the same "
            "settings, or write the bundle with --allow-different"
        )


def _draw_samples(folder: Path, experiment: Experiment, poses: Mapping[int, Poses], count: int) -> None:
    """Draw the poses of the first images."""
    if not count:
        return
    (folder / "samples").mkdir()
    schema = experiment.keypoints
    source = ShardDataset(experiment.data.one_eval, schema, lambda sample, _: sample, seed=None)
    for sample in source.stored(range(min(count, len(source)))):
        drawn = draw_best_poses(sample.image, poses[sample.image_id], schema)
        (folder / "samples" / f"{sample.image_id}.jpg").write_bytes(encode_jpeg(drawn))


def _describe_settings(experiment: Experiment) -> dict[str, Any]:
    """The settings without the schema, which is a member of its own, and without the places of runs and tracking."""
    settings = to_dict(experiment)
    del settings["schema"]
    settings["run"] |= {"storage": "", "tracking": ""}
    found: dict[str, Any] = without_places(settings)
    return found


def _describe_run(meta: Meta, checkpoint: str) -> dict[str, Any]:
    origin = {key: meta.provenance[key] for key in ORIGIN if meta.provenance.get(key)}
    address = {"source": origin["source"]} if "source" in origin else {}  # where anybody finds published weights
    weights = read_content(checkpoint)["files"][WEIGHTS]
    return {
        "method": meta.experiment.method,
        "step": meta.step,
        "position": meta.position,
        "origin": {**without_places(origin), **address},
        "weights_bytes": weights["bytes"],
        "weights_sha256": weights["sha256"],
    }


def _describe_metrics(result: Evaluation, meta: Meta) -> dict[str, Any]:
    return {
        "evaluation": _with_nulls(result.as_dict()),
        "counts": {name: getattr(result.protocol, name) for name in COUNTS},
        "record": _with_nulls(meta.metrics),
        "score_rule": result.protocol.score_rule,
        "backend": result.protocol.backend,
    }


def _with_nulls(numbers: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in numbers.items()}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


# ------------------------------------------------------------------------------------------------------- the tar


def _pack(folder: Path, out: str) -> tuple[tuple[str, ...], int]:
    """Write the tar of the files in ``folder``, and return the names of its members and its size."""
    samples = sorted(f"samples/{path.name}" for path in folder.glob("samples/*"))
    known = [name for name in (*REQUIRED, *OPTIONAL) if (folder / name).exists()]
    records = {name: _record(folder / name, name) for name in (*known, *samples)}
    _write_json(folder / MANIFEST, {"format": FORMAT, "version": VERSION, "members": records})
    names = (MANIFEST, *records)
    with create(out) as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for name in names:
                entry = tarfile.TarInfo(name)  # without times, owners and modes of these files
                entry.size = (folder / name).stat().st_size
                with (folder / name).open("rb") as content:
                    tar.addfile(entry, content)
        size = file.tell()
    return names, size


def _record(path: Path, name: str) -> dict[str, int | str]:
    size = path.stat().st_size
    if size > (most := MOST_SMALL if name in SMALL else MAX_MEMBER_BYTES):
        raise BundleError(f"{name} has {size:,} bytes, and {most:,} are the most that a bundle may hold")
    with path.open("rb") as file:
        return {"bytes": size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
