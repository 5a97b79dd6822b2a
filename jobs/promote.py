"""Promote a trained model in the MLflow registry if it passes a gate of measured checks, or roll back to the previous.

posefleet promote --run runs/smpr-a --to champion --data.eval /data/shards/val2017
posefleet promote --search runs/tune-smpr --to challenger --data.eval /data/shards/val2017 --gate.latency_ms 80
posefleet promote --run models:/smpr@challenger --to champion --source /data/coco --split val2017
posefleet promote --from-shadow http://HOST:8000/v1/models/smpr --model smpr
posefleet promote --rollback --model smpr

Settings come from the checkpoint's experiment; options change them in the registered version.
"""

import dataclasses
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from posefleet.command_line import Given, fail, one_of, report_error
from posefleet.platform.config.cli import EVALUATE, override, parse_with_settings
from posefleet.platform.promotion.release import promotion_summary, release_description, shadow_tags
from posefleet.platform.promotion.thresholds import GateThresholds
from posefleet.platform.runtime.paths import MODELS, resolve_path
from posefleet.platform.runtime.redaction import redact
from posefleet.platform.tracking.client import TrackingError, pages, store_uri
from posefleet.platform.tracking.registry import (
    CHALLENGER,
    CHAMPION,
    Release,
    Version,
    check_name,
    find_alias,
    find_version,
    promote,
    promote_challenger,
    rollback,
    signed,
)

