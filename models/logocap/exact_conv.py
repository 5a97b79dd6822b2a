"""A convolution that stays exact under autocast."""

import torch
from torch import Tensor, nn


class ExactConv2d(nn.Conv2d):
    """A convolution in the precision of its weights, also under autocast.

    Maps are searched for their largest cells. bfloat16 has 8 significant bits, so neighbouring cells of a peak tie: a
    map of one centre then has several maxima, and each becomes a pose.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w), any dtype -> (N, out_channels, h', w') in the dtype of the weights."""
        if not torch.amp.is_autocast_available(x.device.type):  # the device of shapes, meta
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))
