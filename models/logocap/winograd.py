"""3x3 convolutions of small maps with fewer multiplications (Winograd's minimal filtering; Lavin & Gray 2016, F(4, 3)).

A tile of 4 x 4 results needs 36 products of each pair of channels instead of 144. Inputs, weights and results are
transformed along rows and columns by small matrices, in which zero padding and the cut to the map's size are included.
Letters: N maps, C channels in, O channels out, S cells along a side, R = 6 ceil(S / 4) transformed cells along a side.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn

_TILE = 4
_DATA = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
"""From 6 cells of an input to 6 factors."""
_FILTER = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
"""From 3 weights to the other 6 factors."""
_RESULT = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)
"""From 6 products to 4 cells of the result."""


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution without bias that keeps the size; on a CPU it takes a third of the products.

    That is so for predictions in float32, for which the layer keeps its weights transformed, four times as large as
    they are. Training and GPUs use PyTorch's convolution.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=False)
        self._kept: tuple[tuple[int, int], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, S, S) -> (N, O, S, S)."""
        fast = x.device.type == "cpu" and x.dtype == torch.float32 and x.shape[2] == x.shape[3]
        if not fast or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            self._kept = None
            return super().forward(x)
        version = self.weight.data_ptr(), self.weight._version
        if self._kept is None or self._kept[0] != version:
            self._kept = version, transform_weight(self.weight)
        return winograd(x, self._kept[1])


def transform_weight(weight: Tensor) -> Tensor:
    """Weights (O, C, 3, 3) -> their factors (36, C, O)."""
    block = weight.new_tensor(_FILTER)
    return (torch.kron(block, block) @ weight.permute(2, 3, 1, 0).flatten(0, 1).flatten(1)).view(
        36, weight.shape[1], -1
    )


def winograd(x: Tensor, factors: Tensor) -> Tensor:
    """The convolution, with zero padding, of (N, C, S, S) with weights of which (36, C, O) are the factors.

    Returns:
        (N, O, S, S) in channels_last memory.
    """
    count, channels, side, _ = x.shape
    data, result = _matrices(side)
    tiles = len(data) // 6
    rows = data @ x.permute(0, 2, 3, 1).reshape(count, side, -1)  # (N, R, S * C)
    cells = data @ rows.view(count, len(data), side, channels)  # (N, R, R, C)
    cells = cells.view(count, tiles, 6, tiles, 6, channels).permute(2, 4, 0, 1, 3, 5)
    products = cells.reshape(36, -1, channels) @ factors  # (36, N * tiles^2, O)
    products = products.view(6, 6, count, tiles, tiles, -1).permute(2, 3, 0, 4, 1, 5)  # (N, tiles, 6, tiles, 6, O)
    rows = result @ products.reshape(count, len(data), -1)  # (N, S, R * O)
    found = result @ rows.view(count, side, len(data), -1)  # (N, S, S, O)
    return found.permute(0, 3, 1, 2)


@lru_cache(maxsize=16)
def _matrices(side: int) -> tuple[Tensor, Tensor]:
    """Transformations of inputs (R, S) and of products (S, R)."""
    tiles = -(-side // _TILE)
    with torch.inference_mode(False):
        block, outcome = (torch.tensor(rows, dtype=torch.float32) for rows in (_DATA, _RESULT))
        data, result = torch.zeros(tiles, 6, _TILE * tiles + 2), torch.zeros(_TILE * tiles, tiles, 6)
        for tile in range(tiles):
            data[tile, :, _TILE * tile : _TILE * tile + 6] = block
            result[_TILE * tile : _TILE * (tile + 1), tile] = outcome
        inside = data.flatten(0, 1)[:, 1 : side + 1]  # the first column is padding
        return inside.contiguous(), result[:side].flatten(1).contiguous()
