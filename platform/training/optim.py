"""Optimiser, learning-rate schedule, and parts of a model that are frozen."""

import math
from collections.abc import Collection, Iterable, Sequence

import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import SGD, AdamW, Optimizer

from posefleet.platform.config.experiment import OptimConfig, Precision


def build_scaler(precision: Precision, device: torch.device) -> GradScaler | None:
    """What scales the loss so that small gradients do not become 0 in float16; None for other precisions.

    The scale is halved after a step with a gradient that is not finite, and doubled after 2000 steps without one.
    """
    return GradScaler(device.type) if precision == "float16" else None


def build_optimizer(
    model: nn.Module, config: OptimConfig, copied: Collection[str] = (), *, precision: Precision = "float32"
) -> Optimizer:
    """The optimiser, with a parameter group for each combination of learning-rate factor and weight decay.

    Factors differ between backbone and head, between weights and biases, and for the parameters whose names are in
    ``copied``; biases and norms do not decay.

    A group remembers its factor as ``lr_factor``; :func:`set_learning_rate` multiplies by it. For float16 it is a fused
    optimiser, which skips a step without making the host wait.
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
        return SGD(settings, lr=config.lr, momentum=config.momentum, fused=precision == "float16")
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


TOWERS = "towers"
"""Part that means every module whose name ends in ``_tower``."""


class Freezing:
    """The parts of a model that ``train.freeze`` names.

    Raises:
        ValueError: The model has no such part, a part has channels that are new, or nothing is left to learn. The
            message names the setting and the parts that the model has.
    """

    def __init__(self, model: nn.Module, parts: Sequence[str], *, new: Iterable[str] = ()) -> None:
        """
        Args:
            model: Its parameters that require a gradient are those that learn when nothing is frozen.
            parts: Names of modules, or ``towers``.
            new: Names of parameters that start, wholly or in part, with random values.
        """
        self._modules = [module for name, module in model.named_modules() if any(_inside(name, p) for p in parts)]
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        frozen = {name: p for name, p in trained.items() if any(_inside(name, part) for part in parts)}
        for part in parts:
            if not any(_inside(name, part) for name, _ in model.named_parameters()):
                names = [name for name, child in model.named_children() if any(True for _ in child.parameters())]
                if any(_inside(name, TOWERS) for name, _ in model.named_modules()):
                    names.append(TOWERS)
                raise ValueError(f"train.freeze {part!r} is no part of this model; it has {', '.join(names)}")
        if parts and len(frozen) == len(trained):
            raise ValueError(f"train.freeze {', '.join(parts)} leaves nothing to learn")
        if random := sorted(set(new) & set(frozen)):
            raise ValueError(
                f"train.freeze {', '.join(parts)} holds {', '.join(random)}, which run.init_from leaves without "
                "weights for some keypoints; freeze other parts, or give them keypoints with run.init_map"
            )
        self._parameters = list(frozen.values())
        self.active = False

    def set(self, active: bool) -> None:
        """Freeze the parts, or let them learn. A DDP wrapper has to be made anew after it."""
        self.active = active
        for parameter in self._parameters:
            parameter.requires_grad_(not active)
            if active:
                parameter.grad = None

    def train(self, network: nn.Module) -> None:
        """Put the model, as the loop calls it, into training mode; frozen parts stay in evaluation mode."""
        network.train()
        if self.active:
            for module in self._modules:
                module.eval()


def _inside(name: str, part: str) -> bool:
    """Whether the module or parameter ``name`` belongs to ``part``."""
    if part == TOWERS:
        return any(word.endswith("_tower") for word in name.split("."))
    return name == part or name.startswith(f"{part}.")
