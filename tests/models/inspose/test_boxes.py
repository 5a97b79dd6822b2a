"""Boxes from cells."""

import math

import pytest
import torch

from posefleet.models.inspose.boxes import decode_boxes, giou_loss


def test_distances_to_the_sides_become_a_box() -> None:
    points, strides = torch.tensor([[40.0, 30.0]]), torch.tensor([8.0])
    outputs = torch.tensor([[0.0, math.log(2), math.log(3), math.log(4)]])
    torch.testing.assert_close(decode_boxes(points, strides, outputs), torch.tensor([[32.0, 14.0, 64.0, 62.0]]))
    outputs = torch.tensor([[1.0, 2.0, 3.0, -4.0]])
    assert decode_boxes(points, strides, outputs, "relu").tolist() == [[32, 14, 64, 30]]


def test_an_absurd_distance_stays_finite() -> None:
    box = decode_boxes(torch.zeros(1, 2), torch.ones(1), torch.full((1, 4), 200.0))
    assert torch.isfinite(box).all()


@pytest.mark.parametrize(
    ("box", "loss"),
    [
        ([0, 0, 10, 10], 0.0),
        ([0, 0, 10, 5], 0.5),  # IoU 1/2, hull is the larger one
        ([20, 0, 30, 10], 1 + 1 / 3),  # apart: a third of the hull is empty
    ],
)
def test_the_loss_of_boxes(box: list[float], loss: float) -> None:
    target = torch.tensor([[0.0, 0.0, 10.0, 10.0]] * 2)
    boxes = torch.tensor([box, [3.0, 3.0, 4.0, 4.0]], dtype=torch.float32)
    assert giou_loss(boxes, target, torch.tensor([2.0, 0.0])).item() == pytest.approx(2 * loss)


def test_boxes_without_area_have_a_finite_gradient() -> None:
    boxes = torch.zeros(1, 4, requires_grad=True)
    giou_loss(boxes, torch.zeros(1, 4), torch.ones(1)).backward()
    assert torch.isfinite(boxes.grad).all()
