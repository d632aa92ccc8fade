"""Layers whose rounding depends on the number of rows in a batch, and how images avoid that.

A library uses different kernels for products of few and of many rows, with different last bits. So
that an image does not depend on its neighbours in a batch, the layers here can process one image at
a time. They are the small ones; where it was checked, the large ones give the same bits at every
size from two rows on, and `ldm.engine.engine` checks each time.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_images: contextvars.ContextVar[int] = contextvars.ContextVar("images", default=1)


@contextlib.contextmanager
def image_by_image(images: int) -> Iterator[None]:
    """Have the layers below process batches [B,...] in `images` parts of B / images rows."""
    token = _images.set(images)
    try:
        yield
    finally:
        _images.reset(token)


class VectorLinear(nn.Linear):
    """A linear layer for conditioning vectors [B,C] of images: time, class, pooled text."""

    def forward(self, input: Tensor) -> Tensor:
        return _parted(input, lambda part: F.linear(part, self.weight, self.bias))


class PointConv2d(nn.Conv2d):
    """A 1x1 convolution over [B,C,h,w]."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 1)

    def forward(self, input: Tensor) -> Tensor:
        return _parted(input, lambda part: F.conv2d(part, self.weight, self.bias))


def _parted(input: Tensor, layer: Callable[[Tensor], Tensor]) -> Tensor:
    images = _images.get()
    if images == 1:
        return layer(input)
    return torch.cat([layer(part) for part in torch.split(input, len(input) // images)])
