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
from posefleet.platform.checkpoints.format import META, WEIGHTS, copy_for_use, network_in, read_content
from posefleet.platform.exports.backends import backend_of, describe, locate, read_facts, read_files
from posefleet.platform.prediction.tables import Counts
from posefleet.platform.runtime.paths import MODELS, resolve_path
from posefleet.platform.tracking.registry import find_version


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A checkpoint or exported file in memory, to be sent to the workers."""

    about: dict[str, Any]
    """Address, registered version, path, method, step, sha256 of the weights, and what the scores of keypoints are (in
    words), and the note of its run, for the summary."""
    identity: str
    """Method, step, weights and settings in one line; equal for models that predict the same."""
    schema: KeypointSchema
    files: dict[str, bytes]
    """Content of its files by name, the one to load last if it is an exported file."""

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
        path = locate(named, tracking=tracking)
        meta = describe(path)
        experiment = meta.experiment
        files, weights, stored = _exported(path) if backend_of(path) else _checkpoint(path)
        settings = hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()
        about["note"] = experiment.run.note
        about["keypoint_scores"] = keypoint_score_rule(experiment.method, experiment.model)
        about |= {"checkpoint": path, "method": experiment.method, "step": meta.step, "weights": weights}
        identity = f"{experiment.method} at step {meta.step}, weights {weights[:12]}, settings {settings[:12]}"
        return cls(about, identity, experiment.keypoints, files)


def _checkpoint(path: str) -> tuple[dict[str, bytes], str, Any]:
    """The files of a checkpoint, the SHA-256 of what predicts, and its settings as they are stored."""
    with tempfile.TemporaryDirectory() as folder:
        copy_for_use(path, Path(folder))
        files = {file.name: file.read_bytes() for file in Path(folder).iterdir()}
    used = network_in(path).rpartition("/")[2] or WEIGHTS
    return files, json.loads(files[META])["files"][used]["sha256"], read_content(path)["experiment"]


def _exported(path: str) -> tuple[dict[str, bytes], str, Any]:
    """The same of an exported file."""
    facts = read_facts(path)
    files = {f"network{suffix}": data for suffix, data in read_files(path).items()}
    return files, facts["weights"], json.loads(facts["experiment"])


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