if TYPE_CHECKING:
    from posefleet.platform.checkpoints.format import Meta
    from posefleet.platform.config.experiment import Experiment
    from posefleet.platform.inference.split import Split
    from posefleet.platform.promotion.gate import GateReport


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which version to promote, and which images to check it on."""

    run: Annotated[str, "PATH"] = ""
    """Promote a run's folder (its best checkpoint), a checkpoint, or models:/NAME@ALIAS."""
    search: Annotated[str, "FOLDER"] = ""
    """Promote the best trained trial of a search."""
    from_shadow: Annotated[str, "URL"] = ""
    """Make the challenger of --model champion if both agree on live images. The server that sends images to both has
    the measured agreement at http://HOST:8000/v1/models/NAME. If it requires a token, put it into $POSEFLEET_TOKEN.
    With --data.eval or --source the challenger is also scored on annotated images."""
    rollback: bool = False
    """Make the previous champion of --model champion again."""
    to: Literal["champion", "challenger"] | None = None
    """With --run and --search: alias of the new version."""
    model: Annotated[str, "NAME"] = ""
    """Registered model. Default: the name of the method."""
    tracking: Annotated[str, "URI"] = ""
    """MLflow store. Default: $MLFLOW_TRACKING_URI, else the one of the run, else mlflow.db under runs/."""
    source: Annotated[str, "PATH"] = ""
    """COCO's layout or an annotation file, instead of --data.eval."""
    split: Annotated[str, "NAME"] = "val2017"
    """Split of --source."""
    images: Annotated[str, "PATH"] = ""
    """Image folder, if --source is an annotation file."""
    force: bool = False
    """Promote in spite of failed checks; a tag of the version records this."""
    gate: GateThresholds = field(default_factory=GateThresholds)
    """Limits that the candidate must meet to pass the gate; shadow_* apply with --from-shadow."""

    def __post_init__(self) -> None:
        one_of(self, "run", "search", "from_shadow", "rollback")
        if (self.rollback or self.from_shadow) and not self.model:
            raise ValueError(f"{'--rollback' if self.rollback else '--from-shadow'} needs --model NAME")
        if self.from_shadow and self.to == CHALLENGER:
            raise ValueError("--from-shadow makes the challenger champion; leave --to out")
        if not (self.rollback or self.from_shadow or self.to):
            raise ValueError(f"--to is missing; give --to {CHAMPION} or --to {CHALLENGER}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Promote or roll back. Exit status: 0 done, 1 the gate failed and nothing changed, 2 bad input."""
    options, overrides = parse_with_settings(Options, arguments, command="promote", about=__doc__ or "", shown=EVALUATE)
    if options.rollback and overrides:
        fail(f"--rollback takes no settings such as --{next(iter(overrides))}")
    errors: tuple[type[Exception], ...] = (ValueError, TrackingError)
    if not options.rollback:  # a rollback must be quick, and importing torch takes seconds
        from posefleet.platform.checkpoints.format import CheckpointError
        from posefleet.platform.promotion.shadow import ShadowError

        errors = (*errors, CheckpointError, ShadowError)
    try:
        if options.rollback:
            return _rollback(options)
        return _promote_from_shadow(options, overrides) if options.from_shadow else _promote(options, overrides)
    except errors as error:
        report_error(error)
        return 2


def _rollback(options: Options) -> int:
    champion, replaced = rollback(options.tracking, check_name(options.model))
    was = f", in place of version {replaced.number}, which is the previous one now" if replaced else ""
    sys.stdout.write(f"{MODELS}{champion.name}@{CHAMPION} is version {champion.number} again{was}\n")
    return 0


def _promote(options: Options, overrides: Given) -> int:
    from posefleet.memory import keep_freed_memory
    from posefleet.platform.checkpoints.format import read_meta
    from posefleet.platform.checkpoints.resolve import find_checkpoint
    from posefleet.platform.promotion.gate import run_gate

    named = resolve_path(_best_trial(options.search) if options.search else options.run)
    checkpoint = find_checkpoint(named, tracking=options.tracking)
    meta = read_meta(checkpoint)
    experiment = _experiment(meta.experiment, overrides)
    split = _split(options, experiment)
    name = check_name(options.model or experiment.method)
    uri = _store(options.tracking, checkpoint)
    current = find_alias(uri, name, CHAMPION)
    champion = find_checkpoint(current.address, tracking=uri) if current else ""
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        report = run_gate(checkpoint, experiment, champion, split, options.gate, Path(folder))
        against = f" against {current.address}, the champion" if current else ""
        sys.stdout.write(f"{checkpoint}{against}\n{report}\n")
        if report.failed and not options.force:
            sys.stderr.write(
                f"not promoted: {', '.join(report.failed)} failed; nothing was registered (--force does it anyway)\n"
            )
            return 1
        release = _release(named, meta, experiment, split, report, Path(folder))
        assert options.to
        version = promote(uri, name, release, options.to)
    _print_promoted(version, options.to, uri, current)
    return 0


def _promote_from_shadow(options: Options, overrides: Given) -> int:
    """Make the challenger champion, exactly the version that was compared: move aliases, register nothing."""
    from posefleet.memory import keep_freed_memory
    from posefleet.platform.checkpoints.format import read_meta
    from posefleet.platform.checkpoints.resolve import find_checkpoint
    from posefleet.platform.promotion.checks import shadow_checks
    from posefleet.platform.promotion.gate import run_gate
    from posefleet.platform.promotion.shadow import read_shadowing

    uri = store_uri(options.tracking)
    challenger = find_version(f"{MODELS}{check_name(options.model)}@{CHALLENGER}", uri)
    current = find_alias(uri, options.model, CHAMPION)
    shadowing = read_shadowing(options.from_shadow, os.environ.get("POSEFLEET_TOKEN", ""))
    checkpoint = find_checkpoint(challenger.address, tracking=uri)
    champion = find_checkpoint(current.address, tracking=uri) if current else ""
    own = read_meta(checkpoint).experiment
    experiment = _experiment(own, overrides)
    if (experiment.model, experiment.evaluate) != (own.model, _experiment(own, {}).evaluate):
        raise ValueError(
            "--from-shadow promotes the version that was compared: its settings cannot be changed; use --run for that"
        )
    given = options.source or "data.eval" in overrides
    split = _split(options, experiment) if given else None
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        report = run_gate(checkpoint, experiment, champion, split, options.gate, Path(folder))
    compared = shadow_checks(shadowing, current.address if current else "", challenger.address, options.gate)
    report = dataclasses.replace(report, checks=report.checks + compared)
    against = f" against {current.address}, the champion" if current else ""
    sys.stdout.write(f"{challenger.address}{against}\n{report}\n")
    if report.failed and not options.force:
        sys.stderr.write(f"not promoted: {', '.join(report.failed)} failed; no alias moved (--force does it anyway)\n")
        return 1
    tags = shadow_tags(shadowing, report)
    replaced = promote_challenger(uri, challenger, tags, promotion_summary(tags, report))
    _print_promoted(challenger, CHAMPION, uri, replaced)
    return 0


def _best_trial(search: str) -> str:
    """Folder of a run: that of the trial with the highest AP among those trained to their end."""
    from posefleet.data.io.files import read_json

    path = Path(resolve_path(search), "trials.json")
    trials: list[dict[str, Any]] | None = read_json(str(path))
    if trials is None:
        raise ValueError(f"{search} is not the folder of a search: it has no trials.json")
    trained = [trial for trial in trials if trial.get("run") and trial["scores"] and trial.get("stopped") is None]
    if not trained:
        raise ValueError(
            f"none of the {len(trials)} trials in {path} was trained to its end; a search of decoding alone trains "
            "none: promote its checkpoint with the settings of best.yaml as options"
        )
    return str(max(trained, key=lambda trial: trial["scores"]["AP"])["run"])


def _experiment(own: "Experiment", overrides: Given) -> "Experiment":
    """The candidate's settings as they will be served, with the backend whose matches give a bootstrap interval."""
    experiment = override(own, overrides)
    if experiment.evaluate.oracle_scores or experiment.evaluate.oracle_boxes != "none":
        raise ValueError("evaluate.oracle_scores and evaluate.oracle_boxes need annotations: they cannot be served")
    return dataclasses.replace(
        experiment,
        evaluate=dataclasses.replace(experiment.evaluate, backend="pycocotools"),
    )


def _split(options: Options, experiment: "Experiment") -> "Split":
    from posefleet.data.coco.source import find_source
    from posefleet.data.shards.layout import read_manifest
    from posefleet.platform.inference.split import Split

    if options.source:
        images = resolve_path(options.images) or None
        return Split(source=find_source(resolve_path(options.source), options.split, images))
    if not experiment.data.eval:
        raise ValueError("no images to evaluate on; give --data.eval SHARDS or --source PATH")
    read_manifest(experiment.data.eval)  # fails on a wrong folder before anything is measured
    return Split(shards=experiment.data.eval)


def _store(given: str, checkpoint: str) -> str:
    """URI of the registry: the given one, else the environment's, else that of the run that wrote the checkpoint."""
    from posefleet.platform.training.run import read_run

    if given or os.environ.get("MLFLOW_TRACKING_URI"):
        return store_uri(given)
    folder, found, _ = checkpoint.rpartition("/checkpoints/")
    run = read_run(folder) if found else None
    return store_uri(run.tracking_uri if run else "")


def _release(
    named: str, meta: "Meta", experiment: "Experiment", split: "Split", report: "GateReport", folder: Path
) -> Release:
    from posefleet.platform.config.loading import to_dict, to_yaml

    scores = report.evaluation.as_dict() if report.evaluation else {}
    (folder / "gate.txt").write_text(f"{report}\n")
    (folder / "experiment.yaml").write_text(to_yaml(experiment))
    data = split.as_input()
    tags = {
        "AP": f"{scores.get('AP', float('nan')):.4f}",
        "split": data.name,
        "gate": "failed" if report.failed else "passed",
        "method": experiment.method,
        "schema": experiment.schema,
        "checkpoint": named,
        "step": str(meta.step),
        "promoted_by": signed(),
        "data.train": meta.provenance.get("data", "unknown"),
        "data.gate": data.fingerprint,
    }
    if report.failed:
        tags["forced"] = f"{', '.join(report.failed)} failed; forced by {tags['promoted_by']}"
    return Release(
        folder=folder,
        method=experiment.method,
        schema=experiment.schema,
        keypoints=experiment.keypoints.keypoints,
        experiment=experiment.run.experiment,
        training_run=meta.provenance.get("run_id", ""),
        step=meta.step,
        settings=to_dict(experiment),
        metrics=scores,
        split=data,
        tags=tags,
        description=release_description(tags, report),
    )


def _print_promoted(version: Version, alias: str, uri: str, replaced: Version | None) -> None:
    was = f", version {replaced.number} is the previous one" if replaced and alias == CHAMPION else ""
    address = f"{MODELS}{version.name}@{alias}"
    sys.stdout.write(
        f"{address} is version {version.number}{was}\n"
        f"  use    MLFLOW_TRACKING_URI={redact(uri)} python jobs/evaluate.py --checkpoint {address}\n"
        f"  pages  {pages(uri)}\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
