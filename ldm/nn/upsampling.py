"""Nearest-neighbour upsampling fused with the 3x3 convolution after it, with fewer products.

Each pixel becomes four, and the 3x3 neighbourhood of each of the four has only 2x2 distinct pixels,
seen by one, two or four weights. Four 2x2 convolutions with sums of those weights need 16 products
instead of 36, and the repeated map is never stored. For the CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# For the even and the odd rows of the result: the rows of a 3x3 kernel that fall on the upper and
# on the lower of two rows of the map. The same for columns.
_SUMS = (((1.0, 0.0, 0.0), (0.0, 1.0, 1.0)), ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
PHASES = tuple((row, column) for row in (0, 1) for column in (0, 1))


def phase_kernels(weight: Tensor) -> list[Tensor]:
    """Weights [C',C,3,3] -> [C',C,2,2] of each of `PHASES`."""
    sums = torch.tensor(_SUMS).to(weight)
    return [
        torch.einsum("ar,bs,oirs->oiab", sums[row], sums[column], weight).contiguous()
        for row, column in PHASES
    ]


def in_phases(x: Tensor, convolutions: list[Callable[[Tensor], Tensor]]) -> Tensor:
    """[B,C,h,w] -> [B,C',2h,2w], like repetition and a 3x3 convolution with padding 1.

    `convolutions` are those of `PHASES`, with 2x2 kernels and padding 1: [B,C',h+1,w+1].
    """
    height, width = x.shape[-2:]
    out: Tensor | None = None
    for (row, column), convolve in zip(PHASES, convolutions, strict=True):
        part = convolve(x)[..., row : row + height, column : column + width]
        if out is None:
            last = x.is_contiguous(memory_format=torch.channels_last)
            layout = torch.channels_last if last else torch.contiguous_format
            size = (*part.shape[:2], 2 * height, 2 * width)
            out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=layout)
        out[..., row::2, column::2] = part
    assert out is not None
    return out


def in_phases_of_size(
    x: Tensor,
    convolutions: list[Callable[[Tensor], Tensor]],
    bias: Tensor | None,
    size: tuple[int, int],
) -> Tensor:
    """The same for a `size` whose sides are twice those of x, or one less.

    Then the last row (column) of the repeated map is cut off before the convolution, which sees
    zeros in its place. What it would add to the row (column) before it is subtracted here. `bias`
    [C'] is that of the convolutions.
    """
    height, width = x.shape[-2:]
    offset = 0 if bias is None else bias[:, None]
    out = in_phases(x, convolutions)
    is_odd = [2 * side - own for side, own in zip((height, width), size, strict=True)]
    if is_odd[0]:
        parts = [convolutions[2 + c](x[..., -1:, :])[..., 0, c : c + width] for c in (0, 1)]
        out[..., -2, :] -= torch.stack(parts, dim=-1).flatten(-2) - offset
    if is_odd[1]:
        parts = [convolutions[2 * r + 1](x[..., -1:])[..., r : r + height, 0] for r in (0, 1)]
        out[..., -2] -= torch.stack(parts, dim=-1).flatten(-2) - offset
    if all(is_odd):  # what the corner adds was subtracted twice
        corner = convolutions[3](x[..., -1:, -1:])[..., 0, 0]
        out[..., -2, -2] += corner - (0 if bias is None else bias)
    return out[..., : size[0], : size[1]]
