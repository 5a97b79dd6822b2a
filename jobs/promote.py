"""Put a trained model into the MLflow registry, through a gate of measured checks, or go back to the one before.

python jobs/promote.py --run runs/smpr-a --to champion --data.eval /data/shards/val2017
python jobs/promote.py --search runs/tune-smpr --to challenger --data.eval /data/shards/val2017 --gate.latency_ms 80
python jobs/promote.py --run models:/smpr@challenger --to champion --source /data/coco --split val2017
python jobs/promote.py --from-shadow http://HOST:8000/v1/models/smpr --model smpr
python jobs/promote.py --rollback --model smpr
"""

import argparse
import dataclasses
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posefleet.data.loading.memory import collect_garbage_rarely
from posefleet.platform.runtime.paths import MODELS, resolve_path
from posefleet.platform.runtime.redaction import redacted
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
from posefleet.platform.promotion.release import promotion_summary, release_description, shadow_tags


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 when promoted, 1 when the gate refused (nothing is registered), 2 on bad input."""
    collect_garbage_rarely()
    options, overrides = _parse(arguments)
    errors: tuple[type[Exception], ...] = (ValueError, TrackingError)
    if not options.rollback:  # going back must be quick, and torch takes seconds
        from posefleet.platform.checkpoints.format import CheckpointError
        from posefleet.platform.promotion.shadow import ShadowError

        errors = (*errors, CheckpointError, ShadowError)
    try:
        if options.rollback:
            return _rollback(options)
        return _crown(options, overrides) if options.from_shadow else _promote(options, overrides)
    except errors as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def _parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="jobs/promote.py",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Other options, such as --data.eval SHARDS or --model.decode.nms hard, change the checkpoint's "
        "experiment; what is registered has them.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--run", metavar="PATH", help="a run's folder (its best checkpoint), a checkpoint, or models:/..."
    )
    what.add_argument("--search", metavar="FOLDER", help="the best trained trial of a search")
    what.add_argument(
        "--from-shadow",
        metavar="URL",
        help="make the challenger of --model champion, the version itself, if a server that shows it live images "
        "beside the champion finds that they agree: http://HOST:8000/v1/models/NAME, with its token in "
        "$POSEFLEET_TOKEN if it wants one. Scored on annotations, too, if --data.eval or --source is given",
    )
    what.add_argument("--rollback", action="store_true", help="make the previous champion of --model champion again")
    parser.add_argument("--to", choices=[CHAMPION, CHALLENGER], help="alias that the new version gets")
    parser.add_argument("--model", metavar="NAME", help="registered model; default: the name of the method")
    parser.add_argument(
        "--tracking",
        metavar="URI",
        default="",
        help="MLflow store; default: $MLFLOW_TRACKING_URI, else the one of the run, else mlflow.db under runs/",
    )
    parser.add_argument("--source", metavar="PATH", help="COCO's layout or an annotation file, instead of --data.eval")
    parser.add_argument("--split", metavar="NAME", default="val2017", help="split of --source (%(default)s)")
    parser.add_argument("--images", metavar="PATH", help="image folder, where --source is an annotation file")
    parser.add_argument("--force", action="store_true", help="promote in spite of failed checks; the version says so")
    gate = parser.add_argument_group("gate")
    gate.add_argument(
        "--gate.tolerance",
        type=float,
        default=0.01,
        metavar="AP",
        help="the candidate's AP may be this much below the champion's: the whole 95%% interval of the difference over "
        "draws of images must lie above minus this; a negative one asks for a gain (%(default)s)",
    )
    gate.add_argument(
        "--gate.keypoint_floor",
        type=float,
        default=0.0,
        metavar="AP",
        help="AP that every keypoint alone must reach (%(default)s)",
    )
    gate.add_argument(
        "--gate.latency_ms",
        type=float,
        default=0.0,
        metavar="MS",
        help="milliseconds from a decoded image to its poses, on this machine; 0: measured, not judged (%(default)s)",
    )
    gate.add_argument(
        "--gate.latency_people", type=int, default=10, metavar="N", help="people in that image (%(default)s)"
    )
    gate.add_argument(
        "--gate.served_images",
        type=int,
        default=64,
        metavar="N",
        help="images whose served poses are compared with the evaluated ones (%(default)s)",
    )
    _add_shadow_bounds(parser.add_argument_group("gate of --from-shadow"))
    options, overrides = parser.parse_known_args(arguments)
    if (options.rollback or options.from_shadow) and not options.model:
        parser.error(f"{'--rollback' if options.rollback else '--from-shadow'} needs --model NAME")
    if options.from_shadow and options.to == CHALLENGER:
        parser.error("--from-shadow makes the challenger champion; leave --to out")
    if options.rollback and overrides:
        parser.error(f"--rollback does not know {' '.join(overrides)}")
    if not (options.rollback or options.from_shadow or options.to):
        parser.error(f"--to is missing; say --to {CHAMPION} or --to {CHALLENGER}")
    if min(getattr(options, "gate.latency_people"), getattr(options, "gate.served_images")) < 1:
        parser.error("--gate.latency_people and --gate.served_images must be at least 1")
    return options, overrides


def _add_shadow_bounds(group: "argparse._ArgumentGroup") -> None:
    for name, kind, default, metavar, told in (
        ("images", int, 100, "N", "live images that both must have seen"),
        ("people", int, 1000, "N", "people whom the champion must have found on them"),
        ("oks", float, 0.8, "OKS", "mean OKS that the poses of people whom both found must reach"),
        ("missed", float, 0.1, "SHARE", "of the champion's people, the challenger may miss this share"),
        ("slower", float, 2.0, "TIMES", "the challenger may take this many times the champion's time; 0: not judged"),
    ):
        group.add_argument(
            f"--gate.shadow_{name}", type=kind, default=default, metavar=metavar, help=f"{told} (%(default)s)"
        )


def _rollback(options: argparse.Namespace) -> int:
    champion, replaced = rollback(options.tracking, check_name(options.model))
    was = f", in place of version {replaced.number}, which is the previous one now" if replaced else ""
    sys.stdout.write(f"{MODELS}{champion.name}@{CHAMPION} is version {champion.number} again{was}\n")
    return 0


def _promote(options: argparse.Namespace, overrides: list[str]) -> int:
    from posefleet.data.loading.memory import keep_freed_memory
    from posefleet.platform.checkpoints.format import read_meta
    from posefleet.platform.checkpoints.resolve import find_checkpoint
    from posefleet.platform.promotion.checks import GateThresholds
    from posefleet.platform.promotion.gate import run_gate

    named = resolve_path(_best_trial(options.search) if options.search else options.run)
    checkpoint = find_checkpoint(named, tracking=options.tracking)
    meta = read_meta(checkpoint)
    experiment = _experiment(meta.experiment, overrides)
    split = _split(options, experiment)
    name = check_name(options.model or experiment.method)
    uri = _store(options.tracking, checkpoint)
    rival = find_alias(uri, name, CHAMPION)
    champion = find_checkpoint(rival.address, tracking=uri) if rival else ""
    keep_freed_memory()
    bounds = GateThresholds(**_bounds(options))
    with tempfile.TemporaryDirectory() as folder:
        verdict = run_gate(checkpoint, experiment, champion, split, bounds, Path(folder))
        against = f" against {rival.address}, the champion" if rival else ""
        sys.stdout.write(f"{checkpoint}{against}\n{verdict}\n")
        if verdict.failed and not options.force:
            sys.stderr.write(
                f"not promoted: {', '.join(verdict.failed)} failed; nothing was registered (--force does it anyway)\n"
            )
            return 1
        release = _release(named, meta, experiment, split, verdict, Path(folder))
        version = promote(uri, name, release, options.to)
    _tell(version, options.to, uri, rival)
    return 0


def _bounds(options: argparse.Namespace, *, shadow: bool = False) -> dict[str, Any]:
    """Values of the gate's options: of --from-shadow's, or of the others."""
    given = {key.removeprefix("gate."): value for key, value in vars(options).items() if key.startswith("gate.")}
    return {key.removeprefix("shadow_"): value for key, value in given.items() if key.startswith("shadow_") == shadow}


def _crown(options: argparse.Namespace, overrides: list[str]) -> int:
    """The challenger, as it is and as it was compared, becomes champion: aliases move, and nothing is registered."""
    from posefleet.data.loading.memory import keep_freed_memory
    from posefleet.platform.checkpoints.format import read_meta
    from posefleet.platform.checkpoints.resolve import find_checkpoint
    from posefleet.platform.promotion.checks import GateThresholds, ShadowThresholds, shadow_checks
    from posefleet.platform.promotion.gate import run_gate
    from posefleet.platform.promotion.shadow import read_shadowing

    uri = store_uri(options.tracking)
    challenger = find_version(f"{MODELS}{check_name(options.model)}@{CHALLENGER}", uri)
    rival = find_alias(uri, options.model, CHAMPION)
    seen = read_shadowing(options.from_shadow, os.environ.get("POSEFLEET_TOKEN", ""))
    checkpoint = find_checkpoint(challenger.address, tracking=uri)
    champion = find_checkpoint(rival.address, tracking=uri) if rival else ""
    own = read_meta(checkpoint).experiment
    experiment = _experiment(own, overrides)
    if (experiment.model, experiment.evaluate) != (own.model, _experiment(own, []).evaluate):
        raise ValueError(
            "--from-shadow promotes the version that was compared: its settings cannot be changed; use --run for that"
        )
    given = options.source or any(override.partition("=")[0] == "--data.eval" for override in overrides)
    split = _split(options, experiment) if given else None
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        verdict = run_gate(checkpoint, experiment, champion, split, GateThresholds(**_bounds(options)), Path(folder))
    compared = shadow_checks(
        seen, rival.address if rival else "", challenger.address, ShadowThresholds(**_bounds(options, shadow=True))
    )
    verdict = dataclasses.replace(verdict, checks=verdict.checks + compared)
    against = f" against {rival.address}, the champion" if rival else ""
    sys.stdout.write(f"{challenger.address}{against}\n{verdict}\n")
    if verdict.failed and not options.force:
        sys.stderr.write(f"not promoted: {', '.join(verdict.failed)} failed; no alias moved (--force does it anyway)\n")
        return 1
    tags = shadow_tags(seen, verdict)
    replaced = promote_challenger(uri, challenger, tags, promotion_summary(tags, verdict))
    _tell(challenger, CHAMPION, uri, replaced)
    return 0


def _best_trial(search: str) -> str:
    """Folder of the run of the trial with the highest AP, of those that were trained to their end."""
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


def _experiment(own: "Experiment", overrides: list[str]) -> "Experiment":
    """The candidate's settings as they will be served, scored so that an interval can be told."""
    from posefleet.platform.config.cli import override

    experiment = override(own, overrides)
    if experiment.evaluate.oracle_scores or experiment.evaluate.oracle_boxes != "none":
        raise ValueError("evaluate.oracle_scores and evaluate.oracle_boxes know the truth: they cannot be served")
    return dataclasses.replace(
        experiment,
        data=dataclasses.replace(experiment.data, eval=resolve_path(experiment.data.eval)),
        evaluate=dataclasses.replace(experiment.evaluate, backend="pycocotools"),
    )


