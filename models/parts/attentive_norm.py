"""Attentive Norm (Li et al.): a normalisation whose affine is a mixture that each instance chooses by attention."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posefleet.models.parts.heads import Norm, group_norm

_EPSILON = 1e-3
"""Added to the variance behind the attention."""


class AttentiveNorm(nn.Module):
    """A norm without affine, then scale and shift mixed from tables by weights that depend on the instance.

    Args:
        channels: C.
        mixture: Entries J of each table.
        kind: The norm below.
    """

    def __init__(self, channels: int, mixture: int, kind: Norm = "batch") -> None:
        super().__init__()
        self.norm: nn.Module = nn.BatchNorm2d(channels, affine=False)
        if kind == "group":
            self.norm = nn.GroupNorm(group_norm(channels).num_groups, channels, affine=False)
        self.attention = nn.Linear(channels, mixture, bias=False)
        self.scales = nn.Parameter(1 + 0.1 * torch.randn(mixture, channels))
        self.shifts = nn.Parameter(0.1 * torch.randn(mixture, channels))
        nn.init.kaiming_normal_(self.attention.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> the same shape."""
        with torch.autocast(x.device.type, enabled=False):  # a variance needs more than bfloat16's 8 bits
            variance, mean = torch.var_mean(x.float(), dim=(2, 3))  # (N, C)
            weights = F.hardsigmoid(self.attention(mean * torch.rsqrt(variance + _EPSILON)))  # (N, J)
            scale, shift = weights @ self.scales, weights @ self.shifts  # (N, C)
            out = torch.addcmul(shift[..., None, None], self.norm(x.float()), scale[..., None, None])
        return out.to(x.dtype)
