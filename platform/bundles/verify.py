"""Checks a bundle: digests and every claimed number; with the data also its annotations, and new predictions."""

import dataclasses
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from posefleet.data.errors import DataError
from posefleet.data.evaluation.boxes import evaluate_boxes
from posefleet.data.evaluation.evaluate import Evaluation
from posefleet.data.evaluation.evaluate import evaluate as score
from posefleet.data.evaluation.ground_truth import GroundTruth
from posefleet.data.loading.shard_dataset import ShardDataset
from posefleet.data.loading.source import FirstSamples, SampleSource
from posefleet.data.schemas.names import difference
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.shards.layout import Manifest, read_manifest
from posefleet.data.structures import Poses
from posefleet.data.transforms import EvalTransform
from posefleet.platform.bundles.layout import (
    AS_RECORDED,
    COUNTS,
    EXACT,
    EXPERIMENT,
    PREDICTIONS,
    BundleError,
    differences,
    printable,
)
from posefleet.platform.bundles.read import Bundle, read_bundle
from posefleet.platform.bundles.tolerance import Tolerance
from posefleet.platform.bundles.truth import compare_truth
from posefleet.platform.checkpoints.format import META, WEIGHTS, CheckpointError, Meta, encode_content
from posefleet.platform.checkpoints.load import load_model
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.loading import build_experiment
from posefleet.platform.inference.agreement import Agreement
from posefleet.platform.inference.evaluate import evaluate, evaluation_set, ground_truth
from posefleet.platform.runtime.worker import LocalWorker

SHOWN = 3
"""Differences that a line of the table names; the JSON file has all."""

LARGEST_BATCH = 64
"""Maximum images of a forward pass, whatever a bundle asks for."""

LARGEST_SIDE = 4096
"""Maximum pixels of a side of an input image; a bundle that asks for more is refused."""

