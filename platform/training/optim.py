"""Optimiser and learning-rate schedule."""

import math
from collections.abc import Collection

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from posefleet.platform.config.experiment import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig, copied: Collection[str] = ()) -> Optimizer:
    """The optimiser, with a parameter group for each combination of learning-rate factor and weight decay.

    Factors differ between backbone and head, between weights and biases, and for the parameters whose names are in
    ``copied``; biases and norms do not decay.

    A group remembers its factor as ``lr_factor``; :func:`set_learning_rate` multiplies by it.
    """
    norms = {id(p) for module in model.modules() if _is_norm(module) for p in module.parameters(recurse=False)}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        bias = name.endswith("bias")
        factor = (config.backbone_lr if name.startswith("backbone.") else 1.0) * (config.bias_lr if bias else 1.0)
        factor *= config.copied_lr if name in copied else 1.0
        decay = 0.0 if bias or id(parameter) in norms or parameter.ndim < 2 else config.weight_decay
        groups.setdefault((factor, decay), []).append(parameter)
    settings = [{"params": p, "lr_factor": factor, "weight_decay": decay} for (factor, decay), p in groups.items()]
    if config.name == "sgd":
        return SGD(settings, lr=config.lr, momentum=config.momentum)
    return AdamW(settings, lr=config.lr, betas=(config.momentum, 0.999), fused=True)


def learning_rate(config: OptimConfig, *, step: int, epoch: float, epochs: float, images_per_step: int) -> float:
    """Learning rate of optimiser step ``step`` (from 0), ``epoch`` epochs into ``epochs`` (both may be fractions).

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
    """Set the learning rate of every parameter group to ``rate`` times the group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm))
