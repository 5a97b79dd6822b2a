"""Slow ranks, by numbers one can follow."""

import pytest
import torch
from torch import nn

from posefleet.platform.monitoring.stragglers import SLOW_IN_A_ROW, StragglerDetector
from posefleet.platform.runtime.activity import Activity, Phase, StepTimer

EVEN = [0.2, 0.2, 0.2, 0.2]
SLOW = [0.2, 0.2, 0.5, 0.2]


@pytest.fixture
def ranks() -> StragglerDetector:
    return StragglerDetector(["a", "b", "c (10.0.0.3)", "d"])


def test_the_spread_is_the_slowest_over_the_median_of_the_others(ranks: StragglerDetector) -> None:
    metrics, line = ranks.compare([0.1, 0.2, 0.6, 0.3], [0.0] * 4)
    assert metrics == {"ranks/slowest": 2, "ranks/spread": pytest.approx(0.6 / 0.2)} and line == ""


def test_of_two_ranks_one_can_be_slow() -> None:
    assert StragglerDetector(["a", "b"]).compare([0.2, 0.4], [0.0, 0.0])[0]["ranks/spread"] == pytest.approx(2.0)


def test_a_slow_rank_is_told_once_by_name_and_again_when_it_keeps_pace(ranks: StragglerDetector) -> None:
    lines = [ranks.compare(own, [0.0] * 4)[1] for own in [SLOW] * (SLOW_IN_A_ROW + 3) + [EVEN] * 2]
    assert [bool(line) for line in lines] == [False] * (SLOW_IN_A_ROW - 1) + [True] + [False] * 3 + [True, False]
    assert lines[SLOW_IN_A_ROW - 1] == (
        "rank 2 on c (10.0.0.3) is slow: 0.500 s of its own for each batch, 2.5 times the others' 0.200 s, "
        "for 3 comparisons in a row; it computes"
    )
    assert lines[-2] == "rank 2 on c (10.0.0.3) keeps pace again"


def test_a_rank_that_waits_for_data_is_told_so(ranks: StragglerDetector) -> None:
    lines = [ranks.compare(SLOW, [0.01, 0.01, 0.29, 0.01])[1] for _ in range(SLOW_IN_A_ROW)]
    assert lines[-1].endswith("it waits for data")


def test_a_hiccup_is_not_told(ranks: StragglerDetector) -> None:
    assert not any(ranks.compare(own, [0.0] * 4)[1] for own in [SLOW, SLOW, EVEN] * 4)


def test_nothing_is_said_before_every_rank_is_known(ranks: StragglerDetector) -> None:
    assert ranks.compare([0.0, 0.2, 0.2, 0.2], [0.0] * 4) == ({}, "")


def test_own_work_is_without_the_wait_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    monkeypatch.setattr("time.monotonic", lambda: now)
    watch = Activity()
    watch.stopwatch = StepTimer(torch.device("cpu"))
    for phase, seconds in ((Phase.DATA, 1.0), (Phase.COMPUTE, 2.0)):
        watch.enter(phase)
        now += seconds
    with watch.waiting():
        assert watch.phase is Phase.OTHERS
        now += 100.0
    assert watch.phase is Phase.COMPUTE
    now += 4.0
    watch.step_ended(1, parts=2)
    now += 50.0  # between steps
    assert watch.stopwatch.take() == (3.5, 0.5)  # (1 + 2 + 4) / 2 and 1 / 2
    assert watch.stopwatch.take() == (0.0, 0.0)


def test_the_end_of_the_own_backward_pass_is_seen() -> None:
    watch = Activity()
    seen: list[Phase] = []

    class Network(nn.Linear):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
            seen.append(watch.phase)
            return {"a": super().forward(x).sum(), "b": torch.zeros(())}

    network = Network(2, 1)
    optimizer = torch.optim.SGD(network.parameters())
    network.weight.register_post_accumulate_grad_hook(lambda _: seen.append(watch.phase))
    with watch.attached(network, optimizer):
        for _ in range(2):
            watch.enter(Phase.COMPUTE)
            sum(network(torch.ones(1, 2)).values()).backward()
            seen.append(watch.phase)
            optimizer.step()
            seen.append(watch.phase)
    assert seen == [Phase.COMPUTE, Phase.COMPUTE, Phase.OTHERS, Phase.COMPUTE] * 2