def _split(options: argparse.Namespace, experiment: "Experiment") -> "Split":
    from posefleet.data.coco.source import find_source
    from posefleet.data.shards.layout import read_manifest
    from posefleet.platform.inference.split import Split

    if options.source:
        images = resolve_path(options.images) if options.images else None
        return Split(source=find_source(resolve_path(options.source), options.split, images))
    if not experiment.data.eval:
        raise ValueError("nothing to judge on; give --data.eval SHARDS or --source PATH")
    read_manifest(experiment.data.eval)  # what is no shard folder is told before anything is measured
    return Split(shards=experiment.data.eval)


def _store(given: str, checkpoint: str) -> str:
    """The registry's address: what is given, or the environment's, or that of the run that the checkpoint is of."""
    from posefleet.platform.training.run import read_run

    if given or os.environ.get("MLFLOW_TRACKING_URI"):
        return store_uri(given)
    folder, found, _ = checkpoint.rpartition("/checkpoints/")
    run = read_run(folder) if found else None
    return store_uri(run.tracking_uri if run else "")


def _release(
    named: str, meta: "Meta", experiment: "Experiment", split: "Split", verdict: "GateReport", folder: Path
) -> Release:
    from posefleet.data.keypoints import load_schema
    from posefleet.platform.config.loading import to_dict, to_yaml

    scores = verdict.evaluation.as_dict() if verdict.evaluation else {}
    (folder / "gate.txt").write_text(f"{verdict}\n")
    (folder / "experiment.yaml").write_text(to_yaml(experiment))
    judged = split.as_input()
    tags = {
        "AP": f"{scores.get('AP', float('nan')):.4f}",
        "split": judged.name,
        "gate": "failed" if verdict.failed else "passed",
        "method": experiment.method,
        "schema": experiment.schema,
        "checkpoint": named,
        "step": str(meta.step),
        "promoted_by": signed(),
        "data.train": meta.provenance.get("data", "unknown"),
        "data.gate": judged.fingerprint,
    }
    if verdict.failed:
        tags["forced"] = f"{', '.join(verdict.failed)} failed; forced by {tags['promoted_by']}"
    return Release(
        folder=folder,
        method=experiment.method,
        schema=experiment.schema,
        keypoints=load_schema(experiment.schema).keypoints,
        experiment=experiment.run.experiment,
        training_run=meta.provenance.get("run_id", ""),
        step=meta.step,
        settings=to_dict(experiment),
        metrics=scores,
        split=judged,
        tags=tags,
        description=release_description(tags, verdict),
    )


def _tell(version: Version, alias: str, uri: str, rival: Version | None) -> None:
    was = f", version {rival.number} is the previous one" if rival and alias == CHAMPION else ""
    store = redacted(uri)
    sys.stdout.write(
        f"{MODELS}{version.name}@{alias} is version {version.number}{was}\n"
        f"  use    MLFLOW_TRACKING_URI={store} python jobs/evaluate.py --checkpoint {MODELS}{version.name}@{alias}\n"
        f"  pages  {pages(uri)}\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
