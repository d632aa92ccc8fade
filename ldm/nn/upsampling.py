"""Repetition of pixels and a 3x3 convolution after it, in one, with fewer products.

Around each of the four pixels that one becomes lie but 2x2 different ones, which the 3x3 weights
see once, twice or four times. Four convolutions of 2x2 with sums of those weights, one for each of
the four, are 16 products where there were 36, and the repeated map is never made. For the CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# For the even and the odd rows of the result: which rows of a 3x3 kernel fall on the upper and on
# the lower one of two rows of the map. The same of columns.
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
    """[B,C,h,w] -> [B,C',2h,2w], as repetition and a 3x3 convolution with padding 1 would be.

    `convolutions` are those of `PHASES`, with kernels of 2x2 and padding 1: [B,C',h+1,w+1].
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
