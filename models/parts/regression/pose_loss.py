"""Regression loss of poses given as offsets from cells."""

from typing import Literal

from torch import Tensor

from posefleet.models.parts.ops.cells import decode_offsets, encode_offsets
from posefleet.models.parts.ops.losses import l1_loss, smooth_l1_loss
from posefleet.models.parts.ops.oks import oks
from posefleet.models.parts.regression.positives import CellTargets

PoseLoss = Literal["l1", "smooth_l1", "oks"]


def pose_loss(
    offsets: Tensor,
    targets: CellTargets,
    weights: Tensor,
    sigmas: Tensor,
    *,
    form: PoseLoss = "l1",
    beta: float = 1 / 9,
) -> Tensor:
    """Sum over N rows of weight times error; only labelled keypoints count.

    Args:
        offsets: (N, 2K) predicted offsets, cells, dx before dy.
        targets: The person and the cell of each row.
        weights: (N,).
        sigmas: (K,) deviations of the schema, for ``oks``.
        form: ``l1`` and ``smooth_l1``: summed over coordinates, in cells; ``oks``: 1 - OKS of the pose.
        beta: Error at which ``smooth_l1`` becomes linear, cells.
    """
    if form == "oks":
        poses = decode_offsets(targets.points, targets.strides, offsets)
        similarity = oks(poses, targets.keypoints, targets.labelled, targets.areas, sigmas)
        return ((1 - similarity) * weights).sum()
    target = encode_offsets(targets.points, targets.strides, targets.keypoints)
    mask = targets.labelled.repeat_interleave(2, dim=-1) * weights[:, None]
    if form == "smooth_l1":
        return smooth_l1_loss(offsets, target, mask, beta=beta)
    return l1_loss(offsets, target, mask)
