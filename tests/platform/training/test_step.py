"""An optimiser step is the same, however many workers share it."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import step_process
import torch
from processes import in_ranks
from torch import Tensor, nn

from posefleet.models.parts.ops.losses import mean_counts
from posefleet.platform.config.experiment import OptimConfig
from posefleet.platform.training.optim import build_optimizer, build_scaler
from posefleet.platform.training.step import StepShare, train_step


class Scale(nn.Module):
    """One weight w; the loss of a batch is w times its sum of values, divided by its number of values."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))
        self.register_buffer("calls", torch.tensor(0))
        self.draws: list[float] = []

    def forward(self, images: Tensor, people: object) -> dict[str, Tensor]:
        self.calls += 1
        self.draws.append(float(torch.rand(())))
        return {"scale": self.w * images.sum() / mean_counts(torch.tensor([float(len(images))]))[0]}


def micro_batches(*values: list[float]) -> list[Any]:
    return [SimpleNamespace(images=torch.tensor(part), people=None) for part in values]


def test_one_worker_divides_by_the_counts_of_all_workers() -> None:
    # Sums 1, 2, 6 of 1, 2, 3 values: the mean count is 2, the losses are 1/2, 2/2, 6/2, and their mean 3/2. Divided by
    # its own count, every micro-batch would have had 1, 1, 2 and the step 4/3.
    network = Scale()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    parts = micro_batches([1.0], [1.0, 1.0], [1.0, 2.0, 3.0])
    losses, norm = train_step(network, parts, optimizer, share=StepShare(0, 1, planned_workers=3), clip_norm=100.0)
    assert losses["scale"].item() == pytest.approx(1.5)
    assert norm.item() == pytest.approx(1.5)
    assert network.w.item() == pytest.approx(-0.5)


def test_counts_are_of_the_micro_batches_that_its_workers_compute_at_one_time() -> None:
    # Two workers, two batches: (1, 3 values) and (2, 2). Mean counts 2 and 2, sums 2, 6, 4, 8: losses 1, 3, 2, 4.
    network = Scale()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    parts = micro_batches([2.0], [2.0, 2.0, 2.0], [2.0, 2.0], [4.0, 4.0])
    losses, _ = train_step(network, parts, optimizer, share=StepShare(0, 1, planned_workers=2, accumulate=2))
    assert losses["scale"].item() == pytest.approx(2.5)


def test_random_numbers_belong_to_the_micro_batch_and_a_step_counts_once() -> None:
    network, whole = Scale(), []
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    train_step(network, micro_batches([1.0], [1.0], [1.0]), optimizer, share=StepShare(0, 1, planned_workers=3), seed=7)
    for rank in range(3):
        torch.manual_seed(7 * 4_099 + rank)
        whole.append(float(torch.rand(())))
    assert network.draws == [*whole, *whole]  # to count, and to learn
    assert network.calls.item() == 1


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_step_in_float16_with_a_gradient_that_overflows_changes_nothing(name: Any) -> None:
    network = Scale()
    optimizer = build_optimizer(network, OptimConfig(name=name, lr=0.1, weight_decay=0.1), precision="float16")
    scaler = build_scaler("float16", torch.device("cpu"))
    assert scaler is not None
    weights = []
    for value in (1.0, 1e38, 1.0, math.inf, 1.0):
        train_step(network, micro_batches([value]), optimizer, scaler=scaler, clip_norm=1.0, precision="float16")
        weights.append(network.w.item())
    first, second, third, fourth, fifth = weights
    assert first != 1 and second == first and third != second and fourth == third and fifth != fourth
    assert scaler.get_scale() == 65536 / 4
    if name == "adamw":
        assert all(state["step"].item() == 3 for state in optimizer.state.values())


@pytest.mark.parametrize(("workers", "parts"), [(1, [[0, 1, 2]]), (2, [[0, 2], [1]]), (3, [[0], [1], [2]])])
def test_every_micro_batch_has_one_worker(workers: int, parts: list[list[int]]) -> None:
    shares = [StepShare(rank, workers, planned_workers=3) for rank in range(workers)]
    assert [list(share.mine) for share in shares] == parts
    assert all(share.divisor == 3 / workers for share in shares)


def test_more_workers_than_the_run_was_made_for_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rank 0 of 3 workers .* made for 2 workers"):
        StepShare(0, 3, planned_workers=2)


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Tensor]]:
    """(group, method) -> what two workers of it leave after a step."""
    folder = tmp_path_factory.mktemp("steps")
    in_ranks(step_process.run, (str(folder),), 2)
    found: dict[tuple[str, str], dict[str, Tensor]] = torch.load(folder / "found.pt")
    return found


@pytest.mark.parametrize("method", step_process.METHODS)
@pytest.mark.parametrize("group", step_process.GROUPS)
def test_one_worker_and_two_take_the_same_step(
    group: str, method: str, two_workers: dict[tuple[str, str], dict[str, Tensor]], one_thread: None
) -> None:
    one, two = step_process.alone(group, method), two_workers[group, method]
    assert one.keys() == two.keys()
    for name in one:
        if "gradient" not in name:
            torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5, msg=name)
    names = [name for name in one if name.startswith("gradient")]
    own, other = (torch.cat([side[name].flatten() for name in names]) for side in (one, two))
    assert (own - other).norm() < 1e-4 * other.norm()  # rounding of float32
