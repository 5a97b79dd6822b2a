"""Promote a trained model in the MLflow registry if it passes a gate of measured checks, or roll back to the previous.

posefleet promote --run runs/smpr-a --to champion --data.eval /data/shards/val2017
posefleet promote --search runs/tune-smpr --to challenger --data.eval /data/shards/val2017 --gate.latency_ms 80
posefleet promote --run models:/smpr@challenger --to champion --source /data/coco --split val2017
posefleet promote --run runs/smpr-a --exported smpr-int8.onnx --to champion
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
from typing import TYPE_CHECKING, Annotated, Literal

from posefleet.command_line import Given, Place, fail, one_of, report_error
from posefleet.platform.config.cli import EVALUATE, override, parse_with_settings
from posefleet.platform.promotion.thresholds import GateThresholds
from posefleet.platform.runtime.errors import PlatformError
from posefleet.platform.runtime.paths import MODELS
from posefleet.platform.runtime.redaction import redact
from posefleet.platform.tracking.client import pages, store_uri
from posefleet.platform.tracking.registry import (
    CHALLENGER,
    CHAMPION,
    Version,
    check_model_name,
    find_alias,
    find_version,
    promote,
    promote_challenger,
    rollback,
)

if TYPE_CHECKING:
    from posefleet.platform.config.experiment import Experiment
    from posefleet.platform.inference.split import Split
    from posefleet.platform.promotion.gate import GateReport


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which version to promote, and which images to check it on."""

    run: Annotated[str, Place("PATH")] = ""
    """Promote a run's folder (its best checkpoint), a checkpoint, or models:/NAME@ALIAS."""
    search: Annotated[str, Place("FOLDER")] = ""
    """Promote the best trained trial of a search."""
    from_shadow: Annotated[str, "URL"] = ""
    """Make the challenger of --model champion if both agree on live images. The server that sends images to both has
    the measured agreement at http://HOST:8000/v1/models/NAME. If it requires a token, put it into $POSEFLEET_TOKEN.
    With --data.eval or --source the challenger is also scored on annotated images."""
    rollback: bool = False
    """Make the previous champion of --model champion again."""
    exported: Annotated[str, Place("FILE")] = ""
    """With --run and --search: a file that posefleet export wrote from that checkpoint. The gate scores and times it,
    the version holds it, and serving runs it in place of the checkpoint's PyTorch network."""
    to: Literal["champion", "challenger"] | None = None
    """With --run and --search: alias of the new version."""
    model: Annotated[str, "NAME"] = ""
    """Registered model. Default: the name of the method."""
    tracking: Annotated[str, "URI"] = ""
    """MLflow store. Default: $MLFLOW_TRACKING_URI, else the one of the run, else mlflow.db under runs/."""
    source: Annotated[str, Place("PATH")] = ""
    """COCO's layout or an annotation file, instead of --data.eval."""
    split: Annotated[str, "NAME"] = ""
    """Split of --source. Default: val2017 if it is there, else the only one."""
    images: Annotated[str, Place("PATH")] = ""
    """Image folder, if --source is an annotation file."""
    category: Annotated[tuple[str, ...], "NAME"] = ()
    """Categories of --source whose annotations are read; all: every one that lists keypoints. Default: the only one
    that can be meant."""
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
        if self.exported and (self.rollback or self.from_shadow):
            raise ValueError("--exported goes with --run and --search, which register a new version")
        if not (self.rollback or self.from_shadow or self.to):
            raise ValueError(f"--to is missing; give --to {CHAMPION} or --to {CHALLENGER}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Promote or roll back. Exit status: 0 done, 1 the gate failed and nothing changed, 2 bad input."""
    options, overrides = parse_with_settings(Options, arguments, command="promote", about=__doc__ or "", shown=EVALUATE)
    if options.rollback and overrides:
        fail(f"--rollback takes no settings such as --{next(iter(overrides))}")
    try:
        if options.rollback:
            return _rollback(options)
        return _promote_from_shadow(options, overrides) if options.from_shadow else _promote(options, overrides)
    except (ValueError, PlatformError) as error:
        report_error(error)
        return 2


def _rollback(options: Options) -> int:
    champion, replaced = rollback(options.tracking, check_model_name(options.model))
    was = f", in place of version {replaced.number}, which is the previous one now" if replaced else ""
    sys.stdout.write(f"{MODELS}{champion.name}@{CHAMPION} is version {champion.number} again{was}\n")
    return 0


def _promote(options: Options, overrides: Given) -> int:
    """Register the best checkpoint of a run, or another checkpoint, as a new version."""
    from posefleet.memory import keep_freed_memory
    from posefleet.platform.checkpoints.format import read_meta
    from posefleet.platform.checkpoints.resolve import find_checkpoint
    from posefleet.platform.comparison.sources import trained_trials
    from posefleet.platform.promotion.gate import run_gate
    from posefleet.platform.promotion.release import new_release

    named = trained_trials(options.search)[0]["run"] if options.search else options.run
    checkpoint = find_checkpoint(named, tracking=options.tracking)
    meta = read_meta(checkpoint)
    experiment = _experiment(_settings_of(options.exported, checkpoint) or meta.experiment, overrides)
    split = _split(options, experiment)
    name = check_model_name(options.model or experiment.method)
    uri = _store(options.tracking, checkpoint)
    current = find_alias(uri, name, CHAMPION)
    champion = find_checkpoint(current.address, tracking=uri) if current else ""
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        report = run_gate(
            checkpoint, experiment, champion, split, options.gate, Path(folder), exported=options.exported
        )
        candidate = f"{checkpoint} as {options.exported}" if options.exported else checkpoint
        if not _accepted(report, candidate, current, options.force, "nothing was registered"):
            return 1
        assert options.to
        version = promote(uri, name, new_release(named, meta, experiment, split, report, Path(folder)), options.to)
    _print_promoted(version, options.to, uri, current)
    return 0


def _promote_from_shadow(options: Options, overrides: Given) -> int:
    """Make the challenger champion, exactly the version that was compared: move aliases, register nothing."""
    from posefleet.memory import keep_freed_memory
    from posefleet.platform.checkpoints.format import read_meta
    from posefleet.platform.checkpoints.resolve import find_checkpoint
    from posefleet.platform.promotion.checks import shadow_checks
    from posefleet.platform.promotion.gate import run_gate
    from posefleet.platform.promotion.release import promotion_summary, shadow_tags
    from posefleet.platform.promotion.shadow import read_shadowing

    uri = store_uri(options.tracking)
    challenger = find_version(f"{MODELS}{check_model_name(options.model)}@{CHALLENGER}", uri)
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
    split = _split(options, experiment) if options.source or "data.eval" in overrides else None
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        report = run_gate(checkpoint, experiment, champion, split, options.gate, Path(folder))
    compared = shadow_checks(shadowing, current.address if current else "", challenger.address, options.gate)
    report = dataclasses.replace(report, checks=report.checks + compared)
    if not _accepted(report, challenger.address, current, options.force, "no alias moved"):
        return 1
    tags = shadow_tags(shadowing, report)
    replaced = promote_challenger(uri, challenger, tags, promotion_summary(tags, report))
    _print_promoted(challenger, CHAMPION, uri, replaced)
    return 0


def _accepted(report: "GateReport", candidate: str, champion: Version | None, force: bool, unchanged: str) -> bool:
    """Print what the gate measured. False if a check failed without ``force``; ``unchanged`` says what that means."""
    against = f" against {champion.address}, the champion" if champion else ""
    sys.stdout.write(f"{candidate}{against}\n{report}\n")
    if report.failed and not force:
        failed = ", ".join(report.failed)
        sys.stderr.write(f"not promoted: {failed} failed; {unchanged} (--force does it anyway)\n")
        return False
    return True


def _experiment(own: "Experiment", overrides: Given) -> "Experiment":
    """The candidate's settings as they will be served, with the backend whose matches give a bootstrap interval."""
    experiment = override(own, overrides)
    if experiment.evaluate.oracle_scores or experiment.evaluate.oracle_boxes != "none":
        raise ValueError("evaluate.oracle_scores and evaluate.oracle_boxes need annotations: they cannot be served")
    if experiment.evaluate.detections:
        raise ValueError("evaluate.detections are of the images of one data set: they cannot be served")
    return dataclasses.replace(
        experiment,
        evaluate=dataclasses.replace(experiment.evaluate, backend="pycocotools"),
    )


def _settings_of(exported: str, checkpoint: str) -> "Experiment | None":
    """The settings in an exported file of ``checkpoint``; None without a file."""
    from posefleet.platform.checkpoints.format import WEIGHTS, read_content
    from posefleet.platform.exports.backends import backend_of, read_facts
    from posefleet.platform.exports.exported import read_experiment

    if not exported:
        return None
    if not backend_of(exported):
        raise ValueError(f"--exported {exported} is no file of posefleet export: they end in .onnx, .xml or .trt.onnx")
    facts = read_facts(exported)
    if facts.get("checkpoint") != read_content(checkpoint)["files"][WEIGHTS]["sha256"]:
        raise ValueError(f"--exported {exported} holds other weights than {checkpoint}; export that checkpoint")
    return read_experiment(facts, exported)


def _split(options: Options, experiment: "Experiment") -> "Split":
    from posefleet.platform.inference.split import Split

    return Split.of_command(options, experiment.data)


def _store(given: str, checkpoint: str) -> str:
    """URI of the registry: the given one, else the environment's, else that of the run that wrote the checkpoint."""
    from posefleet.platform.training.run import read_run

    if given or os.environ.get("MLFLOW_TRACKING_URI"):
        return store_uri(given)
    folder, found, _ = checkpoint.rpartition("/checkpoints/")
    run = read_run(folder) if found else None
    return store_uri(run.tracking_uri if run else "")


def _print_promoted(version: Version, alias: str, uri: str, replaced: Version | None) -> None:
    was = f", version {replaced.number} is the previous one" if replaced and alias == CHAMPION else ""
    address = f"{MODELS}{version.name}@{alias}"
    sys.stdout.write(
        f"{address} is version {version.number}{was}\n"
        f"  use    MLFLOW_TRACKING_URI={redact(uri)} posefleet evaluate --checkpoint {address}\n"
        f"  pages  {pages(uri)}\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
