"""The layout of a bundle: a plain tar with fixed names, no folders but one, and no links.

    manifest.json       format, version, and size and SHA-256 of every other member; the first member
    experiment.json     settings of the run; of a path only its last part
    schema.json         keypoints with the sigmas that score them
    data.json           name, fingerprint and size of the evaluated data
    environment.json    versions of Python and packages, and the platform
    run.json            step and origin of the weights, their size and SHA-256
    metrics.json        numbers of the evaluation, and those that the run recorded when it was trained
    predictions.json    all poses as COCO keypoint results, coordinates and scores as they were computed
    boxes.json          boxes of a top-down method as COCO detection results; only if it has boxes
    truth.json          annotations as COCO annotations, without images and file names; may be left out
    model.safetensors   weights; may be left out
    samples/ID.jpg      images with their poses drawn; may be left out

Equal contents give equal bytes: members have this order, and no times or owners.
"""

import math
import re
from dataclasses import dataclass

from posefleet.platform.checkpoints.format import WEIGHTS
from posefleet.platform.runtime.errors import PlatformError

FORMAT, VERSION = "posefleet-bundle", 1

MANIFEST, EXPERIMENT, SCHEMA, DATA = "manifest.json", "experiment.json", "schema.json", "data.json"
ENVIRONMENT, RUN, METRICS = "environment.json", "run.json", "metrics.json"
PREDICTIONS, BOXES, TRUTH = "predictions.json", "boxes.json", "truth.json"

SMALL = (MANIFEST, EXPERIMENT, SCHEMA, DATA, ENVIRONMENT, RUN, METRICS)
REQUIRED = (*SMALL, PREDICTIONS)
OPTIONAL = (BOXES, TRUTH, WEIGHTS)
SAMPLE = re.compile(r"samples/-?\d{1,19}\.jpg")

MOST_SMALL = 1 << 22
"""Maximum bytes of each of ``SMALL``."""

EXACT = 1e-9
"""Numbers that are scored from the same poses are equal if they differ by this much at most: other processors round
sums in another way."""

AS_RECORDED = 1e-6
"""Numbers of new predictions are those that the run recorded if they differ by this much at most."""


class BundleError(PlatformError):
    """A bundle cannot be written or read; the message names it and the reason."""


@dataclass(frozen=True, slots=True)
class Claims:
    """The content of ``metrics.json``."""

    evaluation: dict[str, float]
    """Every number of the evaluation under the name of its metric; NaN where there is nothing to find."""
    counts: dict[str, int]
    """How many images, people and poses were scored, as :class:`posefleet.data.evaluation.evaluate.Protocol` names
    them."""
    record: dict[str, float]
    """What the run's checkpoint records of its own evaluation; empty if it records none."""
    score_rule: str
    """How poses are scored, in words."""


LONGEST_TEXT = 500
"""Characters of a text that has words of a stranger."""

COUNTS = ("images", "images_without_people", "people", "ignored_people", "poses", "max_detections")
"""Fields of a protocol that are claimed."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A number that is not as it was claimed."""

    name: str
    claimed: float
    found: float | None
    """None: the evaluation gives no number of this name."""

    def __str__(self) -> str:
        if self.found is None:
            return f"{self.name} claimed {self.claimed:.6g}, and there is no such number"
        return f"{self.name} claimed {self.claimed:.6g}, found {self.found:.6g} ({self.found - self.claimed:+.2g})"


def differences(claimed: dict[str, float], found: dict[str, float], within: float) -> list[Difference]:
    """The numbers of ``claimed`` that ``found`` does not have or that differ by more than ``within``, largest first.

    NaN equals NaN only.
    """
    wrong = []
    for name, value in claimed.items():
        other = found.get(name)
        if other is None or not ((math.isnan(value) and math.isnan(other)) or abs(other - value) <= within):
            wrong.append(Difference(name, value, other))
    return sorted(wrong, key=_size, reverse=True)


def printable(text: str) -> str:
    """A text that has words of a stranger, for a terminal: without control characters, and not endless."""
    return "".join(c if c.isprintable() else "?" for c in text)[:LONGEST_TEXT]


def _size(difference: Difference) -> float:
    gap = math.nan if difference.found is None else abs(difference.found - difference.claimed)
    return math.inf if math.isnan(gap) else gap
