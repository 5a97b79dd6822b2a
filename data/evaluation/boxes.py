"""AP of detected boxes by COCO's own protocol, for methods that detect people before their poses."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from posefleet.data.errors import DataError
from posefleet.data.evaluation.ground_truth import GroundTruth
from posefleet.data.evaluation.matching import box_precision
from posefleet.data.evaluation.precision_recall import THRESHOLDS, mean_of_known
from posefleet.data.structures import Detections

MAX_BOXES = 100
"""How many boxes of an image count, best first; COCO's number for detection."""


@dataclass(frozen=True, slots=True)
class BoxEvaluation:
    """How well boxes fit people, and how many there are. Precision is NaN with nobody to find."""

    ap: float
    """AP over IoU 0.50 to 0.95, all areas."""
    ap50: float
    ap75: float
    boxes: int
    """All boxes, also those beyond ``MAX_BOXES``. A top-down method predicts a pose in each."""
    per_person: float
    """Boxes for each person with labelled keypoints, the cost of a top-down method; NaN without people."""

    def as_dict(self) -> dict[str, float]:
        """The numbers under the names of their metrics."""
        return {
            "box_AP": self.ap,
            "box_AP50": self.ap50,
            "box_AP75": self.ap75,
            "boxes_per_person": self.per_person,
        }

    def __str__(self) -> str:
        scores = ", ".join(
            f"{name} {'-' if np.isnan(value) else f'{value:.4f}'}"
            for name, value in (("AP", self.ap), ("AP50", self.ap50), ("AP75", self.ap75))
        )
        cost = "" if np.isnan(self.per_person) else f", {self.per_person:.2f} a person"
        return f"{self.boxes} refined{cost}; as detections (IoU, at most {MAX_BOXES} an image): {scores}"


def evaluate_boxes(ground_truth: GroundTruth, detections: Mapping[int, Detections]) -> BoxEvaluation:
    """Score boxes against the annotated boxes of people.

    People are all annotated ones that are no crowd, also those without labelled keypoints; crowds are ignored.

    Args:
        ground_truth: The people of the data set.
        detections: By image id, in pixels of the original images; images may be missing. Those of images that are not
            in ``ground_truth`` are left out.

    Raises:
        DataError: A box or score is not finite.
    """
    known = [(row, detections[i]) for row, i in enumerate(ground_truth.image_ids.tolist()) if i in detections]
    image = np.repeat(np.array([row for row, _ in known], np.int64), [len(found) for _, found in known])
    boxes = np.zeros((0, 4))
    scores = np.zeros(0)
    if known:
        boxes = torch.cat([found.boxes.detach().cpu() for _, found in known]).double().numpy()
        scores = torch.cat([found.scores.detach().cpu() for _, found in known]).double().numpy()
    finite = np.isfinite(boxes).all(1) & np.isfinite(scores)
    if not finite.all():
        raise DataError(f"image {ground_truth.image_ids[image[~finite][0]]}: a detected box or score is not finite")
    precision = box_precision(ground_truth, image, boxes, scores, MAX_BOXES)  # (T, R)
    people = int((~ground_truth.ignored).sum())
    return BoxEvaluation(
        ap=mean_of_known(precision),
        ap50=mean_of_known(precision[THRESHOLDS == 0.5]),
        ap75=mean_of_known(precision[THRESHOLDS == 0.75]),
        boxes=len(boxes),
        per_person=len(boxes) / people if people else np.nan,
    )
