import pytest
import torch
from torch import nn

from posefleet.platform.config.experiment import OptimConfig
from posefleet.platform.training.ema import AveragedWeights
from posefleet.platform.training.optim import build_optimizer, learning_rate, set_learning_rate


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 1)
        self.norm = nn.GroupNorm(2, 4)
        self.head = nn.Conv2d(4, 1, 1)


def test_every_parameter_is_in_one_group_with_its_own_rate_and_decay() -> None:
    model = Small()
    config = OptimConfig(lr=0.1, backbone_lr=0.5, bias_lr=2.0, weight_decay=0.01)
    optimizer = build_optimizer(model, config)
    set_learning_rate(optimizer, 0.1)
    settings = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert len(settings) == len(list(model.parameters()))
    assert settings[id(model.backbone.weight)] == pytest.approx((0.05, 0.01))
    assert settings[id(model.backbone.bias)] == pytest.approx((0.1, 0.0))
    assert settings[id(model.head.bias)] == pytest.approx((0.2, 0.0))
    assert settings[id(model.norm.weight)] == pytest.approx((0.1, 0.0))


def test_frozen_parameters_are_left_out() -> None:
    model = Small()
    model.backbone.requires_grad_(False)
    count = sum(len(g["params"]) for g in build_optimizer(model, OptimConfig()).param_groups)
    assert count == 4


def rate(config: OptimConfig, step: int, epoch: float) -> float:
    return learning_rate(config, step=step, epoch=epoch, epochs=30, images_per_step=16)


def test_the_step_schedule_of_the_paper() -> None:
    config = OptimConfig(lr=0.02, lr_batch=32, milestones=(25, 28), warmup_steps=500, warmup_factor=1 / 3)
    assert rate(config, 0, 0) == pytest.approx(0.01 / 3)
    assert rate(config, 499, 0.1) == pytest.approx(0.01 / 3)
    assert rate(config, 500, 0.1) == pytest.approx(0.01)
    assert rate(config, 9000, 24.99) == pytest.approx(0.01)
    assert rate(config, 9000, 25) == pytest.approx(0.001)
    assert rate(config, 9000, 28) == pytest.approx(0.0001)


def test_cosine_ends_at_zero_and_linear_warm_up_rises() -> None:
    config = OptimConfig(lr=1.0, schedule="cosine", warmup="linear", warmup_steps=10, warmup_factor=0.0)
    assert rate(config, 5, 0) == pytest.approx(0.5)
    assert rate(config, 100, 15) == pytest.approx(0.5)
    assert rate(config, 100, 30) == pytest.approx(0.0)


def test_the_average_follows_the_weights_and_can_be_put_in_and_taken_out() -> None:
    model = Small()
    average = AveragedWeights(model, decay=0.5)
    start = model.head.weight.detach().clone()
    with torch.no_grad():
        model.head.weight += 1.0
    average.update(1000)
    with average.applied():
        torch.testing.assert_close(model.head.weight.detach(), start + 0.5)
    torch.testing.assert_close(model.head.weight.detach(), start + 1.0)


def test_the_average_of_the_first_steps_is_not_stuck_at_the_start() -> None:
    model = Small()
    average = AveragedWeights(model, decay=0.9999)
    start = model.head.weight.detach().clone()
    with torch.no_grad():
        model.head.weight += 1.0
    average.update(0)
    with average.applied():
        torch.testing.assert_close(model.head.weight.detach(), start + 0.9)
