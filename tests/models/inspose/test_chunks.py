"""Rows in chunks."""

import torch

from posefleet.models.inspose.sparse import in_chunks
from posefleet.models.inspose.targets import send_to_host


def test_chunks_give_the_values_and_gradients_of_the_whole() -> None:
    shared = [torch.tensor(2.0, requires_grad=True) for _ in range(2)]
    rows = [torch.arange(7.0, requires_grad=True) for _ in range(2)]
    sizes: list[int] = []

    def double(factor: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        sizes.append(len(x))
        return factor * x.exp(), x.detach() > 2

    for factor, x, size in zip(shared, rows, (100, 3), strict=True):
        value, large = in_chunks(lambda part, factor=factor: double(factor, part), [x], size)
        value.sum().backward()
        assert large.tolist() == [False] * 3 + [True] * 4
    assert sizes == [7, 3, 3, 1, 1, 3, 3]  # chunks run again in the backward pass, last first
    torch.testing.assert_close(shared[0].grad, shared[1].grad)
    torch.testing.assert_close(rows[0].grad, rows[1].grad)


def test_no_rows_are_one_empty_chunk() -> None:
    (found,) = in_chunks(lambda x: (x + 1,), [torch.zeros(0, 3)], 5)
    assert found.shape == (0, 3)


def test_a_number_arrives_on_the_host() -> None:
    assert send_to_host(torch.tensor(5))() == 5
