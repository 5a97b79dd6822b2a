"""Pixels as networks want them that are not trained on top of a timm backbone."""

import torch
from torch import Tensor, nn


class Normalise(nn.Module):
    """RGB images in 0..255 to about zero mean and unit deviation (ImageNet's), and back."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) of any dtype -> float."""
        pixels = images.to(self.mean.dtype, memory_format=torch.channels_last)
        return (pixels - self.mean) / self.std

    def undo(self, pixels: Tensor) -> Tensor:
        """Normalised (B, 3, H, W) -> 0..255."""
        return pixels * self.std + self.mean
