"""Crops: where points go and what pixels they show."""

import torch

from posefleet.models.detposenet.crops import crop_images, into_crops, out_of_crops, square_boxes


def test_a_square_has_the_longer_side_with_padding_round_the_same_centre() -> None:
    boxes = torch.tensor([[10.0, 20.0, 50.0, 100.0], [5.0, 5.0, 5.0, 5.0]])
    expected = torch.tensor([[-20.0, 10.0, 80.0, 110.0], [4.5, 4.5, 5.5, 5.5]])
    torch.testing.assert_close(square_boxes(boxes, 1.25), expected)
    each = square_boxes(boxes[:1].repeat(2, 1), torch.tensor([1.0, 2.0]))
    assert (each[:, 2] - each[:, 0]).tolist() == [80, 160]


def test_points_go_into_a_crop_and_come_back() -> None:
    squares = torch.tensor([[-20.0, 10.0, 80.0, 110.0]])
    points = torch.tensor([[[30.0, 60.0], [-20.0, 10.0]]])
    inside = into_crops(points, squares, 256)
    assert inside.tolist() == [[[128.0, 128.0], [0.0, 0.0]]]
    torch.testing.assert_close(out_of_crops(inside, squares, 256), points)


def test_a_crop_of_its_own_size_is_a_copy_with_zeros_outside() -> None:
    pixels = torch.rand(2, 3, 20, 30)
    squares = torch.tensor([[4.0, 6.0, 12.0, 14.0], [-8.0, -8.0, 8.0, 8.0]])
    (crop,) = crop_images(pixels, torch.tensor([1]), squares[:1], 8)
    torch.testing.assert_close(crop, pixels[1, :, 6:14, 4:12])
    (corner,) = crop_images(pixels, torch.tensor([0]), squares[1:], 16)
    torch.testing.assert_close(corner[:, 8:, 8:], pixels[0, :, :8, :8])
    assert not corner[:, :7, :7].any()


def test_a_smaller_crop_averages_pixels() -> None:
    pixels = torch.rand(1, 3, 16, 16)
    (crop,) = crop_images(pixels, torch.tensor([0]), torch.tensor([[0.0, 0.0, 16.0, 16.0]]), 8)
    torch.testing.assert_close(crop, torch.nn.functional.avg_pool2d(pixels, 2)[0])


def test_the_bright_pixel_of_a_keypoint_lies_where_the_keypoint_goes() -> None:
    pixels = torch.zeros(1, 3, 64, 64)
    pixels[:, :, 30, 20] = 1  # covers 20..21, 30..31
    squares = torch.tensor([[4.0, 14.0, 36.0, 46.0]])
    (crop,) = crop_images(pixels, torch.tensor([0]), squares, 64)
    ((x, y),) = into_crops(torch.tensor([[[20.5, 30.5]]]), squares, 64)[0].tolist()
    row, column = divmod(int(crop[0].flatten().argmax()), 64)
    assert abs(column + 0.5 - x) <= 1 and abs(row + 0.5 - y) <= 1
