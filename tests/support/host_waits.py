"""Counts where the host would wait for a device, on a machine that has none."""

from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from posefleet.data.structures import People

_WAITS = {
    "__bool__", "__complex__", "__float__", "__index__", "__int__", "item", "tolist", "numpy", "cpu", "nonzero",
    "masked_select", "equal", "allclose", "unique", "unique_consecutive", "argwhere", "bincount",
}  # fmt: skip


class OnDevice(Tensor):
    """A tensor that plays one of a device. What is computed from it is one, too; what was copied to the host is not.

    Tensors of the model and new ones do not play: only values that depend on the input are followed.
    """

    seen: ClassVar[Counter[str]] = Counter()
    """Functions that made the host wait, and how often."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        masked = name in ("__getitem__", "__setitem__") and _has_mask(args[1])
        if name in _WAITS or masked or (name == "where" and len(args) == 1):
            cls.seen[name] += 1
            with torch._C.DisableTorchFunctionSubclass():
                plain = torch.utils._pytree.tree_map_only(OnDevice, lambda t: t.as_subclass(Tensor), args)
                result = func(*plain, **(kwargs or {}))
            on_host = name in ("cpu", "numpy") or not isinstance(result, Tensor)
            return result if on_host else result.as_subclass(OnDevice)
        return super().__torch_function__(func, types, args, kwargs or {})


def host_waits(run: Callable[[Tensor, list[People]], object], images: Tensor, people: list[People]) -> Counter[str]:
    """What made the host wait while ``run`` computed something from images and people."""
    OnDevice.seen = Counter()
    played = [p.map(lambda tensor: tensor.as_subclass(OnDevice)) for p in people]
    run(images.as_subclass(OnDevice), played)
    return OnDevice.seen


def _has_mask(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8) for part in parts)
