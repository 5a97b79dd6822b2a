"""Optimiser and learning-rate schedule."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.optim import SGD, AdamW, Optimizer


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Optimiser and learning-rate schedule."""

    name: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    lr: float = 0.02
    """Learning rate after warm-up, for ``lr_batch`` images a step."""
    lr_batch: int = 0
    """Images a step that ``lr`` was chosen for; the rate scales linearly with the real number. 0: do not scale."""
    backbone_lr: float = 1.0
    """Factor on the rate of parameters under ``backbone``."""
    bias_lr: float = 1.0
    """Factor on the rate of biases."""
    momentum: float = 0.9
    """Momentum of SGD, beta1 of AdamW."""
    weight_decay: float = 1e-4
    """L2 (SGD) or decoupled (AdamW) decay of weights; biases and norms never decay."""
    schedule: Literal["step", "cosine", "constant"] = "step"
    """How the rate falls over the run."""
    milestones: tuple[float, ...] = ()
    """Epochs after which ``step`` multiplies the rate by ``gamma``."""
    gamma: float = 0.1
    """Factor of ``step``."""
    warmup_steps: int = 500
    """Optimiser steps of warm-up."""
    warmup_factor: float = 1 / 3
    """Share of the rate that warm-up starts with."""
    warmup: Literal["constant", "linear"] = "constant"
    """Stay at ``warmup_factor``, or rise from it."""
    clip_norm: float = 35.0
    """Largest norm of all gradients together. 0: do not clip."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"optim.lr {self.lr} must be positive")
        if self.schedule != "step" and self.milestones:
            raise ValueError(f"optim.milestones {self.milestones} have no effect with optim.schedule {self.schedule!r}")
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"optim.milestones {self.milestones} must ascend")


def build_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """One parameter group for each combination of backbone or head with weight, bias or norm.

    A group remembers its factor as ``lr_factor``; :func:`set_learning_rate` multiplies by it.
    """
    norms = {id(p) for module in model.modules() if _is_norm(module) for p in module.parameters(recurse=False)}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        bias = name.endswith("bias")
        factor = (config.backbone_lr if name.startswith("backbone.") else 1.0) * (config.bias_lr if bias else 1.0)
        decay = 0.0 if bias or id(parameter) in norms or parameter.ndim < 2 else config.weight_decay
        groups.setdefault((factor, decay), []).append(parameter)
    settings = [{"params": p, "lr_factor": factor, "weight_decay": decay} for (factor, decay), p in groups.items()]
    if config.name == "sgd":
        return SGD(settings, lr=config.lr, momentum=config.momentum)
    return AdamW(settings, lr=config.lr, betas=(config.momentum, 0.999), fused=True)


def learning_rate(config: OptimConfig, *, step: int, epoch: float, epochs: float, images_per_step: int) -> float:
    """The rate of optimiser step ``step`` (from 0), taken ``epoch`` epochs into a run of ``epochs`` (fractions count).

    Decay depends on the epoch, not on the step, so a run keeps its schedule when it resumes on other workers.
    """
    rate = config.lr * (images_per_step / config.lr_batch if config.lr_batch else 1.0)
    if config.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / epochs)))
    elif config.schedule == "step":
        rate *= config.gamma ** sum(epoch >= milestone for milestone in config.milestones)
    if step < config.warmup_steps:
        ramp = step / config.warmup_steps if config.warmup == "linear" else 0.0
        rate *= config.warmup_factor + (1 - config.warmup_factor) * ramp
    return rate


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every parameter group ``rate`` times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm))
