"""Keeps parts of a model as they are for a while: no gradient, no moving statistics."""

from collections.abc import Iterable, Sequence

from torch import nn

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
