"""Associative embedding (Newell et al.): keypoints of one person agree on a number that differs between people."""

import torch
from torch import Tensor


def tag_losses(tags: Tensor, cells: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
    """Pull the tags of a person together and push those of different people apart.

    Args:
        tags: (B, K, h, w), one number for each cell and keypoint.
        cells: (B, M, K) int64, row * w + column of each person's keypoints.
        labelled: (B, M, K) bool.

    Returns:
        Sums over images of: the mean over people of the mean squared distance of their tags from their own mean; half
        the mean over ordered pairs of people of exp(-d^2), d being the distance of their means.
    """
    at = tags.float().flatten(2).gather(2, cells.transpose(1, 2)).transpose(1, 2)  # (B, M, K)
    number = labelled.sum(-1).clamp(min=1)
    mean = at.where(labelled, 0.0).sum(-1) / number  # (B, M)
    spread = (at - mean[..., None]).square().where(labelled, 0.0).sum(-1) / number
    present = labelled.any(-1)
    people = present.sum(1)
    pull = (spread.where(present, 0.0).sum(1) / people.clamp(min=1)).sum()
    pairs = present[:, :, None] & present[:, None] & ~torch.eye(present.shape[1], dtype=torch.bool, device=tags.device)
    closeness = torch.exp(-(mean[:, :, None] - mean[:, None]).square()).where(pairs, 0.0)
    push = (closeness.sum((1, 2)) / (2 * people * (people - 1)).clamp(min=1)).sum()
    return pull, push
