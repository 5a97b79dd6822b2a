"""Limits of images in padded batches, the nominal scale of a resize, and scores of keypoints from a map."""

import torch

from posefleet.data.structures import Frames, Poses
from posefleet.data.transforms import Resize
from posefleet.models.parts.ops.decode import clip_points
from posefleet.models.parts.regression.pose_decode import (
    PoseDecodeConfig,
    by_nominal_scale,
    image_limits,
    with_map_scores,
)

FRAMES = Frames(torch.tensor([[0.0, 0, 40, 30], [0, 0, 64, 20]]), torch.ones(2, 2), torch.ones(2))
"""Two images in a batch of 64 x 32 pixels."""


def test_poses_are_clipped_to_their_own_image_also_in_a_mirrored_batch() -> None:
    points = torch.tensor([[[-5.0, -5.0], [99.0, 99.0]]]).expand(2, 2, 2)
    limits = image_limits(FRAMES, PoseDecodeConfig())[:, None]
    assert clip_points(points, limits).tolist() == [[[0, 0], [40, 30]], [[0, 0], [64, 20]]]
    mirrored = image_limits(FRAMES.mirror(64), PoseDecodeConfig())[:, None]
    assert clip_points(points, mirrored).tolist() == [[[24, 0], [64, 30]], [[0, 0], [64, 20]]]
    pixels = image_limits(FRAMES, PoseDecodeConfig(pixel_boxes=True))[:, None]
    assert clip_points(points, pixels).tolist() == [[[0, 0], [39, 29]], [[0, 0], [63, 19]]]


def test_the_nominal_scale_is_that_of_the_resize_before_rounding() -> None:
    """640 x 427 at a short side of 100 is 149.88 px wide before it is rounded to 150."""
    resize = Resize(short_side=100, long_side=400)
    _, size = resize.matrix((640, 427))
    assert size == (150, 100)
    ratios = torch.tensor([[150 / 640, 100 / 427]])
    frames = Frames(torch.tensor([[0.0, 0, 150, 100]]), ratios, torch.tensor([resize.scale((640, 427))]))
    found = [Poses(torch.tensor([[[75.0, 50.0], [0.0, 0.0]]]), torch.ones(1, 2), torch.ones(1))]
    (moved,) = by_nominal_scale(found, frames)
    original = moved.keypoints / ratios
    torch.testing.assert_close(original, torch.tensor([[[75 * 4.27, 50 * 4.27], [0.0, 0.0]]]))
    # In the mirrored batch the image's left edge, where both scales agree, is at the right.
    mirrored = [Poses(torch.tensor([[[192 - 75.0, 50.0], [192.0, 0.0]]]), torch.ones(1, 2), torch.ones(1))]
    (moved,) = by_nominal_scale(mirrored, frames.mirror(192))
    torch.testing.assert_close((192 - moved.keypoints[..., 0]) / ratios[0, 0], torch.tensor([[75 * 4.27, 0.0]]))


def test_a_keypoint_has_the_probability_of_its_cell() -> None:
    logits = torch.full((1, 2, 3, 4), -50.0)
    logits[0, 0, 1, 2], logits[0, 1, 2, 3] = 0.0, 50.0
    inside = torch.tensor([[[16.0, 8.0], [31.9, 23.9]], [[15.9, 8.0], [32.0, 24.0]]])  # the last lies on the border
    (scored,) = with_map_scores([Poses(inside, torch.zeros(2, 2), torch.tensor([0.3, 0.2]))], logits, 8)
    torch.testing.assert_close(scored.keypoint_scores, torch.tensor([[0.5, 1.0], [0.0, 1.0]]))
    assert scored.scores.tolist() == torch.tensor([0.3, 0.2]).tolist()
    (nobody,) = with_map_scores([Poses(torch.zeros(0, 2, 2), torch.zeros(0, 2), torch.zeros(0))], logits, 8)
    assert nobody.keypoint_scores.shape == (0, 2)