Outcome = Literal["equal", "differs", "not checked"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was checked."""

    name: str
    outcome: Outcome
    what: str
    """What was compared and how; where it differs; or why it was not checked."""
    differences: tuple[str, ...] = ()
    """Everything that differs."""

    @classmethod
    def of(cls, name: str, wrong: Sequence[object], compared: str) -> "Check":
        """Equal if nothing is ``wrong``; else a check that names the first of it."""
        texts = tuple(printable(str(each)) for each in wrong)
        if not texts:
            return cls(name, "equal", compared)
        more = f"; and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
        return cls(name, "differs", f"{'; '.join(texts[:SHOWN])}{more} ({compared})", texts)


@dataclass(frozen=True, slots=True)
class Report:
    """What the checks of a bundle found; ``str()`` is a table for the terminal."""

    about: str
    """What the bundle claims, in a line."""
    checks: tuple[Check, ...]

    @property
    def differs(self) -> tuple[str, ...]:
        """Names of the checks that found a difference."""
        return tuple(check.name for check in self.checks if check.outcome == "differs")

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON."""
        return {"about": self.about, "equal": not self.differs, "checks": [dataclasses.asdict(c) for c in self.checks]}

    def __str__(self) -> str:
        rows = [f"  {check.name:14} {check.outcome:12} {check.what}" for check in self.checks]
        open_ = [check.name for check in self.checks if check.outcome == "not checked"]
        end = f"differs: {', '.join(self.differs)}" if self.differs else "equal"
        return "\n".join([self.about, *rows, end + (f"; not checked: {', '.join(open_)}" if open_ else "")])


def verify_bundle(
    path: str,
    *,
    data: str = "",
    images: int = 0,
    allow_different: bool = False,
    tolerance: Tolerance | None = None,
) -> Report:
    """Check a bundle.

    Args:
        path: The bundle, any fsspec path.
        data: Shards or ``FOLDER@SPLIT`` with the evaluated data; empty: new predictions are not made.
        images: How many images are predicted again, in the order of the data. 0: all.
        allow_different: Do not compare with the numbers that the run recorded when it was trained.
        tolerance: For new predictions.

    Raises:
        BundleError: The file is no usable bundle, or has no annotations and ``data`` is not given.
        CheckpointError: The weights cannot be used.
        DataError: The data cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        bundle = read_bundle(path, Path(folder))
        shards = read_manifest(data) if data else None
        return _Verification(bundle, data, shards, images, tolerance or Tolerance(), Path(folder)).run(allow_different)


@dataclass(slots=True)
class _Verification:
    bundle: Bundle
    data: str
    shards: Manifest | None
    images: int
    tolerance: Tolerance
    folder: Path
    checks: list[Check] = field(default_factory=list)

    def run(self, allow_different: bool) -> Report:
        bundle = self.bundle
        stored = _stored_truth(self.data, bundle.schema, self.shards) if self.shards else None
        truth = bundle.truth or stored
        if truth is None:
            raise BundleError(f"{bundle.name} holds no annotations to score against; give --data SHARDS")
        self.checks.append(_check_digests(bundle))
        self._check_record(self._check_numbers(truth), allow_different)
        if not self.shards:
            missing = "needs --data SHARDS"
            self.checks += [Check(name, "not checked", missing) for name in ("data", "annotations", "predictions")]
        elif stored is None:
            self._check_data()
            why = "the data has other keypoints"
            self.checks += [Check(name, "not checked", why) for name in ("annotations", "predictions")]
        else:
            self._check_data()
            self._check_truth(stored)
            self._check_predictions(truth)
        return Report(_about(bundle), tuple(self.checks))

    def _check_numbers(self, truth: GroundTruth) -> dict[str, float]:
        """Score the poses of the bundle again, and compare every number; returns those that were found."""
        bundle, claims = self.bundle, self.bundle.claims
        if unknown := bundle.predictions.keys() - set(truth.image_ids.tolist()):
            raise BundleError(f"{bundle.name}: {PREDICTIONS} has poses in image {min(unknown)}, which has no truth")
        result = _score(bundle, truth, bundle.predictions)
        found = {**result.as_dict(), **{name: getattr(result.protocol, name) for name in COUNTS}}
        if bundle.boxes is not None:
            found |= evaluate_boxes(truth, bundle.boxes).as_dict()
        claimed = {**claims.evaluation, **claims.counts}
        where = "the bundle's annotations" if bundle.truth else "the annotations of --data"
        compared = (
            f"{len(claimed)} numbers, scored again from {result.protocol.poses:,} poses and {where} by "
            f"{result.protocol.backend}, within {EXACT:g}"
        )
        self.checks.append(Check.of("numbers", differences(claimed, found, EXACT), compared))
        return found

    def _check_record(self, found: dict[str, float], allow_different: bool) -> None:
        record, name = self.bundle.claims.record, "run's record"
        if not record:
            self.checks.append(Check(name, "not checked", "the run recorded no evaluation of its own"))
            return
        check = Check.of(
            name,
            differences(record, found, AS_RECORDED),
            f"{len(record)} numbers that the run recorded at step {self.bundle.run['step']:,}, within {AS_RECORDED:g}",
        )
        if allow_different and check.outcome == "differs":
            check = dataclasses.replace(check, outcome="not checked", what=f"--allow-different: {check.what}")
        self.checks.append(check)

    def _check_data(self) -> None:
        """Compare the fingerprint of the data, and the keypoints and sigmas by which the data is scored."""
        assert self.shards is not None
        wrong = []
        claimed, found = self.bundle.data["fingerprint"], self.shards.fingerprint
        if claimed != found:
            wrong.append(f"fingerprint {claimed[:12]} claimed, found {found[:12]}")
        ours, theirs = self.bundle.schema, self.shards.schema
        if difference(ours.keypoints, theirs.keypoints, "bundle", "data"):
            wrong.append(f"keypoints of {ours.name}, and {theirs.name} in the data")
        else:
            gaps = zip(ours.keypoints, ours.sigmas, theirs.sigmas, strict=True)
            wrong += [f"sigma of {name} {a:g}, {b:g} in the data" for name, a, b in gaps if a != b]
        self.checks.append(Check.of("data", wrong, f"fingerprint, keypoints and sigmas of {self.shards.split}"))

    def _check_truth(self, stored: GroundTruth) -> None:
        if self.bundle.truth is None:
            self.checks.append(Check("annotations", "not checked", "the bundle holds none; those of --data were taken"))
            return
        wrong = compare_truth(self.bundle.truth, stored, self.bundle.schema)
        compared = f"{len(stored.image):,} annotations in {len(stored.image_ids):,} images, exactly those of --data"
        self.checks.append(Check.of("annotations", wrong, compared))

    def _check_predictions(self, truth: GroundTruth) -> None:
        """Predict again, and compare poses and AP."""
        if self.bundle.weights is None:
            why = "the weights are damaged" if WEIGHTS in self.bundle.damaged else "the bundle holds no weights"
            self.checks.append(Check("predictions", "not checked", why))
            return
        poses, again = self._predict()
        ids = sorted(poses)
        tolerance = self.tolerance
        count, apart = 0, []
        pixels = scores = 0.0
        schema = self.bundle.schema
        for image in ids:
            claimed = self.bundle.predictions.get(image, Poses.empty(len(schema)))
            found, beyond = _compare(claimed, poses[image], tolerance)
            count += max(len(claimed), len(poses[image]))
            pixels, scores = max(pixels, found.pixels), max(scores, found.scores)
            if beyond:
                apart.append((beyond, f"image {image}: {beyond} of {len(claimed)} poses, {found}"))
        beyond = sum(number for number, _ in apart)
        compared = (
            f"{count:,} poses in {len(ids):,} images predicted again, {beyond:,} of them apart; at most {pixels:.2g} "
            f"px and {scores:.2g} in scores, allowed {tolerance.pixels:g} px and {tolerance.scores:g} for all but "
            f"{tolerance.share:g} of the poses"
        )
        check = Check.of("predictions", [text for _, text in apart], compared)
        if check.outcome == "differs" and beyond <= tolerance.share * count:
            check = dataclasses.replace(check, outcome="equal")
        self.checks.append(check)
        self._check_again(truth, set(ids) & set(truth.image_ids.tolist()), again)

    def _check_again(self, truth: GroundTruth, common: set[int], again: Evaluation) -> None:
        """Compare AP and score rule of new predictions with those of the bundle, on the ``common`` images."""
        name, allowed = "AP again", self.tolerance.ap
        if not common:
            self.checks.append(Check.of(name, ["no image of the data is in the bundle"], "AP on the same images"))
            return
        claimed = _score(self.bundle, truth.select(common), self.bundle.predictions).ap
        wrong: list[object] = [*differences({"AP": claimed}, {"AP": again.ap}, allowed)]
        rule, found = self.bundle.claims.score_rule, again.protocol.score_rule
        if rule != found:
            wrong.append(f"score rule {rule[:60]!r} claimed, found {found[:60]!r}")
        compared = f"AP {claimed:.6f} in the bundle, {again.ap:.6f} of the new predictions, allowed {allowed:g}"
        self.checks.append(Check.of(name, wrong, f"{compared}; score rule"))

    def _predict(self) -> tuple[dict[int, Poses], Evaluation]:
        experiment = _experiment(self.bundle, self.data)
        folder = self.folder / "checkpoint"
        folder.mkdir()
        (self.folder / WEIGHTS).rename(folder / WEIGHTS)
        meta = Meta(experiment=experiment, step=self.bundle.run["step"], position=0, metrics={}, provenance={})
        (folder / META).write_bytes(encode_content(meta, {WEIGHTS: self.bundle.members[WEIGHTS]}))
        worker = LocalWorker()
        poses: dict[int, Poses] = {}

        def opened(view: EvalTransform) -> SampleSource:
            source = evaluation_set(experiment, view)
            return FirstSamples(source, self.images) if self.images else source

        try:
            model, _ = load_model(str(folder), experiment=experiment)
            result = evaluate(model.to(worker.device), experiment, worker, open_split=opened, keep=poses.update)
        except CheckpointError as error:
            raise BundleError(printable(" ".join(str(error).replace(str(folder), self.bundle.name).split()))) from None
        assert result is not None  # there is one rank
        return poses, result


def _compare(claimed: Poses, found: Poses, tolerance: Tolerance) -> tuple[Agreement, int]:
    """How much the poses of an image differ, and how many are farther apart than allowed or have no partner."""
    together = Agreement.of([claimed], [found])
    if together.within(tolerance.pixels, tolerance.scores):
        return together, 0
    beyond, left = 0, list(range(len(found)))
    for row in range(len(claimed)):
        near = [
            Agreement.of([claimed[row : row + 1]], [found[[place]]]).within(tolerance.pixels, tolerance.scores)
            for place in left
        ]
        if True in near:
            del left[near.index(True)]
        else:
            beyond += 1
    return together, max(beyond, len(left))


def _score(bundle: Bundle, truth: GroundTruth, poses: Mapping[int, Poses]) -> Evaluation:
    nobody = Poses.empty(len(bundle.schema))
    every = {image: poses.get(image, nobody) for image in truth.image_ids.tolist()}
    rule = bundle.claims.score_rule
    return score(truth, every, bundle.schema, max_detections=bundle.max_detections, score_rule=rule)


def _stored_truth(data: str, schema: KeypointSchema, shards: Manifest) -> GroundTruth | None:
    """The annotations of the data; None if it has other keypoints."""
    if difference(schema.keypoints, shards.schema.keypoints, "bundle", "data"):
        return None
    return ground_truth(ShardDataset(data, schema, lambda sample, _: sample, seed=None))


def _check_digests(bundle: Bundle) -> Check:
    wrong = [*bundle.damaged]
    if WEIGHTS in bundle.members and bundle.members[WEIGHTS]["sha256"] != bundle.run["weights_sha256"]:
        wrong.append(f"{WEIGHTS} is not the file that the run names")
    return Check.of("digests", wrong, f"size and SHA-256 of {len(bundle.members)} members")


def _experiment(bundle: Bundle, data: str) -> Experiment:
    """The settings of the bundle, for these data; what a stranger could make this machine read is left out."""
    settings = bundle.experiment
    sections = {name: settings.get(name) for name in ("data", "evaluate")}
    if not all(isinstance(section, dict) for section in sections.values()):
        raise BundleError(f"{bundle.name}: {EXPERIMENT}: expected the sections data and evaluate")
    settings = {
        **settings,
        "schema": bundle.schema.as_dict(),
        "data": {**sections["data"], "train": data, "eval": data},  # type: ignore[dict-item]
        "evaluate": {**sections["evaluate"], "detections": ""},  # type: ignore[dict-item]
        "run": {},
    }
    try:
        experiment = build_experiment(settings, where=f"{bundle.name}: {EXPERIMENT}")
    except DataError:
        raise
    except (ArithmeticError, TypeError, ValueError) as error:
        raise BundleError(printable(" ".join(str(error).split()))) from None
    resize, evaluated = experiment.data.resize, experiment.evaluate
    if (side := max(resize.short_side, resize.long_side, *evaluated.scales, evaluated.max_side)) > LARGEST_SIDE:
        raise BundleError(
            f"{bundle.name}: {EXPERIMENT}: images of {side} px; {LARGEST_SIDE} are the most that is checked"
        )
    chosen = dataclasses.replace(
        experiment.data,
        loaders=min(experiment.data.loaders, os.cpu_count() or 1),
        eval_batch_size=min(experiment.data.eval_batch_size, LARGEST_BATCH),
    )
    evaluated = dataclasses.replace(evaluated, overlays=0, backend="pycocotools")
    return dataclasses.replace(experiment, data=chosen, evaluate=evaluated)


def _about(bundle: Bundle) -> str:
    claims, environment = bundle.claims, bundle.environment
    packages = environment.get("packages")
    torch = packages.get("torch") if isinstance(packages, dict) else ""
    ap = claims.evaluation["AP"]
    made = f"posefleet {environment.get('posefleet')}, torch {torch}, {environment.get('platform')}"
    return printable(
        f"{bundle.name} claims AP {'-' if math.isnan(ap) else f'{ap:.6f}'} of {bundle.run['method']}, "
        f"{bundle.schema.name}, step {bundle.run['step']:,}, on {bundle.data['name']}: {claims.counts['images']:,} "
        f"images, {claims.counts['people']:,} people; score: {claims.score_rule[:120]}; predicted with {made}"
    )
