"""The output folder of batch prediction: what it is for, the names of its parts, and its summary."""

import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import fsspec

from posefleet.data.io.files import UNFINISHED, read_json, write_file
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.models import keypoint_score_rule
from posefleet.platform.checkpoints.format import copy_for_use, read_content, read_meta
from posefleet.platform.checkpoints.resolve import find_checkpoint
from posefleet.platform.prediction.tables import Counts
from posefleet.platform.runtime.paths import MODELS, resolve_path
from posefleet.platform.tracking.registry import find_version


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A checkpoint in memory, to be sent to the workers."""

    about: dict[str, Any]
    """Address, registered version, path, method, step, sha256 of the weights, and what the scores of keypoints are (in
    words), and the note of its run, for the summary."""
    identity: str
    """Method, step, weights and settings in one line; equal for models that predict the same."""
    schema: KeypointSchema
    files: dict[str, bytes]
    """Content of its files by name."""

    @classmethod
    def find(cls, address: str, tracking: str) -> Self:
        """Read the model at ``address`` (see :func:`predict_images`); an alias is resolved once.

        Raises:
            CheckpointError: There is no such checkpoint.
            ValueError: There is no such registered version.
            TrackingError: The registry does not answer.
        """
        about: dict[str, Any] = {"model": address}
        named = resolve_path(address)
        if named.startswith(MODELS):  # an alias may move while this reads
            version = find_version(named, tracking)
            about["version"], named = version.number, version.address
        path = find_checkpoint(named, tracking=tracking)
        with tempfile.TemporaryDirectory() as folder:
            copy_for_use(path, Path(folder))
            files = {file.name: file.read_bytes() for file in Path(folder).iterdir()}
        content = read_content(path)
        weights = next(iter(json.loads(files["meta.json"])["files"].values()))["sha256"]
        settings = hashlib.sha256(json.dumps(content["experiment"], sort_keys=True).encode()).hexdigest()
        experiment = read_meta(path).experiment
        about["note"] = experiment.run.note
        about["keypoint_scores"] = keypoint_score_rule(experiment.method, experiment.model)
        about |= {"checkpoint": path, "method": content["method"], "step": content["step"], "weights": weights}
        identity = f"{content['method']} at step {content['step']}, weights {weights[:12]}, settings {settings[:12]}"
        return cls(about, identity, experiment.keypoints, files)


def claim_output(output: str, plan: dict[str, Any]) -> Counts | None:
    """Make ``output`` the folder of this plan; return what it holds if it is finished already, else None.

    Raises:
        ValueError: It holds predictions of another plan; the message names the first difference.
    """
    summary = read_json(f"{output}/summary.json")
    known = summary["plan"] if summary else read_json(f"{output}/parts/plan.json")
    for name, value in plan.items() if known else ():
        if known.get(name) != value:
            raise ValueError(
                f"{output} holds predictions with {name} {known.get(name)!r}, and now it is {value!r}; "
                "give the first command again, or choose another output folder"
            )
    if not known:
        _write_json(f"{output}/parts/plan.json", plan)
    return Counts(**summary["counts"]) if summary else None


def finish_output(
    output: str, plan: dict[str, Any], model: ModelInfo, counts: Counts, predicted: int, seconds: float
) -> None:
    """Write ``summary.json``, and delete the parts and what killed processes left unfinished."""
    fs, path = fsspec.core.url_to_fs(output)
    for file in fs.find(path):
        if file.endswith(UNFINISHED):
            fs.rm_file(file)
    last = {"predicted": predicted, "seconds": round(seconds, 1), "per_second": round(predicted / seconds, 2)}
    _write_json(
        f"{output}/summary.json",
        {
            "model": model.about,
            "keypoints": model.schema.name,
            "schema": model.schema.as_dict(),
            "plan": plan,
            "counts": asdict(counts),
            "last_run": last,
        },
    )
    fs.rm(f"{path}/parts", recursive=True)


def part_name(number: int) -> str:
    """File name of the part of a chunk."""
    return f"part-{number:05d}.parquet"


def file_names(folder: str) -> set[str]:
    """Names of the files in a folder of any fsspec path, as they are now."""
    fs, path = fsspec.core.url_to_fs(folder)
    fs.invalidate_cache()
    return {file.rpartition("/")[2] for file in fs.ls(path, detail=False)}


def _write_json(path: str, content: Any) -> None:
    write_file(path, json.dumps(content, indent=1).encode() + b"\n")
