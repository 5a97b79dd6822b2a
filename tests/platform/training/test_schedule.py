"""When evaluations, logs and checkpoints are due, by numbers one can follow."""

from pathlib import Path

import pytest
from small_settings import small_settings, with_settings

from posefleet.platform.config.loading import build_experiment
from posefleet.platform.training.schedule import Schedule


def schedule(*, epoch_size: int, images_per_step: int, **train: float) -> Schedule:
    settings = with_settings(small_settings(Path("shards"), Path("runs")), train=train)
    return Schedule(build_experiment(settings), epoch_size, images_per_step)


def evaluations(plan: Schedule) -> list[int]:
    """Positions of all evaluations of a run that is not stopped."""
    positions = [plan.next_evaluation(0)]
    while positions[-1] < plan.end:
        positions.append(plan.next_evaluation(positions[-1]))
        assert positions[-1] > positions[-2], positions
    return positions


def test_evaluations_and_the_end_lie_on_whole_steps() -> None:
    plan = schedule(epoch_size=10, images_per_step=4, epochs=3, eval_every=1.0)
    assert evaluations(plan) == [12, 20, 32]
    assert plan.end == 32 and plan.epoch(20) == 2.0


def test_an_evaluation_interval_below_a_step_is_a_step() -> None:
    assert evaluations(schedule(epoch_size=10, images_per_step=4, epochs=1, eval_every=0.1)) == [4, 8, 12]


@pytest.mark.parametrize(("eval_every", "epoch_size"), [(1.1, 3), (0.1, 64), (1.3, 12)])
def test_rounding_of_the_interval_neither_repeats_nor_skips_an_evaluation(eval_every: float, epoch_size: int) -> None:
    # In floating point 10 * (1.1 * 3) is 33, yet 33 // (1.1 * 3) is 9.
    plan = schedule(epoch_size=epoch_size, images_per_step=1, epochs=round(100 * eval_every), eval_every=eval_every)
    found = evaluations(plan)
    assert len(found) == 100
    assert [position for position in range(plan.end + 1) if plan.evaluation_due(position)] == found


def test_after_a_resume_with_another_batch_size_evaluations_come_at_the_same_samples() -> None:
    plan = schedule(epoch_size=12, images_per_step=3, epochs=2, eval_every=1.0)
    assert plan.next_evaluation(4) == 12 and not plan.evaluation_due(4)
    assert plan.evaluation_due(12) and plan.evaluation_due(24)


def test_logs_and_checkpoints_come_every_so_many_steps() -> None:
    plan = schedule(epoch_size=12, images_per_step=3, log_every=2, checkpoint_every=3)
    assert [step for step in range(1, 7) if plan.log_due(step)] == [2, 4, 6]
    assert [step for step in range(1, 7) if plan.save_due(step)] == [3, 6]
    assert not any(schedule(epoch_size=12, images_per_step=3, checkpoint_every=0).save_due(step) for step in range(7))
